"""Gradients that nearly cancel: a loss that is a linear ramp times the output.

What is left of a sum over pixels is then small beside its terms. PyTorch's BatchNorm adds short runs and keeps their
sums in double, so that is what the gradients of biases are compared with, not those of a convolution's own bias.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import FusedGhostModule, GhostModule, functional
from tests.helpers import LAYOUTS, NEARBY, farthest, nudged, randomise
from tests.ops.cases import Errors

CASES = 24
NOISE = 0.02
SIDES = ((13, 13), (7, 7), (28, 28), (13, 40), (56, 9), (14, 14))
Tensors = dict[str, torch.Tensor]


def ramp(shape: torch.Size, seed: int, dtype: torch.dtype, noise: float = 0.0) -> torch.Tensor:
    """From -1 to 1 over the columns, the rows or both; with noise what is left of a sum over them is no rounding."""
    rows, columns = (torch.linspace(-1, 1, side) for side in shape[2:])
    along = (columns.expand(shape[2:]), rows[:, None].expand(shape[2:]), rows[:, None] + columns / shape[3])[seed % 3]
    return (along + noise * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def shift(z: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """z + bias by a BatchNorm."""
    c = z.shape[1]
    return F.batch_norm(z, z.new_zeros(c), z.new_ones(c), z.new_ones(c), bias, False, 0.0, 0.0)


def act(z: torch.Tensor, name: str, slope: torch.Tensor | None) -> torch.Tensor:
    return F.prelu(z, slope) if name == "prelu" else F.silu(z) if name == "silu" else z


@dataclass
class Call:
    """An operator with PyTorch's modules' way to compute the same, and what it is given."""

    ours: Callable
    plain: Callable
    tensors: Tensors
    watched: tuple[str, ...]  # whose gradients are sums over pixels

    def near(self, share: float, seed: int = 0) -> Call:
        """The call with arguments that are off by up to this share of themselves."""
        return replace(self, tensors={name: nudged(t.double(), share, seed) for name, t in self.tensors.items()})

    def gradients(self, function: Callable, seed: int, dtype: torch.dtype) -> Tensors:
        leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in self.tensors.items()}
        out = function(**leaves)
        (out * ramp(out.shape, seed, dtype, NOISE)).sum().backward()
        return {name: leaves[name].grad for name in self.watched}


def draw(seed: int):
    g = torch.Generator().manual_seed(seed)
    numbers = lambda *shape: torch.randn(shape, generator=g)
    sizes = [int(torch.randint(low, high, (1,), generator=g)) for low, high in ((1, 4), (4, 40), (3, 30))]
    layout = tuple(LAYOUTS.values())[seed // 2 % 2]
    n, c, m = sizes
    x = (numbers(n, c, *SIDES[seed % len(SIDES)]) + seed % 2).contiguous(memory_format=layout)
    return numbers, x, m


def tail(y1, cheap_weight, cheap_bias, name, slope):
    y2 = F.conv2d(y1, cheap_weight, None, 1, cheap_weight.shape[-1] // 2, 1, y1.shape[1])
    return torch.cat([y1, act(shift(y2, cheap_bias), name, slope)], 1)


def slopes(numbers, m: int, seed: int) -> tuple[tuple[str, str], Tensors, tuple[str, ...]]:
    """Activations of both halves; of a PReLU only its slopes' gradients have no jumps."""
    if seed % 2:
        name = ("act_weight", "cheap_act_weight")[seed // 2 % 2]
        names = ("prelu", "silu") if name == "act_weight" else ("silu", "prelu")
        return names, {name: numbers(m) * 0.3}, (name,)
    return (("silu", "none"), ("none", "silu"))[seed // 2 % 2], {}, ()


def ghost_module(seed: int) -> Call:
    numbers, x, m = draw(seed)
    n, c = x.shape[:2]
    names, more, watched = slopes(numbers, m, seed)

    def ours(act_weight=None, cheap_act_weight=None, **t):
        named = {"act_weight": act_weight, "cheap_act_weight": cheap_act_weight, "act": names[0], "cheap_act": names[1]}
        return functional.ghost_module(**t, **named)

    def plain(x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight=None,
              cheap_act_weight=None):  # fmt: skip
        z = shift(F.conv2d(x * input_scale[:, :, None, None], primary_weight), primary_bias)
        return tail(act(z, names[0], act_weight), cheap_weight, cheap_bias, names[1], cheap_act_weight)

    tensors = {
        "x": x, "primary_weight": numbers(m, c, 1, 1) * c**-0.5, "primary_bias": numbers(m),
        "cheap_weight": numbers(m, 1, 3, 3) / 3, "cheap_bias": numbers(m), "input_scale": numbers(n, c),
    }  # fmt: skip
    return Call(ours, plain, tensors | more, watched or ("primary_bias", "cheap_bias", "input_scale"))


def cheap_concat(seed: int) -> Call:
    numbers, z, _ = draw(seed)
    m = z.shape[1]
    names, more, watched = slopes(numbers, m, seed)

    def ours(act_weight=None, cheap_act_weight=None, **t):
        named = {"act_weight": act_weight, "cheap_act_weight": cheap_act_weight, "act": names[0], "cheap_act": names[1]}
        return functional.cheap_concat(**t, **named)

    def plain(z, cheap_weight, cheap_bias, act_weight=None, cheap_act_weight=None):
        return tail(act(z, names[0], act_weight), cheap_weight, cheap_bias, names[1], cheap_act_weight)

    tensors = {"z": z, "cheap_weight": numbers(m, 1, 5, 5) / 5, "cheap_bias": numbers(m)}
    return Call(ours, plain, tensors | more, watched or ("cheap_bias",))


def ghost_module_train(seed: int) -> Call:
    numbers, x, m = draw(seed)
    names, more, watched = slopes(numbers, m, seed)

    def ours(act_weight=None, cheap_act_weight=None, **t):
        named = {"act_weight": act_weight, "cheap_act_weight": cheap_act_weight, "act": names[0], "cheap_act": names[1]}
        return functional.ghost_module_train(primary_bias=None, cheap_bias=None, **t, **named).out

    def plain(x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight=None,
              cheap_act_weight=None):  # fmt: skip
        norm = lambda z, gamma, beta: F.batch_norm(z, None, None, gamma, beta, True, 0.0, 1e-5)
        y1 = act(norm(F.conv2d(x, primary_weight), primary_gamma, primary_beta), names[0], act_weight)
        y2 = norm(F.conv2d(y1, cheap_weight, None, 1, 1, 1, m), cheap_gamma, cheap_beta)
        return torch.cat([y1, act(y2, names[1], cheap_act_weight)], 1)

    tensors = {
        "x": x, "primary_weight": numbers(m, x.shape[1], 1, 1), "primary_gamma": numbers(m), "primary_beta": numbers(m),
        "cheap_weight": numbers(m, 1, 3, 3), "cheap_gamma": numbers(m), "cheap_beta": numbers(m),
    }  # fmt: skip
    norms = ("primary_gamma", "primary_beta", "cheap_gamma", "cheap_beta")
    return Call(ours, plain, tensors | more, watched or norms)


def depthwise(seed: int) -> Call:
    numbers, x, _ = draw(seed)
    c, stride = x.shape[1], 1 + seed % 3

    def plain(x, weight, bias):
        return shift(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, c), bias)

    def ours(**t):
        return functional.depthwise(**t, stride=stride)

    tensors = {"x": x, "weight": numbers(c, 1, 3, 3) / 3, "bias": numbers(c)}
    return Call(ours, plain, tensors, ("weight", "bias"))


def squeeze_excite(seed: int) -> Call:
    numbers, x, r = draw(seed)
    c = x.shape[1]

    def plain(x, reduce_weight, reduce_bias, expand_weight, expand_bias):
        hidden = F.silu(F.linear(x.mean((2, 3)), reduce_weight, reduce_bias))
        return x * F.linear(hidden, expand_weight, expand_bias).sigmoid()[:, :, None, None]

    def ours(**t):
        return functional.squeeze_excite(**t, act="silu", gate="sigmoid")

    tensors = {
        "x": x, "reduce_weight": numbers(r, c) * c**-0.5, "reduce_bias": numbers(r),
        "expand_weight": numbers(c, r) * r**-0.5, "expand_bias": numbers(c),
    }  # fmt: skip
    return Call(ours, plain, tensors, tuple(tensors)[1:])


class Modules:
    """A Ghost module in eval mode, where ours folds the BatchNorms and PyTorch's does not.

    Of gamma the gradient is a difference of sums, which twice PyTorch's error holds for, but not case by case.
    """

    watched = ("primary_conv.1.bias", "cheap_operation.1.bias")

    def __init__(self, seed: int) -> None:
        numbers, self.x, m = draw(seed)
        self.plain = randomise(GhostModule(self.x.shape[1], 2 * m), seed).eval()
        self.ours = FusedGhostModule(self.x.shape[1], 2 * m).eval()
        self.ours.load_state_dict(self.plain.state_dict())

    def near(self, share: float, seed: int = 0) -> Modules:
        found = copy.copy(self)
        found.x, found.plain = nudged(self.x.double(), share, seed), copy.deepcopy(self.plain).double()
        with torch.no_grad():
            for p in found.plain.parameters():
                p.copy_(nudged(p, share, seed))
        return found

    def gradients(self, module: torch.nn.Module, seed: int, dtype: torch.dtype) -> Tensors | None:
        """None where a ReLU's argument is so small that rounding may change its sign."""
        module, near = copy.deepcopy(module).to(dtype), []
        for child in module.modules():
            if isinstance(child, torch.nn.BatchNorm2d) and dtype is torch.float64:
                child.register_forward_hook(lambda m, args, out: near.append(float(out.detach().abs().min())))
        out = module(self.x.to(dtype))
        (out * ramp(out.shape, seed, dtype)).sum().backward()
        norms = {name: p.grad for name, p in module.named_parameters() if p.dim() == 1}
        return None if near and min(near) < 1e-5 else norms


OPERATORS = (ghost_module, cheap_concat, ghost_module_train, depthwise, squeeze_excite, Modules)


def largest_errors(found: Tensors, exact: Tensors) -> dict[str, float]:
    return {name: float((found[name].double() - right).abs().max()) for name, right in exact.items()}


def usual_errors(call: Call | Modules, seed: int, exact: Tensors) -> dict[str, float]:
    """PyTorch's largest errors without luck: the median for nearby arguments."""
    found = []
    for near in (call.near(2.0**-6, i) for i in NEARBY):
        right = near.gradients(near.plain, seed, torch.float64)
        if right is not None:
            found.append(largest_errors(near.gradients(near.plain, seed, torch.float32), right))
    return {name: sorted(errors[name] for errors in found)[len(found) // 2] if found else 0.0 for name in exact}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_left_is_as_accurate_as_pytorch(operator, threads):
    """Twice PyTorch's error over all cases, and in a single channel four times."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    errors, cases = Errors(), 0
    try:
        for seed in range(4 * CASES):
            call = operator(seed)
            exact = None if cases == CASES else call.gradients(call.plain, seed, torch.float64)
            if exact is None:
                continue
            cases += 1
            ours, plain = (call.gradients(f, seed, torch.float32) for f in (call.ours, call.plain))
            again, usual = call.gradients(call.ours, seed, torch.float32), usual_errors(call, seed, exact)
            # what the exact result moves with half a unit in the arguments' last place is nobody's error
            moved = call.near(2.0**-24)
            moved = moved.gradients(moved.plain, seed, torch.float64) or exact
            plain = {name: farthest(right, plain[name], moved[name].float()) for name, right in exact.items()}
            worst, of_plain = (largest_errors(found, exact) for found in (ours, plain))
            for name, right in exact.items():
                what = f"{name} of case {seed}"
                errors.add(name, ours[name], plain[name], right)
                assert torch.equal(ours[name], again[name]), f"{what} does not repeat"
                allowed = 4 * max(of_plain[name], usual[name]) + 2.0**-23 * float(right.abs().max())
                failed = f"{what}: error {worst[name]:.3g}, allowed {allowed:.3g}, PyTorch {of_plain[name]:.3g}"
                assert worst[name] <= allowed or name not in call.watched, failed
    finally:
        torch.set_num_threads(before)
    assert cases == CASES
    errors.assert_within(2.0)
