"""A net written to a file, loaded again and compared, before the file takes its place."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import nn

from ..bench.outputs import as_one
from ..bench.quiet import quiet
from ..bench.results import error_of
from ..fused.frozen_net import Frozen
from ..surgery.freeze.compare import Arguments, accepts, drawn
from .console import Steps, failing
from .formats import Axes, Format
from .outputs import placed

TOLERANCE, HALF_TOLERANCE = 1e-5, 1e-2  # of the largest element; the latter in half precision
STEPS = 2  # that a progress bar counts
_AXES = ("N", "", "H", "W")


@dataclass
class Written:
    """What a command has written.

    Attributes:
        output, format, bytes: the file, its format, its size with what belongs to it.
        input: what the net in it takes; N, H and W may be any.
        checked_with: what has loaded it again; None where that is not installed.
        inputs: how many inputs it was compared on.
        compared_with: the net that it was compared with.
        error: the largest difference from it over the largest element; None where it was not compared.
        load: how people load it.
    """

    output: str
    format: str
    bytes: int
    input: str
    checked_with: str | None
    inputs: int
    compared_with: str
    error: float | None
    load: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        wrote = f"wrote {self.output} ({self.bytes / 1e6:.1f} MB, {self.format}), which takes {self.input}"
        found = (
            f"not compared, since {self.format} cannot be loaded here: pip install {self.checked_with}"
            if self.error is None
            else f"{self.checked_with} has loaded it: on {self.inputs} inputs it differs from {self.compared_with} by "
            f"{self.error:.1e} of the largest element"
        )
        return f"{wrote}\n{found}\nload it by: {self.load}"


def write_net(
    net: nn.Module,
    reference: nn.Module,
    call: Arguments,
    path: Path,
    form: Format,
    axes: Axes,
    force: bool,
    steps: Steps,
    hint: str = "",
) -> Written:
    """Write a net, load it again, and compare what it returns with another net, on inputs of every kind that it takes.

    Args:
        net: what is written.
        reference: what it is compared with, in the same dtype.
        call: an input that both take.
        axes: of the input that are to be dynamic.
        hint: what to do where the format does not take the net.

    Raises:
        ClickException: the format does not take the net, the file cannot be loaded, or what it returns differs. Nothing
            is written then.
    """
    (x,) = call.args
    compared_with = "the frozen net" if isinstance(reference, Frozen) else "the plain net"
    with placed(path, force) as file:
        steps.begin(f"writing {form.label}")
        with quiet(), failing(f"{form.label} does not take this net{hint}"):
            axes = form.write(net, x, file, axes)
        size = sum(made.stat().st_size for made in file.parent.iterdir())
        steps.begin("loading and comparing")
        inputs, error = _inputs(reference, call, axes), None
        checker = form.checker or "PyTorch"
        if form.checker is None or importlib.util.find_spec(form.checker) is not None:
            with quiet(), failing(f"{checker} does not load what was written"):
                loaded = form.load(file)
            error = max(_difference(loaded, reference, v, checker) for v in inputs)
            allowed = TOLERANCE if x.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
            if error > allowed:
                raise click.ClickException(
                    f"{checker} computes something else: off by {error:.1e} of the largest element from "
                    f"{compared_with}, {allowed:.0e} is allowed; nothing was written"
                )
    shape = " x ".join(_AXES[axis] if axis in axes else str(size) for axis, size in enumerate(x.shape))
    kind = str(x.dtype).removeprefix("torch.")
    return Written(str(path), form.label, size, f"{shape} {kind}", checker, len(inputs), compared_with, error,
                   form.how.format(path=path))  # fmt: skip


def _inputs(reference: nn.Module, call: Arguments, axes: Axes) -> list[torch.Tensor]:
    """The input, another batch, and another size, as far as these may change."""
    (x,) = call.args
    found = [x]
    if 0 in axes:
        found.append(drawn(reference, len(x) + 1, tuple(x.shape[2:]), 1).args[0])
    if {2, 3} <= set(axes):
        other = drawn(reference, len(x), (x.shape[2] + 32, x.shape[3] + 64), 2)
        found += [other.args[0]] if accepts(reference, other) else []
    return [v.contiguous() for v in found]


def _difference(loaded: object, reference: nn.Module, x: torch.Tensor, checker: str) -> float:
    shape = " x ".join(map(str, x.shape))
    with torch.no_grad():
        expected = as_one(reference(x.clone())).double()
        with quiet(), failing(f"{checker} does not run what was written on {shape}"):
            return error_of(as_one(loaded(x.clone())).double(), expected)
