"""``ghost_module_train``: the three passes of docs/gradients.md, section 1, and the backward of section 2."""

from __future__ import annotations

import torch

from ..layout import kept_dtype
from . import backward, checks, launch
from .cheap import cheap_half
from .cheap_concat_train import batch_norm_of, ghost_tail_fwd, gradients_of_parameters, new_statistics
from .epilogue import Epilogue
from .gating import gate_gradients, multiply_by_gate
from .joins import Joins
from .launch_cache import cached_launches
from .products import primary_product


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
    joins = Joins(x.device)
    first = primary_product(
        x, primary_weight, to=z, joins=joins, norm=batch_norm_of(primary), vectors=new_statistics(x, m)
    )
    second = ghost_tail_fwd(z, out, first, primary, cheap_weight, cheap, joins)
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
    return found.x, found.weight, *gradients_of_parameters(found)


@cached_launches
def ghost_module_train_gated(x, gate, primary_weight, *args):
    """As ``ghost_module_train``, the output times the gate, upsampled to its size."""
    out, *statistics, _ = ghost_module_train(x, primary_weight, *args)
    checks.expect_gating(gate, out)
    multiply_by_gate(out, gate)
    return out, *statistics


@cached_launches
def ghost_module_train_gated_backward(
    grad_out, x, gate, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, the gate, and what ``ghost_module_train_backward`` has beside that of x. What the gate multiplies
    is computed again, into scratch memory."""
    primary = Epilogue(
        None, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap = Epilogue(
        None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps
    )
    checks.expect_module(x, primary_weight, primary, cheap_weight, cheap, out_channels)
    checks.expect("grad_out", grad_out, (x.shape[0], out_channels, *x.shape[2:]), x)
    m = primary_weight.shape[0]
    z, out, joins = launch.scratch(x, m), launch.scratch(x, out_channels), Joins(x.device, started=False)
    checks.expect_gating(gate, out)
    primary_product(x, primary_weight, to=z, joins=joins)
    cheap_half(z, out, cheap_weight, cheap, m=m, primary=primary)
    grad, grad_gate = gate_gradients(grad_out, out, gate)
    found = backward.ghost_module_bwd(
        grad, x, primary_weight, primary, cheap_weight, cheap, out_channels, batch=True, z=z, joins=joins
    )
    return found.x, grad_gate, found.weight, *gradients_of_parameters(found)
