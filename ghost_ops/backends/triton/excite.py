"""The two layers of an excitation, with what is before and after them, in one launch; ``excite``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import activations as plain
from . import checks, launch, tiles
from .activation import activate, apply_gate, load_or
from .jit import kernel
from .launch_cache import cached_launches
from .maps import assume_multiple
from .sums import total

ROWS = 16  # images of a program, the least side of a product
MOST_HIDDEN = 256  # channels between the layers, which a program has in registers
STEP, LEAST_STEP = 16384, 64  # elements of a weight that a program reads at once, and channels where these suffice
FEW = 4096  # elements of a step that half the warps read
LARGE = ("sm_80", "sm_90", "sm_100")  # whose shared memory holds three steps
UNIT = 4  # most elements of a weight that are read at once: more would compile more kernels for no fewer sectors
PROGRAMS = 64  # each reads all of the first weight
SPLITS = 4  # of an image, whose sums are read at once; with 8, float32 spills
_SPLITS = tl.constexpr(SPLITS)


@triton.jit
def joined_splits(sums, rows, ROWS, channels, C, splits, MANY: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """The sum over the splits of images' sums, [splits, ROWS, C], in a fixed order: [BR, BK], float32.

    ``rows``: [BR]; ``channels``: [BK]. MANY: there may be more than ``SPLITS``, which are read at once. Without a loop
    here the compiler reads ahead in the caller's.
    """
    mask = (rows < ROWS)[:, None] & (channels < C)[None, :]
    at = sums + (rows[:, None].to(tl.int64) * C + channels[None, :])
    found = tl.zeros((BR, BK), tl.float32)
    for first in range(0, splits if MANY else 1, _SPLITS):
        for i in tl.static_range(_SPLITS):
            found += tl.load(at, mask=mask & (first + i < splits), other=0.0).to(tl.float32)
            at += ROWS * C
    return found


@kernel
def layers_kernel(
    sums, per_value, reduce_weight, reduce_bias, expand_weight, expand_bias, squeeze, hidden, logits, gated, ROWS, C, R,
    splits, per_program, ACT: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr,
    MANY: tl.constexpr,
    BR: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """logits = act(squeeze reduce_weight' + reduce_bias) expand_weight' + expand_bias, and their gate, if asked for.

    Grid: blocks of ROWS x shares of C, of ``per_program`` blocks each; each share computes all of ``hidden`` anew.
    ``sums``: [splits, ROWS, C], of which ``squeeze`` is the sum times ``per_value``; ``squeeze``, ``logits``,
    ``gated``: [ROWS, C]; ``hidden``, before act: [ROWS, R]. All but ``logits`` may be None. R is at most BH.
    """
    C, R = assume_multiple(C, UNIT), assume_multiple(R, UNIT)
    shares = tl.cdiv(tl.cdiv(C, BO), per_program)
    share = tl.program_id(0) % shares
    rows = (tl.program_id(0) // shares) * BR + tl.arange(0, BR)  # [BR]
    wide = rows[:, None].to(tl.int64)  # [BR, 1]
    kind = logits.dtype.element_ty
    inner = tl.arange(0, BH)  # [BH]
    acc = tl.zeros((BR, BH), tl.float32)
    for k in range(0, C, BK):
        channels = k + tl.arange(0, BK)  # [BK]
        a = (joined_splits(sums, rows, ROWS, channels, C, splits, MANY, BR, BK) * per_value).to(kind)  # [BR, BK]
        if squeeze is not None:
            mask = (rows < ROWS)[:, None] & (channels < C)[None, :] & (share == 0)
            tl.store(squeeze + (wide * C + channels[None, :]), a, mask=mask)
        mask = (channels < C)[:, None] & (inner < R)[None, :]
        b = tl.load(reduce_weight + (inner[None, :] * C + channels[:, None]), mask=mask, other=0.0)  # [BK, BH]
        acc = tl.dot(a, b.to(kind), acc, input_precision=PRECISION)
    v = (acc + load_or(reduce_bias, inner, inner < R, 0.0)[None, :]).to(kind)  # [BR, BH]
    if hidden is not None:
        first = (rows < ROWS)[:, None] & (inner < R)[None, :] & (share == 0)  # [BR, BH]
        tl.store(hidden + (wide * R + inner[None, :]), v, mask=first)
    v = activate(v.to(tl.float32), ACT, 0.0).to(kind)
    for block in range(share * per_program, (share + 1) * per_program):
        columns = block * BO + tl.arange(0, BO)  # [BO]
        there = (inner < R)[:, None] & (columns < C)[None, :]
        w = tl.load(expand_weight + (columns[None, :] * R + inner[:, None]), mask=there, other=0.0)  # [BH, BO]
        z = tl.dot(v, w.to(kind), input_precision=PRECISION) + load_or(expand_bias, columns, columns < C, 0.0)[None, :]
        at, there = wide * C + columns[None, :], (rows < ROWS)[:, None] & (columns < C)[None, :]  # [BR, BO]
        tl.store(logits + at, z.to(kind), mask=there)
        if gated is not None:
            tl.store(gated + at, apply_gate(z, GATE).to(kind), mask=there)


@kernel
def linear_kernel(
    v, weight, bias, out, gated, ROWS, INNER, OUTER, ACT: tl.constexpr, GATE: tl.constexpr, PRECISION: tl.constexpr,
    UNIT: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of ROWS x blocks of OUTER. out = act(v) weight' + bias, and its gate, if asked for.

    ``v``: [ROWS, INNER]; ``weight``: [OUTER, INNER]; ``bias``: [OUTER]; ``out``, ``gated``: [ROWS, OUTER].
    """
    INNER, OUTER = assume_multiple(INNER, UNIT), assume_multiple(OUTER, UNIT)
    blocks = tl.cdiv(OUTER, BO)
    rows = (tl.program_id(0) // blocks) * BR + tl.arange(0, BR)  # [BR]
    columns = (tl.program_id(0) % blocks) * BO + tl.arange(0, BO)  # [BO]
    kind = v.dtype.element_ty
    acc = tl.zeros((BR, BO), tl.float32)
    for k in range(0, INNER, BK):
        inner = k + tl.arange(0, BK)  # [BK]
        mask = (rows < ROWS)[:, None] & (inner < INNER)[None, :]
        # a: [BR, BK]
        a = tl.load(v + (rows[:, None].to(tl.int64) * INNER + inner[None, :]), mask=mask, other=0.0).to(tl.float32)
        a = tl.where(mask, activate(a, ACT, 0.0), 0.0).to(kind)
        mask = (inner < INNER)[:, None] & (columns < OUTER)[None, :]
        b = tl.load(weight + (columns[None, :] * INNER + inner[:, None]), mask=mask, other=0.0)  # [BK, BO]
        acc = tl.dot(a, b.to(kind), acc, input_precision=PRECISION)
    acc += load_or(bias, columns, columns < OUTER, 0.0)[None, :]
    at = rows[:, None].to(tl.int64) * OUTER + columns[None, :]  # [BR, BO]
    mask = (rows < ROWS)[:, None] & (columns < OUTER)[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=mask)
    if gated is not None:
        tl.store(gated + at, apply_gate(acc, GATE).to(out.dtype.element_ty), mask=mask)


def precision(dtype: torch.dtype) -> str:
    """Precision of products of float32 tensors: TF32 exactly where torch's own linear layers would use it."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _linear(v, weight, bias, act, out, gated, gate):
    rows, (outer, inner) = v.shape[0], weight.shape
    arguments = {
        "v": v, "weight": launch.vector(weight), "bias": launch.vector(bias), "out": out, "gated": gated, "ROWS": rows,
        "INNER": inner, "OUTER": outer, "ACT": act, "GATE": gate, "PRECISION": precision(v.dtype),
        "UNIT": launch.unit(counts=(inner, outer)), "BR": ROWS, "BO": 16, "BK": 64,
    }  # fmt: skip
    grid = (launch.cdiv(rows, ROWS) * launch.cdiv(outer, 16),)
    launch.start_kernel(linear_kernel, grid, arguments, warps=4, stages=2)


def _side(needed: int) -> int:
    return max(1 << (needed - 1).bit_length(), 16)


def excite_layers(
    sums: torch.Tensor, per_value: float, reduce_weight: torch.Tensor, reduce_bias: torch.Tensor | None,
    expand_weight: torch.Tensor, expand_bias: torch.Tensor | None, act: int, gate: int, dtype: torch.dtype,
    gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Squeeze (N x C), hidden before act (N x R), logits (N x C), and with ``gated`` their gate's values, in ``dtype``.

    Args:
        sums: splits x N x C; the squeeze is their sum over the splits times ``per_value``.
        reduce_weight, expand_weight: R x C and C x R.
    """
    splits, n, c = sums.shape
    r, device = reduce_weight.shape[0], sums.device
    squeeze, hidden, logits = (launch.empty((n, width), dtype, device) for width in (c, r, c))
    values = launch.empty((n, c), dtype, device) if gated else None
    layers = [launch.vector(t) for t in (reduce_weight, reduce_bias, expand_weight, expand_bias)]
    side = _side(r)
    step = min((STEP if dtype != torch.float32 else STEP // 4) // side, max(side, LEAST_STEP))
    blocks, images = launch.cdiv(c, step), launch.cdiv(n, ROWS)
    per_program = launch.cdiv(blocks, min(blocks, max(PROGRAMS // max(images, 1), 1)))
    arguments = {
        "sums": launch.vector(sums), "per_value": per_value, "reduce_weight": layers[0], "reduce_bias": layers[1],
        "expand_weight": layers[2], "expand_bias": layers[3], "squeeze": squeeze, "hidden": hidden, "logits": logits,
        "gated": values, "ROWS": n, "C": c, "R": r, "splits": splits, "per_program": per_program, "ACT": act,
        "GATE": gate, "PRECISION": precision(dtype), "UNIT": launch.unit(counts=(UNIT, c, r)), "MANY": splits > SPLITS,
        "BR": ROWS, "BH": side,
        "BK": step, "BO": step,
    }  # fmt: skip
    with launch.on_device_of(sums):
        if r <= MOST_HIDDEN:
            grid = (images * launch.cdiv(blocks, per_program),)
            stages = 3 if dtype != torch.float32 and tiles.architecture(device) in LARGE else 2
            launch.start_kernel(layers_kernel, grid, arguments, 4 if side * step <= FEW else 8, stages)
        else:
            total(launch.vector(sums), squeeze, per_value=per_value)
            _linear(squeeze, *layers[:2], plain.NONE, hidden, None, gate)
            _linear(hidden, *layers[2:], act, logits, values, gate)
    return squeeze, hidden, logits, values


@cached_launches
def excite(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The gate's values (N x C) of means that are there already, as a Ghost module returns them."""
    checks.expect("squeeze", squeeze, tuple(squeeze.shape[:2]), squeeze)
    layers = reduce_weight, reduce_bias, expand_weight, expand_bias
    checks.expect_excitation(squeeze, *layers)
    sums = launch.vector(squeeze).view(1, *squeeze.shape)
    return excite_layers(sums, 1.0, *layers, act, gate, squeeze.dtype, gated=True)[3]
