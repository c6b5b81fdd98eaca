"""The torch-free kernels of each instruction set that this machine runs, through the development extension."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from ghost_ops.backends import native

kernels = pytest.importorskip("ghost_ops._kernels", reason="the development extension is not built (GHOST_OPS_DEV=1)")
LIBRARY_ISAS = kernels.isas()
ISAS = [*LIBRARY_ISAS, *kernels.emulated()]  # "wide": what AVX-512 runs, compiled for AVX2


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("relu", [False, True])
def test_gemm_every_width_and_height(isa, relu):
    """Every tail of columns and of rows."""
    for n in (*range(1, 50), 64, 100, 130):
        for m in (1, 2, 3, 5, 13, 16, 20, 22, 24, 27, 32, 40, 49, 57, 83):
            x, w, b = numbers(m, 7, seed=n), numbers(n, 7, seed=m), numbers(n)
            exact = x.astype(np.float64) @ w.astype(np.float64).T + b
            exact = np.maximum(exact, 0) if relu else exact
            np.testing.assert_allclose(kernels.gemm(isa, x, w, b, relu), exact, rtol=0, atol=8e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 49, 300])
def test_gemm_long_sums(isa, rows):
    """In blocks: the error grows with a block's length, not with the sum's."""
    x, w, b = numbers(rows, 1500, seed=1), numbers(100, 1500, seed=2), numbers(100)
    exact = x.astype(np.float64) @ w.astype(np.float64).T + b
    np.testing.assert_allclose(kernels.gemm(isa, x, w, b, False), exact, rtol=0, atol=7e-5)


GROUPED = [(1, 5), (7, 49), (9, 83), (14, 100), (20, 150), (33, 400), (100, 30)]  # width of a group, rows


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width, m", GROUPED)
def test_gemm_rows_in_groups(isa, width, m):
    """Register tiles that lie in one group, and those that lie in several."""
    for n, runs in ((8, (3,)), (24, (5, 5, 5)), (48, (96, 96, 96)), (33, (130,) * 5), (16, (1, 2, 3))):
        x, w, b = numbers(m, sum(runs), seed=n), numbers(n, sum(runs), seed=m), numbers(n)
        exact = np.maximum(x.astype(np.float64) @ w.astype(np.float64).T + b, 0)
        np.testing.assert_allclose(kernels.gemm(isa, x, w, b, True, runs, width), exact, rtol=0, atol=7e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width, m", GROUPED)
def test_gemm_bf16_rows_in_groups(isa, width, m):
    for n, runs in ((8, (4,)), (24, (6, 6, 6)), (48, (96, 96, 96)), (33, (130,) * 5), (26, (1, 2, 3))):
        x, w, b, scale = numbers(m, sum(runs), seed=n), numbers(n, sum(runs), seed=m), numbers(n), numbers(sum(runs))
        assert_gemm_bf16(isa, x, w, b, True, scale, runs, width)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bf16", [False, True])
def test_gemm_in_parts_that_add_up(isa, bf16):
    """Over some rows of the panels and, in float32, of each group; with an activation and a sum at the end."""
    for width, m in ((1, 5), (7, 49), (9, 81), (20, 140)):
        for n, runs in ((8, (4, 2)), (24, (6, 300, 6)), (33, (130, 5)), (80, (16, 64, 1))):
            x, w, b, added = numbers(m, sum(runs), seed=n), numbers(n, sum(runs), seed=m) / 8, numbers(n), numbers(m, n)
            exact = np.zeros((m, n)) + b
            a, weight = (rounded(x), rounded(w)) if bf16 else (x, w)
            for i, end in enumerate(np.cumsum(runs)):
                columns = slice(end - runs[i], end)
                part = a[:, columns].astype(np.float64) @ weight[:, columns].astype(np.float64).T
                left_out = not bf16 and width > 1 and i + 1 < len(runs)
                exact += part * (np.arange(m) % width > 0)[:, None] if left_out else part
            for last, is_padded in ((False, True), (True, False)):
                z = exact if last else exact + added
                expected = z / (1 + np.exp(-z)) + (added if last else 0)
                ours = kernels.gemm_parts(isa, bf16, x, w, b, added, last, list(runs), width, is_padded)
                np.testing.assert_allclose(ours, expected, rtol=0, atol=0.06 if bf16 else 3e-5)


def rounded(v):
    """To bfloat16, to nearest even."""
    bits = np.ascontiguousarray(v).view(np.uint32)
    return np.where(np.isnan(v), v, (bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000).view(np.float32))


def assert_gemm_bf16(isa, x, w, b, relu=False, scale=None, runs=(), width=0):
    """Within what k additions in float32 may lose, and two for blocks and bias, of products that are exact; where
    weights are widened and scaled, these were rounded once more. Narrow products of short rows are always widened."""
    ours = kernels.gemm_bf16(isa, x, w, b, relu, [] if scale is None else scale.tolist(), list(runs), width)
    factors = np.float32(1) if scale is None else scale
    multiplied = (
        x.shape[0] > 4 if isa in ("amx", "tiles") else isa == "avx512bf16" and (w.shape[0] > 24 or w.shape[1] >= 96)
    )
    a = rounded(x * factors) if multiplied else x.astype(np.float64) * factors
    a, w = a.astype(np.float64), rounded(w).astype(np.float64)
    with np.errstate(invalid="ignore"):
        exact, size = a @ w.T + b, np.abs(a) @ np.abs(w).T + np.abs(b)
    exact = np.where(exact < 0, 0, exact) if relu else exact
    terms = (x.shape[1] + x.shape[1] / 128 + 4) * 2.0**-24
    bound = size * terms / (1 - terms) + x.shape[1] * 2.0**-126
    finite = np.isfinite(exact)
    assert (np.abs(ours[finite] - exact[finite]) <= bound[finite]).all(), (isa, x.shape, w.shape, runs)
    np.testing.assert_array_equal(ours[~finite], exact[~finite])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("relu", [False, True])
def test_gemm_bf16_every_width_and_height(isa, relu):
    for n in (*range(1, 50), 64, 100, 130):
        for m in (1, 2, 3, 5, 8, 9, 13, 17, 27, 49, 57, 83):
            c = (1, 7, 8)[(n + m) % 3]
            assert_gemm_bf16(isa, numbers(m, c, seed=n), numbers(n, c, seed=m), numbers(n), relu)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [1, 2, 8, 16, 17, 49, 167, 168, 300])
def test_gemm_bf16_runs_scales_and_long_sums(isa, m):
    """A pair may lie on both sides of a gap, and blocks end where they want to."""
    for runs in ((1,), (1, 1), (3, 5), (33, 31), (32, 1, 64), (255, 2), (256, 1), (1, 511, 3), (5,) * 60, (700, 801)):
        c = sum(runs)
        for n in (3, 100):
            kernels.gemm_bf16(isa, np.full((m, 256), np.nan), numbers(n, 256), numbers(n))  # left on the stack
            x, w, b = numbers(m, c, seed=n), numbers(n, c, seed=m), numbers(n)
            assert_gemm_bf16(isa, x, w, b, False, None, runs)
            assert_gemm_bf16(isa, x, w, b, False, np.abs(numbers(c, seed=1)), runs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [1, 7, 40])
def test_gemm_bf16_keep_nan_and_infinity(isa, m):
    for c in (2, 3, 33):
        for value in (np.nan, np.inf, -np.inf):
            for column in (0, c - 1):
                x, w, b = numbers(m, c, seed=m), numbers(70, c, seed=1), numbers(70)
                x[m // 2, column] = value
                assert_gemm_bf16(isa, x, w, b)
                x, w[5, column] = numbers(m, c, seed=m), value
                assert_gemm_bf16(isa, x, w, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_depthwise_every_tail(isa, k, stride):
    for c in (1, 3, 4, 5, 8, 9, 12, 16, 17, 20, 24, 31, 36):
        for h, w in ((1, 1), (1, 9), (2, 2), (3, 1), (5, 21), (4, 8), (7, 40)):
            x, taps, b = numbers(h, w, c, seed=c), numbers(c, k, k, seed=h), numbers(c)
            around = np.pad(x.astype(np.float64), ((k // 2,) * 2, (k // 2,) * 2, (0, 0)))
            exact = b + sum(around[i : i + h, j : j + w] * taps[:, i, j] for i in range(k) for j in range(k))
            ours = kernels.depthwise(isa, x, taps, b, stride=stride)
            np.testing.assert_allclose(ours, exact[::stride, ::stride], rtol=0, atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [2, 3, 5])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_depthwise_backward_every_tail(isa, k, stride):
    for c in (1, 3, 4, 5, 8, 9, 12, 16, 17, 20, 24, 31, 36):
        for h, w in ((1, 1), (1, 9), (2, 2), (3, 1), (5, 21), (4, 8), (7, 40)):
            x, taps = numbers(h, w, c, seed=c), numbers(c, k, k, seed=h)
            grad = numbers(-(-h // stride), -(-w // stride), c, seed=w)
            spread = np.zeros((h, w, c))
            spread[::stride, ::stride] = grad
            pad = ((k // 2,) * 2, (k // 2,) * 2, (0, 0))
            spread, around = np.pad(spread, pad), np.pad(x.astype(np.float64), pad)
            inner = spread[k // 2 : k // 2 + h, k // 2 : k // 2 + w]
            exact_x, exact_w = np.zeros((h, w, c)), np.zeros((c, k, k))
            for i in range(k):
                for j in range(k):
                    exact_w[:, i, j] = (inner * around[i : i + h, j : j + w]).sum((0, 1))
                    exact_x += spread[k - 1 - i : k - 1 - i + h, k - 1 - j : k - 1 - j + w] * taps[:, i, j]
            grad_x, grad_w = kernels.depthwise_backward(isa, grad, x, taps, stride)
            np.testing.assert_allclose(grad_x, exact_x, rtol=0, atol=2e-5)
            np.testing.assert_allclose(grad_w, exact_w, rtol=0, atol=5e-5)


def test_instruction_sets_agree_with_the_library():
    assert tuple(LIBRARY_ISAS) == tuple(native.isas())
    assert "baseline" in LIBRARY_ISAS
    assert "avx512" in LIBRARY_ISAS or native.ROUNDING.isdisjoint(LIBRARY_ISAS)


@pytest.mark.parametrize("isa", LIBRARY_ISAS)
def test_library_runs_on_every_instruction_set(isa):
    """The whole library, forward and backward, with GHOST_OPS_ISA: in a process of its own, since it is read once."""
    code = """
