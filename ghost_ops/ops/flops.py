"""FLOP formulas of the operators for ``torch.utils.flop_counter.FlopCounterMode``.

An operator counts what the counter counts for the convolutions and linear layers that it stands for, by PyTorch's own
formulas: two for each multiply-add, nothing for activations, BatchNorms, sums and means. So a frozen net counts what
its source counts, and channels that a Ghost module computes and then drops count as in the plain module. A backward
counts the gradients that the operator computes, but not what it recomputes. PyTorch's formula for the gradient of a
grouped convolution's weight leaves out the groups; since the formula is used here, a depthwise one counts too much here
too.

``torch.profiler`` with ``with_flops=True`` has formulas for a fixed list of aten operators only, which cannot be
extended: it shows no FLOPs for these operators.

Each formula is beside its operator (``count_flops``). The counter takes 0.1 s to import, as it imports Triton; it is
not imported here. The formulas are registered when it is imported, or at once where it was imported before.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch

COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]
FORMULAS: dict[str, Callable[..., int]] = {}  # by operator


def count_flops(*operators: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """A decorator: the function is the formula of these operators, and gets shapes where they get tensors."""

    def add(formula: Callable[..., int]) -> Callable[..., int]:
        FORMULAS.update(dict.fromkeys(operators, formula))
        return formula

    return add


def aten_formula(name: str) -> Callable[..., int]:
    """PyTorch's formula of an aten operator, which takes shapes or tensors."""
    return sys.modules[COUNTER].flop_registry[getattr(torch.ops.aten, name)]


def convolution_flops(x: Shape, weight: Shape, size: Shape | None = None) -> int:
    """FLOPs of a convolution of x to a map of this size (default: x's)."""
    out = (x[0], weight[0], *(x[2:] if size is None else size))
    return aten_formula("convolution")(x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, out_val=out)


def convolution_backward_flops(
    x: Shape, weight: Shape, size: Shape | None = None, wanted: tuple[bool, bool] = (True, True)
) -> int:
    """FLOPs of the gradients of x and of the weight that are wanted."""
    out = (x[0], weight[0], *(x[2:] if size is None else size))
    return aten_formula("convolution_backward")(
        out, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), x[1] // weight[1], (*wanted, False),
        out_val=(x, weight, None),
    )  # fmt: skip


def module_flops(count: Callable[..., int], x: Shape, primary_weight: Shape, cheap_weight: Shape | None) -> int:
    """FLOPs of a Ghost module's two convolutions, each counted by ``count(input, weight)``."""
    y1 = (x[0], primary_weight[0], *x[2:])
    return count(x, primary_weight) + (0 if cheap_weight is None else count(y1, cheap_weight))


def _register(counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        for operator in (name, f"{name}_reference"):
            packet = getattr(torch.ops.ghost_ops, operator)
            if packet not in counter.flop_registry:
                counter.register_flop_formula(packet)(formula)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the counter as the other finders do, and registers the formulas once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != COUNTER:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _WhenImported))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = exec_module
        return spec


def register_with_counter() -> None:
    """Register the formulas with PyTorch's counter: now if it was imported, else when it is. All operators must be
    defined, and all formulas there, before."""
    counter = sys.modules.get(COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _WhenImported())
    else:
        _register(counter)
