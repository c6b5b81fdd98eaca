"""Joins by the last program: the same results whoever that is, and those of a launch of their own."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from ghost_ops.activations import NONE, PRELU
from ghost_ops.backends.triton import joins, launch, norm
from ghost_ops.backends.triton.epilogue import Epilogue
from ghost_ops.backends.triton.joins import Joins, join_gradients_last, join_statistics_last
from ghost_ops.backends.triton.maps import store_partial
from ghost_ops.backends.triton.norm import BatchNorm

from .test_norm import draw, moments

BLOCK = 20  # channels of a block, of which 16 are joined at once
_BLOCK = tl.constexpr(BLOCK)


@triton.jit
def store_own_row(rows, order, partials, CHANNELS):
    """Programs take the groups in the given order. Returns group, number of groups, and block."""
    blocks = tl.cdiv(CHANNELS, _BLOCK)
    group = tl.load(order + tl.program_id(0) // blocks)
    block = tl.program_id(0) % blocks
    place = tl.arange(0, 32)
    channels = block * _BLOCK + place
    wanted = (place < _BLOCK) & (channels < CHANNELS)
    at = rows + group * 3 * CHANNELS + channels
    first = tl.load(at, mask=wanted)
    second = tl.load(at + CHANNELS, mask=wanted)
    third = tl.load(at + 2 * CHANNELS, mask=wanted)
    store_partial(partials, group, channels, CHANNELS, wanted, first, second, third)
    return group, tl.num_programs(0) // blocks, block


@triton.jit
def statistics_kernel(
    rows, order, partials, CHANNELS, join_counters, join_count, join_gamma, join_beta, join_eps, join_bias,
    join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out, join_var_out, join_scale_out,
    join_shift_out, BC: tl.constexpr, VALUES: tl.constexpr = 1024,
):  # fmt: skip
    group, groups, block = store_own_row(rows, order, partials, CHANNELS)
    join_statistics_last(
        partials, join_counters, group, groups, block, block * _BLOCK, _BLOCK, 1, 0, CHANNELS, join_count, join_gamma,
        join_beta, join_eps, join_bias, join_running_mean, join_running_var, join_batches, join_momentum, join_mean_out,
        join_var_out, join_scale_out, join_shift_out, BC, VALUES,
    )  # fmt: skip


@triton.jit
def gradients_kernel(
    rows, order, partials, CHANNELS, join_counters, join_count, join_gamma, join_mean, join_var, join_eps,
    join_coefficients, join_grad_bias, join_grad_beta, join_grad_gamma, join_grad_slopes, join_BATCH: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    group, groups, block = store_own_row(rows, order, partials, CHANNELS)
    if join_counters is not None:
        join_gradients_last(
            partials, join_counters, group, groups, block, block * _BLOCK, _BLOCK, 1, 0, CHANNELS, join_count,
            join_gamma, join_mean, join_var, join_eps, join_coefficients, join_grad_bias, join_grad_beta,
            join_grad_gamma, join_grad_slopes, join_BATCH, BC,
        )  # fmt: skip


def orders(groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(groups)
    forwards = torch.arange(groups)
    return [forwards, forwards.flip(0), torch.randperm(groups, generator=generator)]


def run(kernel, rows: torch.Tensor, order: torch.Tensor, arguments: dict) -> None:
    groups, _, channels = rows.shape
    arguments = arguments | {"rows": rows, "order": order, "CHANNELS": channels, "BC": int(joins.JOINED)}
    launch.start_kernel(kernel, (groups * launch.cdiv(channels, BLOCK),), arguments, warps=4, stages=1)


@pytest.mark.parametrize(("groups", "channels"), [(1, 5), (2, 40), (140, 17)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics(groups, channels, momentum):
    values = draw(groups, channels, 30.0)
    rows, count = moments(values), sum(map(len, values))
    gamma, beta, bias = torch.randn(channels), torch.randn(channels), torch.randn(channels)
    results = []
    for order in [None, *orders(groups)]:
        running = torch.zeros(channels), torch.ones(channels), torch.tensor(3)
        given = BatchNorm(gamma, beta, 1e-3, *running, momentum, bias)
        if order is None:
            found = norm.join_statistics(rows, count, given)
        else:
            together = Joins(rows.device, [given.batches])
            join = together.statistics(given, count, groups, channels, launch.cdiv(channels, BLOCK))
            run(statistics_kernel, rows, order, join.arguments)
            found = join.finish()
        assert running[2] == 4
        results.append((*found, *running))
    for name, alone, *by_order in zip((*found._fields, "running mean", "running var"), *results, strict=False):
        assert torch.equal(by_order[0], by_order[1]) and torch.equal(by_order[0], by_order[2]), name
        torch.testing.assert_close(by_order[0], alone, rtol=2e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(("groups", "channels"), [(1, 5), (2, 40), (140, 17)])
@pytest.mark.parametrize("slopes", [0, 1, None])
def test_gradients(groups, channels, slopes):
    """``slopes``: of a PReLU: none, one for all channels, or as many as channels."""
    slopes = channels if slopes is None else slopes
    rows = torch.randn(groups, 3, channels, generator=torch.Generator().manual_seed(0))
    mean, var, gamma = torch.randn(channels), torch.rand(channels) + 0.1, torch.randn(channels)
    weight = torch.randn(slopes) if slopes else None
    epilogue = Epilogue(None, PRELU if slopes else NONE, 0.0, weight, gamma, gamma, mean, var, 1e-3)
    results = []
    for order in [None, *orders(groups)]:
        if order is None:
            coefficients, found = norm.join_gradients(rows, epilogue, 100)
        else:
            join = Joins(rows.device).gradients(epilogue, groups, channels, launch.cdiv(channels, BLOCK), 100)
            run(gradients_kernel, rows, order, join.arguments)
            coefficients, found = join.finish()
        results.append((coefficients, *found))
    for name, alone, *by_order in zip(("coefficients", *found._fields), *results, strict=True):
        assert torch.equal(by_order[0], by_order[1]) and torch.equal(by_order[0], by_order[2]), name
        torch.testing.assert_close(by_order[0], alone, rtol=1e-5, atol=1e-5 * groups**0.5, msg=name)


def test_runs_longer_than_a_program_reads_at_once(monkeypatch):
    """As with thousands of groups: here 4 runs of 25, 16 rows at once."""
    monkeypatch.setattr(joins, "RUNS", 4)
    monkeypatch.setattr(joins, "_RUNS", tl.constexpr(4))
    values = draw(99, 3, 30.0)
    rows, count, given = moments(values), sum(map(len, values)), BatchNorm(eps=1e-3)
    join = Joins(rows.device).statistics(given, count, 99, 3, 1)
    run(statistics_kernel, rows, orders(99)[2], join.arguments | {"VALUES": 16 * int(joins.JOINED)})
    for name, ours, alone in zip(join.vectors._fields, join.finish(), norm.join_statistics(rows, count, given)):
        torch.testing.assert_close(ours, alone, rtol=2e-6, atol=1e-6, msg=name)


def test_counters_that_are_used_up_are_followed_by_new_ones():
    together = Joins(torch.device("cpu"))
    first = together.counters
    each = launch.cdiv(joins.RUNS + 1, joins.ALIGNMENT) * joins.ALIGNMENT
    blocks = joins.COUNTERS // each
    taken = [together._take(1) for _ in range(blocks)]
    assert together.counters is first and len({t.data_ptr() for t in taken}) == blocks
    more, many = together._take(2), together._take(2 * blocks)
    assert more.numel() >= 2 * (joins.RUNS + 1) and many.numel() >= 2 * blocks * (joins.RUNS + 1)
    assert all(t.data_ptr() % 16 == 0 for t in (*taken, more, many))  # kernels are specialised for addresses
    assert together.counters is not first
    assert all(bool((t == 0).all()) for t in (*taken, more, many))


def test_every_batch_norm_counts_its_batch():
    counters = [torch.tensor(i) for i in range(11)]
    Joins(torch.device("cpu"), [*counters[:6], None, *counters[6:], counters[0]])
    assert [int(t) for t in counters] == [2, *range(2, 12)]
