"""Joins the partial sums and statistics of groups, in a fixed order, so that results are deterministic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch, tiles

CHANNELS_PER_PROGRAM = 2  # a layer has some ten to hundred, and the device wants as many programs


@triton.jit
def rows_of_groups(partials, first, groups, channels, CHANNELS, wanted, BG: tl.constexpr):
    """The three rows of the groups from ``first`` on, of [groups, 3, CHANNELS]: [BG, BC] each, 0 past the last group.

    They are read from the L2 cache, since other programs of the same launch may have written them.
    """
    group = first + tl.arange(0, BG)  # [BG]
    mask = (group < groups)[:, None] & wanted[None, :]
    at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]  # [BG, BC]
    one = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
    two = tl.load(at + CHANNELS, mask=mask, other=0.0, cache_modifier=".cg")
    three = tl.load(at + 2 * CHANNELS, mask=mask, other=0.0, cache_modifier=".cg")
    return one, two, three


@triton.jit
def joined_moments(
    partials, groups, channels, CHANNELS, wanted, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Counts, means and sums of squared deviations of ``groups`` rows, joined: [BC] each.

    Each BG rows: means first, then deviations from them, so that nothing cancels; then with those before. ``partials``:
    [groups, 3, CHANNELS]; ``channels``, ``wanted``: [BC].
    """
    origin = tl.load(partials + CHANNELS + channels, mask=wanted, other=0.0, cache_modifier=".cg")  # [BC]
    total = tl.zeros((BC,), tl.float32)
    center = origin
    squares = tl.zeros((BC,), tl.float32)
    for first in range(0, groups, BG):
        # count, mean, m2: [BG, BC]
        count, mean, m2 = rows_of_groups(partials, first, groups, channels, CHANNELS, wanted, BG)
        size = tl.sum(count, axis=0)  # [BC]
        moved = tl.where(count > 0, count * (mean - origin[None, :]), 0.0)
        middle = origin + tl.sum(moved, axis=0) / tl.maximum(size, 1.0)  # [BC]
        off = mean - middle[None, :]
        within = tl.sum(tl.where(count > 0, m2 + count * off * off, 0.0), axis=0)  # [BC]
        apart = middle - center
        share = size / tl.maximum(total + size, 1.0)
        squares += within + apart * apart * total * share
        center += apart * share
        total += size
    return total, center, squares


@triton.jit
def joined_sums(
    partials, groups, channels, CHANNELS, wanted, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Sums of the three rows of ``groups`` groups: [BC] each. Arguments as of ``joined_moments``."""
    first = tl.zeros((BG, BC), tl.float32)
    second = tl.zeros((BG, BC), tl.float32)
    third = tl.zeros((BG, BC), tl.float32)
    for at in range(0, groups, BG):
        # one, two, three: [BG, BC]
        one, two, three = rows_of_groups(partials, at, groups, channels, CHANNELS, wanted, BG)
        first += one
        second += two
        third += three
    return tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)


@triton.jit
def total_of_block(
    program, partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step, BG: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """out[row * row_step + channel * channel_step] = Σ over groups of partials (groups x ROWS x CHANNELS) * per_value,
    of one row and block of CHANNELS."""
    blocks = tl.cdiv(CHANNELS, BC)
    row = program // blocks
    channels = (program % blocks) * BC + tl.arange(0, BC)  # [BC]
    wanted = channels < CHANNELS
    found = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)  # [BG]
        at = partials + (group[:, None].to(tl.int64) * ROWS + row) * CHANNELS + channels[None, :]  # [BG, BC]
        found += tl.load(at, mask=(group < groups)[:, None] & wanted[None, :], other=0.0)
    v = tl.sum(found, axis=0) * per_value  # [BC]
    tl.store(out + row.to(tl.int64) * row_step + channels * channel_step, v.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def total_kernel(
    partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step,
    partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2,
    BG: tl.constexpr, BC: tl.constexpr, BG_2: tl.constexpr, BC_2: tl.constexpr,
):  # fmt: skip
    """Grid: ROWS x blocks of CHANNELS, and then those of a second total, if any."""
    program = tl.program_id(0)
    here = ROWS * tl.cdiv(CHANNELS, BC)
    if program < here:
        total_of_block(program, partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step, BG, BC)
    elif partials_2 is not None:
        total_of_block(
            program - here, partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2,
            BG_2, BC_2,
        )  # fmt: skip


class Totals:
    """Sums over the groups of partial sums, in a fixed order; two of them are one launch."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, dict]] = []

    def add(
        self, partials: torch.Tensor, to: torch.Tensor, *, steps: tuple[int, int] | None = None, per_value: float = 1.0
    ) -> Totals:
        """The sums over groups of ``partials`` (groups x rows x channels) are written into ``to`` by ``start``.

        Args:
            steps: strides of rows and channels in ``to``; by default it is rows x channels.
            per_value: factor of the sums.
        """
        groups, rows, channels = partials.shape
        row_step, channel_step = steps or (channels, 1)
        block = 8 if groups > 16 else 128
        arguments = {
            "partials": partials, "out": to, "per_value": per_value, "groups": groups, "ROWS": rows,
            "CHANNELS": channels, "row_step": row_step, "channel_step": channel_step,
            "BG": tiles.rows(groups), "BC": block,
        }  # fmt: skip
        self.waiting.append((rows * launch.cdiv(channels, block), arguments))
        return self

    def start(self) -> None:
        """Launch what was added since the last time."""
        for i in range(0, len(self.waiting), 2):
            (programs, arguments), *more = self.waiting[i : i + 2]
            second, others = more[0] if more else (0, dict.fromkeys(arguments))
            arguments = arguments | {f"{name}_2": value for name, value in others.items()}
            with launch.on_device_of(arguments["partials"]):
                launch.start_kernel(total_kernel, (programs + second,), arguments, warps=4, stages=1)
        self.waiting.clear()


def total(
    partials: torch.Tensor,
    to: torch.Tensor,
    *,
    steps: tuple[int, int] | None = None,
    per_value: float = 1.0,
) -> torch.Tensor:
    """``Totals`` of one: sums over the groups of ``partials`` into ``to``, which is returned."""
    Totals().add(partials, to, steps=steps, per_value=per_value).start()
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
