"""``squeeze_excite`` and ``excite``: sums over a map, two small products, one scaling pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import activations as plain
from . import checks, launch, tiles
from .activation import activate, apply_gate, load_or
from .maps import strip_of, whole, whole_strides
from .sums import OverSplits
from .tape import taped


@triton.jit
def sums_kernel(
    x, x_n, x_c, x_h, x_w, other, other_n, other_c, other_h, other_w, sums, per_value, N, H, W, C, splits, per_split,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid: see ``strip_of``; blocks are of C. Sums of x, or of x times ``other``: splits x images x C."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    other_n, other_h, other_w = whole_strides(other_n, other_h, other_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    if other is not None:
        other += image * other_n
    mask = (columns < W)[:, None] & wanted[None, :]
    found = tl.zeros((BW, BM), tl.float32)
    for row in range(top, bottom):
        at = row * x_h + columns[:, None] * x_w + channels[None, :] * x_c
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if other is not None:
            at = row * other_h + columns[:, None] * other_w + channels[None, :] * other_c
            v *= tl.load(other + at, mask=mask, other=0.0).to(tl.float32)
        found += v
    to = sums + (split.to(tl.int64) * N + image) * C + channels
    tl.store(to, (tl.sum(found, axis=0) * per_value).to(sums.dtype.element_ty), mask=wanted)


@triton.jit
def scale_kernel(
    x, x_n, x_c, x_h, x_w, logits, shift, out, out_n, out_c, out_h, out_w, H, W, C, splits, per_split,
    GATE: tl.constexpr, WIDE: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Grid as of ``sums_kernel``. x times the gate of an image's logits, plus its ``shift``, if any."""
    C = whole(C, UNIT)
    x_n, x_h, x_w = whole_strides(x_n, x_h, x_w, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    image, split, group, columns, channels, wanted, top, bottom = strip_of(C, H, W, splits, per_split, BW, BM, WIDE)
    x += image * x_n
    out += image * out_n
    vector = image * C + channels
    by = apply_gate(tl.load(logits + vector, mask=wanted, other=0.0).to(tl.float32), GATE)
    more = tl.zeros((BM,), tl.float32)
    if shift is not None:
        more = tl.load(shift + vector, mask=wanted, other=0.0).to(tl.float32)
    mask = (columns < W)[:, None] & wanted[None, :]
    for row in range(top, bottom):
        at = row * x_h + columns[:, None] * x_w + channels[None, :] * x_c
        v = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * by[None, :] + more[None, :]
        at = row * out_h + columns[:, None] * out_w + channels[None, :] * out_c
        tl.store(out + at, v.to(out.dtype.element_ty), mask=mask)


@triton.jit
def linear_kernel(
    v, weight, bias, out, gated, ROWS, INNER, OUTER, ACT: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    UNIT: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of ROWS x blocks of OUTER. out = act(v) weight' + bias, and its gate, if asked for."""
    INNER, OUTER = whole(INNER, UNIT), whole(OUTER, UNIT)
    blocks = tl.cdiv(OUTER, BO)
    rows = (tl.program_id(0) // blocks) * BR + tl.arange(0, BR)
    columns = (tl.program_id(0) % blocks) * BO + tl.arange(0, BO)
    kind = v.dtype.element_ty
    acc = tl.zeros((BR, BO), tl.float32)
    for k in range(0, INNER, BK):
        inner = k + tl.arange(0, BK)
        mask = (rows < ROWS)[:, None] & (inner < INNER)[None, :]
        a = tl.load(v + (rows[:, None].to(tl.int64) * INNER + inner[None, :]), mask=mask, other=0.0).to(tl.float32)
        a = tl.where(mask, activate(a, ACT, 0.0), 0.0).to(kind)
        mask = (inner < INNER)[:, None] & (columns < OUTER)[None, :]
        b = tl.load(weight + (columns[None, :] * INNER + inner[:, None]), mask=mask, other=0.0)
        acc = tl.dot(a, b.to(kind), acc, input_precision=PRECISION)
    acc += load_or(bias, columns, columns < OUTER, 0.0)[None, :]
    at = rows[:, None].to(tl.int64) * OUTER + columns[None, :]
    mask = (rows < ROWS)[:, None] & (columns < OUTER)[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)
    if gated is not None:
        tl.store(gated + at, apply_gate(acc, GATE).to(out.dtype.element_ty), mask=mask)


def _strips(x: torch.Tensor, *others: torch.Tensor | None) -> tuple[dict, tuple[int], tiles.Tile]:
    """Arguments of a kernel that goes through strips of x and maps like it, its grid and tile."""
    n, c, height, width = x.shape
    tile, splits, per_split = tiles.strips("stencil", x, c)
    arguments = {
        "x": x, **launch.strides("x", x), "H": height, "W": width, "C": c, **tile.strip(splits, per_split),
        "WIDE": launch.is_wide(x, *others), "UNIT": launch.unit(x, *others, counts=(c,)),
    }  # fmt: skip
    return arguments, (n * splits * launch.cdiv(c, tile.channels),), tile


@taped
def image_sums(x: torch.Tensor, other: torch.Tensor | None = None, mean: bool = False) -> torch.Tensor:
    """Sums over H and W of x, or of x * other: N x C, float32; means in x's dtype."""
    n, c, height, width = x.shape
    common, grid, tile = _strips(x, other)
    found = launch.empty((n, c), x.dtype if mean else torch.float32, x.device)
    sums = OverSplits(found, common["splits"], 1.0 / (height * width) if mean else 1.0)
    arguments = common | {"other": other, **launch.strides("other", other), **sums.arguments, "N": n}
    with launch.on_device_of(x):
        launch.run(sums_kernel, grid, arguments, tile.warps, tile.stages)
    sums.join()
    return found


@taped
def scaled_map(
    x: torch.Tensor, logits: torch.Tensor, gate: int = plain.IDENTITY, shift: torch.Tensor | None = None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """x * gate(logits) + shift, the vectors N x C, in the memory format of x (or ``like``)."""
    out = launch.new_map(x if like is None else like, x.shape[1])
    arguments, grid, tile = _strips(x, out)
    arguments |= {
        "logits": launch.vector(logits), "shift": launch.vector(shift), "out": out, **launch.strides("out", out),
        "GATE": gate,
    }  # fmt: skip
    with launch.on_device_of(x):
        launch.run(scale_kernel, grid, arguments, tile.warps, tile.stages)
    return out


def _linear(v, weight, bias, act, gate=None):
    """act(v) weight' + bias, and its gate's value where a gate is given."""
    rows, (outer, inner) = v.shape[0], weight.shape
    out = launch.empty((rows, outer), v.dtype, v.device)
    gated = None if gate is None else launch.empty((rows, outer), v.dtype, v.device)
    tf32 = v.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32  # as torch's linear layers
    arguments = {
        "v": launch.vector(v), "weight": launch.vector(weight), "bias": launch.vector(bias), "out": out,
        "gated": gated, "ROWS": rows, "INNER": inner, "OUTER": outer, "ACT": act,
        "GATE": plain.IDENTITY if gate is None else gate, "PRECISION": "tf32" if tf32 else "ieee",
        "UNIT": launch.unit(counts=(inner, outer)), "BR": 16, "BO": 16, "BK": 64,
    }  # fmt: skip
    with launch.on_device_of(v):
        launch.run(linear_kernel, (launch.cdiv(rows, 16) * launch.cdiv(outer, 16),), arguments, warps=4, stages=2)
    return out, gated


@taped
def excite(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The gate's values (N x C) of means that are there already, as a Ghost module returns them."""
    checks.expect("squeeze", squeeze, tuple(squeeze.shape[:2]), squeeze)
    checks.expect_excitation(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias)
    hidden, _ = _linear(squeeze, reduce_weight, reduce_bias, plain.NONE)
    return _linear(hidden, expand_weight, expand_bias, act, gate)[1]


@taped
def squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The excited x, and what the backward needs: squeeze (N x C), hidden before act (N x R), logits (N x C)."""
    checks.expect_excitation(x, reduce_weight, reduce_bias, expand_weight, expand_bias)
    squeeze = image_sums(x, None, True)
    hidden, _ = _linear(squeeze, reduce_weight, reduce_bias, plain.NONE)
    logits, _ = _linear(hidden, expand_weight, expand_bias, act)
    return scaled_map(x, logits, gate), squeeze, hidden, logits


def squeeze_excite_backward(
    grad_out, x, squeeze, hidden, logits, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate
):
    """Gradients of x, reduce weight and bias, expand weight and bias (empty where there is no bias).

    Between the two passes over maps stand products of N x C vectors, which torch does: no pass more.
    """
    checks.expect("grad_out", grad_out, tuple(x.shape), x)
    checks.expect_excitation(x, reduce_weight, reduce_bias, expand_weight, expand_bias)
    for name, t, width in (("squeeze", squeeze, x.shape[1]), ("hidden", hidden, reduce_weight.shape[0])):
        checks.expect(name, t, (x.shape[0], width), x)
    checks.expect("logits", logits, tuple(squeeze.shape), x)
    size = x.shape[2] * x.shape[3]
    squeeze, hidden, logits = squeeze.float(), hidden.float(), logits.float()
    grad_logits = plain.gate_backward(image_sums(grad_out, x), logits, gate)
    grad_hidden, _ = plain.activate_backward(grad_logits @ expand_weight.float(), hidden, act)
    grad_squeeze = grad_hidden @ reduce_weight.float()

    def given(grad, parameter):
        return x.new_empty(0) if parameter is None else grad.to(parameter.dtype)

    return (
        scaled_map(grad_out, logits, gate, grad_squeeze / size, x),
        given(grad_hidden.T @ squeeze, reduce_weight),
        given(grad_hidden.sum(0), reduce_bias),
        given(grad_logits.T @ plain.activate(hidden, act), expand_weight),
        given(grad_logits.sum(0), expand_bias),
    )
