"""``cheap_concat``: the tail of a Ghost module whose primary convolution is not 1x1, and ``cheap_concat_eval``: the
same with BatchNorms over running statistics."""

from __future__ import annotations

from typing import Any

import torch

from ..dispatch import select
from ._library import differentiable, existing, refuse_double_backward, register_fake, without_gradients
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map, fake_module_output
from .flops import convolution_backward_flops, convolution_flops, count_flops
from .ghost_module import spread_squeeze

__all__ = ["cheap_concat", "cheap_concat_eval"]


def _fake(z, cheap_weight, *args):
    return fake_module_output(z, args[-6], args[-1])


def _fake_eval(z, *args):
    return fake_module_output(z, args[-8], args[-1])


def _fake_backward(grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, *_):
    parameters = (cheap_weight, cheap_bias, act_weight, cheap_act_weight)
    return fake_map(z), *(fake_gradient(p, z) for p in parameters)


@count_flops("cheap_concat")
def _flops(z, cheap_weight, *_, **__):
    return convolution_flops(z, cheap_weight)


@count_flops("cheap_concat_eval")
def _eval_flops(z, bias, gamma, beta, mean, var, cheap_weight, *_, **__):
    return convolution_flops(z, cheap_weight)


@count_flops("cheap_concat_backward")
def _backward_flops(grad_out, z, cheap_weight, *_, **__):
    return convolution_backward_flops(z, cheap_weight)


register_fake("cheap_concat", _fake)
register_fake("cheap_concat_eval", _fake_eval)
register_fake("cheap_concat_backward", _fake_backward)
_gradients = refuse_double_backward("cheap_concat_backward")


def _setup(ctx, inputs, output):
    z, w, b, residual, act_weight, cheap_act_weight, *ctx.scalars = inputs
    ctx.has_residual, ctx.return_squeeze = residual is not None, inputs[-1]
    ctx.save_for_backward(z, w, b, act_weight, cheap_act_weight)
    if not ctx.return_squeeze:
        ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_out, grad_squeeze):
    z, *parameters = ctx.saved_tensors
    grad_out = spread_squeeze(grad_out, grad_squeeze, ctx.return_squeeze)
    gz, *grads = _gradients(grad_out, z, *parameters, *ctx.scalars[:-1])
    gw, gb, *slopes = existing(grads, parameters)
    return gz, gw, gb, grad_out if ctx.has_residual else None, *slopes, *[None] * 6


call_cheap_concat = differentiable("cheap_concat", _setup, _backward)


