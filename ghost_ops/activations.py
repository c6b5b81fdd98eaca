"""The activations and gates: names, codes, what PyTorch calls them, values and gradients in plain PyTorch.

They are defined in ``activations.inc``, which the compiled kernels include, and of which Triton's kernels are made too.
What PyTorch has is in ``_SPELLINGS`` as well: there are modules and functions that fused code recognises, and its own
function gives the value. The codes travel through operator schemas and saved programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Definition(NamedTuple):
    """An activation: the kind of its slope, its value at ``z``, and the gradient of z for that of the value."""

    name: str
    slope: str
    value: str
    backward: str


class Spelling(NamedTuple):
    """What PyTorch calls an activation.

    Attributes:
        module: the class of its modules.
        functions: functions of a tensor, whose other arguments are those of the module's constructor.
        method: name of a tensor's method that takes nothing else.
        number: the module's attribute that is the slope.
        default: the slope where none is given.
        fixed: what other attributes of the module must be.
    """

    module: type[nn.Module]
    functions: tuple[Callable, ...] = ()
    method: str | None = None
    number: str | None = None
    default: float = 0.0
    fixed: Mapping[str, object] = {}


_SPELLINGS = {
    "none": Spelling(nn.Identity),
    "relu": Spelling(nn.ReLU, (F.relu, torch.relu), "relu"),
    "relu6": Spelling(nn.ReLU6, (F.relu6,)),
    "leaky_relu": Spelling(nn.LeakyReLU, (F.leaky_relu,), number="negative_slope", default=0.01),
    "prelu": Spelling(nn.PReLU),
    "silu": Spelling(nn.SiLU, (F.silu,)),
    "hard_swish": Spelling(nn.Hardswish, (F.hardswish,)),
    "gelu": Spelling(nn.GELU, (F.gelu,), fixed={"approximate": "none"}),
    "gelu_tanh": Spelling(nn.GELU, (F.gelu,), fixed={"approximate": "tanh"}),
    "mish": Spelling(nn.Mish, (F.mish,)),
    "elu": Spelling(nn.ELU, (F.elu,), number="alpha", default=1.0),
    "hard_sigmoid": Spelling(nn.Hardsigmoid, (F.hardsigmoid,)),
    "sigmoid": Spelling(nn.Sigmoid, (torch.sigmoid, F.sigmoid), "sigmoid"),
    "tanh": Spelling(nn.Tanh, (torch.tanh, F.tanh), "tanh"),
}


# The list


def _entries() -> list[tuple[str, list[str]]]:
    """The macros of ``activations.inc``, each with its arguments."""
    text = Path(__file__).with_name("activations.inc").read_text()
    text = re.sub(r"(?m)^(//|#).*$", "", text)
    found = []
    for kind, arguments in re.findall(r"(?ms)^GHOST_(\w+)\((.*?)\)$(?=\s*(?:^GHOST_|\Z))", text):
        depth, parts = 0, [""]
        for character in re.sub(r"(?<=[\d.])f\b", "", " ".join(arguments.split())):
            depth += (character == "(") - (character == ")")
            if character == "," and not depth:
                parts.append("")
            else:
                parts[-1] += character
        found.append((kind, [part.strip() for part in parts]))
    return found


_LIST = _entries()
FUNCTIONS = dict(arguments for kind, arguments in _LIST if kind == "FUNCTION")
DEFINITIONS = tuple(Definition(*arguments[1:]) for kind, arguments in _LIST if kind == "ACTIVATION")
ACTIVATIONS = tuple(definition.name for definition in DEFINITIONS)
GATES = tuple(name for kind, (_, name, *_) in _LIST if kind == "GATE")
OF_GATES = tuple(ACTIVATIONS.index(arguments[2]) for kind, arguments in _LIST if kind == "GATE")

NONE, RELU, PRELU = map(ACTIVATIONS.index, ("none", "relu", "prelu"))
IDENTITY = GATES.index("identity")
WITH_NUMBER = tuple(code for code, definition in enumerate(DEFINITIONS) if definition.slope == "kNumber")
WITH_SLOPES = tuple(code for code, definition in enumerate(DEFINITIONS) if definition.slope != "kNoSlope")


# PyTorch's modules and functions


def code_of(module: nn.Module, own: type[nn.Module] | None = None) -> int | None:
    """The code of an activation module; None where no operator knows it. ``own``: its class, if not its type."""
    kind = type(module) if own is None else own
    for name, spelling in _SPELLINGS.items():
        if kind is spelling.module and all(getattr(module, k) == v for k, v in spelling.fixed.items()):
            return ACTIVATIONS.index(name)
    return None


def slope_of(module: nn.Module | None, code: int) -> float:
    """The slope of an activation module, 0 where it has none that is a number."""
    return getattr(module, _SPELLINGS[ACTIVATIONS[code]].number) if code in WITH_NUMBER else 0.0


def default_slope(code: int) -> float:
    """The slope where none is given, as PyTorch's."""
    spelling = _SPELLINGS.get(ACTIVATIONS[code])
    return 0.0 if spelling is None else spelling.default


