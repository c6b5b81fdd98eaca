"""``ghost-ops convert``: the way of a checkpoint to every other command."""

import pytest
import torch

from ghost_ops import models
from ghost_ops.cli.targets import make_net
from tests.helpers import make_map, randomise
from tests.models.sources import FirstCodeNet

from .command import error_of, found_by, invoke


@pytest.fixture(scope="module")
def source():
    return randomise(FirstCodeNet(0.5)).eval()


@pytest.fixture
def given(source, tmp_path):
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": source.state_dict()}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_becomes_one_of_ours(suffix, source, given, tmp_path):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    output = tmp_path / f"ours{suffix}"
    found = found_by("convert", given, output, "--model", "ghostnet_050", "--json")
    assert found["tensors"] == len(models.ghostnet_050().state_dict()) and found["read"] == len(source.state_dict())
    net = models.ghostnet_050(num_classes=7).eval()
    net.load_state_dict(models.load_checkpoint(output))
    x = make_map((2, 3, 64, 64))
    with torch.no_grad():
        expected = source(x)
        assert (net(x) - expected).abs().max() < 1e-5 * expected.abs().max()
        again = make_net(str(output), "ghostnet_050")  # the number of classes is that of the file
        assert (again(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_for_people_and_with_force(given, tmp_path):
    output = tmp_path / "ours.pth"
    output.write_text("keep me")
    arguments = "convert", given, output, "--model", "ghostnet_050"
    assert "--force overwrites it" in error_of(*arguments) and output.read_text() == "keep me"
    result = invoke(*arguments, "--force")
    assert result.exit_code == 0 and f"wrote {output} (" in result.stdout
    assert len(models.load_checkpoint(output)) == len(models.ghostnet_050().state_dict())


@pytest.mark.parametrize(
    "name, model, words",
    [
        ("theirs.pth", "ghostnet_05", "unknown model 'ghostnet_05': ghost_ops.models has no such net; did you mean"),
        ("theirs.pth", "ghostnet_130", "this is not a checkpoint of ghostnet_130: "),
        ("none.pth", "ghostnet_050", "none.pth does not exist, or is not a file"),
        ("cut.pth", "ghostnet_050", "cut.pth: the file is truncated"),
        ("notes.txt", "ghostnet_050", "notes.txt: expected one of the suffixes"),
    ],
)
def test_what_cannot_be_converted(name, model, words, given, tmp_path):
    (tmp_path / "cut.pth").write_bytes(given.read_bytes()[:1000])
    (tmp_path / "notes.txt").write_text("not weights")
    before = {path.name for path in tmp_path.iterdir()}
    assert words in error_of("convert", tmp_path / name, tmp_path / "ours.pth", "--model", model)
    assert {path.name for path in tmp_path.iterdir()} == before