def cheap_concat(
    z: torch.Tensor,
    cheap_weight: torch.Tensor,
    cheap_bias: torch.Tensor | None,
    *,
    out_channels: int | None = None,
    act: str = "relu",
    cheap_act: str = "relu",
    act_slope: float | None = None,
    cheap_act_slope: float | None = None,
    act_weight: torch.Tensor | None = None,
    cheap_act_weight: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | Any:  # with ``return_squeeze`` a tuple
    """Activation, cheap operation and concatenation after a primary convolution of any size, stride or dilation.

    y1 = act(z); y2 = cheap_act(depthwise(y1) + cheap_bias), whose channel j reads y1's channel j // (s - 1); out =
    concat(y1, y2)[:, :out_channels] + residual. Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 3.1.

    Args:
        z: N x m x H x W, any floating dtype, NCHW or channels_last: the primary convolution's result with its bias
            (and BatchNorm, folded) applied. The output has its dtype and memory format.
        cheap_weight: m(s - 1) x 1 x d x d with d odd (padding d // 2), in z's dtype, or float32 beside a half-precision
            z (as all parameters).
        cheap_bias: m(s - 1), or None.

    The other arguments are those of :func:`ghost_module`.

    Returns:
        N x out_channels x H x W, and with ``return_squeeze`` also its mean over H and W, N x out_channels.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    z, residual = autocast(z, residual)
    check = Checks("cheap_concat", "z")
    check.map("z", z)
    m = z.shape[1]
    cheap = check.cheap(cheap_weight, m, z)
    check.optional("cheap_bias", cheap_bias, (cheap,), z)
    codes = check.halves(
        z, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.residual(residual, z, codes[0])
    out, squeeze = call_cheap_concat(
        select("cheap_concat", z, cheap_weight.shape[-1]),
        z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, *codes, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out


cheap_concat_eval_operator = without_gradients("cheap_concat_eval")


def cheap_concat_eval(
    z: torch.Tensor,
    primary_bias: torch.Tensor | None,
    primary_gamma: torch.Tensor | None,
    primary_beta: torch.Tensor | None,
    primary_mean: torch.Tensor | None,
    primary_var: torch.Tensor | None,
    cheap_weight: torch.Tensor,
    cheap_bias: torch.Tensor | None,
    cheap_gamma: torch.Tensor | None,
    cheap_beta: torch.Tensor | None,
    cheap_mean: torch.Tensor | None,
    cheap_var: torch.Tensor | None,
    *,
    out_channels: int | None = None,
    act: str = "relu",
    cheap_act: str = "relu",
    act_slope: float | None = None,
    cheap_act_slope: float | None = None,
    act_weight: torch.Tensor | None = None,
    cheap_act_weight: torch.Tensor | None = None,
    primary_eps: float = 1e-5,
    cheap_eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | Any:  # with ``return_squeeze`` a tuple
    """The tail of a Ghost module in inference, whose BatchNorms use their running statistics, in one pass.

    y1 = act(bn(z + primary_bias)); y2 = cheap_act(bn(depthwise(y1) + cheap_bias)), whose channel j reads y1's channel
    j // (s - 1); out = concat(y1, y2)[:, :out_channels] + residual, where bn(v) is (v - mean) / sqrt(var + eps) * gamma
    + beta: :func:`ghost_module_eval` after its primary convolution, which may be of any size, stride or dilation here.
    The first BatchNorm is applied to z as it is read, so that the primary convolution's weight, which may be larger
    than z, need not be folded.

    This function is for inference: it has no gradients. :func:`cheap_concat` with folded BatchNorms has them.

    Args:
        z: N x m x H x W, any floating dtype, NCHW or channels_last: the primary convolution's result without its bias.
            The output has its dtype and memory format.
        primary_bias: the primary convolution's, m, in z's dtype, or float32 beside a half-precision z (as all
            parameters), or None.
        primary_gamma, primary_beta: the affine parameters of the BatchNorm after the primary convolution, m, or None.
        primary_mean, primary_var: its running mean and variance, m; both None where there is no BatchNorm.
        cheap_weight: m(s - 1) x 1 x d x d with d odd (padding d // 2).
        cheap_bias: m(s - 1), or None.
        cheap_gamma, cheap_beta, cheap_mean, cheap_var: those of the BatchNorm after the cheap operation, m(s - 1).
        primary_eps, cheap_eps: numbers that are added to the variances.

    The other arguments are those of :func:`ghost_module`.

    Returns:
        N x out_channels x H x W, and with ``return_squeeze`` also its mean over H and W, N x out_channels.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
        NotImplementedError: in the backward, where a gradient is asked for.
    """
    z, residual = autocast(z, residual)
    check = Checks("cheap_concat_eval", "z")
    check.map("z", z)
    m = z.shape[1]
    cheap = check.cheap(cheap_weight, m, z)
    first, second = (
        (primary_gamma, primary_beta, primary_mean, primary_var),
        (cheap_gamma, cheap_beta, cheap_mean, cheap_var),
    )
    check.optional("primary_bias", primary_bias, (m,), z)
    check.running("primary", *first, m, z)
    check.optional("cheap_bias", cheap_bias, (cheap,), z)
    check.running("cheap", *second, cheap, z)
    codes = check.halves(
        z, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.residual(residual, z, codes[0])
    epsilons = check.numbers(primary_eps=primary_eps, cheap_eps=cheap_eps)
    out, squeeze = cheap_concat_eval_operator(  # which hands what no kernel takes to the reference
        z, primary_bias, *first, cheap_weight, cheap_bias, *second, residual, act_weight, cheap_act_weight, *codes,
        *epsilons, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out
