"""The kernel of every single pass: primary product, cheap operation, concatenation, residual and squeeze.

One program makes a band of rows of one image and a block of primary channels, in two phases. First y1 for the band and
its halo, written to memory; then, behind a barrier of the program, the cheap operation reads y1 back, from the first or
second level of the cache. Neighbouring bands write the same halo values, bit for bit, so that no barrier across
programs is needed and results repeat. y1 lies in the output itself, or, where a residual is added to that, in scratch
memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..activation import PRELU
from . import checks, launch, tiles
from .activation import activate, affine, slopes
from .maps import block_of, depthwise, in_image, merge, product, store_partial, whole, whole_strides


class Half(NamedTuple):
    """What follows a convolution: its bias, BatchNorm (mean None: no BatchNorm) and activation."""

    bias: torch.Tensor | None
    act: int
    slope: float
    weight: torch.Tensor | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    eps: float = 0.0

    def arguments(self, name: str) -> dict:
        """A kernel's arguments, each beginning with ``name``."""
        vectors = ("bias", "gamma", "beta", "mean", "var")
        found = {f"{name}_{field}": launch.vector(getattr(self, field)) for field in vectors}
        prelu = self.weight if self.act == PRELU else None
        return found | {
            f"{name}_eps": self.eps,
            f"{name}_slopes": launch.vector(prelu),
            f"{name}_slopes_stride": int(prelu is not None and prelu.numel() > 1),
            f"{name}_slope": self.slope,
            f"{name.upper()}_ACT": self.act,
        }


