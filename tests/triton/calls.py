"""Calls of every operator of the Triton backend on maps of nets' layers, for compiling: nothing computes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ghost_ops.activations import ACTIVATIONS, GATES, NONE, PRELU, RELU
from ghost_ops.backends.triton import (
    cheap_concat,
    cheap_concat_train,
    convolution,
    depthwise,
    depthwise_gradients,
    dfc_gate_train,
    excite,
    gating,
    ghost_module,
    ghost_module_train,
    joins,
    lines,
    normalise,
    product_gradients,
    products,
    squeeze_excite,
)
from ghost_ops.backends.triton.epilogue import Epilogue
from ghost_ops.backends.triton.norm import BatchNorm

HARD_SIGMOID, HARD_SWISH, SILU = GATES.index("hard_sigmoid"), ACTIVATIONS.index("hard_swish"), ACTIVATIONS.index("silu")

LAST, FIRST = torch.channels_last, torch.contiguous_format


def _empty(dtype: torch.dtype, layout: torch.memory_format):
    def map_of(n, c, h, w):
        return torch.empty(n, c, h, w, dtype=dtype).to(memory_format=layout)

    return map_of


def inference(c, m, side, dtype, *, layout=LAST, n=2, d=3, multiplier=1, act=RELU, more=False, own=None):
    """``more``: excitation, residual and squeeze. ``own``: dtype of the parameters."""
    a_map, own = _empty(dtype, layout), own or dtype
    parameter = lambda *shape: torch.empty(shape, dtype=own)
    made, kept = m * multiplier, m * (1 + multiplier)
    extra = (torch.empty(n, c, dtype=dtype), a_map(n, kept, side, side)) if more else (None, None)
    norm = lambda k: (None, parameter(k), parameter(k), parameter(k), parameter(k))
    ghost_module.ghost_module_eval(
        a_map(n, c, side, side), parameter(m, c, 1, 1), *norm(m), parameter(made, 1, d, d), *norm(made), *extra, None,
        None, kept, act, act, 0.01, 0.01, 1e-5, 1e-5, more,
    )  # fmt: skip


def excited(c, m, side, dtype, *, n=2, d=3):
    """A module that reads a map with an excitation and adds a residual."""
    a_map, parameter = _empty(dtype, LAST), lambda *shape: torch.empty(shape)
    norm = lambda: (None, *(parameter(m) for _ in range(4)))
    ghost_module.ghost_module_eval(
        a_map(n, c, side, side), parameter(m, c, 1, 1), *norm(), parameter(m, 1, d, d), *norm(),
        torch.empty(n, c, dtype=dtype), a_map(n, 2 * m, side, side), None, None, 2 * m, NONE, NONE, 0.0, 0.0, 1e-5,
        1e-5, False,
    )  # fmt: skip


def folded(c, m, side, dtype, *, layout=LAST, n=2, d=3, act=RELU, cheap=True, backward=True):
    a_map = _empty(dtype, layout)
    parameter = lambda *shape: torch.empty(shape, dtype=dtype)
    kept = 2 * m if cheap else m
    x, w1, b1 = a_map(n, c, side, side), parameter(m, c, 1, 1), parameter(m)
    w2, b2 = (parameter(m, 1, d, d), parameter(m)) if cheap else (None, None)
    slopes = (parameter(m), parameter(m) if cheap else None) if act == PRELU else (None, None)
    codes = kept, act, act if cheap else NONE, 0.01, 0.01
    ghost_module.ghost_module(x, w1, b1, w2, b2, None, None, *slopes, *codes, False)
    if backward:
        grad = a_map(n, kept, side, side)
        ghost_module.ghost_module_backward(grad, x, w1, b1, w2, b2, None, *slopes, *codes)


def training(c, m, side, dtype, *, layout=LAST, n=2, d=3, multiplier=1, act=RELU):
    """A step as under autocast: parameters in float32."""
    a_map, made = _empty(dtype, layout), m * multiplier
    vector = lambda k: torch.empty(k)
    x, w1, w2 = a_map(n, c, side, side), torch.empty(m, c, 1, 1), torch.empty(made, 1, d, d)
    affine = [vector(m), vector(m)], [vector(made), vector(made)]
    codes = m + made, act, act, 0.01, 0.01, 1e-5, 1e-5
    out, *statistics, _ = ghost_module_train.ghost_module_train(
        x, w1, None, *affine[0], w2, None, *affine[1], None, None, *codes
    )
    ghost_module_train.ghost_module_train_backward(
        out, x, w1, *affine[0], w2, *affine[1], None, None, *statistics, None, *codes
    )


def tail_training(m, side, dtype, *, layout=LAST, n=2, d=3, multiplier=1, act=RELU):
    """As ``training``, after the primary convolution."""
    z, made = _empty(dtype, layout)(n, m, side, side), m * multiplier
    weight, first, second = torch.empty(made, 1, d, d), [torch.empty(m)] * 2, [torch.empty(made)] * 2
    slopes = [torch.empty(k) if act == PRELU else None for k in (m, made)]
    codes = m + made, act, act, 0.01, 0.01, 1e-5, 1e-5
    out, *statistics = cheap_concat_train.cheap_concat_train(z, None, *first, weight, None, *second, *slopes, *codes)
    cheap_concat_train.cheap_concat_train_backward(out, z, *first, weight, *second, *slopes, *statistics, *codes)


def gated_training(c, m, side, dtype, *, layout=LAST, n=2, d=3):
    """As ``training``, with a gate of half the size."""
    a_map, affine = _empty(dtype, layout), [torch.empty(m), torch.empty(m)]
    x, gate = a_map(n, c, side, side), a_map(n, 2 * m, side // 2, side // 2)
    w1, w2, codes = torch.empty(m, c, 1, 1), torch.empty(m, 1, d, d), (2 * m, RELU, RELU, 0.0, 0.0, 1e-5, 1e-5)
    out, *statistics = ghost_module_train.ghost_module_train_gated(
        x, gate, w1, None, *affine, w2, None, *affine, None, None, *codes
    )
    ghost_module_train.ghost_module_train_gated_backward(
        out, x, gate, w1, *affine, w2, *affine, None, None, *statistics, *codes
    )


def gating_of(c, side, dtype, *, layout=LAST, n=2):
    """A map times a gate of half its size, and the gradients."""
    x, gate = (_empty(dtype, layout)(n, c, s, s) for s in (side, side // 2))
    gating.multiply_by_gate(x, gate)
    gating.gate_gradients(x, x, gate)


def gate_training(c, m, side, dtype, *, layout=LAST, n=2, taps=5):
    """The gate of DFC attention, parameters in float32."""
    x, weight = _empty(dtype, layout)(n, c, side, side), torch.empty(m, c, 1, 1)
    weights = weight, torch.empty(m, 1, 1, taps), torch.empty(m, 1, taps, 1)
    parameters = [t for w in weights for t in (w, torch.empty(m), torch.empty(m))]
    numbers = GATES.index("sigmoid"), 1e-5, 1e-5, 1e-5
    out, *rest = dfc_gate_train.dfc_gate_train(x, *parameters, *numbers)
    dfc_gate_train.dfc_gate_train_backward(out, x, *parameters, *rest, *numbers)


def pointwise(c, m, side, dtype, *, n=2):
    """A 1x1 convolution with a BatchNorm over the batch, as shortcuts have it, and its backward."""
    x, grad, z = (_empty(dtype, LAST)(n, k, side, side) for k in (c, m, m))
    weight, vector, steps = torch.empty(m, c, 1, 1), torch.empty(m), torch.zeros((), dtype=torch.int64)
    norm = BatchNorm(vector, vector, 1e-5, vector, vector, steps)
    products.primary_product(x, weight, to=z, joins=joins.Joins(x.device, [steps]), norm=norm)
    product_gradients.product_gradients(grad, z, x, weight, torch.empty(4, m), residual=x)


def concatenation(m, side, dtype, *, d=3, layout=LAST):
    z, w = _empty(dtype, layout)(2, m, side, side), torch.empty(m, 1, d, d, dtype=dtype)
    codes = 2 * m, SILU, SILU, 0.01, 0.01
    cheap_concat.cheap_concat(z, w, None, None, None, None, *codes, False)
    norm = [torch.empty(m) for _ in range(5)]
    cheap_concat.cheap_concat_eval(z, *norm, w, *norm, None, None, None, *codes, 1e-5, 1e-5, False)
    cheap_concat.cheap_concat_backward(_empty(dtype, layout)(2, 2 * m, side, side), z, w, None, None, None, *codes)


def excitation(c, side, dtype, *, layout=LAST, r=None, own=None):
    r, x = r or c // 4, _empty(dtype, layout)(2, c, side, side)
    parameters = [torch.empty(s, dtype=own or dtype) for s in ((r, c), (r,), (c, r), (c,))]
    _, *vectors = squeeze_excite.squeeze_excite(x, *parameters, RELU, HARD_SIGMOID)
    excite.excite(vectors[0], *parameters, RELU, HARD_SIGMOID)
    squeeze_excite.squeeze_excite_backward(x, x, *vectors, *parameters, RELU, HARD_SIGMOID)


def convolutions(side, dtype, *, c=3, m=16, d=3):
    """As programs have them: a net's first, a depthwise one of stride 2, and one along rows."""
    parameter = lambda *shape: torch.empty(shape, dtype=dtype)
    a_map = _empty(dtype, LAST)
    convolution.convolution(
        a_map(2, c, 2 * side, 2 * side), parameter(m, c, d, d), parameter(m), None, 2, d // 2, RELU, 0.0
    )
    x, weight, bias = a_map(2, m, 2 * side, 2 * side), parameter(m, 1, d, d), parameter(m)
    depthwise.depthwise_with_epilogue(x, weight, bias, None, 2, NONE, 0.0, True)
    lines.line_with_epilogue(x, parameter(m, 1, 1, d), bias, False, NONE)
    depthwise.depthwise_backward(a_map(2, m, side, side), x, weight, bias, 2, True, True)


