"""Gradients of the two layers of an excitation, in two launches: what goes back through the second, then all others."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ... import activations as plain
from . import launch
from .activation import activate, activate_backward
from .excite import ROWS, SPLITS, UNIT, joined_splits
from .excite import precision as precision_of
from .jit import kernel
from .maps import assume_multiple

SIDE = 32  # of the tiles of the gradients


@kernel
def hidden_bwd_kernel(
    sums, hidden, logits, expand_weight, grad_logits, grad_hidden, ROWS, C, R, splits, ACT: tl.constexpr,
    GATE: tl.constexpr, PRECISION: tl.constexpr, UNIT: tl.constexpr, MANY: tl.constexpr, BR: tl.constexpr,
    BK: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Gradients of the logits, [ROWS, C], and of the hidden layer before its activation, [ROWS, R], both float32.

    Grid: blocks of ROWS x blocks of R. ``sums``, [splits, ROWS, C]: of the map times the gradient of its scaled copy;
    GATE is the gate's activation.
    """
    C, R = assume_multiple(C, UNIT), assume_multiple(R, UNIT)
    blocks = tl.cdiv(R, BO)
    block = tl.program_id(0) % blocks
    rows = (tl.program_id(0) // blocks) * BR + tl.arange(0, BR)  # [BR]
    wide = rows[:, None].to(tl.int64)  # [BR, 1]
    columns = block * BO + tl.arange(0, BO)  # [BO]
    acc = tl.zeros((BR, BO), tl.float32)
    for k in range(0, C, BK):
        channels = k + tl.arange(0, BK)  # [BK]
        at, mask = wide * C + channels[None, :], (rows < ROWS)[:, None] & (channels < C)[None, :]  # [BR, BK]
        z = tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)
        above = joined_splits(sums, rows, ROWS, channels, C, splits, MANY, BR, BK)  # [BR, BK]
        g = tl.where(mask, activate_backward(above, z, GATE, 0.0), 0.0)
        tl.store(grad_logits + at, g, mask=mask & (block == 0))
        mask = (channels < C)[:, None] & (columns < R)[None, :]
        b = tl.load(expand_weight + (channels[:, None] * R + columns[None, :]), mask=mask, other=0.0)  # [BK, BO]
        acc = tl.dot(g, b.to(tl.float32), acc, input_precision=PRECISION)
    at, mask = wide * R + columns[None, :], (rows < ROWS)[:, None] & (columns < R)[None, :]  # [BR, BO]
    z = tl.load(hidden + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(grad_hidden + at, activate_backward(acc, z, ACT, 0.0), mask=mask)


@triton.jit
def layer_weight_gradient(
    grad, v, weight, bias, tile, ROWS, OUT, IN, ACT: tl.constexpr, PRECISION: tl.constexpr, B: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """A tile, B x B, of a layer's weight gradient, [OUT, IN], from the gradient of its output, [ROWS, OUT], and act of
    its input v, [ROWS, IN]; the bias's, [OUT], with the first tile of its rows. ``bias`` may be None."""
    across = tl.cdiv(IN, B)
    outer = (tile // across) * B + tl.arange(0, B)  # [B]
    inner = (tile % across) * B + tl.arange(0, B)  # [B]
    acc = tl.zeros((B, B), tl.float32)
    found = tl.zeros((BK, B), tl.float32)
    for first in range(0, ROWS, BK):
        rows = first + tl.arange(0, BK)  # [BK]
        mask = (rows < ROWS)[:, None] & (outer < OUT)[None, :]
        g = tl.load(grad + (rows[:, None].to(tl.int64) * OUT + outer[None, :]), mask=mask, other=0.0)
        mask = (rows < ROWS)[:, None] & (inner < IN)[None, :]
        a = tl.load(v + (rows[:, None].to(tl.int64) * IN + inner[None, :]), mask=mask, other=0.0).to(tl.float32)
        a = tl.where(mask, activate(a, ACT, 0.0), 0.0)
        acc = tl.dot(tl.trans(g), a, acc, input_precision=PRECISION)
        found += g
    at, mask = outer[:, None].to(tl.int64) * IN + inner[None, :], (outer < OUT)[:, None] & (inner < IN)[None, :]
    tl.store(weight + at, acc.to(weight.dtype.element_ty), mask=mask)
    if bias is not None:
        mask = (outer < OUT) & (tile % across == 0)
        tl.store(bias + outer, tl.sum(found, axis=0).to(bias.dtype.element_ty), mask=mask)


@kernel
def layers_bwd_kernel(
    grad_logits, grad_hidden, squeeze, hidden, reduce_weight, grad_squeeze, per_value, grad_reduce, grad_reduce_bias,
    grad_expand, grad_expand_bias, ROWS, C, R, ACT: tl.constexpr, NONE: tl.constexpr, PRECISION: tl.constexpr,
    UNIT: tl.constexpr, B: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradients of both layers' parameters, and of the squeeze, [ROWS, C], times ``per_value``, float32.

    Grid: tiles, B x B, of the expand weight, [C, R], of the reduce weight, [R, C], and of the squeeze.
    ``grad_logits``: [ROWS, C]; ``grad_hidden``, ``hidden``: [ROWS, R].
    """
    C, R = assume_multiple(C, UNIT), assume_multiple(R, UNIT)
    each = tl.cdiv(C, B) * tl.cdiv(R, B)  # tiles of a weight
    tile = tl.program_id(0)
    if tile < each:
        layer_weight_gradient(
            grad_logits, hidden, grad_expand, grad_expand_bias, tile, ROWS, C, R, ACT, PRECISION, B, BK
        )  # fmt: skip
    elif tile < 2 * each:
        layer_weight_gradient(
            grad_hidden, squeeze, grad_reduce, grad_reduce_bias, tile - each, ROWS, R, C, NONE, PRECISION, B, BK
        )  # fmt: skip
    else:
        across = tl.cdiv(C, B)
        rows = ((tile - 2 * each) // across) * B + tl.arange(0, B)  # [B]
        columns = ((tile - 2 * each) % across) * B + tl.arange(0, B)  # [B]
        wide = rows[:, None].to(tl.int64)  # [B, 1]
        acc = tl.zeros((B, B), tl.float32)
        for k in range(0, R, BK):
            inner = k + tl.arange(0, BK)  # [BK]
            mask = (rows < ROWS)[:, None] & (inner < R)[None, :]
            g = tl.load(grad_hidden + (wide * R + inner[None, :]), mask=mask, other=0.0)
            mask = (inner < R)[:, None] & (columns < C)[None, :]
            b = tl.load(reduce_weight + (inner[:, None] * C + columns[None, :]), mask=mask, other=0.0).to(tl.float32)
            acc = tl.dot(g, b, acc, input_precision=PRECISION)
        mask = (rows < ROWS)[:, None] & (columns < C)[None, :]
        tl.store(grad_squeeze + (wide * C + columns[None, :]), acc * per_value, mask=mask)


class ExcitationGradients(NamedTuple):
    """Gradients of the sums of the map (N x C, float32) and of the layers' parameters: None where there is no bias."""

    sums: torch.Tensor
    reduce_weight: torch.Tensor
    reduce_bias: torch.Tensor | None
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None


def excite_gradients(
    sums: torch.Tensor, per_value: float, squeeze: torch.Tensor, hidden: torch.Tensor, logits: torch.Tensor,
    reduce_weight: torch.Tensor, reduce_bias: torch.Tensor | None, expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None, act: int, gate: int,
) -> ExcitationGradients:  # fmt: skip
    """Gradients of the layers of ``excite_layers``, whose results ``squeeze``, ``hidden`` and ``logits`` are.

    Products of half-precision maps' gradients are of float32 numbers in TF32, which round as float16 does but have the
    range of float32.

    Args:
        sums: splits x N x C, float32: sums over the map times the gradient of the scaled map.
        per_value: factor by which the squeeze is the map's sum.
    """
    splits, n, c = sums.shape
    r, device = reduce_weight.shape[0], sums.device
    empty = lambda t: None if t is None else launch.empty(tuple(t.shape), t.dtype, device)
    found = ExcitationGradients(
        launch.empty((n, c), torch.float32, device),
        *map(empty, (reduce_weight, reduce_bias, expand_weight, expand_bias)),
    )
    grad_logits = launch.empty((n, c), torch.float32, device)
    grad_hidden = launch.empty((n, r), torch.float32, device)
    vectors = {"hidden": launch.vector(hidden), "grad_logits": grad_logits, "grad_hidden": grad_hidden}
    step = SIDE if squeeze.dtype != torch.float32 else SIDE // 2  # float32 products take more registers
    common = vectors | {
        "ROWS": n, "C": c, "R": r, "ACT": act, "UNIT": launch.unit(counts=(UNIT, c, r)),
        "PRECISION": "tf32" if squeeze.dtype != torch.float32 else precision_of(squeeze.dtype),
    }  # fmt: skip
    with launch.on_device_of(sums):
        arguments = common | {
            "sums": sums, "logits": launch.vector(logits), "expand_weight": launch.vector(expand_weight),
            "splits": splits, "MANY": splits > SPLITS, "GATE": plain.OF_GATES[gate], "BR": ROWS, "BK": SIDE, "BO": 16,
        }  # fmt: skip
        grid = (launch.cdiv(n, ROWS) * launch.cdiv(r, 16),)
        launch.start_kernel(hidden_bwd_kernel, grid, arguments, warps=4, stages=2)
        arguments = common | {
            "squeeze": launch.vector(squeeze), "reduce_weight": launch.vector(reduce_weight),
            "grad_squeeze": found.sums, "per_value": per_value, "grad_reduce": found.reduce_weight,
            "grad_reduce_bias": found.reduce_bias, "grad_expand": found.expand_weight,
            "grad_expand_bias": found.expand_bias, "NONE": plain.NONE, "B": SIDE, "BK": step,
        }  # fmt: skip
        tiles = [launch.cdiv(size, SIDE) for size in (n, c, r)]
        grid = (2 * tiles[1] * tiles[2] + tiles[0] * tiles[1],)
        launch.start_kernel(layers_bwd_kernel, grid, arguments, warps=4, stages=2)
    return found
