"""BatchNorm over a batch: its statistics and gradients, joined from partial sums, and the vectors that kernels read.

A join is one launch. It reads the groups' partial rows in a fixed order and writes all that follows from the sums:
running statistics and the vectors of the normalisation, or the parameters' gradients and the coefficients of the
backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...activations import PRELU
from . import launch, tiles
from .activation import load_or
from .epilogue import Epilogue, EpilogueGradients
from .jit import kernel
from .sums import CHANNELS_PER_PROGRAM, joined_moments, joined_sums


class BatchNorm(NamedTuple):
    """A BatchNorm over batch statistics, as the kernels need it; vectors have one value a channel.

    Attributes:
        running_mean, running_var: updated in place by the join, as ``torch.nn.BatchNorm2d`` does; None: not tracked.
        batches: ``num_batches_tracked``, an int64 scalar that the join increments.
        momentum: weight of a new batch; None: 1 / batches, so that the running statistics are averages of all batches.
        bias: of the convolution before it. The kernels leave it out, and only the running mean has it.
    """

    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    eps: float = 0.0
    running_mean: torch.Tensor | None = None
    running_var: torch.Tensor | None = None
    batches: torch.Tensor | None = None
    momentum: float | None = 0.1
    bias: torch.Tensor | None = None


class NormVectors(NamedTuple):
    """What normalises a batch, float32 vectors: z becomes (z - mean) * scale + shift. ``var`` is biased, scale is
    gamma / sqrt(var + eps), shift is beta."""

    mean: torch.Tensor
    var: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor

    def applied(self, epilogue: Epilogue) -> Epilogue:
        """The epilogue with this BatchNorm between its bias and its activation, for kernels to read."""
        return epilogue._replace(gamma=self.scale, beta=self.shift, mean=self.mean, var=None)


def new_vectors(channels: int, device: torch.device) -> NormVectors:
    """Uninitialised vectors, the rows of one tensor."""
    return NormVectors(*launch.empty((4, channels), torch.float32, device).unbind(0))


@triton.jit
def running_share(batches, momentum, before: tl.constexpr):
    """The weight of the new batch in running statistics; ``before``: whether ``batches`` does not count it yet."""
    if momentum is None:
        counted = tl.load(batches)
        share = 1.0 / (counted + 1 if before else counted).to(tl.float32)
    else:
        share = momentum
    return share


@triton.jit
def finish_statistics(
    center, var, channels, wanted, count, gamma, beta, eps, bias, running_mean, running_var, share,
    mean_out, var_out, scale_out, shift_out,
):  # fmt: skip
    """Stores the vectors of channels whose mean and biased variance are known, and updates their running statistics.

    ``center``, ``var``, ``channels``, ``wanted``: [B].
    """
    tl.store(mean_out + channels, center, mask=wanted)
    tl.store(var_out + channels, var, mask=wanted)
    tl.store(scale_out + channels, load_or(gamma, channels, wanted, 1.0) / tl.sqrt(var + eps), mask=wanted)
    tl.store(shift_out + channels, load_or(beta, channels, wanted, 0.0), mask=wanted)
    if running_mean is not None:
        mean = center + load_or(bias, channels, wanted, 0.0)
        old = load_or(running_mean, channels, wanted, 0.0)
        new = (1.0 - share) * old + share * mean
        tl.store(running_mean + channels, new.to(running_mean.dtype.element_ty), mask=wanted)
        old = load_or(running_var, channels, wanted, 0.0)
        new = (1.0 - share) * old + share * (var * (count / (count - 1.0)))
        tl.store(running_var + channels, new.to(running_var.dtype.element_ty), mask=wanted)


@kernel
def join_statistics_kernel(
    partials, count, gamma, beta, eps, bias, running_mean, running_var, batches, momentum, mean_out, var_out, scale_out,
    shift_out, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``partials``: [groups, 3, CHANNELS], counts, means and sums of squared deviations. Grid: programs that share the
    blocks of CHANNELS; one where ``momentum`` is None, since all must read ``batches`` before it is written."""
    share = 0.0
    if running_mean is not None:
        share = running_share(batches, momentum, True)
    for block in range(tl.program_id(0), tl.cdiv(CHANNELS, BC), tl.num_programs(0)):
        channels = block * BC + tl.arange(0, BC)  # [BC]
        wanted = channels < CHANNELS
        # center, squares: [BC]
        _, center, squares = joined_moments(partials, groups, channels, CHANNELS, wanted, BG, BC)
        finish_statistics(
            center, squares / count, channels, wanted, count, gamma, beta, eps, bias, running_mean, running_var, share,
            mean_out, var_out, scale_out, shift_out,
        )  # fmt: skip
    if batches is not None:
        tl.debug_barrier()
        if tl.program_id(0) == 0:
            tl.store(batches, tl.load(batches) + 1)


