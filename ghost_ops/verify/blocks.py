"""Compare every kind of block that is registered, and eager PyTorch in the same dtype, with float64.

A block says itself how it is written (``Block.examples``), so that a new one is compared without another word.
"""

from __future__ import annotations

import copy
import warnings
import zlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ..fused.behaviour import block_of
from ..fused.block import Block
from ..fused.registry import registered_blocks
from ..surgery import explain, freeze, fuse
from ..surgery.recognise import survey
from .compare import (
    DTYPES,
    GRADIENT_ULPS,
    KINK,
    LAYOUTS,
    NEARBY,
    ULPS,
    Measures,
    Outcome,
    Tensors,
    Worst,
    compare,
    jumps,
    measure_call,
    name_of,
    nearby,
)

DIRECTIONS = ("inference", "training", "frozen")
SIZES = ((2, 9, 7), (1, 8, 8), (3, 5, 12), (2, 14, 14))  # images, height, width
VANISHES = 1e-9  # of the largest gradient: in float64 what is left of one that is zero
MOST_DRAWS = 50  # of an input without a kink


def examples() -> Iterator[tuple[type[Block], str, Callable[[], nn.Module]]]:
    """Every way in which a registered block says that it is written."""
    for block in registered_blocks():
        for name, make in block.examples().items():
            yield block, name, make


def count_blocks() -> int:
    """The number of outcomes of ``verify_blocks``."""
    without = sum(not block.examples() for block in registered_blocks())
    return len(list(examples())) * len(DTYPES) * len(LAYOUTS) * len(DIRECTIONS) + without


def verify_blocks(count: int, on_step: Callable[[str], None]) -> list[Outcome]:
    """Every example of every block in every dtype, layout and direction, on ``count`` drawn inputs each."""
    outcomes = []
    for block in registered_blocks():
        if not block.examples():
            on_step(block.kind)
            why = f"not compared: {block.__module__}.{block.__qualname__} has no examples"
            outcomes.append(Outcome(block.kind, "", "", "", "", 0, 0.0, 0.0, 0.0, why))
    for block, name, make in examples():
        for dtype in DTYPES:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{block.kind} {name}".encode()))
                plain = _as_after_training(make()).to(dtype)
            outcomes += _Example(block, name, plain, dtype).outcomes(count, on_step)
    return outcomes


def _as_after_training(module: nn.Module) -> nn.Module:
    """No BatchNorm and no bias is left as it was made."""
    with torch.no_grad():
        for name, t in (*module.named_parameters(), *module.named_buffers()):
            if t.ndim <= 1 and t.is_floating_point():
                t.add_(torch.rand_like(t) if name.endswith("var") else 0.3 * torch.randn_like(t))
    return module


