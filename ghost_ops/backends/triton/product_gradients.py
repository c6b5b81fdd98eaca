"""The kernels of ``backward.py`` that are products: the gradients of x and of the primary weight (B3).

Grids: groups of runs x blocks of channels; see ``maps.py``. The names are those of docs/gradients.md, section 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import load_coefficients
from .maps import assume_multiple, assume_multiple_strides, block_of, in_batch, run_of


@triton.jit
def through_norm(
    grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, NORM: tl.constexpr
):  # fmt: skip
    """A tile of the gradient of z, [BP, B], float32, of two maps that are [all pixels, M]; NORM: through
    ``load_coefficients``. ``pixels``, ``valid``: [BP]; ``channels`` and the coefficients: [B]."""
    mask = valid[:, None] & (channels < M)[None, :]
    at = pixels[:, None] * M + channels[None, :]  # [BP, B]
    g = tl.load(grad_z + at, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        z1 = tl.load(z + at, mask=mask, other=0.0).to(tl.float32)
        g = factor[None, :] * (g - constant[None, :] - linear[None, :] * (z1 - center[None, :]))
        g = tl.where(mask, g, 0.0)
    return g


@triton.jit
def through_weight(weight, M, C, k, columns, wanted, kind: tl.constexpr, BK: tl.constexpr):
    """Rows of the weight, [M, C], from k on: [BK, BM]. ``columns``, ``wanted``: [BM]."""
    channels = k + tl.arange(0, BK)  # [BK]
    at = weight + (channels[:, None].to(tl.int64) * C + columns[None, :])
    return tl.load(at, mask=(channels < M)[:, None] & wanted[None, :], other=0.0).to(kind)


@triton.jit
def input_bwd_kernel(
    grad_z, z, coefficients, weight, grad_x, to_n, to_c, to_h, to_w,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, ONE_STEP: tl.constexpr, FLAT_IN: tl.constexpr,
    WIDE: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """B3: ∂x. Blocks are of its C channels (BM of them), products run over M. ONE_STEP: see ``product``.

    ``grad_z``, ``z``: [pixels, M]; ``weight``: [M, C]; ``grad_x``: pixels of C channels, by strides.
    """
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    to_n, to_h, to_w = assume_multiple_strides(to_n, to_h, to_w, UNIT_IN)
    kind: tl.constexpr = grad_x.dtype.element_ty
    blocks = tl.cdiv(C, BM)
    group = tl.program_id(0) // blocks
    columns = block_of(tl.program_id(0) % blocks, BM, WIDE)  # [BM]
    wanted = columns < C
    NORM: tl.constexpr = coefficients is not None
    inner = tl.arange(0, BK)  # [BK]
    # factor, constant, linear, center: [BK]
    factor, constant, linear, center = load_coefficients(coefficients, inner, M, inner < M)
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)  # [BP]
        valid = pixels < PIXELS
        acc = tl.zeros((BP, BM), tl.float32)
        if ONE_STEP:
            a = through_norm(grad_z, z, pixels, valid, inner, M, factor, constant, linear, center, NORM)  # [BP, BK]
            b = through_weight(weight, M, C, 0, columns, wanted, kind, BK)  # [BK, BM]
            acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        else:
            for k in range(0, M, BK):
                channels = k + tl.arange(0, BK)  # [BK]
                factor_k, constant_k, linear_k, center_k = load_coefficients(coefficients, channels, M, channels < M)
                # a: [BP, BK]
                a = through_norm(grad_z, z, pixels, valid, channels, M, factor_k, constant_k, linear_k, center_k, NORM)
                b = through_weight(weight, M, C, k, columns, wanted, kind, BK)  # [BK, BM]
                acc = tl.dot(a.to(kind), b, acc, input_precision=PRECISION)
        places = in_batch(pixels, H, W, to_n, to_h, to_w, FLAT_IN, WIDE)  # [BP]
        to = grad_x + (places[:, None] + columns[None, :] * to_c)  # [BP, BM]
        tl.store(to, acc.to(kind), mask=valid[:, None] & wanted[None, :])


@triton.jit
def primary_weight_bwd_kernel(
    grad_z, z, coefficients, x, x_n, x_c, x_h, x_w, partials,
    H, W, M, C, PIXELS, per_group, PRECISION: tl.constexpr, FLAT_IN: tl.constexpr, WIDE: tl.constexpr,
    UNIT_IN: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """B3: ∂W1, as partial products over pixels, [groups, M, C]. ``grad_z``, ``z``: [pixels, M]."""
    C, M = assume_multiple(C, UNIT_IN), assume_multiple(M, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT_IN)
    across = tl.cdiv(C, BC)
    blocks = tl.cdiv(M, BM) * across
    block = tl.program_id(0) % blocks
    group = tl.program_id(0) // blocks
    channels = block_of(block // across, BM, WIDE)  # [BM]
    columns = block_of(block % across, BC, WIDE)  # [BC]
    acc = tl.zeros((BM, BC), tl.float32)
    # factor, constant, linear, center: [BM]
    factor, constant, linear, center = load_coefficients(coefficients, channels, M, channels < M)
    for t in range(per_group):
        pixels = run_of(group, per_group, t, BP, WIDE)  # [BP]
        valid = pixels < PIXELS
        # a: [BP, BM]
        a = through_norm(
            grad_z, z, pixels, valid, channels, M, factor, constant, linear, center, coefficients is not None
        )
        places = in_batch(pixels, H, W, x_n, x_h, x_w, FLAT_IN, WIDE)  # [BP]
        at = x + (places[:, None] + columns[None, :] * x_c)
        b = tl.load(at, mask=valid[:, None] & (columns < C)[None, :], other=0.0)  # [BP, BC]
        acc = tl.dot(tl.trans(a.to(x.dtype.element_ty)), b, acc, input_precision=PRECISION)  # [BM, BC]
    to = partials + (group.to(tl.int64) * M + channels[:, None]) * C + columns[None, :]  # [BM, BC]
    tl.store(to, acc, mask=(channels < M)[:, None] & (columns < C)[None, :])