def join_statistics(
    partials: torch.Tensor, count: int, norm: BatchNorm, to: NormVectors | None = None
) -> NormVectors:  # fmt: skip
    """The vectors of a BatchNorm over ``count`` values a channel; updates its running statistics.

    Args:
        partials: groups x 3 x channels: counts, means and sums of squared deviations.
        to: where the vectors are written; by default new ones.
    """
    groups, _, channels = partials.shape
    to = to or new_vectors(channels, partials.device)
    arguments = {
        "partials": partials, "count": float(count), **norm_arguments(norm), **vector_arguments(to), "groups": groups,
        "CHANNELS": channels, "BG": tiles.rows(groups), "BC": CHANNELS_PER_PROGRAM,
    }  # fmt: skip
    one = arguments["running_mean"] is not None and norm.momentum is None
    with launch.on_device_of(partials):
        grid = (1 if one else launch.cdiv(channels, CHANNELS_PER_PROGRAM),)
        launch.start_kernel(join_statistics_kernel, grid, arguments, warps=4, stages=1)
    return to


def norm_arguments(norm: BatchNorm) -> dict:
    """The arguments of ``finish_statistics`` and ``running_share`` that belong to a BatchNorm."""
    tracked = norm.running_mean is not None and (norm.momentum is not None or norm.batches is not None)
    for name in ("running_mean", "running_var"):
        running = getattr(norm, name)
        if running is not None and not running.is_contiguous():
            raise ValueError(f"ghost_ops: {name}: expected contiguous memory, got strides {running.stride()}")
    return {
        "gamma": launch.vector(norm.gamma), "beta": launch.vector(norm.beta), "eps": norm.eps,
        "bias": launch.vector(norm.bias) if tracked else None,
        "running_mean": norm.running_mean if tracked else None, "running_var": norm.running_var if tracked else None,
        "batches": norm.batches,
        "momentum": None if norm.momentum is None else float(norm.momentum),
    }  # fmt: skip


def vector_arguments(vectors: NormVectors) -> dict[str, torch.Tensor]:
    """The vectors as arguments of kernels that write them."""
    return {f"{name}_out": vector for name, vector in vectors._asdict().items()}


@triton.jit
def finish_gradients(
    first, second, third, channels, wanted, CHANNELS, count, gamma, mean, var, eps, coefficients,
    grad_bias, grad_beta, grad_gamma, grad_slopes, BATCH: tl.constexpr,
):  # fmt: skip
    """Stores an epilogue's gradients and the coefficients of its backward, from the sums of its channels.

    ``first``, ``second``, ``third``: Σ g, Σ g (z - mean) and PReLU's sum, [B]; ``channels``, ``wanted``: [B].
    ``coefficients``: [4, CHANNELS], see ``join_gradients``.
    """
    r = 1.0 / tl.sqrt(load_or(var, channels, wanted, 1.0) + eps)
    if grad_bias is not None:
        tl.store(grad_bias + channels, first.to(grad_bias.dtype.element_ty), mask=wanted)
    if grad_beta is not None:
        tl.store(grad_beta + channels, first.to(grad_beta.dtype.element_ty), mask=wanted)
    if grad_gamma is not None:
        tl.store(grad_gamma + channels, (second * r).to(grad_gamma.dtype.element_ty), mask=wanted)
    if grad_slopes is not None:
        tl.store(grad_slopes + channels, third.to(grad_slopes.dtype.element_ty), mask=wanted)
    factor = tl.full(channels.shape, 1.0, tl.float32)
    constant = tl.zeros(channels.shape, tl.float32)
    linear = constant
    if BATCH:
        factor = r * load_or(gamma, channels, wanted, 1.0)
        constant = first / count
        linear = r * r * second / count
    tl.store(coefficients + channels, factor, mask=wanted)
    tl.store(coefficients + CHANNELS + channels, constant, mask=wanted)
    tl.store(coefficients + 2 * CHANNELS + channels, linear, mask=wanted)
    tl.store(coefficients + 3 * CHANNELS + channels, load_or(mean, channels, wanted, 0.0), mask=wanted)


