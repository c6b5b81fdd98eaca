import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from ghost_ops.cli.images import Picture, make_picture, normalised
from ghost_ops.demo import digits

from .command import error_of, found_by, invoke

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

NETS = "tests.cli.nets"
SMALL = "ghosts", f"{NETS}:small"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), (200, 10, 60)).save("red.png")
    Path("text.jpg").write_text("not an image")
    Path("cut.png").write_bytes(Path("red.png").read_bytes()[:60])
    return tmp_path


def test_a_photograph(folder):
    found = found_by(*SMALL, "--size", "48", "--pairs", "2", "--json")
    assert found["layer"] == "3" and found["kind"] == "GhostModule" and found["shape"] == [16, 24, 24]
    assert [row["map"] for row in found["cheap"]] == list(range(8, 16))
    assert [row["made_from"] for row in found["cheap"]] == list(range(8))
    assert len(found["pairs"]) == 2 and found["drawn"] == 16 and found["input"] == [1, 3, 48, 48]
    assert found["image"] == "scikit-learn's photograph china" and found["weights"] == "as the factory makes it"
    assert Path("ghosts.png").read_bytes().startswith(b"\x89PNG")
    assert error_of(*SMALL) == "ghosts.png exists: --force overwrites it"


def test_what_people_read(folder):
    result = invoke(*SMALL, "0", "--size", "32", "--layer", "0", "-o", "maps.svg", "--pairs", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{NETS}:small (as the factory makes it), digit 0 of the test set, a 7, 0: Conv2d"
    assert lines[1].startswith("1: maps ") and lines[-1] == "wrote maps.svg, with 8 maps"
    assert "<svg" in Path("maps.svg").read_text()


def test_digits_are_learned_first(folder, monkeypatch):
    asked = []

    def trained_net(side, on_step):
        asked.append(side)
        return digits.SmallGhostNet().eval(), 0.875

    monkeypatch.setattr(digits, "trained_net", trained_net)
    found = found_by("ghosts", "digits", "3", "--json")
    assert asked == [32] and found["weights"] == "trained, 87.5% right in the test set"
    assert found["layer"] == "blocks.0.ghost1" and found["input"] == [1, 1, 32, 32]
    assert "takes neither" in error_of("ghosts", "digits", "--pretrained", "--force", code=2)


def test_training_on_digits():
    steps = []
    net, accuracy = digits.trained_net(8, 1, lambda: steps.append(1))
    assert len(steps) == digits.STEPS_PER_EPOCH and 0 <= accuracy <= 1
    assert type(net.blocks[0].ghost1).__name__ == "GhostModule" and not net.training
    data = digits.load(8)
    with torch.no_grad():
        assert float((net(data.test).argmax(1) == data.test_labels).float().mean()) == pytest.approx(accuracy, abs=0.01)


ERRORS = {
    "no photograph": (("nowhere.jpg",), "nowhere.jpg does not exist, or is not a file: IMAGE is a file, a number"),
    "a name like it": (("chna",), "; did you mean china?"),
    "a text": (("text.jpg",), "text.jpg is not an image that pillow can read: give a .png or .jpg"),
    "truncated": (("cut.png",), "cut.png cannot be read: "),
    "no such digit": (("100000",), "there is no digit 100000: expected 0 to 359, or a file"),
    "no such layer": (("red.png", "--layer", "3.cheap_operatoin.0"), "has no layer '3.cheap_operatoin.0'; did you mean "
                                                                    "3.cheap_operation.0"),
    "nothing like it": (("red.png", "--layer", "qqq"), "has no layer 'qqq'; layers are for example 0, 1, 2"),
    "no maps": (("red.png", "--layer", "6"), "'6' returns no maps N x C x H x W"),
    "a folder": (("red.png", "-o", "nowhere/x.png"), "the folder nowhere does not exist"),
    "a format": (("red.png", "-o", "x.docx"), "x.docx: expected a name that ends in .png or .svg or .pdf"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, words", ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line_and_nothing_is_written(arguments, words, folder):
    before = set(folder.iterdir())
    message = error_of(*SMALL, *arguments, "--size", "32")
    assert words in message, message
    assert set(folder.iterdir()) == before


def test_nets_that_have_nothing_to_show(folder):
    assert "no convolution that says how many channels" in error_of("ghosts", f"{NETS}:features")
    assert "takes images of 8 channels: expected a net for 1 or 3" in error_of("ghosts", f"{NETS}:eight")


def test_missing_packages_are_named(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert error_of(*SMALL) == 'matplotlib is not installed: pip install "ghost-ops[demo]"'


@pytest.mark.parametrize("kind, name", [("uint8", "grey.png"), ("uint16", "grey.png"), ("float32", "grey.tiff")])
def test_grey_images_of_any_depth(kind, name, folder):
    expected = torch.arange(12.0).reshape(3, 4) / 11
    values = (expected.double() * {"uint8": 255, "uint16": 65535, "float32": 7}[kind]).round(
        decimals=0 if "u" in kind else 9
    )
    Image.fromarray(values.numpy().astype(kind)).save(name)
    torch.testing.assert_close(make_picture(name).pixels, expected.expand(3, 3, 4), rtol=0, atol=0.003)


def test_images_keep_their_shape_and_are_cut_in_the_middle():
    pixels = torch.zeros(3, 20, 60)
    pixels[:, :, 20:40] = 1
    assert torch.equal(Picture("", pixels).fitted(3, (10, 10)), torch.ones(3, 10, 10))
    assert Picture("", pixels).fitted(1, (10, 30)).shape == (1, 10, 30)
    grey = make_picture("7").fitted(1, (8, 8))
    torch.testing.assert_close(normalised(nn.Identity(), grey)[0], digits.load(8).test[7], rtol=0, atol=1e-5)