@triton.jit
def single_pass(
    x, x_n, x_c, x_h, x_w, scale, weight,
    one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, one_slopes, one_slopes_stride, one_slope,
    cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    y, y_n, y_c, y_h, y_w, out, out_n, out_c, out_h, out_w, residual, residual_n, residual_c, residual_h, residual_w,
    sums, per_value, statistics, H, W, C, M, KEPT, bands, rows,
    ONE_ACT: tl.constexpr, TWO_ACT: tl.constexpr, PRODUCT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, UNIT_IN: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: images x bands x blocks of M.

    With PRODUCT False x is the primary convolution's result. MULTIPLIER 0: no cheap operation. ``sums``: images x bands
    x KEPT sums over the band, times ``per_value``. ``statistics``: instead of the cheap half, those of its convolution.
    """
    C, M, KEPT = whole(C, UNIT_IN), whole(M, UNIT), whole(KEPT, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT_IN)
    y_n, y_h, y_w = whole_strides(y_n, y_h, y_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    residual_n, residual_h, residual_w = whole_strides(residual_n, residual_h, residual_w, UNIT)
    blocks = tl.cdiv(M, BM)
    block = tl.program_id(0) % blocks
    band = tl.program_id(0) // blocks
    image = (band // bands).to(tl.int64)
    first = (band % bands) * rows
    last = tl.minimum(first + rows, H)
    channels = block_of(block, BM, WIDE)
    wanted = channels < M
    x += image * x_n
    y += image * y_n
    out += image * out_n
    if residual is not None:
        residual += image * residual_n
    if scale is not None:
        scale += image * C
    if sums is not None:
        sums += band.to(tl.int64) * KEPT

    one_center, one_scale, one_shift = affine(
        one_bias, one_gamma, one_beta, one_mean, one_var, one_eps, channels, wanted
    )
    one_bent = slopes(one_slopes, one_slopes_stride, channels, wanted, one_slope, ONE_ACT)
    total = tl.zeros((BM,), tl.float32)
    high = tl.minimum(last + D // 2, H) * W
    for start in range(tl.maximum(first - D // 2, 0) * W, high, BP):
        pixels = start + tl.arange(0, BP)
        valid = pixels < high
        mask = valid[:, None] & wanted[None, :]
        places = in_image(pixels, W, x_h, x_w, FLAT, WIDE)
        if PRODUCT:
            z = product(x, places, valid, x_c, scale, weight, C, channels, wanted, PRECISION, BP, BM, BK)
        else:
            z = tl.load(x + (places[:, None] + channels[None, :] * x_c), mask=mask, other=0.0).to(tl.float32)
        v = activate((z - one_center[None, :]) * one_scale[None, :] + one_shift[None, :], ONE_ACT, one_bent[None, :])
        if MULTIPLIER == 0:
            if residual is not None:
                at = in_image(pixels, W, residual_h, residual_w, FLAT, WIDE)
                v += tl.load(
                    residual + (at[:, None] + channels[None, :] * residual_c), mask=mask, other=0.0
                ).to(tl.float32)  # fmt: skip
            total += tl.sum(tl.where(mask, v, 0.0), axis=0)
        places = in_image(pixels, W, y_h, y_w, FLAT, WIDE)
        tl.store(y + (places[:, None] + channels[None, :] * y_c), v.to(y.dtype.element_ty), mask=mask)

    if MULTIPLIER > 0:
        tl.debug_barrier()  # y1 is there for every thread of this program
        end = last * W
        ours = y + channels[None, :] * y_c
        if (residual is not None) or (sums is not None):  # the first half as it is to be
            for start in range(first * W, end, BP):
                pixels = start + tl.arange(0, BP)
                mask = (pixels < end)[:, None] & wanted[None, :]
                places = in_image(pixels, W, y_h, y_w, FLAT, WIDE)
                v = tl.load(ours + places[:, None], mask=mask, other=0.0, cache_modifier=".cg").to(tl.float32)
                if residual is not None:
                    at = in_image(pixels, W, residual_h, residual_w, FLAT, WIDE)
                    v += tl.load(
                        residual + (at[:, None] + channels[None, :] * residual_c), mask=mask, other=0.0
                    ).to(tl.float32)  # fmt: skip
                    to = in_image(pixels, W, out_h, out_w, FLAT, WIDE)
                    tl.store(
                        out + (to[:, None] + channels[None, :] * out_c), v.to(out.dtype.element_ty), mask=mask
                    )  # fmt: skip
                total += tl.sum(tl.where(mask, v, 0.0), axis=0)
        for q in range(MULTIPLIER):
            made = channels * MULTIPLIER + q
            kept = wanted & (made < KEPT - M)
            two_center, two_scale, two_shift = affine(
                two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, kept
            )
            two_bent = slopes(two_slopes, two_slopes_stride, made, kept, two_slope, TWO_ACT)
            sum_two = tl.zeros((BM,), tl.float32)
            mean = tl.zeros((BM,), tl.float32)
            m2 = tl.zeros((BM,), tl.float32)
            count = 0.0
            for start in range(first * W, end, BP):
                pixels = start + tl.arange(0, BP)
                valid = pixels < end
                mask = valid[:, None] & kept[None, :]
                places = in_image(pixels, W, y_h, y_w, FLAT, WIDE)
                z = depthwise(
                    ours, places, valid, pixels // W, pixels % W, H, W, y_h, y_w, cheap_weight, made, kept,
                    one_center, one_scale, one_shift, one_bent, ONE_ACT, False, D, BP, BM, ".cg",
                )  # fmt: skip
                if statistics is not None:
                    count, mean, m2 = merge(count, mean, m2, z, valid)
                else:
                    v = (z - two_center[None, :]) * two_scale[None, :] + two_shift[None, :]
                    v = activate(v, TWO_ACT, two_bent[None, :])
                    if residual is not None:
                        at = in_image(pixels, W, residual_h, residual_w, FLAT, WIDE)
                        v += tl.load(
                            residual + (at[:, None] + (M + made)[None, :] * residual_c), mask=mask, other=0.0
                        ).to(tl.float32)  # fmt: skip
                    to = in_image(pixels, W, out_h, out_w, FLAT, WIDE)
                    tl.store(
                        out + (to[:, None] + (M + made)[None, :] * out_c), v.to(out.dtype.element_ty), mask=mask
                    )  # fmt: skip
                    sum_two += tl.sum(tl.where(mask, v, 0.0), axis=0)
            if sums is not None:
                tl.store(sums + M + made, (sum_two * per_value).to(sums.dtype.element_ty), mask=kept)
            if statistics is not None:
                store_partial(statistics, band, made, KEPT - M, kept, count + sum_two, mean, m2)
    if sums is not None:
        tl.store(sums + channels, (total * per_value).to(sums.dtype.element_ty), mask=wanted)


def run(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    one: Half,
    cheap_weight: torch.Tensor | None,
    two: Half,
    out_channels: int,
    *,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    squeeze: bool = False,
    statistics: bool = False,
    like: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and its squeeze (empty if not asked for); with ``statistics``, instead, groups' statistics of z2.

    Args:
        x: N x C x H x W of any strides; with ``weight`` (m x C x 1 x 1) None, the primary convolution's result.
        one, two: what follows the two convolutions.
        cheap_weight: m(s - 1) x 1 x d x d, or None.
        scale: N x C, of x. residual: of the output.
        statistics: only y1 is written, and batch statistics of the cheap convolution are returned: groups x 3 x
            m(s - 1) counts, means and sums of squared deviations.
        like: the map whose memory format the output takes, if not x.
    """
    checks.expect_module(x, weight, one, cheap_weight, two, out_channels)
    n, c, height, width = x.shape
    m = c if weight is None else weight.shape[0]
    checks.expect("input_scale", scale, (n, c), x)
    checks.expect("residual", residual, (n, out_channels, height, width), x)
    multiplier = 0 if cheap_weight is None else cheap_weight.shape[0] // m
    d = 1 if cheap_weight is None else cheap_weight.shape[-1]
    out = launch.new_map(x if like is None else like, out_channels)
    y = launch.scratch(x, m) if residual is not None and multiplier else out
    tile = tiles.single_pass(x, c, m, d)
    bands = launch.cdiv(height, tile.rows)
    blocks = launch.cdiv(m, tile.channels)
    sums = partials = None
    if statistics:
        partials = torch.empty((n * bands, 3, m * multiplier), dtype=torch.float32, device=x.device)
    if squeeze:
        kind = {"device": x.device, "dtype": torch.float32 if bands > 1 else x.dtype}
        sums = torch.empty((n, bands, out_channels), **kind)
    arguments = {
        "x": x, **launch.strides("x", x), "scale": launch.vector(scale), "weight": launch.vector(weight),
        **one.arguments("one"), "cheap_weight": launch.vector(cheap_weight), **two.arguments("two"),
        "y": y, **launch.strides("y", y), "out": out, **launch.strides("out", out),
        "residual": residual, **launch.strides("residual", residual),
        "sums": sums, "per_value": 1.0 if bands > 1 else 1.0 / (height * width), "statistics": partials,
        "H": height, "W": width, "C": c, "M": m, "KEPT": m * (1 + multiplier) if statistics else out_channels,
        "bands": bands, "rows": tile.rows, "PRODUCT": weight is not None, "D": d, "MULTIPLIER": multiplier,
        "FLAT": launch.is_flat(x, y, out, residual), "WIDE": launch.is_wide(x, y, out, residual),
        "PRECISION": launch.precision(x.dtype), "UNIT_IN": launch.unit(x, counts=(c,)),
        "UNIT": launch.unit(y, out, residual, counts=(m, m * (1 + multiplier) if statistics else out_channels)),
        "BP": tile.pixels, "BM": tile.channels, "BK": tile.depth,
    }  # fmt: skip
    with launch.on_device_of(x):
        launch.run(single_pass, (n * bands * blocks,), arguments, tile.warps, tile.stages)
    if statistics:
        return out, partials
    if not squeeze:
        return out, x.new_empty(0)
    if bands == 1:
        return out, sums.view(n, out_channels)
    return out, (sums.sum(1) * (1.0 / (height * width))).to(x.dtype)
