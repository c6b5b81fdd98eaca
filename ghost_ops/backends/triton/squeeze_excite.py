"""``squeeze_excite`` and its backward: sums over a map, the layers of the excitation, and a scaling pass."""

from __future__ import annotations

import torch
import triton.language as tl

from ... import activations as plain
from . import checks, launch, tiles
from .activation import apply_gate
from .excite import excite_layers
from .excite_gradients import excite_gradients
from .jit import kernel
from .launch_cache import cached_launches
from .maps import assume_multiple, assume_multiple_strides, has_sums, sum_where, tile_coords
from .sums import OverSplits


@kernel
def sums_kernel(
    x, x_n, x_c, x_h, x_w, other, other_n, other_c, other_h, other_w, sums, per_value, N, H, W, C, splits, per_split,
    vectors, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    """Grid: see ``tile_coords``; blocks are of C. Sums of x, or of x times ``other``: splits x images x C."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    other_n, other_h, other_w = assume_multiple_strides(other_n, other_h, other_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    x += image * x_n
    if other is not None:
        other += image * other_n
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    found = tl.zeros((BW, BM), tl.float32)
    for row in range(top, bottom):
        at = row * x_h + columns[:, None] * x_w + channels * x_c
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)  # [BW, BM]
        if other is not None:
            at = row * other_h + columns[:, None] * other_w + channels * other_c
            v *= tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
        found += v
    to = sums + (split.to(tl.int64) * N + image) * C + channels  # [BM]
    found = sum_where(mask, found, vectors, DOUBLINGS) * per_value
    tl.store(to, found.to(sums.dtype.element_ty), mask=has_sums(wanted, vectors, BW))


@kernel
def scale_kernel(
    x, x_n, x_c, x_h, x_w, logits, shift, out, out_n, out_c, out_h, out_w, H, W, C, splits, per_split,
    vectors, GATE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid as of ``sums_kernel``. x times the gate of an image's logits, plus its ``shift``, if any: both [N, C]."""
    C = assume_multiple(C, UNIT)
    x_n, x_h, x_w = assume_multiple_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = assume_multiple_strides(out_n, out_h, out_w, UNIT)
    # columns: [BW]; channels, wanted: [BM]
    image, split, group, columns, channels, wanted, top, bottom = tile_coords(
        C, H, W, splits, per_split, BW, BM, WIDE, vectors
    )
    x += image * x_n
    out += image * out_n
    vector = image * C + channels  # [BM]
    scale = apply_gate(tl.load(logits + vector, mask=wanted, other=0.0).to(tl.float32), GATE)  # [BM]
    more = tl.zeros(scale.shape, tl.float32)
    if shift is not None:
        more = tl.load(shift + vector, mask=wanted, other=0.0).to(tl.float32)
    mask = (columns < W)[:, None] & wanted  # [BW, BM]
    for row in range(top, bottom):
        at = row * x_h + columns[:, None] * x_w + channels * x_c
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * scale + more  # [BW, BM]
        at = row * out_h + columns[:, None] * out_w + channels * out_c
        tl.store(out + at, v.to(out.dtype.element_ty), mask=mask)


def _strips(x: torch.Tensor, *others: torch.Tensor | None) -> tiles.Strips:
    return tiles.strips("stencil", x, x.shape[1], unit=launch.unit(x, *others, counts=(x.shape[1],)))


def _arguments(x: torch.Tensor, *others: torch.Tensor | None) -> dict:
    """Arguments of a kernel that goes through strips of x and of maps like it."""
    return {
        **launch.maps(x=x), "H": x.shape[2], "W": x.shape[3], "C": x.shape[1], "WIDE": launch.is_wide(x, *others),
        "UNIT": launch.unit(x, *others, counts=(x.shape[1],)),
    }  # fmt: skip


def _sum(x: torch.Tensor, other: torch.Tensor | None, strips: tiles.Strips, arguments: dict) -> None:
    more = {**_arguments(x, other), **launch.maps(other=other), "N": x.shape[0]}
    strips.start(sums_kernel, x, x.shape[1], more | arguments)


@cached_launches
def image_sums(x: torch.Tensor, other: torch.Tensor | None = None, mean: bool = False) -> torch.Tensor:
    """Sums over H and W of x, or of x * other: N x C, float32; means in x's dtype."""
    n, c, height, width = x.shape
    # No flat tile, which has less of a row, so that sums would be joined by a launch of their own more often.
    strips = tiles.strips("stencil", x, c)
    found = launch.empty((n, c), x.dtype if mean else torch.float32, x.device)
    sums = OverSplits(found, strips.splits, 1.0 / (height * width) if mean else 1.0)
    _sum(x, other, strips, sums.arguments)
    sums.join()
    return found


def split_sums(x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """Sums of x, or of x * other, over the splits of each image: splits x N x C, float32."""
    strips = _strips(x, other)
    sums = launch.empty((strips.splits, *x.shape[:2]), torch.float32, x.device)
    _sum(x, other, strips, {"sums": sums, "per_value": 1.0})
    return sums


@cached_launches
def scaled_map(
    x: torch.Tensor, logits: torch.Tensor, gate: int = plain.IDENTITY, shift: torch.Tensor | None = None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """x * gate(logits) + shift, the vectors N x C, in the memory format of x (or ``like``)."""
    out = launch.new_map(x if like is None else like, x.shape[1])
    arguments = {
        **_arguments(x, out), "logits": launch.vector(logits), "shift": launch.vector(shift), **launch.maps(out=out),
        "GATE": gate,
    }  # fmt: skip
    _strips(x, out).start(scale_kernel, x, x.shape[1], arguments)
    return out


def squeeze_excite_fwd(
    x: torch.Tensor, reduce_weight: torch.Tensor, reduce_bias: torch.Tensor | None, expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None, act: int, gate: int, *, sums: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """``squeeze_excite``; ``sums``: of x, as of ``split_sums``, where an earlier pass made them."""
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    checks.expect_excitation(x, *layers)
    sums = split_sums(x) if sums is None else sums
    squeeze, hidden, logits, _ = excite_layers(sums, 1.0 / (x.shape[2] * x.shape[3]), *layers, act, gate, x.dtype)
    return scaled_map(x, logits, gate), squeeze, hidden, logits


def squeeze_excite_bwd(
    grad_out: torch.Tensor, x: torch.Tensor, squeeze: torch.Tensor, hidden: torch.Tensor, logits: torch.Tensor,
    reduce_weight: torch.Tensor, reduce_bias: torch.Tensor | None, expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None, act: int, gate: int,
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    """``squeeze_excite_backward``, but None where there is no bias."""
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    checks.expect("grad_out", grad_out, tuple(x.shape), x)
    checks.expect_excitation(x, *layers)
    for name, t, width in (("squeeze", squeeze, x.shape[1]), ("hidden", hidden, reduce_weight.shape[0])):
        checks.expect(name, t, (x.shape[0], width), x)
    checks.expect("logits", logits, tuple(squeeze.shape), x)
    vectors, per_value = (squeeze, hidden, logits), 1.0 / (x.shape[2] * x.shape[3])
    grad_sums, *found = excite_gradients(split_sums(grad_out, x), per_value, *vectors, *layers, act, gate)
    return scaled_map(grad_out, logits, gate, grad_sums, x), *found


@cached_launches
def squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The excited x, and what the backward needs: squeeze (N x C), hidden before act (N x R), logits (N x C)."""
    return squeeze_excite_fwd(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)


@cached_launches
def squeeze_excite_backward(
    grad_out, x, squeeze, hidden, logits, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate
):
    """Gradients of x, reduce weight and bias, expand weight and bias (empty where there is no bias)."""
    found = squeeze_excite_bwd(
        grad_out, x, squeeze, hidden, logits, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate
    )
    return tuple(launch.empty((0,), x.dtype, x.device) if g is None else g for g in found)
