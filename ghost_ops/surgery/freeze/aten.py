"""Operators of an exported graph as the functions and methods of PyTorch that people call, which ``read`` knows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import fx

from .trace import Untraceable

_LAST = 2**63 - 1
_METHODS = {
    "aten::view": "view", "aten::reshape": "reshape", "aten::permute": "permute", "aten::expand": "expand",
    "aten::contiguous": "contiguous", "aten::clone": "clone", "aten::detach": "detach", "aten::unsqueeze": "unsqueeze",
    "aten::squeeze.dim": "squeeze", "aten::sym_size.int": "size", "aten::narrow": "narrow",
    "aten::unflatten.int": "unflatten", "aten::relu_": "relu_",
}  # fmt: skip
_FUNCTIONS = {
    "aten::cat": torch.cat, "aten::add.Tensor": operator.add, "aten::sub.Tensor": operator.sub,
    "aten::mul.Tensor": operator.mul, "aten::div.Tensor": operator.truediv, "aten::add_.Tensor": operator.iadd,
    "aten::sub_.Tensor": operator.isub, "aten::mul_.Tensor": operator.imul, "aten::div_.Tensor": operator.itruediv,
    "aten::relu": F.relu, "aten::relu6": F.relu6, "aten::silu": F.silu, "aten::hardswish": F.hardswish,
    "aten::hardsigmoid": F.hardsigmoid, "aten::sigmoid": torch.sigmoid, "aten::tanh": torch.tanh, "aten::gelu": F.gelu,
    "aten::elu": F.elu, "aten::leaky_relu": F.leaky_relu, "aten::mish": F.mish, "aten::clamp": torch.clamp,
    "aten::max_pool2d": F.max_pool2d, "aten::avg_pool2d": F.avg_pool2d,
    "aten::adaptive_avg_pool2d": F.adaptive_avg_pool2d, "aten::mean.dim": torch.mean, "aten::chunk": torch.chunk,
    "aten::split.Tensor": torch.split, "aten::split.sizes": torch.split, "aten::split_with_sizes": torch.split,
    "aten::tensor_split.sections": torch.tensor_split, "aten::tensor_split.indices": torch.tensor_split,
    "aten::flatten.using_ints": torch.flatten, "aten::transpose.int": torch.transpose, "aten::dropout": F.dropout,
    "aten::feature_dropout": F.dropout2d, "aten::pad": F.pad,
}  # fmt: skip
_IN_PLACE = {
    f"aten::{name}_": getattr(F, name) for name in ("silu", "hardswish", "hardsigmoid", "elu", "leaky_relu", "mish")
}
_NO_EFFECT = ("aten::_assert_scalar", "aten::_assert_tensor_metadata", "aten::_assert_async.msg")
_OF_NUMBERS = ("_operator", "operator", "math", "builtins")


def lifted(
    graph: fx.Graph, node: fx.Node, mapped: Callable[[object], object],
    like: Callable[[fx.Node, Sequence[object]], fx.Node | None],
) -> fx.Node | None:  # fmt: skip
    """A node that computes the same, at the end of ``graph``; None where nothing is to be computed.

    Args:
        node: calls an operator, or computes numbers of sizes.
        mapped: gives arguments as they are in ``graph``.
        like: finds a map of a height and a width that are computed.

    Raises:
        Untraceable: it writes to a tensor in a way that ``writes`` does not know, or holds a graph of its own.
    """
    args, kwargs = node.args, dict(node.kwargs)
    if not isinstance(node.target, torch._ops.OpOverload):
        module = getattr(node.target, "__module__", None) or ""
        if module not in _OF_NUMBERS and not getattr(node.target, "__name__", "").startswith("sym_"):
            if not node.users:
                return None
            raise Untraceable(f"its exported graph calls {getattr(node.target, '__name__', node.target)}")
        return graph.call_function(node.target, mapped(args), mapped(kwargs))
    name = node.target.name()
    if name in _NO_EFFECT:
        return None
    for option in ("memory_format", "implicit"):
        kwargs.pop(option, None)
    if name == "aten::slice.Tensor":
        return _slice(graph, *mapped(args))
    if name == "aten::upsample_nearest2d.vec":
        return _upsample(graph, node, mapped, like)
    if name == "aten::constant_pad_nd":
        x, pad, value = (*mapped(args), 0)[:3]
        return graph.call_function(F.pad, (x, pad, "constant", value))
    if name in ("aten::hardtanh", "aten::hardtanh_"):
        bounds = (*args[1:3], -1.0, 1.0)[:2] if len(args) != 2 else (args[1], 1.0)
        function = F.relu6 if tuple(bounds) == (0, 6) else F.hardtanh
        more = {"inplace": True} if name.endswith("_") else {}
        return graph.call_function(function, mapped(args[:1] if function is F.relu6 else args), more)
    if name in _IN_PLACE:
        return graph.call_function(_IN_PLACE[name], mapped(args), {**mapped(kwargs), "inplace": True})
    if name in _METHODS:
        return graph.call_method(_METHODS[name], mapped(args), mapped(kwargs))
    if name in _FUNCTIONS:
        return graph.call_function(_FUNCTIONS[name], mapped(args), mapped(kwargs))
    if node.target._schema.is_mutable:
        raise Untraceable(f"its exported graph writes to a tensor by {name}")
    return graph.call_function(node.target, mapped(args), mapped(dict(node.kwargs)))


def _slice(
    graph: fx.Graph, x: fx.Node, dim: int = 0, begin: object = None, end: object = None, step: object = 1
) -> fx.Node:  # fmt: skip
    """As an index. What keeps all is written ``:``."""
    begin, end = None if begin == 0 else begin, None if end == _LAST else end
    if dim < 0:
        raise Untraceable("its exported graph counts a slice's dimension from the end")
    index = (*[slice(None)] * dim, slice(begin, end, None if step == 1 else step))
    return graph.call_function(operator.getitem, (x, index))


def _upsample(graph: fx.Graph, node: fx.Node, mapped: Callable, like: Callable) -> fx.Node:
    x, size, scales = (*node.args, None, None)[:3]
    if size is None:
        return graph.call_function(F.interpolate, mapped((x,)), {"scale_factor": tuple(scales), "mode": "nearest"})
    other = like(node, size)
    if other is None or all(isinstance(n, int) for n in size):
        return graph.call_function(F.interpolate, mapped((x, tuple(size))), {"mode": "nearest"})
    sides = tuple(graph.call_method("size", (other, dim)) for dim in (2, 3))
    return graph.call_function(F.interpolate, (*mapped((x,)), sides), {"mode": "nearest"})