def layers(side, dtype, *, c=3, m=16, d=3, stride=2, act=RELU, layout=LAST):
    """A net's first convolution and a depthwise one in training, each with a BatchNorm over the batch."""
    a_map, size = _empty(dtype, layout), stride * side
    gamma, beta, slopes = (torch.empty(m) for _ in range(3))
    given = {"joins": joins.Joins(gamma.device), "norm": BatchNorm(gamma, beta, 1e-5)}
    own = Epilogue(None, act, 0.0, slopes, gamma, beta, eps=1e-5)

    def follow(z, vectors):
        applied, grad = vectors.applied(Epilogue(None, act, 0.0, slopes)), a_map(*z.shape)
        normalise.normalise(z, applied, to=grad, residual=grad, squeeze=True)
        coefficients, _ = normalise.norm_gradient_sums(
            grad, z, applied, joins=given["joins"], own=own, vectors=vectors
        )  # fmt: skip
        return grad, {"z": z, "norm": applied, "coefficients": coefficients}

    x, weight = a_map(2, c, size, size), torch.empty(m, c, d, d)
    grad, options = follow(*convolution.convolution_before_norm(x, weight, stride, d // 2, **given))
    convolution.convolution_weight_gradient(grad, x, weight, stride, d // 2, **options)
    x, weight = a_map(2, m, size, size), torch.empty(m, 1, d, d)
    grad, options = follow(*depthwise.depthwise_before_norm(x, weight, stride, **given))
    depthwise_gradients.depthwise_gradients(grad, x, weight, stride, residual=x, **options)


def core(half: torch.dtype) -> list[tuple[str, Callable[[], None]]]:
    """Every entry of the table through every kernel, at the shapes where its tile is largest."""
    found = []
    for dtype in (half, torch.float32):
        found += [
            (f"inference, large, {dtype}", lambda d=dtype: inference(64, 64, 56, d)),
            (f"inference, small, {dtype}", lambda d=dtype: inference(112, 336, 14, d, more=True)),
            (f"inference, few channels, {dtype}", lambda d=dtype: inference(16, 8, 112, d)),
            (f"inference, few channels, excitation and residual, {dtype}", lambda d=dtype: excited(16, 8, 112, d)),
            (f"inference, small, many channels, {dtype}", lambda d=dtype: inference(960, 80, 7, d, more=True)),
            (f"inference, small, in one launch in half precision, {dtype}", lambda d=dtype: folded(40, 60, 28, d)),
            (f"training, large, {dtype}", lambda d=dtype: training(24, 36, 56, d)),
            (f"training, large, many channels, {dtype}", lambda d=dtype: pointwise(96, 192, 56, d)),
            (f"training, small, {dtype}", lambda d=dtype: training(672, 80, 14, d, d=5)),
            (f"tail in training, large, {dtype}", lambda d=dtype: tail_training(64, 56, d)),
            (f"tail in training, small, {dtype}", lambda d=dtype: tail_training(128, 14, d, d=5)),
            (f"gated in training, large, {dtype}", lambda d=dtype: gated_training(24, 36, 56, d)),
            (f"gated in training, small, {dtype}", lambda d=dtype: gated_training(112, 92, 7, d)),
            (f"gate in training, large, {dtype}", lambda d=dtype: gate_training(24, 72, 56, d)),
            (f"gate in training, small, {dtype}", lambda d=dtype: gate_training(40, 240, 14, d)),
            (f"squeeze-excite, {dtype}", lambda d=dtype: excitation(672, 14, d)),
            (f"squeeze-excite in training, {dtype}", lambda d=dtype: excitation(960, 7, d, own=torch.float32)),
            (f"layers in training, large, {dtype}", lambda d=dtype: layers(112, d, m=48)),
            (f"layers in training, small, {dtype}", lambda d=dtype: layers(14, d, c=5, m=672, d=5)),
            (f"convolutions, large, {dtype}", lambda d=dtype: convolutions(112, d, m=48)),
            (f"convolutions, large, 5 x 5, {dtype}", lambda d=dtype: convolutions(56, d, m=72, d=5)),
            (f"convolutions, small, {dtype}", lambda d=dtype: convolutions(14, d, c=5, m=672, d=5)),
        ]
    return found


def odd(half: torch.dtype) -> list[tuple[str, Callable[[], None]]]:
    """Odd channels, ratios, cheap kernels, activations and layouts."""
    return [
        ("first layer, NCHW", lambda: inference(16, 8, 112, half, layout=FIRST)),
        ("one launch, PReLU", lambda: folded(24, 36, 56, half, act=PRELU, backward=False)),
        ("one launch of many channels, unfolded", lambda: inference(128, 64, 28, half)),
        ("PReLU, gradients, odd channels", lambda: folded(23, 37, 33, half, d=5, act=PRELU)),
        ("ratio 1, gradients", lambda: folded(160, 960, 7, half, cheap=False, act=HARD_SWISH)),
        ("ratio 3, all that rides", lambda: inference(40, 20, 28, half, multiplier=2, act=SILU, more=True)),
        ("ratio 3, 7 x 7", lambda: training(40, 20, 28, half, d=7, multiplier=2, act=SILU)),
        ("tail in training, NCHW, odd channels, PReLU", lambda: tail_training(37, 28, half, layout=FIRST, act=PRELU)),
        ("a gate, NCHW, odd channels", lambda: gating_of(37, 29, half, layout=FIRST)),
        ("gate in training, NCHW, odd channels, 7 taps", lambda: gate_training(23, 37, 29, half, layout=FIRST, taps=7)),
        ("1 x 1 cheap kernel, float", lambda: folded(40, 20, 28, torch.float32, d=1, act=SILU)),
        ("layers, NCHW, odd channels, PReLU", lambda: layers(28, half, m=37, d=5, stride=1, act=PRELU, layout=FIRST)),
        ("layers, 7 x 7 kernels", lambda: layers(28, half, m=24, d=7, stride=1)),
        ("layers, 7 x 7 kernels of stride 3, float", lambda: layers(28, torch.float32, m=24, d=7, stride=3, act=SILU)),
        ("squeeze-excite, few channels", lambda: excitation(72, 28, half, r=20)),
        ("squeeze-excite, many hidden channels", lambda: excitation(1500, 7, torch.float32, r=375)),
        ("concatenation", lambda: concatenation(64, 40, half, d=5)),
    ]
