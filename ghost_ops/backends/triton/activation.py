"""Activations, gates and BatchNorms of tiles; codes and derivatives are those of ``backends/activation.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from .. import activation as codes

NONE = tl.constexpr(codes.NONE)
RELU = tl.constexpr(codes.RELU)
RELU6 = tl.constexpr(codes.RELU6)
LEAKY_RELU = tl.constexpr(codes.LEAKY_RELU)
PRELU = tl.constexpr(codes.PRELU)
SILU = tl.constexpr(codes.SILU)
CLAMP = tl.constexpr(codes.CLAMP)
HARD_SIGMOID = tl.constexpr(codes.HARD_SIGMOID)
SIGMOID = tl.constexpr(codes.SIGMOID)
IDENTITY = tl.constexpr(codes.IDENTITY)


@triton.jit
def at_most(z, bound: tl.constexpr):
    """min(z, bound) that keeps NaN, as PyTorch's clamps do."""
    return tl.minimum(z, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(z, bound: tl.constexpr):
    return tl.maximum(z, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def slopes(pointer, stride, channels, mask, slope, ACT: tl.constexpr):
    """Negative slopes of a tile's channels: LeakyReLU's one, PReLU's by channel (stride 0: one for all)."""
    if ACT == PRELU:
        found = tl.load(pointer + channels * stride, mask=mask, other=0.0).to(tl.float32)
    else:
        found = tl.zeros(channels.shape, tl.float32) + slope
    return found


@triton.jit
def activate(z, ACT: tl.constexpr, slope):
    """Activation ACT of z (float32); ``slope``: see ``slopes``, broadcast to z."""
    if ACT == NONE:
        y = z
    elif ACT == RELU:
        y = at_least(z, 0.0)
    elif ACT == RELU6:
        y = at_most(at_least(z, 0.0), 6.0)
    elif (ACT == LEAKY_RELU) | (ACT == PRELU):
        y = tl.where(z > 0, z, z * slope)
    elif ACT == SILU:
        y = z * tl.sigmoid(z)
    else:
        y = z * at_most(at_least(z + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    return y


@triton.jit
def derivative(z, ACT: tl.constexpr, slope):
    """The activation's derivative at z, PyTorch's at the kinks."""
    if ACT == NONE:
        d = tl.full(z.shape, 1.0, tl.float32)
    elif ACT == RELU:
        d = tl.where(z > 0, 1.0, 0.0)
    elif ACT == RELU6:
        d = tl.where((z > 0) & (z < 6), 1.0, 0.0)
    elif (ACT == LEAKY_RELU) | (ACT == PRELU):
        d = tl.where(z > 0, 1.0, slope)
    elif ACT == SILU:
        s = tl.sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    else:
        d = tl.where(z <= -3, 0.0, tl.where(z < 3, z * (1.0 / 3.0) + 0.5, 1.0))
    return d


@triton.jit
def gate_value(v, GATE: tl.constexpr):
    if GATE == CLAMP:
        g = at_most(at_least(v, 0.0), 1.0)
    elif GATE == HARD_SIGMOID:
        g = at_most(at_least(v + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    elif GATE == SIGMOID:
        g = tl.sigmoid(v)
    else:
        g = v
    return g


@triton.jit
def load_or(pointer, index, mask, default: tl.constexpr):
    """Float32 elements of an optional parameter."""
    if pointer is None:
        found = tl.full(index.shape, default, tl.float32)
    else:
        found = tl.load(pointer + index, mask=mask, other=default).to(tl.float32)
    return found


@triton.jit
def affine(bias, gamma, beta, mean, var, eps, channels, mask):
    """What becomes of a convolution's result z, per channel: (z - center) * scale + shift.

    That is its bias and the BatchNorm after it; with ``mean`` None there is no BatchNorm. The center is taken off
    first: in z * scale + (beta - mean * scale) a mean that is large beside the deviation would cost digits.
    """
    center = -load_or(bias, channels, mask, 0.0)
    scale = tl.full(channels.shape, 1.0, tl.float32)
    shift = tl.zeros(channels.shape, tl.float32)
    if mean is not None:
        center += load_or(mean, channels, mask, 0.0)
        scale = load_or(gamma, channels, mask, 1.0) / tl.sqrt(load_or(var, channels, mask, 1.0) + eps)
        shift = load_or(beta, channels, mask, 0.0)
    return center, scale, shift


@triton.jit
def normalized(z, center, scale, shift, NORM: tl.constexpr):
    """What ``affine`` says, of a tile (pixels x channels). Without a BatchNorm only the center counts, which the
    compiler may not find out: z + 0 is not z where z is -0."""
    z -= center[None, :]
    if NORM:
        z = z * scale[None, :] + shift[None, :]
    return z