def fixed_attributes(own: type[nn.Module]) -> tuple[str, ...]:
    """The attributes by which an activation module of this class is one activation and not another."""
    return tuple(name for s in _SPELLINGS.values() if own is s.module for name in s.fixed)


def module_of(function: Callable | str, arguments: tuple, options: dict) -> nn.Module | None:
    """The module that computes what a function, or the method of a name, computes with arguments after the tensor."""
    for spelling in _SPELLINGS.values():
        if function in spelling.functions or (function == spelling.method and not arguments and not options):
            try:
                module = spelling.module(*arguments, **options)
            except TypeError:
                return None
            return None if code_of(module) is None else module
    return None


@dataclass(frozen=True)
class Function:
    """An activation that is a function, or a class that is not PyTorch's. It is recognised by its values.

    Attributes:
        name: one of ``ACTIVATIONS`` that PyTorch has a module for, and no weight.
        slope: its slope; 0 where it has none.
    """

    name: str
    slope: float = 0.0

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return activate(z, ACTIVATIONS.index(self.name), self.slope)

    def module(self) -> nn.Module:
        """A module that computes it."""
        spelling = _SPELLINGS[self.name]
        return spelling.module(**({spelling.number: self.slope} if spelling.number else {}), **spelling.fixed)


def has_module(name: str) -> bool:
    """Whether PyTorch has a module for an activation, without a weight: one that a ``Function`` can be."""
    return name in _SPELLINGS and ACTIVATIONS.index(name) != PRELU


# Values and gradients


def _language() -> dict[str, object]:
    """What definitions may call, over tensors."""
    names: dict[str, object] = {
        name: getattr(torch, name) for name in ("exp", "expm1", "erf", "tanh", "sigmoid", "where")
    }
    names["at_least"] = lambda z, bound: z.clamp(min=bound)
    names["at_most"] = lambda z, bound: z.clamp(max=bound)
    for name, value in FUNCTIONS.items():
        names[name] = eval(f"lambda z: {value}", names)
    return names


_NAMES = _language()
_VALUES = [eval(f"lambda z, slope: {definition.value}", _NAMES) for definition in DEFINITIONS]
_BACKWARDS = [eval(f"lambda z, slope, grad: {definition.backward}", _NAMES) for definition in DEFINITIONS]


def _slopes(weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return weight.to(z.dtype).reshape(-1, *[1] * (z.dim() - 2)) if weight.numel() > 1 else weight.to(z.dtype)


def _widened(t: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision to compute in, so that results in half precision are rounded once."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def activate(z: torch.Tensor, act: int, slope: float = 0.0, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Activation ``act`` of z (N x C x ...); ``slope`` is a number, such as LeakyReLU's, ``weight`` PReLU's (1 or C
    elements)."""
    if act == NONE:
        return z
    if act == PRELU:
        return F.prelu(z, weight.to(z.dtype))
    spelling = _SPELLINGS.get(ACTIVATIONS[act])
    if spelling is None:
        return _VALUES[act](_widened(z), slope).to(z.dtype)
    number = (slope,) if act in WITH_NUMBER else ()
    return spelling.functions[0](z, *number, **spelling.fixed)


def activate_backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    act: int,
    slope: float = 0.0,
    weight: torch.Tensor | None = None,
    sums: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of z and of PReLU's weight (None for the others), given the gradient of ``activate(z, ...)``; the
    weight's is added in the dtype ``sums``, or in z's."""
    if act == NONE:
        return grad, None
    if act == RELU:
        return torch.ops.aten.threshold_backward(grad, z, 0), None  # one pass
    if act == PRELU:
        grad_slopes = torch.where(z > 0, torch.zeros((), dtype=grad.dtype, device=grad.device), grad * z)
        over = [0, *range(2, z.dim())] if weight.numel() > 1 else None
        grad_weight = grad_slopes.sum(over, dtype=sums).reshape(weight.shape)
        return _BACKWARDS[act](z, _slopes(weight, z), grad), grad_weight.to(weight.dtype)
    return _BACKWARDS[act](_widened(z), slope, _widened(grad)).to(grad.dtype), None


def apply_gate(logits: torch.Tensor, gate: int) -> torch.Tensor:
    """Excitation gate of squeeze-and-excite."""
    return activate(logits, OF_GATES[gate])


def gate_backward(grad: torch.Tensor, logits: torch.Tensor, gate: int) -> torch.Tensor:
    """Gradient of the logits, given the gradient of the gate's value."""
    return activate_backward(grad, logits, OF_GATES[gate])[0]
