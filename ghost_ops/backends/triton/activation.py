"""Activations, gates and BatchNorms of tiles; the definitions are those of ``ghost_ops/activations.inc``."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable

import triton
import triton.language as tl

from ... import activations

PRELU = tl.constexpr(activations.PRELU)
# The code of what is ReLU where the slope is 0, and nothing where it is -inf: kernels that take either at run time.
AT_LEAST = len(activations.DEFINITIONS)
AT_LEAST_VALUE = "tl.maximum(z, slope, propagate_nan=tl.PropagateNan.ALL)"
# Nothing is cut off by -inf, not even a z that is -inf: no number is at most NaN.
AT_LEAST_BACKWARD = "tl.where(z <= tl.where(slope > float('-inf'), slope, float('nan')), 0.0, grad)"


@triton.jit
def at_most(z, bound: tl.constexpr):
    """min(z, bound) that keeps NaN, as PyTorch's clamps do."""
    return tl.minimum(z, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(z, bound: tl.constexpr):
    return tl.maximum(z, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def expm1(z):
    """exp(z) - 1, near 0 by its series."""
    p = tl.full(z.shape, 1.0 / 40320, tl.float32)
    p = p * z + 1.0 / 5040
    p = p * z + 1.0 / 720
    p = p * z + 1.0 / 120
    p = p * z + 1.0 / 24
    p = p * z + 1.0 / 6
    p = p * z + 0.5
    return tl.where(tl.abs(z) < 0.5, z * z * p + z, tl.exp(z) - 1.0)


@triton.jit
def tanh(z):
    """A polynomial near 0, else by exp (Cephes tanhf)."""
    s = z * z
    p = -5.70498872745e-3 * s + 2.06390887954e-2
    p = p * s - 5.37397155531e-2
    p = p * s + 1.33314422036e-1
    p = p * s - 3.33332819422e-1
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(z)) + 1.0)
    return tl.where(tl.abs(z) < 0.625, p * s * z + z, tl.where(z < 0, -far, far))


@triton.jit
def slopes(pointer, stride, channels, mask, slope, ACT: tl.constexpr):
    """Negative slopes of a tile's channels, [BM]: LeakyReLU's one, PReLU's by channel (stride 0: one for all).

    ``channels``, ``mask``: [BM].
    """
    if ACT == PRELU:
        found = tl.load(pointer + channels * stride, mask=mask, other=0.0).to(tl.float32)
    else:
        found = tl.zeros(channels.shape, tl.float32) + slope
    return found


def _translated(definition: str) -> str:
    """A definition of the list in Triton's words; a product costs less than a quotient by a number."""
    definition = re.sub(r"(?<!\.)\b(exp|erf|sigmoid|where)\(", r"tl.\1(", definition)
    return re.sub(r"/ ([\d.]+)", r"* (1.0 / \1)", definition)


def _chain(selector: str, results: Iterable[str]) -> str:
    """Statements that return the result whose number the selector is, which the compiler knows."""
    cases = [f"if {selector} == {i}:\n        found = {result}\n    " for i, result in enumerate(results)]
    return f"    {'el'.join(cases)}return found\n"


def _define() -> None:
    """Make the functions ``activate``, ``activate_backward`` and ``apply_gate`` of this module of the list.

    Triton reads the source of a function, which is put where Python looks for lines of files that do not exist.
    """
    texts = [f"def {name}(z):\n    return {_translated(value)}\n" for name, value in activations.FUNCTIONS.items()]
    values = [*(d.value for d in activations.DEFINITIONS), AT_LEAST_VALUE]
    backwards = [*(d.backward for d in activations.DEFINITIONS), AT_LEAST_BACKWARD]
    gates = [f"activate(z, {code}, 0.0)" for code in activations.OF_GATES]
    for name, arguments, selector, results in (
        ("activate", "z, ACT: tl.constexpr, slope", "ACT", values),
        ("activate_backward", "grad, z, ACT: tl.constexpr, slope", "ACT", backwards),
        ("apply_gate", "z, GATE: tl.constexpr", "GATE", gates),
    ):
        texts.append(f"def {name}({arguments}):\n{_chain(selector, map(_translated, results))}")
    text = "\n\n".join(f"@triton.jit\n{function}" for function in texts)
    place = f"<{__name__} of activations.inc>"
    linecache.cache[place] = len(text), None, text.splitlines(keepends=True), place
    exec(compile(text, place, "exec"), globals())


_define()


@triton.jit
def load_or(pointer, index, mask, default: tl.constexpr):
    """Float32 elements of an optional parameter, in the shape of ``index`` and ``mask``."""
    if pointer is None:
        found = tl.full(index.shape, default, tl.float32)
    else:
        found = tl.load(pointer + index, mask=mask, other=default).to(tl.float32)
    return found


@triton.jit
def affine(bias, gamma, beta, mean, var, eps, channels, mask):
    """What becomes of a convolution's result z, per channel: (z - center) * scale + shift.

    That is its bias and the BatchNorm after it; with ``mean`` None there is no BatchNorm, and with only ``var`` None
    ``gamma`` is the scale itself, gamma / sqrt(var + eps). The center is taken off first: in z * scale + (beta - mean *
    scale) a mean that is large beside the deviation would cost digits. ``channels``, ``mask`` and the three results:
    [BM].
    """
    center = -load_or(bias, channels, mask, 0.0)
    scale = tl.full(channels.shape, 1.0, tl.float32)
    shift = tl.zeros(channels.shape, tl.float32)
    if mean is not None:
        center += load_or(mean, channels, mask, 0.0)
        scale = load_or(gamma, channels, mask, 1.0)
        if var is not None:
            scale = scale / tl.sqrt(load_or(var, channels, mask, 1.0) + eps)
        shift = load_or(beta, channels, mask, 0.0)
    return center, scale, shift


@triton.jit
def normalized(z, center, scale, shift, NORM: tl.constexpr):
    """What ``affine`` says, of a tile z, [pixels, BM]; ``center``, ``scale``, ``shift``: [BM]. Without a BatchNorm only
    the center counts, which the compiler may not find out: z + 0 is not z where z is -0."""
    z -= center
    if NORM:
        z = z * scale + shift
    return z


@triton.jit
def load_coefficients(coefficients, channels, CHANNELS, wanted):
    """The coefficients of a BatchNorm's backward: the rows of ``coefficients``, [4, CHANNELS], float32, or the identity
    where it is None. A gradient g of the BatchNorm's result becomes that of z by factor * (g - constant - linear * (z -
    center)); see ``norm.join_gradients``.

    ``channels``, ``wanted`` and the four results: [B], B channels of a block or step.
    """
    factor = tl.full(channels.shape, 1.0, tl.float32)
    constant = tl.zeros(channels.shape, tl.float32)
    linear = tl.zeros(channels.shape, tl.float32)
    center = tl.zeros(channels.shape, tl.float32)
    if coefficients is not None:
        factor = tl.load(coefficients + channels, mask=wanted, other=0.0)
        constant = tl.load(coefficients + CHANNELS + channels, mask=wanted, other=0.0)
        linear = tl.load(coefficients + 2 * CHANNELS + channels, mask=wanted, other=0.0)
        center = tl.load(coefficients + 3 * CHANNELS + channels, mask=wanted, other=0.0)
    return factor, constant, linear, center
