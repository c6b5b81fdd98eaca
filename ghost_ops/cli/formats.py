"""The file formats that ``freeze`` and ``export`` write: how a net gets into each, and how it is loaded again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn

from .console import need

Call = Callable[[torch.Tensor], object]
Axes = tuple[int, ...]
BATCH, SIZES = (0,), (0, 2, 3)  # axes of an input that may be dynamic


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        label: its name for people.
        suffix: how its files end.
        packages: what writing needs.
        checker: the package that loads it; None for PyTorch.
        write: takes net, input, path and the axes of the input that are to be dynamic; returns those that are.
        load: takes a path; returns a function that runs what is in it.
        how: how people load it.
    """

    label: str
    suffix: str
    packages: tuple[str, ...]
    checker: str | None
    write: Callable[[nn.Module, torch.Tensor, Path, Axes], Axes]
    load: Callable[[Path], Call]
    how: str

    def check_packages(self) -> None:
        """Fail in one line where something is missing that writing needs."""
        for package in self.packages:
            need(package, command=f"pip install {' '.join(self.packages)}")


def _exported(net: nn.Module, x: torch.Tensor, axes: Axes) -> tuple[torch.export.ExportedProgram, Axes]:
    """The net as ``torch.export`` sees it, and those of the axes that its forward does not fix."""
    shapes = (dict.fromkeys(axes, torch.export.Dim.AUTO) or None,)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=shapes)
    *_, given = (node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
    return program, tuple(axis for axis in axes if isinstance(given.shape[axis], torch.SymInt))


def _write_pt2(net: nn.Module, x: torch.Tensor, path: Path, axes: Axes) -> Axes:
    program, axes = _exported(net, x, axes)
    torch.export.save(program, path)
    return axes


def _load_pt2(path: Path) -> Call:
    return torch.export.load(path).module()


def _write_aoti(net: nn.Module, x: torch.Tensor, path: Path, axes: Axes) -> Axes:
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise click.ClickException("AOTInductor needs a C++ compiler: install g++, or name one in CXX")
    program, axes = _exported(net, x, axes)
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return axes


def _load_aoti(path: Path) -> Call:
    return torch._inductor.aoti_load_package(str(path))


def _write_onnx(net: nn.Module, x: torch.Tensor, path: Path, axes: Axes) -> Axes:
    shapes = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None,)
    torch.onnx.export(
        net, (x,), path, dynamo=True, external_data=False, verbose=False, input_names=["input"], dynamic_shapes=shapes
    )
    return axes


def _load_onnx(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: [torch.from_numpy(out) for out in session.run(None, {given.name: x.numpy()})]


def _write_openvino(net: nn.Module, x: torch.Tensor, path: Path, axes: Axes) -> Axes:
    import openvino

    shape = [-1 if axis in axes else size for axis, size in enumerate(x.shape)]
    openvino.save_model(openvino.convert_model(net, example_input=x, input=shape), path, compress_to_fp16=False)
    return axes


def _load_openvino(path: Path) -> Call:
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: [torch.from_numpy(out.copy()) for out in model(x.numpy()).values()]


def _write_pickle(net: nn.Module, x: torch.Tensor, path: Path, axes: Axes) -> Axes:
    torch.save(net, path)
    return axes


def _load_pickle(path: Path) -> Call:
    return torch.load(path, weights_only=False)  # this process has just written it


_IN_PYTHON = "import ghost_ops, torch; "
FORMATS = {
    "onnx": Format(
        "ONNX", ".onnx", ("onnx", "onnxscript"), "onnxruntime", _write_onnx, _load_onnx,
        'onnxruntime.InferenceSession("{path}")',
    ),
    "openvino": Format(
        "OpenVINO", ".xml", ("openvino",), "openvino", _write_openvino, _load_openvino,
        'openvino.Core().compile_model("{path}", "CPU")',
    ),
    "aoti": Format(
        "AOTInductor", ".pt2", (), None, _write_aoti, _load_aoti,
        _IN_PYTHON + 'torch._inductor.aoti_load_package("{path}")',
    ),
    "pt2": Format(
        "torch.export", ".pt2", (), None, _write_pt2, _load_pt2, _IN_PYTHON + 'torch.export.load("{path}").module()'
    ),
    "pickle": Format(
        "torch.save", ".pt", (), None, _write_pickle, _load_pickle,
        _IN_PYTHON + 'torch.load("{path}", weights_only=False), only where you trust the file, since it runs code',
    ),
}  # fmt: skip
