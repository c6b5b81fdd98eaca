"""``cheap_concat_train``: the statistics of z and the last two passes of docs/gradients.md, section 1, and B1 and B2 of
the backward of section 2, with a pass that gives the gradient of z."""

from __future__ import annotations

import torch

from . import checks, launch
from .backward import Gradients, ghost_tail_bwd
from .cheap import cheap_half
from .epilogue import NO_EPILOGUE, Epilogue
from .joins import Joins
from .launch_cache import cached_launches
from .map_statistics import map_statistics
from .norm import BatchNorm, NormVectors
from .normalise import norm_gradient
from .sums import Totals


def new_statistics(x: torch.Tensor, channels: int) -> NormVectors:
    """Uninitialised vectors, each with its own memory, since an operator's results do not share any."""
    return NormVectors(*(launch.empty((channels,), torch.float32, x.device) for _ in range(4)))


def batch_norm_of(epilogue: Epilogue) -> BatchNorm:
    """The BatchNorm of an epilogue without statistics: over those of the batch."""
    return BatchNorm(epilogue.gamma, epilogue.beta, epilogue.eps)


def ghost_tail_fwd(
    z: torch.Tensor, out: torch.Tensor, first: NormVectors, primary: Epilogue, cheap_weight: torch.Tensor,
    cheap: Epilogue, joins: Joins,
) -> NormVectors:  # fmt: skip
    """Writes the output of a Ghost module over batch statistics from z, its primary convolution's result, and the
    vectors ``first`` of the BatchNorm after that. Returns the vectors of the second BatchNorm."""
    given = {"m": z.shape[1], "primary": first.applied(primary)}
    second = cheap_half(
        z, out, cheap_weight, cheap, **given, joins=joins, norm=batch_norm_of(cheap),
        vectors=new_statistics(z, cheap_weight.shape[0]),
    )  # fmt: skip
    cheap_half(z, out, cheap_weight, second.applied(cheap), **given)
    return second


def gradients_of_parameters(found: Gradients) -> tuple[torch.Tensor, ...]:
    """Those of primary gamma and beta, cheap weight, gamma and beta, and of the two PReLU weights."""
    primary, cheap = found.primary, found.cheap
    return primary.gamma, primary.beta, found.cheap_weight, cheap.gamma, cheap.beta, primary.slopes, cheap.slopes


@cached_launches
def cheap_concat_train(
    z, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """The output, mean and variance of z and of z2, without the biases, which batch statistics remove."""
    m = z.shape[1]
    primary = Epilogue(None, act, act_slope, act_weight, primary_gamma, primary_beta, None, None, primary_eps)
    cheap = Epilogue(None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, None, None, cheap_eps)
    checks.expect_module(z, None, primary, cheap_weight, cheap, out_channels)
    out, joins = launch.new_map(z, out_channels), Joins(z.device)
    first = map_statistics(z, batch_norm_of(primary), joins, new_statistics(z, m))
    second = ghost_tail_fwd(z, out, first, primary, cheap_weight, cheap, joins)
    return out, first.mean, first.var, second.mean, second.var


@cached_launches
def cheap_concat_train_backward(
    grad_out, z, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight,
    primary_mean, primary_var, cheap_mean, cheap_var, out_channels, act, cheap_act, act_slope, cheap_act_slope,
    primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of z, primary gamma, beta, cheap weight, gamma, beta, and the two PReLU weights."""
    primary = Epilogue(
        None, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap = Epilogue(
        None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps
    )
    totals, grad_z = Totals(), launch.new_map(z, z.shape[1])
    found = ghost_tail_bwd(
        grad_out, z, primary, cheap_weight, cheap, out_channels, batch=True, grad_z=grad_z, totals=totals
    )
    norm_gradient(grad_z, z, NO_EPILOGUE, found.coefficients, to=grad_z)
    totals.start()
    return grad_z, *gradients_of_parameters(found)
