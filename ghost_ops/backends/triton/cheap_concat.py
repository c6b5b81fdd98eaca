"""``cheap_concat``: the single pass from the primary convolution's result on."""

from __future__ import annotations

from . import backward, single_pass
from .single_pass import Half


def cheap_concat(
    z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope, return_squeeze,
):  # fmt: skip
    return single_pass.run(
        z, None, Half(None, act, act_slope, act_weight), cheap_weight,
        Half(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight), out_channels, residual=residual,
        squeeze=return_squeeze,
    )  # fmt: skip


def cheap_concat_backward(
    grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope,
    cheap_act_slope,
):  # fmt: skip
    """Gradients of z, cheap_weight, cheap_bias, act_weight, cheap_act_weight (empty where there is none)."""
    one = Half(None, act, act_slope, act_weight)
    two = Half(cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    found = backward.through_halves(grad_out, z, one, cheap_weight, two, out_channels)
    return found.z, found.cheap_weight, found.two.bias, found.one.slopes, found.two.slopes