import torch
from ghost_ops import functional as F, use_backend
from ghost_ops.backends import native
import sys
assert native.isa() == sys.argv[1], native.isa()
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for layout in (torch.contiguous_format, torch.channels_last):
        for act in ("relu", "hard_swish", "silu", "leaky_relu", "relu6", "none"):
            def run():
                torch.manual_seed(1)
                x = torch.randn(3, 20, 13, 17).to(dtype).to(memory_format=layout).requires_grad_()
                w1, w2 = torch.randn(12, 20, 1, 1, requires_grad=True), torch.randn(24, 1, 3, 3, requires_grad=True)
                w3 = torch.randn(36, 1, 5, 5).div(5).requires_grad_()
                w4 = torch.randn(20, 1, 3, 3, requires_grad=True)
                t = F.ghost_module_train(x, w1, None, None, None, w2, None, None, None, out_channels=31, act=act)
                u = F.cheap_concat_train(x.float(), None, None, None, w4, None, None, None, out_channels=31, act=act)
                b = F.batch_norm_act_train(x, None, None, act=act)
                y = F.ghost_module(x, w1, None, w2, None, act=act, cheap_act=act)
                s = F.squeeze_excite(y, w1[:, :, 0, 0].new_ones(5, 36) / 9, None, torch.ones(36, 5) / 9, None)
                d = F.depthwise(s, w3, stride=2)
                (sum(m.float().square().sum() for m in (t.out, u.out, d, b.out)) + s.float().sum()).backward()
                grads = [w.grad for w in (x, w1, w2, w3, w4)]
                return [t.out, t.primary_var, t.cheap_mean, u.out, u.cheap_var, y, s, d, b.out, b.var, *grads]
            ours = run()
            with use_backend("reference"):
                plain = run()
            for a, b in zip(ours, plain):
                error, scale = (a.float() - b.float()).norm(), b.float().norm()
                assert error <= scale * (1e-5 if dtype is torch.float32 else 2e-2), (act, dtype, error / scale)
"""
    env = os.environ | {"GHOST_OPS_ISA": isa}
    run = subprocess.run([sys.executable, "-c", code, isa], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
