"""``ghost-ops export``: each toolchain that is installed, and what is said of those that are not."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch

from ghost_ops.backends import native
from ghost_ops.cli import formats
from ghost_ops.cli.export import _tool_of
from ghost_ops.cli.targets import make_net

from .command import error_of, found_by

SMALL = "tests.cli.nets:small"
needs_kernels = pytest.mark.skipif(not native.available(), reason="programs need the native library")


def export(path, tool, *options):
    return found_by("export", SMALL, "--size", "32", "--to", tool, "-o", path, "--json", *options)


def assert_same(call, net, batches, tolerance=1e-5):
    for batch in batches:
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = net(x)
        (out,) = (found if isinstance(found, (list, tuple)) else (found,) for found in [call(x)])
        assert (out[0] - expected).abs().max() <= tolerance * expected.abs().max()


@needs_kernels
@pytest.mark.parametrize(
    "options", [(), ("--plain",), ("--static",), ("--plain", "--static", "--batch", "1")], ids=" ".join
)
def test_torch_export(options, tmp_path):
    found = export(tmp_path / "net.pt2", "pt2", *options)
    is_static, batch = "--static" in options, 1 if "--batch" in options else 2
    assert found["input"] == f"{batch if is_static else 'N'} x 3 x 32 x 32 float32"
    assert found["error"] < 1e-5 and found["inputs"] == (1 if is_static else 2)
    program = torch.export.load(tmp_path / "net.pt2")
    ours = [node for node in program.graph.nodes if str(node.target).startswith("ghost_ops")]
    assert len(ours) == (0 if "--plain" in options else 1)
    assert_same(program.module(), make_net(SMALL), [batch] if is_static else [2, 1, 5])


@needs_kernels
@pytest.mark.slow
def test_aot_inductor(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    found = export(tmp_path / "net.pt2", "aoti")
    assert found["format"] == "AOTInductor" and found["input"] == "N x 3 x 32 x 32 float32"
    assert_same(torch._inductor.aoti_load_package(str(tmp_path / "net.pt2")), make_net(SMALL), [2, 7])


@pytest.mark.parametrize("options", [(), ("--static", "--batch", "3")], ids=" ".join)
def test_onnx(options, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    found = export(tmp_path / "net.onnx", "onnx", *options)
    assert found["checked_with"] == "onnxruntime" and found["error"] < 1e-5
    assert found["input"] == f"{3 if options else 'N'} x 3 x 32 x 32 float32"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert_same(formats.FORMATS["onnx"].load(tmp_path / "net.onnx"), make_net(SMALL), [3] if options else [1, 4])


def test_onnx_that_cannot_be_compared_is_written(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    found = export(tmp_path / "net.onnx", "onnx")
    assert found["error"] is None and found["checked_with"] == "onnxruntime" and (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("options", [(), ("--static", "--batch", "3")], ids=" ".join)
def test_openvino(options, tmp_path):
    pytest.importorskip("openvino")
    found = export(tmp_path / "net.xml", "openvino", *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    assert found["error"] < 1e-5 and found["bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert_same(formats.FORMATS["openvino"].load(tmp_path / "net.xml"), make_net(SMALL), [3] if options else [1, 4])


def test_openvino_does_not_overwrite_the_weights_of_another_net(tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "net.bin").write_text("keep me")
    message = error_of("export", SMALL, "--size", "32", "--to", "openvino", "-o", tmp_path / "net.xml")
    assert "net.bin exists: --force overwrites it" in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("net.bin", "keep me")]


@pytest.mark.parametrize("tool, packages", [("onnx", "onnx onnxscript"), ("openvino", "openvino")])
def test_packages_that_are_missing(tool, packages, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / f"net{formats.FORMATS[tool].suffix}"
    message = error_of("export", SMALL, "--to", tool, "-o", path)
    assert message == f"{packages.split()[0]} is not installed: pip install {packages}" and not path.exists()


def test_a_compiler_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    message = error_of("export", SMALL, "--size", "32", "--to", "aoti", "-o", tmp_path / "net.pt2")
    assert message.startswith("AOTInductor needs a C++ compiler") and not list(tmp_path.iterdir())


def test_what_a_tool_computes_wrongly_is_not_written(tmp_path, monkeypatch):
    right = formats.FORMATS["pt2"]
    wrong = formats.Format(**{**vars(right), "load": lambda path: lambda x: 1.001 * right.load(path)(x)})
    monkeypatch.setitem(formats.FORMATS, "pt2", wrong)
    message = error_of("export", SMALL, "--size", "32", "--to", "pt2", "--plain", "-o", tmp_path / "net.pt2")
    assert message.startswith("PyTorch computes something else: off by 1.0e-03") and not list(tmp_path.iterdir())


def test_a_suffix_of_another_tool(tmp_path):
    message = error_of("export", SMALL, "--to", "onnx", "-o", tmp_path / "net.pt2")
    assert message == f"{tmp_path}/net.pt2: expected a name that ends in .onnx"


def test_the_suffix_says_which_tool():
    suffixes = {name: form.suffix for name, form in formats.FORMATS.items()}
    assert [_tool_of(Path(name), suffixes) for name in ("a.onnx", "b/a.xml")] == ["onnx", "openvino"]
