import argparse
import io
import os
import pickle

import pytest
import torch

from ghost_ops.models import CheckpointError, load_checkpoint, save_checkpoint

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def saved(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def same(state):
    return state.keys() == STATE.keys() and all(torch.equal(state[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
def test_what_is_saved_is_loaded(tmp_path, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    path = tmp_path / name
    shared = {"a.weight": STATE["a.weight"].t().contiguous().t(), "a.bias": torch.nn.Parameter(STATE["a.bias"])}
    save_checkpoint(shared, path)
    assert same(load_checkpoint(path)) and same(load_checkpoint(str(path)))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="the file exists, and is not overwritten"):
        save_checkpoint({"b": torch.zeros(1)}, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "value",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}}},
        {"model": {"state_dict": STATE}, "args": argparse.Namespace(lr=0.1)},
        {f"module.{name}": value for name, value in STATE.items()},
        {f"module._orig_mod.{name}": value for name, value in STATE.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_taken_off(tmp_path, value, zipped):
    path = tmp_path / "ck.pth.tar"
    path.write_bytes(saved(value, _use_new_zipfile_serialization=zipped))
    assert same(load_checkpoint(path))


class _Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_other_objects_are_never_unpickled(tmp_path):
    evil = _Runs(tmp_path / "made")
    for data in (saved(evil), saved({"state_dict": STATE, "x": evil}), pickle.dumps(evil), saved(torch.nn.Linear(2, 2)),
                 saved(evil, _use_new_zipfile_serialization=False)):  # fmt: skip
        path = tmp_path / "net.pth"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="other objects are not loaded, since that could run code") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_truncated_files(tmp_path, name):
    whole, path = tmp_path / f"whole_{name}", tmp_path / name
    save_checkpoint(STATE, whole)
    data = whole.read_bytes()
    for length in (0, 1, 9, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"load_checkpoint: .*the file is truncated, or not a") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "expected a state_dict, names and tensors, got a list"),
        (torch.ones(2), "expected a state_dict, names and tensors, got a Tensor"),
        ({}, "got a dict of nothing"),
        ({"epoch": 1, "lr": 2, "x": 3, "y": 4}, "got a dict of 'epoch', 'lr', 'x', ..."),
        ({"state_dict": {"epoch": 1}}, "got a dict of 'epoch'"),
    ],
)
def test_what_is_no_state_dict(tmp_path, value, message):
    path = tmp_path / "a.pth"
    path.write_bytes(saved(value))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert message in str(error.value)


def test_paths(tmp_path):
    for function in (load_checkpoint, lambda path: save_checkpoint(STATE, path)):
        with pytest.raises(CheckpointError, match=r"expected one of the suffixes .safetensors, .pth, .*, got '.onnx'"):
            function(tmp_path / "a.onnx")
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "no_folder" / "a.pth")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "a.pth")


def test_what_could_not_be_written_is_removed(tmp_path, monkeypatch):
    def fails(value, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(STATE, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())
