"""``ghost_module`` and ``ghost_module_eval``: BatchNorms are applied to sums, no weight is folded."""

from __future__ import annotations

from . import backward, forward
from .epilogue import Epilogue
from .launch_cache import cached_launches


@cached_launches
def ghost_module(
    x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope, return_squeeze,
):  # fmt: skip
    return forward.ghost_module_fwd(
        x, primary_weight, Epilogue(primary_bias, act, act_slope, act_weight), cheap_weight,
        Epilogue(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight), out_channels, scale=input_scale,
        residual=residual, squeeze=return_squeeze,
    )  # fmt: skip


@cached_launches
def ghost_module_eval(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight, cheap_bias,
    cheap_gamma, cheap_beta, cheap_mean, cheap_var, input_scale, residual, act_weight, cheap_act_weight, out_channels,
    act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps, return_squeeze,
):  # fmt: skip
    primary = Epilogue(
        primary_bias, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    cheap = Epilogue(
        cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var,
        cheap_eps,
    )  # fmt: skip
    return forward.ghost_module_fwd(
        x, primary_weight, primary, cheap_weight, cheap, out_channels, scale=input_scale, residual=residual,
        squeeze=return_squeeze,
    )  # fmt: skip


@cached_launches
def ghost_module_backward(
    grad_out, x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope,
):  # fmt: skip
    """Gradients of x, the four parameters, input_scale and the two PReLU weights (empty where there is none)."""
    primary = Epilogue(primary_bias, act, act_slope, act_weight)
    cheap = Epilogue(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    found = backward.ghost_module_bwd(
        grad_out, x, primary_weight, primary, cheap_weight, cheap, out_channels, input_scale
    )
    return (
        found.x, found.weight, found.primary.bias, found.cheap_weight, found.cheap.bias, found.scale,
        found.primary.slopes,
        found.cheap.slopes,
    )  # fmt: skip
