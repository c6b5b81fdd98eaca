"""What MODEL may be, and what is said where it is none of that: one line, no trace-back, nothing written."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ghost_ops.cli import targets
from ghost_ops.models import ghostnet_050

from . import nets
from .command import error_of

NETS = "tests.cli.nets"


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The current directory, with good and bad files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    state = nets.small().state_dict()
    torch.save(state, "small.pth")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, "wrapped.pt")
    torch.save({name: value for name, value in state.items() if "num_batches" not in name}, "old.pth")
    torch.save(ghostnet_050(num_classes=3).state_dict(), "other.pth")
    torch.save({**state, "0.weight": torch.ones(2, 2)}, "shape.pth")
    Path("cut.pth").write_bytes(Path("small.pth").read_bytes()[:500])
    Path("noise.safetensors").write_bytes(b"\x10 nothing that is safe")
    Path("harmful.pth").write_bytes(pickle.dumps(Harmful()))
    torch.save(nets.small(), "object.pth")
    torch.save([1, 2], "list.pth")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), "program.pt2")
    Path("folder.pth").mkdir()
    Path("broken.py").write_text("import nothing_that_exists\n")
    Path("wrong.py").write_text("def make(:\n")
    Path("here.py").write_text("from tests.cli.nets import small\n")
    Path("exists.pt2").write_text("keep me")
    return tmp_path


def write(*model):
    return ("freeze", *model, "-o", "out.pt2")


ERRORS = {
    "unknown name": (("ghostnet_10",), "unknown model 'ghostnet_10'", "did you mean ", "ghostnet_100"),
    "nothing like it": (("qqqqqq",), "unknown model 'qqqqqq'"),
    "no module": (("nowhere.at:all",), "there is no module 'nowhere', here or installed"),
    "no module inside": ((f"{NETS}.more:all",), f"there is no module '{NETS}.more'"),
    "import fails": (("broken:make",), "importing broken raised ModuleNotFoundError: No module named 'nothing_that"),
    "syntax": (("wrong:make",), "importing wrong raised SyntaxError"),
    "no factory": ((f"{NETS}:smal",), f"{NETS} has no 'smal'; did you mean small"),
    "not a path": (("a b:c",), "'a b:c': expected a factory such as package.module:factory"),
    "not callable": ((f"{NETS}:CONSTANT",), "is a int: expected a function or class that returns a torch.nn.Module"),
    "a net": ((f"{NETS}:net",), "is a Conv2d: expected a function"),
    "factory raises": ((f"{NETS}:raises",), f"{NETS}:raises() raised ValueError: no such luck"),
    "factory leaves": ((f"{NETS}:leaves",), "raised SystemExit: 3"),
    "factory returns": ((f"{NETS}:returns_none",), "returned a NoneType: expected a torch.nn.Module"),
    "factory needs": ((f"{NETS}:needs",), "raised TypeError", "missing 1 required positional argument"),
    "no file": (("none.pth", "--model", f"{NETS}:small"), "none.pth does not exist, or is not a file"),
    "a folder": (("folder.pth", "--model", f"{NETS}:small"), "folder.pth does not exist, or is not a file"),
    "whose weights": (("small.pth",), "small.pth holds weights only: say of which net, by --model NAME"),
    "truncated": (("cut.pth", "--model", f"{NETS}:small"), "cut.pth: the file is truncated"),
    "noise": (("noise.safetensors", "--model", f"{NETS}:small"), "noise.safetensors: the file is truncated"),
    "a pickle": (("harmful.pth", "--model", f"{NETS}:small"), "harmful.pth", "could run code"),
    "an object": (("object.pth", "--model", f"{NETS}:small"), "object.pth", "could run code"),
    "a list": (("list.pth", "--model", f"{NETS}:small"), "list.pth: expected a state_dict"),
    "another net": (
        ("other.pth", "--model", f"{NETS}:small"),
        f"other.pth is not a state_dict of {NETS}:small: conv_stem.weight is unexpected; bn1.weight is unexpected; ",
        "; and ",
    ),
    "another shape": (("shape.pth", "--model", f"{NETS}:small"), "0.weight has shape (2, 2), expected (8, 3, 3, 3)"),
    "unknown --model": (("small.pth", "--model", "ghostnet_10"), "unknown model 'ghostnet_10'"),
    "a program": (("program.pt2",), "program.pt2 is an exported program", "name the net that it was made from"),
    "no image": ((f"{NETS}:features",), "the net has no convolution that says how many channels"),
    "its input": ((f"{NETS}:two_inputs",), "the net does not take float32 2 x 3 x 224 x 224; is --size right?"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, words", [(row[0], row[1:]) for row in ERRORS.values()], ids=ERRORS)
def test_errors_are_one_line_and_nothing_is_written(arguments, words, files):
    before = {path.name for path in files.iterdir()}
    message = error_of(*write(*arguments))
    assert all(word in message for word in words), message
    assert {path.name for path in files.iterdir()} - {"__pycache__"} == before and not Path("harmed").exists()


USAGE = {
    "--model of a name": (write(f"{NETS}:small", "--model", "ghostnet_050"), "--model is for a file of weights"),
    "--pretrained file": (write("small.pth", "--model", "x", "--pretrained"), "--pretrained is for names of timm's"),
    "--pretrained factory": (write(f"{NETS}:small", "--pretrained"), "--pretrained is for names of timm's"),
    "no output": (("freeze", f"{NETS}:small"), "Missing option '-o'"),
    "size": (write(f"{NETS}:small", "--size", "big"), "expected pixels such as 224 or 224x320, got 'big'"),
    "no size": (write(f"{NETS}:small", "--size", "0x3"), "expected pixels"),
    "batch": (write(f"{NETS}:small", "--batch", "0"), "--batch"),
    "dtype": (write(f"{NETS}:small", "--dtype", "float16"), "--dtype"),
    "tool": (("export", f"{NETS}:small", "-o", "x.pt2", "--to", "tflite"), "--to"),
    "which tool": (("export", f"{NETS}:small", "-o", "x.pt2"), "end in .pt2: --to aoti or --to pt2"),
    "no tool": (
        ("export", f"{NETS}:small", "-o", "x.tflite"),
        "x.tflite: expected one of the suffixes .onnx, .xml, .pt2",
    ),
    "plain": (("export", f"{NETS}:small", "-o", "x.onnx", "--to", "onnx", "--plain"), "--plain is for aoti and pt2"),
}


@pytest.mark.parametrize("arguments, words", USAGE.values(), ids=USAGE)
def test_commands_that_are_written_wrongly(arguments, words, files):
    assert words in error_of(*arguments, code=2)


OUTPUTS = {
    "exists": ("exists.pt2", "exists.pt2 exists: --force overwrites it"),
    "suffix": ("out.txt", "out.txt: expected a name that ends in .pt2 or .pt"),
    "folder": ("nowhere/out.pt2", "the folder nowhere does not exist"),
}


@pytest.mark.parametrize("output, words", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_are_looked_at_before_any_work(output, words, files, monkeypatch):
    monkeypatch.setattr(targets, "make_net", lambda *_: pytest.fail("work has begun"))
    assert words in error_of("freeze", f"{NETS}:small", "-o", output)
    assert Path("exists.pt2").read_text() == "keep me"


def test_a_factory_in_the_current_directory(files):
    net = targets.make_net("here:small")
    assert type(net) is nn.Sequential and not net.training


@pytest.mark.parametrize("name", ["small.pth", "wrapped.pt", "old.pth"])
def test_weights_from_a_file(name, files):
    net = targets.make_net(name, f"{NETS}:small")
    assert torch.equal(net[0].weight, nets.small()[0].weight) and not net.training


def test_weights_from_safetensors(files):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(nets.small().state_dict(), "small.safetensors")
    assert torch.equal(targets.make_net("./small.safetensors", f"{NETS}:small")[3].primary_conv[0].weight,
                       nets.small()[3].primary_conv[0].weight)  # fmt: skip


def test_names_of_timms():
    pytest.importorskip("timm")
    net = targets.make_net("ghostnet_050")
    assert type(net).__module__ == "timm.models.ghostnet"
    again = targets.make_net("ghostnet_050")
    assert torch.equal(net.conv_stem.weight, again.conv_stem.weight), "drawn weights are the same each time"
    assert targets._size_of(net) == (224, 224)


def test_names_of_ours_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert type(targets.make_net("ghostnet_050")).__module__.startswith("ghost_ops.models")
    assert error_of("explain", "qqqqqq") == (
        "unknown model 'qqqqqq': ghost_ops.models has no such net, and timm is not installed: pip install timm"
    )
    assert error_of("explain", "ghostnet_050", "--pretrained") == "timm is not installed: pip install timm"


def test_timm_that_cannot_be_imported(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(targets.importlib, "import_module", fail)
    assert type(targets.make_net("ghostnet_050")).__module__.startswith("ghost_ops.models")
    message = error_of("explain", "qqqqqq")
    assert message.endswith("timm cannot be imported: RuntimeError: operator torchvision::nms does not exist")


def test_nothing_is_downloaded_unless_it_is_asked_for(monkeypatch):
    timm = pytest.importorskip("timm")
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append(pretrained) or nets.small())
    targets.make_net("ghostnet_100")
    targets.make_net("ghostnet_100", pretrained=True)
    assert asked == [False, True]


def test_a_download_that_fails(monkeypatch):
    timm = pytest.importorskip("timm")

    def fail(name, pretrained):
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", fail)
    assert error_of("explain", "ghostnet_100", "--pretrained") == "timm cannot make ghostnet_100: OSError: no network"


def test_the_size_that_a_net_names():
    net = nets.small()
    net.pretrained_cfg = {"input_size": (3, 40, 48)}
    assert targets.example_of(net.eval(), 2, None).args[0].shape == (2, 3, 40, 48)
    assert targets.example_of(net.eval(), 1, (32, 64)).args[0].shape == (1, 3, 32, 64)
