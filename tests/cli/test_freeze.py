"""``ghost-ops freeze``: what is written, and what loads it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ghost_ops
from ghost_ops import surgery
from ghost_ops.backends import native
from ghost_ops.cli import writing
from ghost_ops.cli.targets import make_net

from .command import error_of, found_by, invoke

SMALL = "tests.cli.nets:small"
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not native.available(), reason="programs need the native library")

LOADS = """
import sys
import ghost_ops, torch
net = torch.export.load(sys.argv[1]).module()
x, out = torch.load(sys.argv[2])
assert "tests" not in sys.modules, "the code of the net was imported"
print(bool(torch.equal(net(x), out)))
"""


def freeze(output, *options):
    return found_by("freeze", SMALL, "--size", "32", "-o", output, "--json", *options)


def test_a_file_that_loads_without_the_code_of_the_net(tmp_path):
    found = freeze(tmp_path / "net.pt2")
    assert found["format"] == "torch.export" and found["input"] == "N x 3 x H x W float32"
    assert found["inputs"] == 3 and found["error"] < 1e-5 and found["compared_with"] == "the plain net"
    assert found["bytes"] == (tmp_path / "net.pt2").stat().st_size and str(tmp_path) in found["load"]
    x = torch.randn(3, 3, 40, 24)
    with torch.no_grad():
        torch.save((x, ghost_ops.freeze(make_net(SMALL))(x)), tmp_path / "values")
    command = [sys.executable, "-c", LOADS, str(tmp_path / "net.pt2"), str(tmp_path / "values")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_bfloat16(tmp_path):
    found = freeze(tmp_path / "net.pt2", "--dtype", "bfloat16")
    assert found["input"].endswith("bfloat16") and found["compared_with"] == "the frozen net"
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(2, 3, 32, 32).bfloat16()
    assert loaded(x).dtype is torch.bfloat16


def test_a_pickle_keeps_the_class(tmp_path):
    found = freeze(tmp_path / "net.pt")
    assert "runs code" in found["load"]
    net = torch.load(tmp_path / "net.pt", weights_only=False)
    assert isinstance(net, torch.nn.Sequential) and len(net) == 7


def test_for_people(tmp_path):
    result = invoke("freeze", SMALL, "--size", "32", "-o", tmp_path / "net.pt2")
    assert result.exit_code == 0
    for words in ("wrote ", "which takes N x 3 x H x W float32", "PyTorch has loaded it: on 3 inputs", "load it by: "):
        assert words in result.stdout


def test_force(tmp_path):
    path = tmp_path / "net.pt2"
    path.write_text("keep me")
    assert "--force overwrites it" in error_of("freeze", SMALL, "-o", path) and path.read_text() == "keep me"
    freeze(path, "--force")
    assert path.stat().st_size > 1000


def test_a_net_that_torch_export_does_not_take(tmp_path):
    arguments = "freeze", "tests.cli.nets:branches", "--size", "16", "-o"
    message = error_of(*arguments, tmp_path / "net.pt2")
    assert message.startswith("torch.export does not take this net (write it to a name that ends in .pt): ")
    assert not list(tmp_path.iterdir())


def test_nothing_to_freeze(tmp_path):
    message = error_of("freeze", "tests.cli.nets:plain_linear", "--size", "8", "-o", tmp_path / "net.pt2")
    assert message.startswith("nothing of tests.cli.nets:plain_linear can be frozen: ")
    assert not list(tmp_path.iterdir())


def test_a_difference_is_an_error_and_leaves_everything_as_it_was(tmp_path, monkeypatch):
    right = surgery.freeze

    def wrong(net, *args, **kwargs):
        frozen = right(net, *args, **kwargs)
        frozen.frozen_programs[0].packed.mul_(1.001)
        return frozen

    monkeypatch.setattr(surgery, "freeze", wrong)
    (tmp_path / "net.pt2").write_text("keep me")
    message = error_of("freeze", SMALL, "--size", "32", "-o", tmp_path / "net.pt2", "--force")
    assert message.startswith("PyTorch computes something else: off by ") and "nothing was written" in message
    assert (tmp_path / "net.pt2").read_text() == "keep me" and len(list(tmp_path.iterdir())) == 1


def test_the_bound():
    assert writing.TOLERANCE == 1e-5
