"""Joins the partial sums and statistics of groups, in a fixed order, so that results are deterministic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles

CHANNELS_PER_PROGRAM = 2  # a layer has some ten to hundred, and the device wants as many programs


@triton.jit
def join_kernel(
    partials, mean_out, var_out, total, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Means, then variances around them, of blocks of channels, so that nothing cancels. ``partials``: [groups, 3,
    CHANNELS], counts, means and sums of squared deviations. Grid: blocks of CHANNELS."""
    channels = tl.program_id(0) * BC + tl.arange(0, BC)  # [BC]
    wanted = channels < CHANNELS
    origin = tl.load(partials + CHANNELS + channels, mask=wanted, other=0.0)  # [BC]
    moved = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)  # [BG]
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]  # [BG, BC]
        count = tl.load(at, mask=mask, other=0.0)
        mean = tl.load(at + CHANNELS, mask=mask, other=0.0)
        moved += tl.where(mask, count * (mean - origin[None, :]), 0.0)
    center = origin + tl.sum(moved, axis=0) / total  # [BC]
    squares = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        count = tl.load(at, mask=mask, other=0.0)
        off = tl.load(at + CHANNELS, mask=mask, other=0.0) - center[None, :]
        m2 = tl.load(at + 2 * CHANNELS, mask=mask, other=0.0)
        squares += tl.where(mask, m2 + count * off * off, 0.0)
    tl.store(mean_out + channels, center, mask=wanted)
    tl.store(var_out + channels, tl.sum(squares, axis=0) / total, mask=wanted)


def join(partials: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance (float32) of each channel from groups x 3 x channels statistics."""
    groups, _, channels = partials.shape
    mean, var = (launch.empty((channels,), torch.float32, partials.device) for _ in range(2))
    arguments = {
        "partials": partials, "mean_out": mean, "var_out": var, "total": float(total), "groups": groups,
        "CHANNELS": channels, "BG": tiles.rows(groups), "BC": CHANNELS_PER_PROGRAM,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.start_kernel(join_kernel, (launch.cdiv(channels, CHANNELS_PER_PROGRAM),), arguments, warps=4, stages=1)
    return mean, var


@triton.jit
def total_kernel(
    partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step, BG: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """out[row * row_step + channel * channel_step] = Σ over groups of partials (groups x ROWS x CHANNELS) * per_value.
    Grid: ROWS x blocks of CHANNELS."""
    blocks = tl.cdiv(CHANNELS, BC)
    row = tl.program_id(0) // blocks
    channels = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)  # [BC]
    wanted = channels < CHANNELS
    found = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)  # [BG]
        at = partials + (group[:, None].to(tl.int64) * ROWS + row) * CHANNELS + channels[None, :]  # [BG, BC]
        found += tl.load(at, mask=(group < groups)[:, None] & wanted[None, :], other=0.0)
    v = tl.sum(found, axis=0) * per_value  # [BC]
    tl.store(out + row.to(tl.int64) * row_step + channels * channel_step, v.to(out.dtype.element_ty), mask=wanted)


def total(
    partials: torch.Tensor,
    to: torch.Tensor,
    *,
    steps: tuple[int, int] | None = None,
    per_value: float = 1.0,
) -> torch.Tensor:
    """Sums over the groups of ``partials`` (groups x rows x channels) into ``to``, in a fixed order.

    Args:
        steps: strides of rows and channels in ``to``; by default it is rows x channels.
        per_value: factor of the sums.
    """
    groups, rows, channels = partials.shape
    row_step, channel_step = steps or (channels, 1)
    block = 8 if groups > 16 else 128
    arguments = {
        "partials": partials, "out": to, "per_value": per_value,
        "groups": groups, "ROWS": rows, "CHANNELS": channels, "row_step": row_step, "channel_step": channel_step,
        "BG": tiles.rows(groups), "BC": block,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.start_kernel(total_kernel, (rows * launch.cdiv(channels, block),), arguments, warps=4, stages=1)
    return to


class OverSplits:
    """Sums over an image's windows, N x channels, times ``per_value``, into ``to`` (None: nothing is summed).

    A kernel gets ``arguments``; where an image has several splits it writes sums of each, which ``join`` joins.
    """

    def __init__(self, to: torch.Tensor | None, splits: int, per_value: float = 1.0) -> None:
        self.to, self.per_value, self.apart = to, per_value, to is not None and splits > 1
        self.sums = launch.empty((splits, *to.shape), torch.float32, to.device) if self.apart else to
        self.arguments = {"sums": self.sums, "per_value": 1.0 if self.apart else per_value}

    def join(self) -> None:
        if self.apart:
            total(self.sums, self.to, per_value=self.per_value)
