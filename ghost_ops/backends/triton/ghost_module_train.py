"""``ghost_module_train``: the three passes of docs/gradients.md, section 1, and the backward of section 2."""

from __future__ import annotations

import torch

from ..layout import kept_dtype
from . import backward, checks, launch
from .cheap import cheap_half
from .epilogue import Epilogue
from .joins import Joins
from .launch_cache import cached_launches
from .norm import BatchNorm, NormVectors
from .products import primary_product


def _vectors(x: torch.Tensor, channels: int) -> NormVectors:
    """Uninitialised vectors, each with its own memory, since an operator's results do not share any."""
    return NormVectors(*(launch.empty((channels,), torch.float32, x.device) for _ in range(4)))


@cached_launches
def ghost_module_train(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta,
    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    keep_primary=False,
):  # fmt: skip
    n, _, height, width = x.shape
    m = primary_weight.shape[0]
    primary = Epilogue(None, act, act_slope, act_weight, primary_gamma, primary_beta, None, None, primary_eps)
    cheap = Epilogue(None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, None, None, cheap_eps)
    checks.expect_module(x, primary_weight, primary, cheap_weight, cheap, out_channels)
    kept = launch.empty((n, height, width, m), kept_dtype(x) if keep_primary else x.dtype, x.device)
    z, out = kept.permute(0, 3, 1, 2), launch.new_map(x, out_channels)
    joins, norm = Joins(x.device), BatchNorm(primary_gamma, primary_beta, primary_eps)
    first = primary_product(x, primary_weight, to=z, joins=joins, norm=norm, vectors=_vectors(x, m))
    primary = first.applied(primary)
    second = cheap_half(
        z, out, cheap_weight, cheap, m=m, primary=primary, joins=joins,
        norm=BatchNorm(cheap_gamma, cheap_beta, cheap_eps), vectors=_vectors(x, cheap_weight.shape[0]),
    )  # fmt: skip
    cheap_half(z, out, cheap_weight, second.applied(cheap), m=m, primary=primary)
    kept = kept if keep_primary else launch.empty((0,), torch.float32, x.device)
    return out, first.mean, first.var, second.mean, second.var, kept


@cached_launches
def ghost_module_train_backward(
    grad_out, x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, kept_z1, out_channels, act, cheap_act,
    act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, primary weight, gamma, beta, cheap weight, gamma, beta, and the two PReLU weights.

    ``kept_z1``: N x H x W x m, what the forward kept; None: z1 is computed again.
    """
    primary = Epilogue(
        None, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap = Epilogue(
        None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps
    )
    z = None if kept_z1 is None else launch.vector(kept_z1).permute(0, 3, 1, 2)
    found = backward.ghost_module_bwd(
        grad_out, x, primary_weight, primary, cheap_weight, cheap, out_channels, batch=True, z=z
    )
    primary_grad, cheap_grad = found.primary, found.cheap
    return (
        found.x, found.weight, primary_grad.gamma, primary_grad.beta, found.cheap_weight, cheap_grad.gamma,
        cheap_grad.beta,
        primary_grad.slopes, cheap_grad.slopes,
    )  # fmt: skip
