"""Joins of partial sums by the last program of the kernel that makes them, so that no join is a launch of its own.

A program stores its row and counts itself. The one that finds all others counted reads their rows. This is done twice:
for each run of ``ROWS`` groups or more, and for the runs, so that no program reads many rows. The order of the sums is
that of the groups, whoever is last, so that results are deterministic.

The counters must be zero when the kernel starts: ``Joins`` has them for a call, and a launch that sets them. They are
never kept from one call to the next, since two streams may run the same operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import launch
from .epilogue import Epilogue, EpilogueGradients
from .jit import kernel
from .maps import store_partial
from .norm import (
    BatchNorm,
    NormVectors,
    finish_gradients,
    finish_statistics,
    gradient_arguments,
    join_gradients,
    join_statistics,
    new_gradients,
    new_vectors,
    norm_arguments,
    running_share,
    vector_arguments,
)
from .sums import joined_moments, joined_sums

RUNS = 64  # most runs of groups
COUNTERS = 8192  # of one call
BATCHES = 8  # counters of batches that a launch increments
ALIGNMENT = 4  # counters of a join begin at multiples of so many: kernels are specialised for addresses
_RUNS = tl.constexpr(RUNS)
JOINED = tl.constexpr(16)  # channels of a flat strip that are joined at once


@triton.jit
def arrive(counter):
    """Count this program; returns how many there were before. What those stored can be read from now on.

    The barrier puts all threads' stores before the release of the one that counts; by its acquire, and the barrier with
    which Triton hands the result to all threads, what is loaded after comes after the others' stores.
    """
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")


@triton.jit
def run_of_groups(group, groups, ROWS: tl.constexpr):
    """The number of a group's run, its first group, its number of groups, and the number of runs."""
    per_run = tl.maximum(tl.cdiv(groups, _RUNS), ROWS)
    run = group // per_run
    return run, run * per_run, tl.minimum(groups - run * per_run, per_run), tl.cdiv(groups, per_run)


@triton.jit
def channels_of_block(
    begin, at, width, MULTIPLIER: tl.constexpr, q: tl.constexpr, CHANNELS, BC: tl.constexpr
):  # fmt: skip
    """The channels of a block from ``at`` on, and which of them exist: [BC] each; see ``join_statistics_last``."""
    place = at + tl.arange(0, BC)
    channels = (begin + place) * MULTIPLIER + q
    return channels, (place < width) & (channels < CHANNELS)


