"""The ways to run a Ghost module or a net with PyTorch: the targets, which are ghost_ops, and the baselines.

A baseline is built for one module and one input, in its best layout, with everything prepared that it can prepare ahead
of time. Only the call is timed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse

from .. import surgery
from ..fused import FrozenProgram
from ..nn import GhostModule
from .machine import Unavailable
from .outputs import as_one
from .timing import interleave

NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
FUSED, FROZEN, FROZEN_BFLOAT16 = "ghost_ops", "frozen", "frozen_bfloat16"
TARGETS = (FUSED, FROZEN, FROZEN_BFLOAT16)  # what baselines are compared with; they always run


@dataclass
class Built:
    """A baseline that is ready to run.

    Attributes:
        call: what is timed; returns the result in whatever form the engine has.
        result: the result of a call as an N x C x H x W tensor, or as several where the net returns several.
        check: raises RuntimeError where what was timed is not what the baseline's name says.
        input: what a call reads, N x C x H x W, for other images to be copied into; None where there is no such way.
        note: what there is to know of it beside its time.
    """

    call: Callable[[], object]
    result: Callable[[object], object] = lambda out: out
    check: Callable[[], None] = lambda: None
    input: torch.Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class Baseline:
    """A way to run a module: a target or what it is compared with.

    Attributes:
        name: its name in results.
        label: its name for people.
        group: target, pytorch or engine.
        build: takes module, input (channels_last) and threads; raises ``Unavailable`` where it cannot run here.
        dtype: the dtype of the products, float32 or bfloat16.
    """

    name: str
    label: str
    group: str
    build: Callable[[nn.Module, torch.Tensor, int], Built]
    dtype: str = "float32"


def _without_grad(module: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return module(x)

    return call


def _eager(layout: torch.memory_format) -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        module = copy.deepcopy(module).to(memory_format=layout)
        return Built(_without_grad(module, x.contiguous(memory_format=layout)))

    return build


def _fused(layout: torch.memory_format) -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        """A module shares its weights with the plain one; a net is copied, since ``fuse`` works in place."""
        if isinstance(module, GhostModule):
            fused = surgery.fuse(copy.copy(module))
        else:
            fused = surgery.fuse(copy.deepcopy(module).to(memory_format=layout))
        return Built(_without_grad(fused, x.contiguous(memory_format=layout)))

    return build


def _frozen(layout: torch.memory_format, dtype: torch.dtype = torch.float32) -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            frozen = surgery.freeze(module, dtype)
        if not any(isinstance(part, FrozenProgram) for part in frozen.modules()):
            raise Unavailable("; ".join(str(w.message) for w in caught) or "freeze found nothing to freeze")
        x = x.to(dtype, memory_format=layout, copy=True)
        return Built(_without_grad(frozen, x), lambda out: as_one(out).float(), input=x)

    return build


def fold(module: nn.Module) -> torch.fx.GraphModule:
    """A traced copy of a module in eval whose BatchNorms are folded into the convolutions before them.

    Raises:
        Unavailable: one of its BatchNorms cannot be folded.
    """
    folded = fuse(module, no_trace=True)
    left = [name for name, child in folded.named_modules() if isinstance(child, nn.BatchNorm2d)]
    if left:
        raise Unavailable(f"its BatchNorm {left[0]} does not follow a convolution of its own")
    return folded.requires_grad_(False)


def _folded(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    return Built(_without_grad(fold(module).to(memory_format=CHANNELS_LAST), x))


class TwoKernels(nn.Module):
    """A Ghost module as two folded convolutions, each written into its half of an output that is kept.

    PyTorch has no convolution that writes into a slice. Two ways come close, and the better one is timed: oneDNN's
    convolution with its ReLU fused, copied into the slice; or BLAS's product straight into the slice, then ReLU.
    """

    def __init__(self, module: GhostModule) -> None:
        super().__init__()
        folded = fold(module)
        self.first, self.second = (folded.get_submodule(f"{half}.0") for half in ("primary_conv", "cheap_operation"))
        self.to(memory_format=CHANNELS_LAST)
        self.out, self.relu = module.oup, isinstance(module.primary_conv[2], nn.ReLU)
        self.product = False
        self.kept: torch.Tensor | None = None

    def _convolve(self, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if torch.backends.mkldnn.is_available():
            return torch.ops.mkldnn._convolution_pointwise(
                x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups,
                "relu" if self.relu else "none", [], "",
            )  # fmt: skip
        z = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return z.relu_() if self.relu else z

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width = x.shape
        if self.kept is None or self.kept.shape != (n, self.out, height, width):
            self.kept = x.new_empty(n, self.out, height, width).contiguous(memory_format=CHANNELS_LAST)
        out, m = self.kept, self.first.out_channels
        if self.product:
            pixels, rows = x.permute(0, 2, 3, 1).reshape(-1, channels), out.permute(0, 2, 3, 1).view(-1, self.out)
            torch.addmm(self.first.bias, pixels, self.first.weight.flatten(1).t(), out=rows[:, :m])
            y1 = out[:, :m]
            y1 = y1.relu_() if self.relu else y1
        else:
            y1 = self._convolve(self.first, x)
            out[:, :m].copy_(y1)
        out[:, m:].copy_(self._convolve(self.second, y1)[:, : self.out - m])
        return out


def _two_kernels(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    if isinstance(module, GhostModule):
        net = TwoKernels(module)
    else:
        net = copy.deepcopy(module)
        for path, child in list(net.named_modules()):
            if isinstance(child, GhostModule):
                owner, _, name = path.rpartition(".")
                setattr(net.get_submodule(owner), name, TwoKernels(child))
        net = fold_around(net)
    parts = [m for m in net.modules() if isinstance(m, TwoKernels)]

    def variant(product: bool) -> Callable[[], torch.Tensor]:
        run = _without_grad(net, x)

        def call() -> torch.Tensor:
            for part in parts:
                part.product = product
            return run()

        return call

    times = interleave({"copy": variant(False), "product": variant(True)}, rounds=3, threads=threads, min_seconds=0.01)
    call = variant(times["product"].median < times["copy"].median)
    call()
    return Built(_without_grad(net, x))


def fold_around(net: nn.Module) -> nn.Module:
    """``fold`` that leaves ``TwoKernels`` whole."""

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, TwoKernels) or super().is_leaf_module(module, name)

    return fold(torch.fx.GraphModule(net, Tracer().trace(net)))


def compile_alone(
    module: nn.Module, freezing: bool = False
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[], None]]:
    """``torch.compile`` of a module, and a check that one graph was made of it, and none since.

    It has a backend of its own: entries of equal backends are shared by all modules of a class, so that a frozen one
    could silently run what was compiled for another. Nor may anything call ``torch._dynamo.reset``, which un-freezes.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx

    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        nonlocal graphs
        graphs += 1
        return compile_fx(graph, inputs)

    compiled = torch.compile(module, backend=backend, dynamic=False)
    limits = {"recompile_limit": 1 << 16, "accumulated_recompile_limit": 1 << 16}

    def run(x: torch.Tensor) -> torch.Tensor:
        if graphs:
            return compiled(x)
        try:
            with dynamo.patch(limits), inductor.patch(freezing=freezing):
                return compiled(x)
        except Exception as error:
            if type(error).__module__.startswith("torch._"):
                raise Unavailable(f"it does not compile here: {_first_line(error)}") from error
            raise

    def check() -> None:
        if graphs != 1:
            raise RuntimeError(f"torch.compile made {graphs} graphs of one module and one input")

    return run, check


