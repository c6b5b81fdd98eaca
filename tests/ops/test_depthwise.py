"""``depthwise``: values and gradients against PyTorch's and float64, and everything odd that a map may be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from ghost_ops import functional, use_backend
from ghost_ops.backends import native
from ghost_ops.dispatch import select
from ghost_ops.ops._library import overload
from tests.helpers import make_map, poisoned_memory
from tests.ops.cases import DTYPES, LAYOUTS, Case, check, check_drawn, in_layout


def draw(draw) -> Case:
    n, c, h, w = (draw(st.integers(1, most)) for most in (4, 70, 40, 40))
    k = draw(st.sampled_from([1, 3, 3, 5, 5, 7]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def parameter(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).to(draw(st.sampled_from([dtype, torch.float32])))

    x = in_layout(torch.randn((n, c, h, w), generator=generator).to(dtype), draw(st.sampled_from(LAYOUTS)))
    bias = parameter(c, scale=0.3) if draw(st.booleans()) else None
    tensors = {"x": x, "weight": parameter(c, 1, k, k, scale=1.0 / k), "bias": bias}
    return Case(tensors, {"stride": draw(st.sampled_from([1, 2, 2, 2, 3, 4, 50]))}, draw(st.sampled_from([1, 2, 3])))


def test_drawn():
    check_drawn(functional.depthwise, draw)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 48, 112, 112, 3, 2),
        (3, 72, 56, 56, 5, 2),
        (2, 672, 14, 14, 5, 2),
        (1, 40, 45, 30, 3, 2),  # several bands of rows an image
        (1, 24, 61, 33, 7, 3),
        (1, 16, 64, 64, 5, 1),
    ],
)
def test_layer_shapes(shape, layout):
    n, c, h, w, k, stride = shape
    weight = torch.randn(c, 1, k, k, generator=torch.Generator().manual_seed(0)) / k
    tensors = {"x": in_layout(make_map((n, c, h, w)) + 0.3, layout), "weight": weight, "bias": torch.ones(c)}
    check(functional.depthwise, Case(tensors, {"stride": stride}, 2), 1)


SMALL = [(1, 1), (1, 9), (2, 2), (3, 1), (5, 4)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_small_maps_and_memory_around_them(kernel, stride):
    """Single pixels, and maps smaller than the kernel; NaNs lie around every argument, and where the results go."""
    for c in (1, 8, 17):
        for h, w in SMALL:
            tensors = {"x": make_map((2, c, h, w), layout="channels_last"), "weight": make_map((c, 1, kernel, kernel))}
            tensors["bias"] = torch.ones(c)
            out = 2 * c * (-(-h // stride)) * (-(-w // stride))
            with poisoned_memory(4 * out, 8 * c * h * w, 4 * c * kernel**2, 4 * c):
                check(functional.depthwise, Case(tensors, {"stride": stride}), 1)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_repeats_to_the_bit(threads, layout):
    torch.set_num_threads(threads)
    try:
        seen = []
        for _ in range(3):
            x = in_layout(make_map((3, 40, 45, 31)), layout).requires_grad_()
            weight, bias = make_map((40, 1, 5, 5)).requires_grad_(), torch.ones(40, requires_grad=True)
            out = functional.depthwise(x, weight, bias, stride=2)
            out.square().sum().backward()
            seen.append([out, x.grad, weight.grad, bias.grad])
        for again in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
    finally:
        torch.set_num_threads(2)


def test_memory_formats():
    weight = make_map((8, 1, 3, 3))
    for layout, other in ((torch.channels_last, torch.contiguous_format), (torch.contiguous_format, None)):
        x = make_map((2, 8, 9, 9)).to(memory_format=layout).requires_grad_()
        out = functional.depthwise(x, weight, stride=2)
        assert out.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad(out, x, torch.ones_like(out, memory_format=other or torch.channels_last))
        assert grad.is_contiguous(memory_format=layout)


def test_expanded_and_non_contiguous():
    weight = make_map((6, 1, 3, 3))
    turned = make_map((3, 3, 6, 1), seed=3).permute(2, 3, 0, 1)
    wide = make_map((2, 24, 9, 9), layout="channels_last")
    maps = [make_map((1, 6, 5, 1)).expand(2, 6, 5, 7), make_map((2, 6, 7, 5)).transpose(2, 3), wide[:, 18:]]
    maps += [wide[:, 3:9, 1:-1, ::2], make_map((2, 6, 9, 9))[:, :, ::2, ::3]]
    for x in maps:
        for w in (weight, turned):
            x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
            out = functional.depthwise(x, w, stride=2)
            expected = F.conv2d(x, w, None, 2, 1, groups=6)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
            grads = [torch.autograd.grad(y, (x, w), torch.ones(()).expand(y.shape)) for y in (out, expected)]
            torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mask", range(8))
def test_only_what_wants_a_gradient_has_one(mask, monkeypatch):
    from ghost_ops.ops import depthwise as module

    asked, gradients = [], module._gradients
    x, weight, bias = make_map((2, 8, 9, 9)), make_map((8, 1, 3, 3)), torch.ones(8)
    args = [t.requires_grad_(bool(mask >> i & 1)) for i, t in enumerate((x, weight, bias))]
    out = functional.depthwise(*args, stride=2)
    assert out.requires_grad == bool(mask)
    if mask:
        monkeypatch.setattr(module, "_gradients", lambda *args: asked.append(args[-4:]) or gradients(*args))
        out.sum().backward()
        ((b, _, input_wanted, weight_wanted),) = asked
        assert [input_wanted, weight_wanted, b is not None] == [t.requires_grad for t in args]
        expected = torch.autograd.grad(F.conv2d(*args, 2, 1, groups=8).sum(), [t for t in args if t.requires_grad])
        torch.testing.assert_close([t.grad for t in args if t.requires_grad], list(expected))
    assert all((t.grad is not None) == t.requires_grad for t in args)


@pytest.mark.parametrize("kernel", [2, 4, 9])
def test_other_kernels_run_on_the_reference(kernel):
    x, weight = make_map((2, 6, 11, 12), requires_grad=True), make_map((6, 1, kernel, kernel), requires_grad=True)
    assert select("depthwise", x, kernel).backend == "reference"
    for call in (functional.depthwise, lambda *a, stride: overload("depthwise")(*a, None, stride)):
        out, expected = call(x, weight, stride=2), F.conv2d(x, weight, None, 2, kernel // 2, groups=6)
        torch.testing.assert_close(out, expected)
        grads = (torch.autograd.grad(y.square().sum(), (x, weight)) for y in (out, expected))
        torch.testing.assert_close(*grads)
    fake = torch.empty_like(x, device="meta")
    assert overload("depthwise")(fake, weight.to("meta"), None, 2).shape == out.shape


def test_compiles_and_skips_what_needs_no_gradient():
    weight, bias = make_map((6, 1, 5, 5)), torch.ones(6, requires_grad=True)
    x = make_map((2, 6, 9, 7), layout="channels_last")

    def f(x, bias):
        return functional.depthwise(x, weight, bias, stride=2).square().sum()

    expected = torch.autograd.grad(f(x, bias), bias)
    compiled = torch.autograd.grad(torch.compile(f, fullgraph=True, backend="aot_eager")(x, bias), bias)
    torch.testing.assert_close(compiled, expected)


def test_double_backward_is_refused_on_the_fast_path():
    x, weight = make_map((2, 6, 5, 7), requires_grad=True), make_map((6, 1, 3, 3), requires_grad=True)
    (grad,) = torch.autograd.grad(functional.depthwise(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with use_backend("reference"):
        args = [t.detach().double().requires_grad_() for t in (x, weight)]
        assert torch.autograd.gradgradcheck(lambda x, w: functional.depthwise(x, w, stride=2), args)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (5, 2), (3, 3)])
def test_nan_and_infinity_pass_as_in_pytorch(k, stride, value):
    x, weight = make_map((1, 8, 9, 9)), make_map((8, 1, k, k))
    x[0, 1, 3, 3] = value
    grad = make_map((1, 8, -(-9 // stride), -(-9 // stride)), seed=2)
    grad[0, 3, 0, 0] = value

    def run(call):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        out = call(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad)

    ours = run(lambda x, w: functional.depthwise(x, w, stride=stride))
    plain = run(lambda x, w: F.conv2d(x, w, None, stride, k // 2, groups=8))
    for a, b in zip(ours[:2], plain[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)
    # zeros around the map, times infinity: taps beside the affected ones may be NaN, but of no other channel
    assert torch.equal(*(g.isfinite().all((1, 2, 3)) for g in (ours[2], plain[2])))


GUARDED = """
import torch
from ghost_ops.ops._library import overload
from tests.helpers import make_map
from tests.ops.guard_pages import guarded
for threads in (1, 3):
    torch.set_num_threads(threads)
    for c in (1, 3, 4, 8, 12, 20, 24, 31, 40):
        for k, stride in ((1, 2), (3, 1), (3, 2), (5, 2), (7, 3)):
            for layout in ("nchw", "channels_last"):
                for dtype in (torch.float32, torch.bfloat16):
                    x = guarded(make_map((2, c, 15, 9), dtype, layout))
                    weight, bias = guarded(make_map((c, 1, k, k), dtype)), guarded(torch.ones(c).to(dtype))
                    out = overload("depthwise")(x, weight, bias, stride)
                    overload("depthwise_backward")(guarded(out), x, weight, bias, stride, True, True)
                    wide = guarded(make_map((1, 2 * c, 15, 9), dtype, "channels_last"))
                    out = overload("depthwise")(wide[:, c:], weight, bias, stride)
                    overload("depthwise_backward")(out, wide[:, c:], weight, bias, stride, True, True)
"""


def test_no_read_past_the_end():
    run = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not native.available(), reason="no compiled library")
def test_operators_refuse_what_the_kernels_cannot_read():
    """Called directly, past the checks of the function."""
    x, weight = make_map((2, 6, 9, 9)), make_map((6, 1, 3, 3))
    call, back = overload("depthwise"), overload("depthwise_backward")
    for args, message in (
        ((x[0], weight, None, 2), "x: expected 4 dimensions"),
        ((x, weight[:5], None, 2), "weight: expected shape 6x1x3x3, got 5x1x3x3"),
        ((x, weight, torch.ones(5), 2), "bias: expected shape 6, got 5"),
        ((x, weight, None, 0), "stride: expected at least 1, got 0"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*args)
    with pytest.raises(RuntimeError, match="grad_out: expected shape 2x6x5x5, got 2x6x9x9"):
        back(x, x, weight, None, 2, True, True)
