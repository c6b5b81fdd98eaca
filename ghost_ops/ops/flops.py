"""FLOP formulas of the operators for ``torch.utils.flop_counter.FlopCounterMode``.

An operator counts what the counter counts for the convolutions and linear layers that it stands for, by PyTorch's own
formulas: two for each multiply-add, nothing for activations, BatchNorms, sums and means. So a frozen net counts what
its source counts, and channels that a Ghost module computes and then drops count as in the plain module. A backward
counts the gradients that the operator computes, but not what it recomputes. PyTorch's formula for the gradient of a
grouped convolution's weight leaves out the groups; since the formula is used here, a depthwise one counts too much here
too.

``torch.profiler`` with ``with_flops=True`` has formulas for a fixed list of aten operators only, which cannot be
extended: it shows no FLOPs for these operators.

The counter takes 0.1 s to import, as it imports Triton; it is not imported here. The formulas are registered when
somebody imports it, or at once where it was imported before.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch

from ..program import decode, output_sizes

COUNTER = "torch.utils.flop_counter"
Shape = Sequence[int]


def _formula(name: str) -> Callable[..., int]:
    """PyTorch's formula of an aten operator, which takes shapes or tensors."""
    return sys.modules[COUNTER].flop_registry[getattr(torch.ops.aten, name)]


def _convolution(x: Shape, weight: Shape, size: Shape | None = None) -> int:
    """FLOPs of a convolution of x to a map of this size (default: x's)."""
    out = (x[0], weight[0], *(x[2:] if size is None else size))
    return _formula("convolution")(x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, out_val=out)


def _convolution_backward(
    x: Shape, weight: Shape, size: Shape | None = None, wanted: tuple[bool, bool] = (True, True)
) -> int:
    """FLOPs of the gradients of x and of the weight that are wanted."""
    out = (x[0], weight[0], *(x[2:] if size is None else size))
    return _formula("convolution_backward")(
        out, x, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), x[1] // weight[1], (*wanted, False),
        out_val=(x, weight, None),
    )  # fmt: skip


def _halves(count: Callable[..., int], x: Shape, primary_weight: Shape, cheap_weight: Shape | None) -> int:
    y1 = (x[0], primary_weight[0], *x[2:])
    return count(x, primary_weight) + (0 if cheap_weight is None else count(y1, cheap_weight))


def _ghost_module(x, primary_weight, primary_bias, cheap_weight, *_, **__):
    return _halves(_convolution, x, primary_weight, cheap_weight)


def _ghost_module_backward(grad_out, x, primary_weight, primary_bias, cheap_weight, *_, **__):
    return _halves(_convolution_backward, x, primary_weight, cheap_weight)


def _ghost_module_eval(x, primary_weight, bias, gamma, beta, mean, var, cheap_weight, *_, **__):
    return _halves(_convolution, x, primary_weight, cheap_weight)


def _ghost_module_train(x, primary_weight, bias, gamma, beta, cheap_weight, *_, **__):
    return _halves(_convolution, x, primary_weight, cheap_weight)


def _ghost_module_train_backward(grad_out, x, primary_weight, gamma, beta, cheap_weight, *_, **__):
    return _halves(_convolution_backward, x, primary_weight, cheap_weight)


def _cheap_concat(z, cheap_weight, *_, **__):
    return _convolution(z, cheap_weight)


def _cheap_concat_backward(grad_out, z, cheap_weight, *_, **__):
    return _convolution_backward(z, cheap_weight)


def _depthwise(x, weight, bias, stride, *, out_shape):
    return _convolution(x, weight, out_shape[2:])


def _depthwise_backward(grad_out, x, weight, bias, stride, input_wanted, weight_wanted, **_):
    return _convolution_backward(x, weight, grad_out[2:], (input_wanted, weight_wanted))


def _excite(x, reduce_weight, reduce_bias, expand_weight, *_, **__):
    """FLOPs of the two linear layers, on a map or on its squeeze."""
    product = _formula("mm")
    (hidden, channels), batch = reduce_weight[:2], x[0]
    return product((batch, channels), (channels, hidden)) + product((batch, hidden), (hidden, channels))


def _squeeze_excite_backward(grad_out, x, squeeze, hidden, logits, reduce_weight, *_, **__):
    return 2 * _excite(x, reduce_weight, None, reduce_weight[::-1])  # of each layer, gradients of input and weight


def _program(x, _parameters, steps, **_):
    decoded = decode(steps)
    sizes = output_sizes(decoded, *x[2:])
    return sum(
        _convolution((x[0], shape[1]), shape, size)
        for step, size in zip(decoded, sizes, strict=True)
        for _, shape in step.layers()
    )


def _program_pack(*_, **__):
    return 0


FORMULAS: dict[str, Callable[..., int]] = {
    "ghost_module": _ghost_module,
    "ghost_module_backward": _ghost_module_backward,
    "ghost_module_eval": _ghost_module_eval,
    "ghost_module_train": _ghost_module_train,
    "ghost_module_train_backward": _ghost_module_train_backward,
    "cheap_concat": _cheap_concat,
    "cheap_concat_backward": _cheap_concat_backward,
    "squeeze_excite": _excite,
    "excite": _excite,
    "squeeze_excite_backward": _squeeze_excite_backward,
    "depthwise": _depthwise,
    "depthwise_backward": _depthwise_backward,
    "program": _program,
    "program_pack": _program_pack,
    "program_eval": _program,
}


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
    """Register the formulas with PyTorch's counter: now if it was imported, else when it is. The operators are defined
    before."""
    counter = sys.modules.get(COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _WhenImported())
    else:
        _register(counter)
