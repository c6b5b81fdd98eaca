"""ReLU or no activation, decided at run time by one kernel: the same as of kernels that are compiled for either."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from ghost_ops import activations
from ghost_ops.activations import NONE, PRELU, RELU
from ghost_ops.backends.triton.activation import AT_LEAST, activate, activate_backward
from ghost_ops.backends.triton.epilogue import Epilogue

Z = [-math.inf, -1e30, -1.0, -1e-45, -0.0, 0.0, 1e-45, 2.0, math.inf, math.nan]


@triton.jit
def both_kernel(z, grad, value, gradient, slope, ACT: tl.constexpr, B: tl.constexpr):
    lanes = tl.arange(0, B)
    v, g = tl.load(z + lanes), tl.load(grad + lanes)
    slopes = tl.zeros((B,), tl.float32) + slope
    tl.store(value + lanes, activate(v, ACT, slopes))
    tl.store(gradient + lanes, activate_backward(g, v, ACT, slopes))


def both(act: int, slope: float, z: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    found = [torch.full_like(z, 77.0) for _ in range(2)]
    both_kernel[(1,)](z, grad, *found, slope, ACT=act, B=z.numel())
    return found


@pytest.mark.parametrize("act", [NONE, RELU])
def test_the_same_as_compiled_for_it(act):
    arguments = Epilogue(act=act).arguments("primary", at_run_time=True)
    assert arguments["PRIMARY_ACT"] == AT_LEAST
    z = torch.tensor(Z + [3.0] * (16 - len(Z)))
    for grad in (torch.randn(16), torch.full((16,), math.nan), torch.full((16,), -0.0)):
        ours = both(AT_LEAST, arguments["primary_slope"], z, grad)
        for one, compiled in zip(ours, both(act, 0.0, z, grad), strict=True):
            torch.testing.assert_close(one, compiled, rtol=0, atol=0, equal_nan=True)
            there = ~one.isnan()
            assert torch.equal(one[there].signbit(), compiled[there].signbit())
    leaf = z.clone().requires_grad_()
    activations.activate(leaf, act, 0.0).backward(torch.arange(16.0))
    assert torch.equal(both(AT_LEAST, arguments["primary_slope"], z, torch.arange(16.0))[1], leaf.grad)


def test_others_are_compiled_for():
    for act in set(range(len(activations.ACTIVATIONS))) - {NONE, RELU}:
        weight = torch.randn(3) if act == PRELU else None
        epilogue = Epilogue(act=act, slope=0.3, weight=weight)
        assert epilogue.arguments("cheap", at_run_time=True) == epilogue.arguments("cheap") | {"cheap_slopes": weight}
        assert epilogue.arguments("cheap")["CHEAP_ACT"] == act != AT_LEAST
