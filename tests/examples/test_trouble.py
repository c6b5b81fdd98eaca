"""Trouble that the example is told of before the first step, or survives: broken folders, full disks, kills."""

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from .conftest import EXAMPLES
from .test_train import assert_same_bits, checkpoint, rows, run

ROOT = EXAMPLES.parent


def error_of(train, out, *options):
    """The line that the example ends with, before it has trained."""
    result = CliRunner().invoke(train.main, ["--out", str(out), *map(str, options)])
    assert result.exit_code in (1, 2), (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), "a trace-back"
    return " ".join(result.output.partition("Error: ")[2].split())


@pytest.fixture
def data(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "data"))


@pytest.fixture
def no_step(train, monkeypatch):
    monkeypatch.setattr(train, "train_epoch", lambda *_: pytest.fail("training has begun"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_jpeg(path):
    from PIL import Image

    Image.open(path).resize((300, 200)).save(path, format="JPEG")
    cut(path)


BROKEN = {
    "truncated": (cut, "image file is truncated"),
    "truncated JPEG": (cut_jpeg, "image file is truncated ("),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "html": (lambda path: path.write_text("<html>404</html>"), "it is not a picture of a known kind"),
    "a link that leads nowhere": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "No such file"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("split", ["train", "val"])
def test_broken_pictures_are_named_before_the_first_step(kind, split, train, data, tmp_path, no_step):
    change, why = BROKEN[kind]
    path = data / split / "bee" / "01.png"
    change(path)
    message = error_of(train, tmp_path / "out", "--data", data, "--side", 16, "--batch-size", 4)
    assert message.startswith(f"expected pictures, 1 of 48 cannot be read: {path}: {why}"), message
    assert not (tmp_path / "out").exists()


def test_the_first_broken_pictures_are_named(train, data, tmp_path, no_step):
    for path in sorted((data / "train/ant").glob("*.png"))[:7]:
        path.write_bytes(b"")
    message = error_of(train, tmp_path / "out", "--data", data, "--side", 16, "--batch-size", 4)
    assert message.count("the file is empty") == 5 and message.endswith("; and 2 more")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_later_is_named(workers, train, data, tmp_path):
    (data / "train/bee/01.png").write_bytes(b"")
    message = error_of(
        train, tmp_path / "out", "--data", data, "--side", 16, "--batch-size", 39, "--no-check", "--workers", workers
    )
    assert f"{data / 'train/bee/01.png'}: the file is empty" in message


def test_hidden_files_and_folders_are_left_out(train, data):
    (data / "train/.ipynb_checkpoints").mkdir()
    shutil.copy(data / "train/bee/01.png", data / "train/.ipynb_checkpoints/01-checkpoint.png")
    (data / "val/bee/.ipynb_checkpoints").mkdir()
    (data / "val/bee/.ipynb_checkpoints/01.png").write_bytes(b"")
    (data / "val/bee/._01.png").write_bytes(b"what macOS leaves behind")
    (data / "val/bee/folder.png").mkdir()
    found, val, classes, _ = train.images.load(data, 16, 0)
    assert (len(found), len(val), classes) == (39, 9, 3)


def test_a_class_without_images(train, data, tmp_path, no_step):
    for path in (data / "val/bee").glob("*.png"):
        path.unlink()
    message = error_of(train, tmp_path / "out", "--data", data)
    assert message.endswith(f"expected images of every class in {data / 'val'}, there are none of: bee")


def without(monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_a_run_is_kept(train, tmp_path, monkeypatch):
    without(monkeypatch, "matplotlib")
    said = run(train, tmp_path, "--epochs", 1, "--side", 8, "--batch-size", 500, "--plain")
    assert "matplotlib is not installed: there will be no curves.png" in said
    assert said.strip().endswith("checkpoint.pt, log.csv") and len(rows(tmp_path)) == 1
    assert checkpoint(tmp_path)["place"]["step"] == 2 and not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("module, package", [("PIL", "pillow"), ("sklearn", "scikit-learn")])
def test_packages_that_read_images_are_named(module, package, train, folder, tmp_path, monkeypatch, no_step):
    without(monkeypatch, module)
    message = error_of(train, tmp_path / "out", *(["--data", folder] if module == "PIL" else []))
    assert message == f"{package}, which reads the images, is not installed: pip install {package}"


def full(monkeypatch, train, after=0):
    """A disk on which only so many more files can be written."""
    written = []

    def fsync(file):
        written.append(file)
        if len(written) > after:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["training.record"].os, "fsync", fsync)


def test_a_full_disk_is_told_before_the_first_step(train, tmp_path, monkeypatch, no_step):
    full(monkeypatch, train)
    assert (
        error_of(train, tmp_path / "out", "--side", 8)
        == f"{tmp_path / 'out'} cannot be written: No space left on device"
    )
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_may_not_grow_so_far(train, tmp_path, no_step):
    """As on a full disk: the system refuses the bytes themselves."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        message = error_of(train, tmp_path / "out", "--side", 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message == f"{tmp_path / 'out'} cannot be written: File too large"
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("place", ["/proc/nowhere", "/sys/kernel/nowhere"])
def test_a_folder_that_cannot_be_written(place, train, no_step):
    assert error_of(train, place, "--side", 8).startswith(f"{place} cannot be written: ")


def test_a_disk_that_is_full_later_ends_no_training(train, tmp_path, monkeypatch):
    """The checkpoint of step 2 stays whole and the run goes on; it says so, and ends as failed. A resumed run has the
    bits of one that met no full disk."""
    options = ("--epochs", 1, "--side", 8, "--batch-size", 350, "--checkpoint-every", 2, "--plain")
    with monkeypatch.context() as patch:
        full(patch, train, after=3)  # the rehearsal, and a checkpoint with its folder
        message = error_of(train, tmp_path / "out", *options)
    assert message.startswith("checkpoint.pt could not be written: No space left on device; log.csv could not")
    assert checkpoint(tmp_path / "out")["place"]["step"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint.pt"]
    run(train, tmp_path / "out", *options, "--resume")
    run(train, tmp_path / "whole", *options)
    assert_same_bits(checkpoint(tmp_path / "out"), checkpoint(tmp_path / "whole"))


def test_a_disk_that_is_full_for_a_while(train, tmp_path, monkeypatch):
    """What could not be written is written with the next checkpoint."""
    refused, write = [3], sys.modules["training.record"].os.fsync

    def fsync(file):
        refused[0] -= 1
        if not refused[0]:
            raise OSError(28, "No space left on device")
        write(file)

    monkeypatch.setattr(sys.modules["training.record"].os, "fsync", fsync)
    said = run(train, tmp_path, "--epochs", 1, "--side", 8, "--batch-size", 350, "--checkpoint-every", 2, "--plain")
    assert "checkpoint.pt could not be written: No space left on device; the training goes on" in " ".join(said.split())
    assert checkpoint(tmp_path)["place"]["step"] == 4


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None])
def test_what_is_no_checkpoint(content, train, tmp_path, no_step):
    path = tmp_path / "checkpoint.pt"
    if content is None:
        torch.save({"0.weight": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    message = error_of(train, tmp_path, "--side", 8, "--resume")
    assert message.endswith(f"{path} is not a checkpoint of this program"), message
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_left_unfinished(train, tmp_path):
    """The log and the curves of a run that was killed just after its last checkpoint are written by the next."""
    options = ("--epochs", 1, "--side", 8, "--batch-size", 500, "--plain")
    run(train, tmp_path, *options)
    log = (tmp_path / "log.csv").read_bytes()
    (tmp_path / "log.csv").unlink()
    (tmp_path / "checkpoint.unfinished").write_bytes(b"half of a")
    run(train, tmp_path, *options, "--resume")
    assert (tmp_path / "log.csv").read_bytes() == log and not (tmp_path / "checkpoint.unfinished").exists()


def test_kills_cost_no_checkpoint(fused):
    """``make kills`` does so fifty times."""
    command = [sys.executable, "-m", "tests.examples.kills", "--kills", "2", "--epochs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 kills" in done.stdout and "no checkpoint lost" in done.stdout