@triton.jit
def join_statistics_last(
    partials, counters, group, groups, block, begin, width, MULTIPLIER: tl.constexpr, q: tl.constexpr, CHANNELS, count,
    gamma, beta, eps, bias, running_mean, running_var, batches, momentum, mean_out, var_out, scale_out, shift_out,
    BC: tl.constexpr, VALUES: tl.constexpr = 1024,
):  # fmt: skip
    """Every program calls this once, after it has stored its row of ``partials``; the last of a block of channels does
    what ``norm.join_statistics`` does, with ``batches`` incremented before.

    Args:
        partials: [groups + RUNS, 3, CHANNELS]: counts, means and sums of squared deviations.
        counters: [blocks, RUNS + 1] zeros.
        group, block: the program's, of ``groups`` groups and blocks of channels.
        begin, width: the first channel of the block, and how many there are. Of these each has MULTIPLIER of CHANNELS,
            of which the block's are the ones with number q.
        BC: how many channels are joined at once.
        VALUES: how many of a row's three are read at once. A flat strip's kernel would have too few registers for more
            than 512; in others, fewer than 1024 made the assembler spill.
    """
    ROWS: tl.constexpr = max(VALUES // BC, 4)
    run, first, members, runs = run_of_groups(group, groups, ROWS)
    counters += block * (_RUNS + 1)
    if arrive(counters + run) == members - 1:
        of_run = partials + first.to(tl.int64) * 3 * CHANNELS
        for at in range(0, width, BC):
            channels, wanted = channels_of_block(begin, at, width, MULTIPLIER, q, CHANNELS, BC)  # [BC] each
            size, mean, m2 = joined_moments(of_run, members, channels, CHANNELS, wanted, ROWS, BC)  # [BC] each
            store_partial(partials, groups + run, channels, CHANNELS, wanted, size, mean, m2)
        if arrive(counters + _RUNS) == runs - 1:
            of_runs = partials + groups.to(tl.int64) * 3 * CHANNELS
            share = 0.0
            if running_mean is not None:
                share = running_share(batches, momentum, False)
            for at in range(0, width, BC):
                channels, wanted = channels_of_block(begin, at, width, MULTIPLIER, q, CHANNELS, BC)
                size, mean, m2 = joined_moments(of_runs, runs, channels, CHANNELS, wanted, ROWS, BC)
                finish_statistics(
                    mean, m2 / count, channels, wanted, count, gamma, beta, eps, bias, running_mean, running_var,
                    share, mean_out, var_out, scale_out, shift_out,
                )  # fmt: skip


@triton.jit
def join_gradients_last(
    partials, counters, group, groups, block, begin, width, MULTIPLIER: tl.constexpr, q: tl.constexpr, CHANNELS, count,
    gamma, mean, var, eps, coefficients, grad_bias, grad_beta, grad_gamma, grad_slopes, BATCH: tl.constexpr,
    BC: tl.constexpr, VALUES: tl.constexpr = 1024,
):  # fmt: skip
    """As ``join_statistics_last``, of what ``norm.join_gradients`` does. ``partials``: [groups + RUNS, 3, CHANNELS], Σ
    g, Σ g (z - mean) and PReLU's sum."""
    ROWS: tl.constexpr = max(VALUES // BC, 4)
    run, start, members, runs = run_of_groups(group, groups, ROWS)
    counters += block * (_RUNS + 1)
    if arrive(counters + run) == members - 1:
        of_run = partials + start.to(tl.int64) * 3 * CHANNELS
        for at in range(0, width, BC):
            channels, wanted = channels_of_block(begin, at, width, MULTIPLIER, q, CHANNELS, BC)  # [BC] each
            first, second, third = joined_sums(of_run, members, channels, CHANNELS, wanted, ROWS, BC)  # [BC] each
            store_partial(partials, groups + run, channels, CHANNELS, wanted, first, second, third)
        if arrive(counters + _RUNS) == runs - 1:
            of_runs = partials + groups.to(tl.int64) * 3 * CHANNELS
            for at in range(0, width, BC):
                channels, wanted = channels_of_block(begin, at, width, MULTIPLIER, q, CHANNELS, BC)
                first, second, third = joined_sums(of_runs, runs, channels, CHANNELS, wanted, ROWS, BC)
                finish_gradients(
                    first, second, third, channels, wanted, CHANNELS, count, gamma, mean, var, eps, coefficients,
                    grad_bias, grad_beta, grad_gamma, grad_slopes, BATCH,
                )  # fmt: skip


@triton.jit
def clear_counters(counters, SIZE: tl.constexpr):
    """Zeros for the counters of joins of later launches, by one program."""
    tl.store(counters + tl.arange(0, SIZE), tl.zeros((SIZE,), tl.int32))


@triton.jit
def count_batch(batches, wanted):
    if batches is not None:
        tl.store(batches, tl.load(batches, mask=wanted) + 1, mask=wanted)


@kernel
def start_joins_kernel(
    counters, batches_0, batches_1, batches_2, batches_3, batches_4, batches_5, batches_6, batches_7, counted,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Zeros for counters, and one batch more for each of the first ``counted`` BatchNorms. One program. What comes
    after these is not looked at, but is there unless ``counted`` is 0: how many there are compiles nothing."""
    clear_counters(counters, SIZE)
    count_batch(batches_0, counted > 0)
    count_batch(batches_1, counted > 1)
    count_batch(batches_2, counted > 2)
    count_batch(batches_3, counted > 3)
    count_batch(batches_4, counted > 4)
    count_batch(batches_5, counted > 5)
    count_batch(batches_6, counted > 6)
    count_batch(batches_7, counted > 7)


class StatisticsJoin(NamedTuple):
    """A join of statistics: ``arguments`` of the kernel that makes the rows, then ``finish``."""

    arguments: dict
    norm: BatchNorm
    vectors: NormVectors
    count: int
    groups: int

    def finish(self) -> NormVectors:
        """The vectors, after the kernel was started."""
        if self.groups == 0 or self.arguments["join_counters"] is None:  # no program, or one that does not join
            join_statistics(self.arguments["partials"][: self.groups], self.count, self.norm, self.vectors)
        return self.vectors


class GradientsJoin(NamedTuple):
    """A join of gradients: ``arguments`` of the kernel that makes the rows, then ``finish``."""

    arguments: dict
    epilogue: Epilogue
    count: int | None
    vectors: NormVectors | None
    coefficients: torch.Tensor
    gradients: EpilogueGradients
    groups: int

    def finish(self) -> tuple[torch.Tensor, EpilogueGradients]:
        """The coefficients and gradients of ``norm.join_gradients``, after the kernel was started."""
        if self.groups == 0 or self.arguments["join_counters"] is None:  # no program, or one that does not join
            found = self.coefficients, self.gradients
            join_gradients(self.arguments["partials"][: self.groups], self.epilogue, self.count, self.vectors, found)
        return self.coefficients, self.gradients


class Joins:
    """The joins of one call of an operator, or of several calls that follow each other on one stream.

    Args:
        device: where the kernels run.
        batches: the ``num_batches_tracked`` of the BatchNorms whose statistics are joined: they are incremented.
        started: False where a kernel before the first join sets ``counters`` to zero by ``clear_counters``; there are
            no ``batches`` then.
    """

    def __init__(
        self, device: torch.device, batches: Sequence[torch.Tensor | None] = (), *, started: bool = True
    ) -> None:
        self.device, self.started = device, started
        self.counters, self.used = launch.empty((COUNTERS,), torch.int32, device), 0
        counted = [t for t in batches if t is not None]
        if started:
            self._start(self.counters, counted[:BATCHES])
        for i in range(BATCHES, len(counted), BATCHES):
            self._start(launch.empty((1,), torch.int32, device), counted[i : i + BATCHES])

    def _start(self, counters: torch.Tensor, batches: Sequence[torch.Tensor] = ()) -> None:
        given = [*batches, *[batches[0] if batches else None] * (BATCHES - len(batches))]
        arguments = {
            "counters": counters, **{f"batches_{i}": t for i, t in enumerate(given)}, "counted": len(batches),
            "SIZE": counters.numel(),
        }  # fmt: skip
        with launch.on_device_of(counters):
            launch.start_kernel(start_joins_kernel, (1,), arguments, warps=4, stages=1)

    def _take(self, blocks: int) -> torch.Tensor:
        """Counters, which are zero, of a join of so many blocks of channels."""
        needed = launch.cdiv(blocks * (RUNS + 1), ALIGNMENT) * ALIGNMENT
        if self.used + needed > self.counters.numel():
            size = max(COUNTERS, 1 << (needed - 1).bit_length())
            self.counters, self.used = launch.empty((size,), torch.int32, self.device), 0
            self._start(self.counters)
        self.used += needed
        return self.counters[self.used - needed : self.used]

    def statistics(
        self, norm: BatchNorm, count: int, groups: int, channels: int, blocks: int, to: NormVectors | None = None
    ) -> StatisticsJoin:
        """Of ``count`` values a channel, from ``groups`` rows of ``channels``, in so many ``blocks``."""
        partials = launch.empty((groups + RUNS, 3, channels), torch.float32, self.device)
        to = to or new_vectors(channels, self.device)
        given = {"counters": self._take(blocks), "count": float(count)}
        given |= norm_arguments(norm) | vector_arguments(to)
        arguments = {"partials": partials, **{f"join_{name}": value for name, value in given.items()}}
        return StatisticsJoin(arguments, norm, to, count, groups)

    def gradients(
        self, epilogue: Epilogue, groups: int, channels: int, blocks: int, count: int | None = None,
        vectors: NormVectors | None = None,
    ) -> GradientsJoin:  # fmt: skip
        """Of an epilogue, from ``groups`` rows of ``channels``, in so many ``blocks``; see ``norm.join_gradients``."""
        partials = launch.empty((groups + RUNS, 3, channels), torch.float32, self.device)
        coefficients, found = new_gradients(epilogue, channels, self.device)
        given = gradient_arguments(epilogue, found, coefficients, count, vectors)
        one = given.pop("grad_slope") is not None  # all channels' sums, which one launch more adds
        given["counters"] = None if one else self._take(blocks)
        arguments = {"partials": partials, **{f"join_{name}": value for name, value in given.items()}}
        return GradientsJoin(arguments, epilogue, count, vectors, coefficients, found, groups)


NO_STATISTICS = dict.fromkeys((
    "partials", "join_counters", "join_count", "join_gamma", "join_beta", "join_eps", "join_bias", "join_running_mean",
    "join_running_var", "join_batches", "join_momentum", "join_mean_out", "join_var_out", "join_scale_out",
    "join_shift_out",
))  # fmt: skip
NO_GRADIENTS = {"join_BATCH": False} | dict.fromkeys((
    "partials", "join_counters", "join_count", "join_gamma", "join_mean", "join_var", "join_eps", "join_coefficients",
    "join_grad_bias", "join_grad_beta", "join_grad_gamma", "join_grad_slopes",
))  # fmt: skip
