"""Every activation, elementwise: what an operator makes of it against PyTorch's module and against float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from tests.helpers import assert_as_accurate

SLOPE = 0.3
MODULES = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(SLOPE),
    "silu": nn.SiLU(),
    "hard_swish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "mish": nn.Mish(),
    "elu": nn.ELU(SLOPE),
    "hard_sigmoid": nn.Hardsigmoid(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
}
SPECIAL = (0.0, -0.0, 3.0, -3.0, 6.0, 1.0, torch.inf, -torch.inf, torch.nan, 89.0, -89.0, 104.0, -104.0, 5e4, -5e4)


def inputs(dtype: torch.dtype, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Values of several sizes, and those at which definitions change or overflow."""
    generator = torch.Generator().manual_seed(seed)
    tiny, huge = (1e-4, 1e3) if dtype == torch.float16 else (1e-30, 1e15)
    for name, scale in (("small", 0.1), ("ordinary", 1.0), ("large", 5.0), ("tiny", tiny), ("huge", huge)):
        yield name, (torch.randn(900, generator=generator, dtype=torch.float64) * scale).to(dtype)
    yield "special", torch.tensor(SPECIAL * 4, dtype=torch.float64).to(dtype)


def through(operator, act: str, z: torch.Tensor, grad: torch.Tensor, half: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation's values at z, and the gradient of z, as the operator's primary or cheap half computes them.

    The other half has no activation, and no gradient.
    """
    z = z.reshape(1, 5, -1, 12).requires_grad_()
    channels = z.shape[1]
    weight = torch.ones(channels, 1, 1, 1, dtype=z.dtype)
    name = "act" if half == "primary" else "cheap_act"
    other = "cheap_act" if half == "primary" else "act"
    out = operator(z, weight, None, out_channels=2 * channels, **{name: act, f"{name}_slope": SLOPE, other: "none"})
    found = out[:, :channels] if half == "primary" else out[:, channels:]
    found.backward(grad.reshape(found.shape))
    return found.detach().flatten(), z.grad.flatten()


def by_pytorch(act: str, z: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = z.clone().requires_grad_()
    found = MODULES[act](z)
    found.backward(grad)
    return found.detach(), z.grad


def check(operator, act: str, dtype: torch.dtype, half: str) -> None:
    """Values and gradients are as accurate as PyTorch's, and not finite where PyTorch's are not."""
    names, groups = zip(*inputs(dtype), strict=True)
    z, sizes = torch.cat(groups), [len(group) for group in groups]
    grad = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    ours = through(operator, act, z.clone(), grad, half)
    plain, exact = by_pytorch(act, z, grad), by_pytorch(act, z.double(), grad.double())
    for what, results in zip(("value", "gradient"), zip(ours, plain, exact, strict=True), strict=True):
        for name, x, *parts in zip(names, groups, *(t.split(sizes) for t in results), strict=True):
            # of a NaN, PyTorch's gradients differ from vector to remainder
            counted = ~x.isnan() if what == "gradient" else torch.ones_like(x, dtype=torch.bool)
            a, b, e = (t[counted] for t in parts)
            wrong = ~(same(a, b) | same(a, e.to(dtype)))
            assert not wrong.any(), f"{act}, {what}: {a[wrong]} at {x[counted][wrong]}, PyTorch {b[wrong]}"
            finite = a.isfinite() & b.isfinite() & e.isfinite()
            assert_as_accurate(a[finite], b[finite], e[finite], what=f"{act}, {what}, {name}", ulps=0.5)


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where both are finite, or the same infinity, or NaN."""
    return (a.isfinite() & b.isfinite()) | (a == b) | (a.isnan() & b.isnan())
