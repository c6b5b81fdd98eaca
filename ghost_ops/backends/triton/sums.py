"""Joins the partial sums and statistics of groups, in a fixed order, so that results are deterministic."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from . import launch
from .jit import kernel
from .maps import assume_multiple

TOGETHER = 7  # totals of a launch: a bottleneck has as many weights at most
FEW, MANY = 16, 512  # groups that a program reads at once: of a total of few groups, and of others
CHANNELS_OF_FEW, CHANNELS_OF_MANY = 128, 8  # of a program
_FEW, _MANY = tl.constexpr(FEW), tl.constexpr(MANY)
_CHANNELS_OF_FEW, _CHANNELS_OF_MANY = tl.constexpr(CHANNELS_OF_FEW), tl.constexpr(CHANNELS_OF_MANY)
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
    of one row and block of CHANNELS. Where BG is the number of few groups, there are no more."""
    blocks = tl.cdiv(CHANNELS, BC)
    row = program // blocks
    channels = (program % blocks) * BC + tl.arange(0, BC)  # [BC]
    wanted = channels < CHANNELS
    found = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups if BG > _FEW else 1, BG):
        group = start + tl.arange(0, BG)  # [BG]
        at = partials + (group[:, None].to(tl.int64) * ROWS + row) * CHANNELS + channels[None, :]  # [BG, BC]
        found += tl.load(at, mask=(group < groups)[:, None] & wanted[None, :], other=0.0)
    v = tl.sum(found, axis=0) * per_value  # [BC]
    tl.store(out + row.to(tl.int64) * row_step + channels * channel_step, v.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def total_of(program, begin, one, other):
    """The first program and the arguments of the total that a program belongs to: ``one``, whose first program is
    ``begin``, or the one after it, ``other``. The arguments are eight each, in the kernel's order."""
    end = begin + one[4] * tl.cdiv(one[5], tl.where(one[3] <= _FEW, _CHANNELS_OF_FEW, _CHANNELS_OF_MANY))
    found = ()
    for i in tl.static_range(8):
        found = found + (tl.where(program < end, one[i], other[i]),)
    return tl.where(program < end, begin, end), found


@kernel
def total_kernel(
    partials_0, out_0, per_value_0, groups_0, ROWS_0, CHANNELS_0, row_step_0, channel_step_0,
    partials_1, out_1, per_value_1, groups_1, ROWS_1, CHANNELS_1, row_step_1, channel_step_1,
    partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2,
    partials_3, out_3, per_value_3, groups_3, ROWS_3, CHANNELS_3, row_step_3, channel_step_3,
    partials_4, out_4, per_value_4, groups_4, ROWS_4, CHANNELS_4, row_step_4, channel_step_4,
    partials_5, out_5, per_value_5, groups_5, ROWS_5, CHANNELS_5, row_step_5, channel_step_5,
    partials_6, out_6, per_value_6, groups_6, ROWS_6, CHANNELS_6, row_step_6, channel_step_6,
    UNIT: tl.constexpr,
):  # fmt: skip
    """Up to seven totals, see ``total_of_block``. Grid: ROWS x blocks of CHANNELS of the first, then of the next. What
    is not needed has no ROWS; how many there are compiles nothing. UNIT divides all CHANNELS."""
    program = tl.program_id(0)
    one = (
        partials_0, out_0, per_value_0, groups_0, ROWS_0, CHANNELS_0, row_step_0, channel_step_0
    )  # fmt: skip
    begin = 0
    other = (
        partials_1, out_1, per_value_1, groups_1, ROWS_1, CHANNELS_1, row_step_1, channel_step_1
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    other = (
        partials_2, out_2, per_value_2, groups_2, ROWS_2, CHANNELS_2, row_step_2, channel_step_2
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    other = (
        partials_3, out_3, per_value_3, groups_3, ROWS_3, CHANNELS_3, row_step_3, channel_step_3
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    other = (
        partials_4, out_4, per_value_4, groups_4, ROWS_4, CHANNELS_4, row_step_4, channel_step_4
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    other = (
        partials_5, out_5, per_value_5, groups_5, ROWS_5, CHANNELS_5, row_step_5, channel_step_5
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    other = (
        partials_6, out_6, per_value_6, groups_6, ROWS_6, CHANNELS_6, row_step_6, channel_step_6
    )  # fmt: skip
    begin, one = total_of(program, begin, one, other)
    partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step = one
    CHANNELS = assume_multiple(CHANNELS, UNIT)
    if groups <= _FEW:
        total_of_block(
            program - begin, partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step, _FEW,
            _CHANNELS_OF_FEW,
        )  # fmt: skip
    else:
        total_of_block(
            program - begin, partials, out, per_value, groups, ROWS, CHANNELS, row_step, channel_step, _MANY,
            _CHANNELS_OF_MANY,
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
        for dtype in dict.fromkeys(one["out"].dtype for one in self.waiting):
            alike = [one for one in self.waiting if one["out"].dtype == dtype]
            for i in range(0, len(alike), TOGETHER):
                self._start(alike[i : i + TOGETHER])
        self.waiting.clear()

    def _start(self, some: list[dict]) -> None:
        arguments: dict = {"UNIT": math.gcd(4, *(one["CHANNELS"] for one in some))}
        nothing = some[0] | {"ROWS": 0}
        for k in range(TOGETHER):
            one = some[k] if k < len(some) else nothing
            arguments |= {f"{name}_{k}": value for name, value in one.items()}
        block = lambda one: CHANNELS_OF_FEW if one["groups"] <= FEW else CHANNELS_OF_MANY
        programs = sum(one["ROWS"] * launch.cdiv(one["CHANNELS"], block(one)) for one in some)
        with launch.on_device_of(some[0]["partials"]):
            launch.start_kernel(total_kernel, (programs,), arguments, warps=4, stages=1)


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
