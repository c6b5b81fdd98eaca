"""How groups' partial sums and statistics are joined: in a fixed order, so that results repeat."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...activations import PRELU
from . import launch, tiles
from .half import Half

FEW = 2  # channels of a program: a layer has some ten to hundred, and the device wants as many programs


@triton.jit
def join_kernel(
    partials, mean_out, var_out, total, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Means, then variances around them, of blocks of channels: nothing cancels."""
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    wanted = channels < CHANNELS
    origin = tl.load(partials + CHANNELS + channels, mask=wanted, other=0.0)
    moved = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        count = tl.load(at, mask=mask, other=0.0)
        mean = tl.load(at + CHANNELS, mask=mask, other=0.0)
        moved += tl.where(mask, count * (mean - origin[None, :]), 0.0)
    center = origin + tl.sum(moved, axis=0) / total
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
        "CHANNELS": channels, "BG": tiles.rows(groups), "BC": FEW,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.run(join_kernel, (launch.cdiv(channels, FEW),), arguments, warps=4, stages=1)
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
    channels = (tl.program_id(0) % blocks) * BC + tl.arange(0, BC)
    wanted = channels < CHANNELS
    found = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        at = partials + (group[:, None].to(tl.int64) * ROWS + row) * CHANNELS + channels[None, :]
        found += tl.load(at, mask=(group < groups)[:, None] & wanted[None, :], other=0.0)
    v = tl.sum(found, axis=0) * per_value
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
        steps: of rows and channels in ``to``; by default it is rows x channels.
        per_value: a factor.
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
        launch.run(total_kernel, (rows * launch.cdiv(channels, block),), arguments, warps=4, stages=1)
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


def as_taps(memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A depthwise weight (C x 1 x D x D) whose numbers lie as ``by_taps`` wants them."""
    c, _, height, width = shape
    return memory.as_strided(shape, (1, c, width * c, c), memory.storage_offset())


def by_taps(weight: torch.Tensor) -> torch.Tensor:
    """A depthwise weight (C x 1 x D x D) as kernels read it, all channels of a tap side by side: D x D x C in memory.

    One that lies so already, as those of programs do, is taken as it is.
    """
    c, d = weight.shape[0], weight.shape[-1]
    if weight.stride(0) == 1 and weight.stride(2) == d * c and weight.stride(3) == c:
        return weight
    to = launch.empty((d * d * c,), weight.dtype, weight.device)
    total(launch.vector(weight).view(1, c, d * d), to, steps=(1, c))
    return as_taps(to, weight.shape)


@triton.jit
def half_sums_kernel(
    partials, sums, bias, beta, gamma, slope, var, eps, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """The three rows of ``partials`` (groups x 3 x CHANNELS), and the parameters' gradients that are made of them."""
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    wanted = channels < CHANNELS
    first = tl.zeros((BG, BC), tl.float32)
    second = tl.zeros((BG, BC), tl.float32)
    third = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        first += tl.load(at, mask=mask, other=0.0)
        second += tl.load(at + CHANNELS, mask=mask, other=0.0)
        third += tl.load(at + 2 * CHANNELS, mask=mask, other=0.0)
    one, two, three = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)
    tl.store(sums + channels, one, mask=wanted)
    tl.store(sums + CHANNELS + channels, two, mask=wanted)
    tl.store(sums + 2 * CHANNELS + channels, three, mask=wanted)
    if bias is not None:
        tl.store(bias + channels, one.to(bias.dtype.element_ty), mask=wanted)
    if beta is not None:
        tl.store(beta + channels, one.to(beta.dtype.element_ty), mask=wanted)
    if gamma is not None:
        two = two / tl.sqrt(tl.load(var + channels, mask=wanted, other=1.0) + eps)
        tl.store(gamma + channels, two.to(gamma.dtype.element_ty), mask=wanted)
    if slope is not None:
        tl.store(slope + channels, three.to(slope.dtype.element_ty), mask=wanted)


class HalfGradients(NamedTuple):
    """Gradients of what follows a convolution, empty where there is none."""

    bias: torch.Tensor
    slopes: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor


def half_sums(partials: torch.Tensor, half: Half) -> tuple[torch.Tensor, HalfGradients]:
    """Σ g, Σ g (z - mean) and PReLU's sum (3 x channels, float32), and the gradients of the parameters of ``half``."""
    groups, _, channels = partials.shape
    device = partials.device
    sums = launch.empty((3, channels), torch.float32, device)
    prelu = half.weight if half.act == PRELU else None
    shared = prelu is not None and prelu.numel() == 1
    given = (half.bias, None if shared else prelu, half.gamma, half.beta)
    found = [None if p is None else launch.empty((channels,), p.dtype, device) for p in given]
    arguments = {
        "partials": partials, "sums": sums, **dict(zip(("bias", "slope", "gamma", "beta"), found)),
        "var": launch.vector(half.var), "eps": half.eps, "groups": groups, "CHANNELS": channels,
        "BG": min(tiles.rows(groups), 512), "BC": FEW,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.run(half_sums_kernel, (launch.cdiv(channels, FEW),), arguments, warps=4, stages=1)
    if shared:
        found[1] = sums[2].sum().reshape(1).to(prelu.dtype)
    kind = torch.float32 if half.bias is None else half.bias.dtype
    return sums, HalfGradients(*(launch.empty((0,), kind, device) if t is None else t for t in found))