class _Example:
    """A module that a block is, as it is made, fused and frozen, and in float64."""

    def __init__(self, block: type[Block], name: str, plain: nn.Module, dtype: torch.dtype) -> None:
        self.block, self.name, self.dtype = block, name, dtype
        self.plain, self.exact = plain, copy.deepcopy(plain).double()
        self.seed = zlib.crc32(f"{block.kind} {name} {dtype}".encode()) % 2**31

    def outcomes(self, count: int, on_step: Callable[[str], None]) -> list[Outcome]:
        found, refused = [], None
        try:
            fused, frozen = self._made()
        except Exception as error:  # a report says so of one block, and goes on
            refused = f"{type(error).__name__}: {error}"
        for layout in LAYOUTS:
            for direction in DIRECTIONS:
                on_step(f"{self.block.kind}, {self.name}, {name_of(self.dtype)}, {layout}, {direction}")
                worst, backend = Worst(), ""
                if refused is not None:
                    worst.fail(refused)
                else:
                    backend = self._compare(frozen if direction == "frozen" else fused, layout, direction, count, worst)
                found.append(
                    Outcome(
                        self.block.kind, name_of(self.dtype), layout, direction, backend, count, *worst.measures,
                        worst.what, self.name,
                    )
                )  # fmt: skip
        return found

    def _made(self) -> tuple[nn.Module, nn.Module]:
        """The module fused, and frozen."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # which says why something is neither fused nor frozen
            return self._fused(), freeze(copy.deepcopy(self.plain).eval())

    def _fused(self) -> nn.Module:
        """Raises RuntimeError where no module in it is such a block."""
        fused = fuse(copy.deepcopy(self.plain))
        if not any(isinstance(block_of(module), self.block) for module in fused.modules()):
            reasons = {finding.reason for finding in survey(fused) if finding.reason}
            raise RuntimeError(f"it was not fused: {'; '.join(sorted(reasons)) or 'it was not recognised'}")
        return fused

    def _input(self, number: int, channels: int, layout: str) -> torch.Tensor:
        n, height, width = SIZES[number % len(SIZES)]
        generator = torch.Generator().manual_seed(self.seed + number)
        x = torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64).to(self.dtype)
        return x.contiguous(memory_format=LAYOUTS[layout])

    def _inputs(self, count: int, layout: str, direction: str) -> Iterator[torch.Tensor]:
        """``count`` inputs; of training in float32 such as are not beside a kink."""
        channels = next(m for m in self.plain.modules() if isinstance(m, (nn.Conv2d, nn.Linear))).weight.shape[1]
        made = 0
        for number in range(MOST_DRAWS + count):
            x = self._input(number, channels, layout)
            if direction == "training" and self.dtype == torch.float32 and self._has_kink(x):
                continue
            yield x
            made += 1
            if made == count:
                return
        raise RuntimeError(f"{made} of {MOST_DRAWS + count} drawn inputs are not beside a kink")

    def _has_kink(self, x: torch.Tensor) -> bool:
        moved = copy.deepcopy(self.exact)
        with torch.no_grad():
            for i, p in enumerate(moved.parameters()):
                p.mul_(1 + KINK * (-1) ** i)
        return jumps(_results(self.exact, x.double(), "training"), _results(moved, x.double(), "training"))

    def _compare(self, ours: nn.Module, layout: str, direction: str, count: int, worst: Worst) -> str:
        """Returns what ran."""
        x = None
        try:
            for x in self._inputs(count, layout, direction):
                generator = torch.Generator().manual_seed(2)
                others = (nearby(x.double(), generator).to(x.dtype) for _ in range(NEARBY))
                found = measure_call(lambda image: self._measured(ours, image, direction), x, others)
                for name, measures in found.items():
                    worst.add(measures, f"{name} of {'x'.join(map(str, x.shape))}")
            runs = explain(ours.train(direction == "training"), x).rows
        except Exception as error:  # a report says so of one block, and goes on
            worst.fail(f"{type(error).__name__}: {error}")
            return ""
        return runs[0].runs if runs else "PyTorch"

    def _measured(self, ours: nn.Module, x: torch.Tensor, direction: str) -> dict[str, Measures]:
        """Raises RuntimeError where a result is missing."""
        ulps = GRADIENT_ULPS if direction == "training" else ULPS
        mine, eager = (_results(module, x, direction) for module in (ours, self.plain))
        exact = _results(self.exact, x.double(), direction)
        if missing := exact.keys() - mine.keys():
            raise RuntimeError(f"there is no {', no '.join(sorted(missing))}")
        return {n: compare(mine[n], eager[n], exact[n], ulps, _size(n, exact)) for n in exact}


def _size(name: str, exact: Tensors) -> torch.Tensor | None:
    """The scale of a result, where that is not the result itself.

    That of a mean is the root mean square of its values: their rounding is in it, and it may be far smaller. A gradient
    that vanishes, as that of a bias before a BatchNorm over the batch, has the scale of the largest gradient.
    """
    if name.endswith("running_mean"):
        return (exact[name].square() + exact[name.removesuffix("mean") + "var"]).sqrt()
    if name.startswith("gradient"):
        largest = max((g for n, g in exact.items() if n.startswith("gradient")), key=lambda g: float(g.norm()))
        return largest if exact[name].norm() < VANISHES * largest.norm() else None
    return None


def _results(module: nn.Module, x: torch.Tensor, direction: str) -> Tensors:
    """The output; in training the gradients, and the running statistics after one step from those of the module."""
    if direction != "training":
        with torch.no_grad():
            return {"output": module.eval()(x)}
    module.train()
    before = {name: b.clone() for name, b in module.named_buffers()}
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    names, parameters = zip(*module.named_parameters())
    grads = torch.autograd.grad(out, (x, *parameters), grad)
    found = {"output": out.detach(), "gradient of x": grads[0]}
    found |= {f"gradient of {name}": g for name, g in zip(names, grads[1:])}
    with torch.no_grad():
        for name, b in module.named_buffers():
            if b.is_floating_point():
                found[name] = b.clone()
            b.copy_(before[name])
    return found
