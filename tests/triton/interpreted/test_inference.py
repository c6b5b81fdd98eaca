"""Inference against float64: an excitation, few channels, strided convolutions in flat tiles, on small maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from triton.runtime import interpreter

from ghost_ops.activations import NONE, RELU
from ghost_ops.backends.triton import depthwise, ghost_module, launch, module_kernel, tiles
from ghost_ops.backends.triton.taps import as_taps
from tests.helpers import assert_as_accurate, make_map

from .drawn import few_tiles, one_launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter keeps bfloat16 as integers of 16 bits, and multiplies these."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def wide(t: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if t.dtype.scalar != tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self, a, b, *more):
        return create_dot(self, wide(a), wide(b), *more)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.fixture
def launched(monkeypatch):
    """The arguments of each launch, with the kernel's name first."""
    found, start = [], launch.start_kernel

    def start_kernel(kernel, grid, arguments, warps, stages):
        found.append((kernel.__name__, arguments))
        start(kernel, grid, arguments, warps, stages)

    monkeypatch.setattr(launch, "start_kernel", start_kernel)
    return found


def numbers(seed, *shape, scale=1.0, dtype=torch.float32):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def last(seed, *shape, dtype):
    return make_map(shape, layout="channels_last", seed=seed).to(dtype)


def module_in_pytorch(x, w1, b1, w2, b2, scale, residual, act):
    """Output and means, as PyTorch computes them in the dtype of x."""
    x = x if scale is None else x * scale[:, :, None, None]
    y1 = F.conv2d(x, w1, b1).relu() if act == RELU else F.conv2d(x, w1, b1)
    out = y1
    if w2 is not None:
        y2 = F.conv2d(y1, w2, b2, padding=w2.shape[-1] // 2, groups=len(w1))
        out = torch.cat([y1, y2.relu() if act == RELU else y2], 1)
    return out if residual is None else out + residual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("c", "m", "height", "width", "cheap", "pixels"),
    [(24, 20, 7, 7, True, 64), (40, 5, 5, 9, False, 32), (24, 40, 9, 7, False, 16), (8, 8, 1, 3, True, 64)],
)
def test_an_excitation_is_in_the_weight_of_each_image(dtype, c, m, height, width, cheap, pixels, launched):
    """Runs are of one image each, of several tiles where images are larger, with pixels that are none of theirs."""
    n, d = 3, 3
    x, scale = last(0, n, c, height, width, dtype=dtype), numbers(1, n, c, dtype=dtype).sigmoid()
    w1, b1 = numbers(2, m, c, 1, 1, scale=c**-0.5, dtype=dtype), numbers(3, m, dtype=dtype)
    w2, b2 = (numbers(4, m, 1, d, d, scale=1 / d, dtype=dtype), numbers(5, m, dtype=dtype)) if cheap else (None, None)
    kept = 2 * m if cheap else m
    residual = last(6, n, kept, height, width, dtype=dtype)
    with tiles.override("product", pixels=pixels, depth=16, one_step=0), one_launch(False):
        out, _ = ghost_module.ghost_module(
            x, w1, b1, w2, b2, scale, residual, None, None, kept, NONE, NONE, 0.0, 0.0, False
        )
    (product, *_) = (a for name, a in launched if name == "product_kernel")
    assert (product["scale"] is not None and not product["ONE_STEP"]) or c <= 16
    tensors = x, w1, b1, w2, b2, scale, residual
    exact = module_in_pytorch(*(None if t is None else t.double() for t in tensors), NONE)
    assert_as_accurate(out, module_in_pytorch(*tensors, NONE), exact, 2.0)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("height", "width", "d"), [(9, 20, 3), (1, 5, 3), (6, 3, 1), (2, 17, 3)])
@pytest.mark.parametrize("rides", [False, True])
def test_few_channels_in_one_launch(dtype, height, width, d, rides, launched):
    """Rows above and below the map are none, also where the map is lower than the kernel."""
    n, c, m = 2, 12, 8
    x, act = last(0, n, c, height, width, dtype=dtype), NONE if rides else RELU
    w1, b1 = numbers(1, m, c, 1, 1, scale=c**-0.5, dtype=dtype), numbers(2, m, dtype=dtype)
    w2, b2 = numbers(3, m, 1, d, d, scale=1 / d, dtype=dtype), numbers(4, m, dtype=dtype)
    scale = numbers(5, n, c, dtype=dtype).sigmoid() if rides else None
    residual = last(6, n, 2 * m, height, width, dtype=dtype) if rides else None
    with few_tiles(), one_launch(True):
        out, means = ghost_module.ghost_module(
            x, w1, b1, w2, b2, scale, residual, None, None, 2 * m, act, act, 0.0, 0.0, not rides
        )
    (name, arguments), *_ = launched
    assert name == "module_kernel" and arguments["BM"] == 8
    tensors = x, w1, b1, w2, b2, scale, residual
    exact = module_in_pytorch(*(None if t is None else t.double() for t in tensors), act)
    found = module_in_pytorch(*tensors, act)
    assert_as_accurate(out, found, exact, 2.0)
    if not rides:
        assert_as_accurate(means, found.mean((2, 3)), exact.mean((2, 3)), 2.0)


def test_a_residual_of_many_channels_is_two_launches():
    x = torch.empty(1, 32, 56, 56, dtype=torch.float16, device="meta")
    for m, takes in ((8, True), (16, False)):
        weight = torch.empty(m, 1, 3, 3, device="meta")
        assert module_kernel.takes(x[:, : 2 * m], weight, m, x, False) == takes
        assert module_kernel.takes(x[:, : 2 * m], weight, m, None, True)
        assert not module_kernel.takes(x[:, : 2 * m], weight, m, x, True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("c", "d", "stride", "height", "width", "columns"),
    [(12, 5, 2, 5, 35, 2), (16, 3, 2, 6, 10, 1), (6, 5, 2, 4, 40, 2), (8, 5, 3, 4, 55, 2), (8, 3, 1, 4, 5, 1)],
)
@pytest.mark.parametrize("squeeze", [False, True])
def test_strided_convolutions_in_flat_tiles(dtype, c, d, stride, height, width, columns, squeeze, launched):
    n = 2
    x, bias = last(0, n, c, height, width, dtype=dtype), numbers(1, c, dtype=dtype)
    weight = numbers(2, c, 1, d, d, scale=1 / d, dtype=dtype)
    taps = as_taps(weight.permute(2, 3, 1, 0).contiguous().flatten(), (c, 1, d, d))
    out, means = depthwise.depthwise_with_epilogue(x, taps, bias, None, stride, RELU, 0.0, squeeze)
    _, arguments = launched[0]
    assert arguments["vectors"] is not None and arguments["COLUMNS"] == columns
    run = lambda *ts: F.conv2d(*ts, stride, d // 2, groups=c).relu()
    exact, found = run(x.double(), weight.double(), bias.double()), run(x, weight, bias)
    assert_as_accurate(out, found, exact, 2.0)
    if squeeze:
        assert_as_accurate(means, found.mean((2, 3)), exact.mean((2, 3)), 2.0)
