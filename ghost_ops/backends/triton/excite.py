"""``excite``: two small products with what follows them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ... import activations as plain
from . import checks, launch
from .activation import activate, apply_gate, load_or
from .launch_cache import cached_launches
from .maps import assume_multiple


@triton.jit
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


def linear(v, weight, bias, act, gate=None):
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
        launch.start_kernel(
            linear_kernel, (launch.cdiv(rows, 16) * launch.cdiv(outer, 16),), arguments, warps=4, stages=2
        )
    return out, gated


@cached_launches
def excite(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The gate's values (N x C) of means that are there already, as a Ghost module returns them."""
    checks.expect("squeeze", squeeze, tuple(squeeze.shape[:2]), squeeze)
    checks.expect_excitation(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias)
    hidden, _ = linear(squeeze, reduce_weight, reduce_bias, plain.NONE)
    return linear(hidden, expand_weight, expand_bias, act, gate)[1]