def _compiled(freezing: bool) -> Callable[..., Built]:
    def build(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
        run, check = compile_alone(copy.deepcopy(module).to(memory_format=CHANNELS_LAST), freezing)

        def call() -> torch.Tensor:
            with torch.no_grad():
                return run(x)

        call()
        return Built(call, check=check)

    return build


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


BASELINES: dict[str, Baseline] = {}  # targets and baselines by name, in the order in which tables show them


def register(*baselines: Baseline) -> None:
    """Add what ``ghost-ops bench`` runs; an engine calls this in its own module."""
    BASELINES.update({baseline.name: baseline for baseline in baselines})


def baselines_of(dtype: str) -> list[Baseline]:
    """The targets and baselines whose products have this dtype."""
    return [baseline for baseline in BASELINES.values() if baseline.dtype == dtype]


register(
    Baseline(FUSED, "ghost_ops", "target", _fused(CHANNELS_LAST)),
    Baseline("ghost_ops_nchw", "ghost_ops, NCHW", "target", _fused(NCHW)),
    Baseline(FROZEN, "ghost_ops.freeze", "target", _frozen(CHANNELS_LAST)),
    Baseline("frozen_nchw", "ghost_ops.freeze, NCHW", "target", _frozen(NCHW)),
    Baseline("eager_nchw", "eager, NCHW", "pytorch", _eager(NCHW)),
    Baseline("eager", "eager, channels_last", "pytorch", _eager(CHANNELS_LAST)),
    Baseline("folded", "BN folded, channels_last", "pytorch", _folded),
    Baseline("two_kernels", "two kernels, kept output", "pytorch", _two_kernels),
    Baseline("compile", "torch.compile", "pytorch", _compiled(freezing=False)),
    Baseline("compile_frozen", "torch.compile, freezing", "pytorch", _compiled(freezing=True)),
    Baseline(
        FROZEN_BFLOAT16, "ghost_ops.freeze, bfloat16", "target", _frozen(CHANNELS_LAST, torch.bfloat16), "bfloat16"
    ),
)
