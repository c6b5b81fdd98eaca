"""Joins the partial sums and statistics of groups, in a fixed order, so that results are deterministic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch

TOGETHER = 7  # totals of a launch: a bottleneck has as many weights at most
FEW = 16  # groups
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
    partials_0, out_0, per_value_0, groups_0, ROWS_0, CHANNELS_0, row_step_0, channel_step_0,
    partials_1, out_1, per_value_1, groups_1, ROWS_1, CHANNELS_1, row_step_1, channel_step_1,
    partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2,
    partials_3, out_3, per_value_3, groups_3, ROWS_3, CHANNELS_3, row_step_3, channel_step_3,
    partials_4, out_4, per_value_4, groups_4, ROWS_4, CHANNELS_4, row_step_4, channel_step_4,
    partials_5, out_5, per_value_5, groups_5, ROWS_5, CHANNELS_5, row_step_5, channel_step_5,
    partials_6, out_6, per_value_6, groups_6, ROWS_6, CHANNELS_6, row_step_6, channel_step_6,
    BG: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Up to seven totals, see ``total_of_block``. Grid: ROWS x blocks of CHANNELS of the first, then of the next."""
    program = tl.program_id(0)
    programs = ROWS_0 * tl.cdiv(CHANNELS_0, BC)
    if (program >= 0) & (program < programs):
        total_of_block(
            program, partials_0, out_0, per_value_0, groups_0, ROWS_0, CHANNELS_0, row_step_0, channel_step_0,
            BG, BC,
        )  # fmt: skip
    program -= programs
    if partials_1 is not None:
        programs = ROWS_1 * tl.cdiv(CHANNELS_1, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_1, out_1, per_value_1, groups_1, ROWS_1, CHANNELS_1, row_step_1, channel_step_1,
                BG, BC,
            )  # fmt: skip
        program -= programs
    if partials_2 is not None:
        programs = ROWS_2 * tl.cdiv(CHANNELS_2, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2,
                BG, BC,
            )  # fmt: skip
        program -= programs
    if partials_3 is not None:
        programs = ROWS_3 * tl.cdiv(CHANNELS_3, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_3, out_3, per_value_3, groups_3, ROWS_3, CHANNELS_3, row_step_3, channel_step_3,
                BG, BC,
            )  # fmt: skip
        program -= programs
    if partials_4 is not None:
        programs = ROWS_4 * tl.cdiv(CHANNELS_4, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_4, out_4, per_value_4, groups_4, ROWS_4, CHANNELS_4, row_step_4, channel_step_4,
                BG, BC,
            )  # fmt: skip
        program -= programs
    if partials_5 is not None:
        programs = ROWS_5 * tl.cdiv(CHANNELS_5, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_5, out_5, per_value_5, groups_5, ROWS_5, CHANNELS_5, row_step_5, channel_step_5,
                BG, BC,
            )  # fmt: skip
        program -= programs
    if partials_6 is not None:
        programs = ROWS_6 * tl.cdiv(CHANNELS_6, BC)
        if (program >= 0) & (program < programs):
            total_of_block(
                program, partials_6, out_6, per_value_6, groups_6, ROWS_6, CHANNELS_6, row_step_6, channel_step_6,
                BG, BC,
            )  # fmt: skip


class Totals:
    """Sums over the groups of partial sums, in a fixed order; several of them are one launch."""

    def __init__(self) -> None:
        self.waiting: list[dict] = []

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
        self.waiting.append({
            "partials": partials, "out": to, "per_value": per_value, "groups": groups, "ROWS": rows,
            "CHANNELS": channels, "row_step": row_step, "channel_step": channel_step,
        })  # fmt: skip
        return self

    def start(self) -> None:
        """Launch what was added since the last time."""
        for i in range(0, len(self.waiting), TOGETHER):
            some = self.waiting[i : i + TOGETHER]
            # Two shapes of tiles, so that few kernels are compiled: of many groups, and of a few.
            groups, channels = (512, 8) if max(one["groups"] for one in some) > FEW else (FEW, 128)
            arguments = {"BG": groups, "BC": channels}
            for k in range(TOGETHER):
                one = some[k] if k < len(some) else dict.fromkeys(some[0])
                arguments |= {f"{name}_{k}": value for name, value in one.items()}
            programs = sum(one["ROWS"] * launch.cdiv(one["CHANNELS"], channels) for one in some)
            with launch.on_device_of(some[0]["partials"]):
                launch.start_kernel(total_kernel, (programs,), arguments, warps=4, stages=1)
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
