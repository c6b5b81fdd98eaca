"""Argument checks, shared by the operators: each error says the argument, what was expected and what came."""

from __future__ import annotations

import torch

from ..activations import ACTIVATIONS, GATES, PRELU, default_slope


def _shape(t: torch.Tensor) -> str:
    return "x".join(map(str, t.shape)) or "a scalar"


class Checks:
    """The checks of one call of operator ``op``; every failure raises ValueError or TypeError naming the argument.

    ``first`` is the name of the argument whose dtype and device the others must have.
    """

    def __init__(self, op: str, first: str = "x") -> None:
        self.op = op
        self.first = first

    def fail(self, argument: str, expected: str, got: object, error: type[Exception] = ValueError) -> None:
        """Raise an error that names the operator, the argument, what was expected and what came."""
        raise error(f"ghost_ops.{self.op}: {argument}: expected {expected}, got {got}")

    def map(self, argument: str, x: object, like: torch.Tensor | None = None) -> None:
        """Expect a floating-point N x C x H x W tensor, of which only N may be 0, in the dtype and on the device of
        ``like``."""
        if not isinstance(x, torch.Tensor):
            self.fail(argument, "a tensor", type(x).__name__, TypeError)
        if x.dim() != 4:
            self.fail(argument, "4 dimensions (N x C x H x W)", f"{x.dim()} ({_shape(x)})")
        if not x.is_floating_point():
            self.fail(argument, "a floating-point dtype", x.dtype, TypeError)
        if x.shape[1] < 1:
            self.fail(argument, "at least one channel", _shape(x))
        if x.shape[2] < 1 or x.shape[3] < 1:
            self.fail(argument, "at least one row and column", _shape(x))
        if x.layout is not torch.strided:
            self.fail(argument, "a dense tensor", x.layout, TypeError)
        if like is not None and x.dtype != like.dtype:
            self.fail(argument, f"the dtype of {self.first}, {like.dtype}", x.dtype, TypeError)
        if like is not None and x.device != like.device:
            self.fail(argument, f"the device of {self.first}, {like.device}", x.device)

    def several_values(self, argument: str, x: torch.Tensor) -> None:
        """Expect what batch statistics are taken of: more than one value a channel."""
        if x.shape[0] * x.shape[2] * x.shape[3] <= 1:
            self.fail(argument, "more than 1 value per channel when training", f"input size {tuple(x.shape)}")

    def vectors(self, argument: str, v: object) -> None:
        """Expect a floating-point N x C tensor, of which only N may be 0."""
        if not isinstance(v, torch.Tensor):
            self.fail(argument, "a tensor", type(v).__name__, TypeError)
        if v.dim() != 2:
            self.fail(argument, "2 dimensions (N x C)", f"{v.dim()} ({_shape(v)})")
        if not v.is_floating_point():
            self.fail(argument, "a floating-point dtype", v.dtype, TypeError)
        if v.shape[1] < 1:
            self.fail(argument, "at least one channel", _shape(v))
        if v.layout is not torch.strided:
            self.fail(argument, "a dense tensor", v.layout, TypeError)

    def parameter(self, argument: str, p: object, shape: tuple, x: torch.Tensor) -> None:
        """Expect a tensor of this shape (None: any size) on x's device, in x's dtype, or in float32 where x has half
        precision."""
        if not isinstance(p, torch.Tensor):
            self.fail(argument, "a tensor", type(p).__name__, TypeError)
        if p.dim() != len(shape) or any(
            want is not None and want != have for want, have in zip(shape, p.shape, strict=True)
        ):
            self.fail(argument, "shape " + "x".join("any" if s is None else str(s) for s in shape), _shape(p))
        if p.dtype != x.dtype and not (p.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
            self.fail(argument, f"the dtype of {self.first}, {x.dtype}", p.dtype, TypeError)
        if p.layout is not torch.strided:
            self.fail(argument, "a dense tensor", p.layout, TypeError)
        if p.device != x.device:
            self.fail(argument, f"the device of {self.first}, {x.device}", p.device)

    def optional(self, argument: str, p: object, shape: tuple, x: torch.Tensor) -> None:
        """Expect None, or a tensor as ``parameter`` does."""
        if p is not None:
            self.parameter(argument, p, shape, x)

    def halves(
        self, x: torch.Tensor, channels: tuple[int, int], out_channels: int | None, primary: tuple, cheap: tuple
    ) -> tuple[int, int, int, float, float]:
        """What the two halves of a Ghost module have in common, in the order of the schemas.

        Args:
            channels: of the primary and of the cheap half.
            primary, cheap: of each half the name of the activation, its slope and its weight.

        Returns:
            out_channels (all where it is None), the codes of both activations, and their slopes (the activation's
            default where it is None).
        """
        m, more = channels
        kept = self.out_channels(m + more if out_channels is None else out_channels, m, m + more)
        code = self.activation("act", primary[0], primary[2], m, x)
        cheap_code = self.activation("cheap_act", cheap[0], cheap[2], more, x)
        slopes = [
            default_slope(c) if half[1] is None else half[1] for c, half in ((code, primary), (cheap_code, cheap))
        ]
        return kept, code, cheap_code, *self.numbers(act_slope=slopes[0], cheap_act_slope=slopes[1])

    def input_scale(self, scale: object, x: torch.Tensor) -> None:
        """The excitation of x, N x C, or None."""
        self.optional("input_scale", scale, (x.shape[0], x.shape[1]), x)

    def batch_norm(self, half: str, bias: object, gamma: object, beta: object, channels: int, x: torch.Tensor) -> None:
        """Expect a convolution's bias and the affine parameters of its BatchNorm, each of which may be None."""
        for name, p in (("bias", bias), ("gamma", gamma), ("beta", beta)):
            self.optional(f"{half}_{name}", p, (channels,), x)

    def running(
        self, half: str, gamma: object, beta: object, mean: object, var: object, channels: int, x: torch.Tensor
    ) -> None:
        """Expect a BatchNorm with its running statistics, or None four times."""
        for name, p in (("gamma", gamma), ("beta", beta), ("var", var)):
            if p is not None and mean is None:
                self.fail(f"{half}_mean", f"a tensor beside {half}_{name}", None)
        if mean is not None:
            self.parameter(f"{half}_mean", mean, (channels,), x)
            self.parameter(f"{half}_var", var, (channels,), x)
        self.optional(f"{half}_gamma", gamma, (channels,), x)
        self.optional(f"{half}_beta", beta, (channels,), x)

    def numbers(self, **values: object) -> tuple[float, ...]:
        """The values as floats."""
        found = []
        for name, value in values.items():
            if isinstance(value, str):
                self.fail(name, "a number", repr(value), TypeError)
            try:
                found.append(float(value))
            except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
                self.fail(name, "a number", type(value).__name__, TypeError)
        return tuple(found)

    def primary(self, weight: object, x: torch.Tensor) -> int:
        """Expect the weight of a 1x1 primary convolution over x; returns its m channels."""
        self.parameter("primary_weight", weight, (None, x.shape[1], 1, 1), x)
        if weight.shape[0] < 1:
            self.fail("primary_weight", "at least one output channel", _shape(weight))
        return weight.shape[0]

    def cheap(self, weight: object, m: int, x: torch.Tensor) -> int:
        """Expect the weight of a cheap operation over m channels; returns the number of channels that it makes."""
        self.parameter("cheap_weight", weight, (None, 1, None, None), x)
        channels, _, height, width = weight.shape
        if height != width or height % 2 == 0:
            self.fail("cheap_weight", "an odd square kernel", _shape(weight))
        if channels < 1 or channels % m:
            self.fail("cheap_weight", f"a positive multiple of the {m} primary channels first", _shape(weight))
        return channels

    def depthwise(self, weight: object, x: torch.Tensor) -> int:
        """Expect the weight of a depthwise convolution of x, one filter a channel; returns the size of its kernel."""
        self.parameter("weight", weight, (x.shape[1], 1, None, None), x)
        height, width = weight.shape[2:]
        if height != width or height < 1:
            self.fail("weight", "a square kernel", _shape(weight))
        return height

    def stride(self, value: object) -> None:
        """Expect an int that is at least 1."""
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail("stride", "an int", repr(value), TypeError)
        if value < 1:
            self.fail("stride", "at least 1", value)

    def out_channels(self, value: object, m: int, total: int) -> int:
        """Expect an int of at least m, or m + 1 where there is a cheap operation, and at most all channels."""
        least = m if total == m else m + 1
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            self.fail("out_channels", "an int", repr(value), TypeError)
        if not least <= value <= total:
            self.fail("out_channels", f"{least} to {total} ({m} primary, {total - m} cheap channels)", value)
        return value

    def residual(self, residual: object, x: torch.Tensor, out_channels: int) -> None:
        """Expect None, or a map of the output's shape."""
        if residual is not None:
            self.map("residual", residual, x)
            if residual.shape != (x.shape[0], out_channels, *x.shape[2:]):
                expected = f"shape {x.shape[0]}x{out_channels}x{x.shape[2]}x{x.shape[3]}"
                self.fail("residual", expected, _shape(residual))

    def activation(self, argument: str, name: object, weight: object, channels: int, x: torch.Tensor) -> int:
        """The code of an activation. PReLU, and only PReLU, needs a weight, of 1 or ``channels`` elements."""
        if name not in ACTIVATIONS:
            self.fail(argument, "one of " + ", ".join(ACTIVATIONS), repr(name))
        code = ACTIVATIONS.index(name)
        if (code == PRELU) != (weight is not None):
            self.fail(f"{argument}_weight", "a tensor with prelu, None without", "None" if weight is None else name)
        if weight is not None:
            self.parameter(f"{argument}_weight", weight, (None,), x)
            if weight.shape[0] not in (1, channels):
                self.fail(f"{argument}_weight", f"1 or {channels} elements", weight.shape[0])
        return code

    def gate(self, name: object) -> int:
        """The code of a gate."""
        if name not in GATES:
            self.fail("gate", "one of " + ", ".join(GATES), repr(name))
        return GATES.index(name)


def autocast(x: object, *others: torch.Tensor | None) -> tuple:
    """The maps of a call in the dtype that autocast asks for, if it is on; parameters keep theirs."""
    if not isinstance(x, torch.Tensor) or x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return (x, *others)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in (x, *others)
    )
