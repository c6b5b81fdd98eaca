"""``cheap_concat`` and ``cheap_concat_eval``: a Ghost module from the primary convolution's result on."""

from __future__ import annotations

from . import backward, checks, launch
from .cheap import cheap_half
from .epilogue import Epilogue
from .launch_cache import cached_launches


@cached_launches
def cheap_concat(
    z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, return_squeeze,
):  # fmt: skip
    primary = Epilogue(None, act, act_slope, act_weight)
    cheap = Epilogue(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    return _tail(z, primary, cheap_weight, cheap, residual, out_channels, return_squeeze)


@cached_launches
def cheap_concat_eval(
    z, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight, cheap_bias, cheap_gamma,
    cheap_beta, cheap_mean, cheap_var, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, primary_eps, cheap_eps, return_squeeze,
):  # fmt: skip
    primary = Epilogue(
        primary_bias, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap = Epilogue(
        cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var,
        cheap_eps,
    )  # fmt: skip
    return _tail(z, primary, cheap_weight, cheap, residual, out_channels, return_squeeze)


def _tail(z, primary, cheap_weight, cheap, residual, out_channels, return_squeeze):
    checks.expect_module(z, None, primary, cheap_weight, cheap, out_channels)
    checks.expect("residual", residual, (z.shape[0], out_channels, *z.shape[2:]), z)
    out = launch.new_map(z, out_channels)
    squeeze = launch.empty((z.shape[0], out_channels) if return_squeeze else (0,), z.dtype, z.device)
    cheap_half(
        z, out, cheap_weight, cheap, m=z.shape[1], primary=primary, residual=residual,
        squeeze=squeeze if return_squeeze else None
    )  # fmt: skip
    return out, squeeze


@cached_launches
def cheap_concat_backward(
    grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope,
):  # fmt: skip
    """Gradients of z, cheap_weight, cheap_bias, act_weight, cheap_act_weight (empty where there is none)."""
    primary = Epilogue(None, act, act_slope, act_weight)
    cheap = Epilogue(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    found = backward.ghost_tail_bwd(grad_out, z, primary, cheap_weight, cheap, out_channels)
    return found.z, found.cheap_weight, found.cheap.bias, found.primary.slopes, found.cheap.slopes
