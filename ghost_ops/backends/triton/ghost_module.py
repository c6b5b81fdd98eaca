"""``ghost_module`` and ``ghost_module_eval``: BatchNorms are applied to sums, no weight is folded."""

from __future__ import annotations

from . import backward, forward
from .half import Half
from .tape import taped


@taped
def ghost_module(
    x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope, return_squeeze,
):  # fmt: skip
    return forward.run(
        x, primary_weight, Half(primary_bias, act, act_slope, act_weight), cheap_weight,
        Half(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight), out_channels, scale=input_scale,
        residual=residual, squeeze=return_squeeze,
    )  # fmt: skip


@taped
def ghost_module_eval(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight, cheap_bias,
    cheap_gamma, cheap_beta, cheap_mean, cheap_var, input_scale, residual, act_weight, cheap_act_weight, out_channels,
    act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps, return_squeeze,
):  # fmt: skip
    one = Half(
        primary_bias, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps
    )
    two = Half(
        cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var,
        cheap_eps,
    )  # fmt: skip
    return forward.run(
        x, primary_weight, one, cheap_weight, two, out_channels, scale=input_scale, residual=residual,
        squeeze=return_squeeze,
    )  # fmt: skip


@taped
def ghost_module_backward(
    grad_out, x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope,
):  # fmt: skip
    """Gradients of x, the four parameters, input_scale and the two PReLU weights (empty where there is none)."""
    one = Half(primary_bias, act, act_slope, act_weight)
    two = Half(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    found = backward.through_module(grad_out, x, primary_weight, one, cheap_weight, two, out_channels, input_scale)
    return (
        found.x, found.weight, found.one.bias, found.cheap_weight, found.two.bias, found.scale, found.one.slopes,
        found.two.slopes,
    )  # fmt: skip