@kernel
def join_gradients_kernel(
    partials, count, gamma, mean, var, eps, coefficients, grad_bias, grad_beta, grad_gamma, grad_slopes, grad_slope,
    groups, CHANNELS, BATCH: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``partials``: [groups, 3, CHANNELS]. ``grad_slope``: of a PReLU with one slope for all channels. Grid: programs
    that share the blocks of CHANNELS; one where there is a ``grad_slope``."""
    all_slopes = tl.zeros((BC,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(CHANNELS, BC), tl.num_programs(0)):
        channels = block * BC + tl.arange(0, BC)  # [BC]
        wanted = channels < CHANNELS
        # first, second, third: [BC]
        first, second, third = joined_sums(partials, groups, channels, CHANNELS, wanted, BG, BC)
        finish_gradients(
            first, second, third, channels, wanted, CHANNELS, count, gamma, mean, var, eps, coefficients,
            grad_bias, grad_beta, grad_gamma, grad_slopes, BATCH,
        )  # fmt: skip
        all_slopes += third
    if grad_slope is not None:
        tl.store(grad_slope, tl.sum(all_slopes, axis=0).to(grad_slope.dtype.element_ty))


def join_gradients(
    partials: torch.Tensor, epilogue: Epilogue, count: int | None = None, vectors: NormVectors | None = None,
    to: tuple[torch.Tensor, EpilogueGradients] | None = None,
) -> tuple[torch.Tensor, EpilogueGradients]:  # fmt: skip
    """Coefficients of the backward of an epilogue, and the gradients of its parameters.

    Args:
        partials: groups x 3 x channels: Σ g, Σ g (z - mean) and PReLU's sum, g the gradient of the activation's input.
        epilogue: with its own parameters, which decide what gradients there are and their dtypes.
        count: values a channel, where its BatchNorm, if any, is over the batch; None: over running statistics.
        vectors: of the BatchNorm; by default the epilogue has its mean and variance.
        to: where the results are written; by default new tensors.

    Returns:
        The coefficients, 4 x channels, float32: factor, constant, linear, center, with which g becomes the gradient of
        z: factor * (g - constant - linear * (z - center)). Without ``count`` factor is 1, constant and linear are 0.
    """
    groups, _, channels = partials.shape
    coefficients, found = to or new_gradients(epilogue, channels, partials.device)
    with launch.on_device_of(partials):
        arguments = gradient_arguments(epilogue, found, coefficients, count, vectors) | {
            "partials": partials, "groups": groups, "CHANNELS": channels, "BG": min(tiles.rows(groups), 512),
            "BC": CHANNELS_PER_PROGRAM,
        }  # fmt: skip
        grid = (launch.cdiv(channels, CHANNELS_PER_PROGRAM) if arguments["grad_slope"] is None else 1,)
        launch.start_kernel(join_gradients_kernel, grid, arguments, warps=4, stages=1)
    return coefficients, found


def new_gradients(epilogue: Epilogue, channels: int, device: torch.device) -> tuple[torch.Tensor, EpilogueGradients]:
    """Uninitialised coefficients, 4 x channels, and gradients of an epilogue's parameters, empty where it has none."""
    prelu = epilogue.weight if epilogue.act == PRELU else None
    kind = torch.float32 if epilogue.bias is None else epilogue.bias.dtype

    def made(parameter: torch.Tensor | None) -> torch.Tensor:
        size, dtype = (0, kind) if parameter is None else (parameter.numel(), parameter.dtype)
        return launch.empty((size,), dtype, device)

    found = EpilogueGradients(made(epilogue.bias), made(prelu), made(epilogue.gamma), made(epilogue.beta))
    return launch.empty((4, channels), torch.float32, device), found


def gradient_arguments(
    epilogue: Epilogue, found: EpilogueGradients, coefficients: torch.Tensor, count: int | None,
    vectors: NormVectors | None = None,
) -> dict:  # fmt: skip
    """The arguments of ``finish_gradients``, and ``grad_slope``; see ``join_gradients``."""
    wanted = lambda parameter, gradient: None if parameter is None else gradient
    prelu = epilogue.weight if epilogue.act == PRELU else None
    one = prelu is not None and prelu.numel() == 1
    seen = epilogue if vectors is None else vectors
    return {
        "count": float(count or 0), "gamma": launch.vector(epilogue.gamma), "mean": launch.vector(seen.mean),
        "var": launch.vector(seen.var), "eps": epilogue.eps, "coefficients": coefficients,
        "grad_bias": wanted(epilogue.bias, found.bias), "grad_beta": wanted(epilogue.beta, found.beta),
        "grad_gamma": wanted(epilogue.gamma, found.gamma),
        "grad_slopes": None if one else wanted(prelu, found.slopes),
        "grad_slope": found.slopes if one else None, "BATCH": count is not None,
    }  # fmt: skip
