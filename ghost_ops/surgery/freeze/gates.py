"""Gates in whatever numbers they are written: ``(x / 5 + 0.5).clamp(0, 1)``, ``relu6(x + 3) / 6``.

A number that a layer's result is multiplied by or that is added to it is a BatchNorm to a program: it is folded into
the layer when that is packed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx, nn

from ...activations import ACTIVATIONS, NONE, code_of
from ...fused.errors import Unfusable
from ...fused.layers import LinearAct
from ...fused.numbers import Numbers
from .calls import is_called

CLAMP, RELU6 = map(ACTIVATIONS.index, ("clamp", "relu6"))
_OF_BOUNDS = {(0, 1): CLAMP, (0, 6): RELU6}
_WHY = "no step computes an excitation with these activations and numbers"
_ARITHMETIC = {
    "*": ("mul", "imul", "mul_", "multiply"),
    "/": ("truediv", "itruediv", "div", "div_", "divide"),
    "+": ("add", "iadd", "add_"),
    "-": ("sub", "isub", "sub_", "subtract"),
}


def affine_of(node: fx.Node) -> tuple[fx.Node, float, float] | None:
    """Of a node that multiplies by a number or adds one: what it reads, the factor and the summand."""
    sign = next((sign for sign, names in _ARITHMETIC.items() if is_called(node, names)), None)
    if sign is None or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    turned = isinstance(b, fx.Node)
    x, number = (b, a) if turned else (a, b)
    if not isinstance(x, fx.Node) or isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    if sign == "*":
        return x, float(number), 0.0
    if sign == "+":
        return x, 1.0, float(number)
    if sign == "-":
        return (x, -1.0, float(number)) if turned else (x, 1.0, -float(number))
    return None if turned or number == 0 else (x, 1 / number, 0.0)


def activation_of(node: fx.Node, module: nn.Module | None) -> int | None:
    """The code of the activation that a node computes, or that a clamp to bounds is; None where it is none."""
    if type(module) is nn.Hardtanh:
        return _OF_BOUNDS.get((module.min_val, module.max_val))
    if module is not None:
        return code_of(module)
    if node.op == "call_module":
        return None
    if is_called(node, ("clamp", "clamp_", "clip", "clip_")):
        return _OF_BOUNDS.get(_bounds(node.args[1:], node.kwargs, ("min", "max")))
    if is_called(node, ("hardtanh", "hardtanh_")):
        return _OF_BOUNDS.get(_bounds(node.args[1:3], node.kwargs, ("min_val", "max_val")))
    return None


def activated(layer: LinearAct, code: int, act: nn.Module | None) -> LinearAct:
    """The layer with an activation after it, and its module if it has one. Raises ``Unfusable`` where one is before."""
    if layer.code != NONE:
        raise Unfusable(_WHY)
    return LinearAct(layer.conv, layer.norm, act, code)


def scaled(layer: LinearAct, scale: float, shift: float) -> LinearAct:
    """The layer times a number, plus another. Raises ``Unfusable`` where an activation is before these."""
    code, norm = layer.code, layer.norm
    if code == RELU6 and shift == 0 and math.isclose(scale, 1 / 6, rel_tol=1e-6):
        code, scale = CLAMP, 1 / 6  # of what is before the activation
    elif code != NONE:
        raise Unfusable(_WHY)
    if isinstance(norm, Numbers):
        scale, shift = scale * norm.scale, scale * norm.shift + shift
    elif norm is not None:
        raise Unfusable("no step computes a layer's BatchNorm with numbers after it")
    return LinearAct(layer.conv, Numbers(layer.conv.weight, scale, shift), None, code)


def _bounds(arguments: tuple, options: Mapping[str, object], names: tuple[str, str]) -> tuple | None:
    given = {**dict(zip(names, arguments)), **options}
    given.pop("inplace", None)
    return tuple(given.get(name) for name in names) if set(given) == set(names) else None
