"""``ghost_module``: the single pass, and ``ghost_module_eval``: the same with BatchNorms folded on the way in."""

from __future__ import annotations

from typing import Any

import torch

from ..dispatch import select
from ._library import differentiable, existing, refuse_double_backward, register_fake, without_gradients
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map, fake_module_output
from .flops import convolution_backward_flops, convolution_flops, count_flops, module_flops

__all__ = ["ghost_module", "ghost_module_eval"]


def _fake(x, primary_weight, *args):
    return fake_module_output(x, args[-6], args[-1])


def _fake_eval(x, *args):
    return fake_module_output(x, args[-8], args[-1])


def _fake_backward(
    grad_out, x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight,
    *_,
):  # fmt: skip
    parameters = (primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight)
    return fake_map(x), *(fake_gradient(p, x) for p in parameters)


@count_flops("ghost_module")
def _flops(x, primary_weight, primary_bias, cheap_weight, *_, **__):
    return module_flops(convolution_flops, x, primary_weight, cheap_weight)


@count_flops("ghost_module_eval")
def _eval_flops(x, primary_weight, bias, gamma, beta, mean, var, cheap_weight, *_, **__):
    return module_flops(convolution_flops, x, primary_weight, cheap_weight)


@count_flops("ghost_module_backward")
def _backward_flops(grad_out, x, primary_weight, primary_bias, cheap_weight, *_, **__):
    return module_flops(convolution_backward_flops, x, primary_weight, cheap_weight)


register_fake("ghost_module", _fake)
register_fake("ghost_module_eval", _fake_eval)
register_fake("ghost_module_backward", _fake_backward)
_gradients = refuse_double_backward("ghost_module_backward")


def spread_squeeze(grad_out: torch.Tensor, grad_squeeze: torch.Tensor | None, squeezed: bool) -> torch.Tensor:
    """Gradient of out with that of its squeeze (a mean over H and W) added."""
    if not squeezed or grad_squeeze is None:
        return grad_out
    size = max(grad_out.shape[2] * grad_out.shape[3], 1)
    return grad_out + (grad_squeeze / size)[:, :, None, None]


def _setup(ctx, inputs, output):
    tensors, ctx.scalars = inputs[:9], inputs[9:]
    residual = tensors[6]
    ctx.has_residual = residual is not None
    ctx.save_for_backward(*tensors[:6], *tensors[7:])
    ctx.return_squeeze = inputs[-1]
    if not ctx.return_squeeze:
        ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_out, grad_squeeze):
    x, w1, b1, w2, b2, input_scale, act_weight, cheap_act_weight = ctx.saved_tensors
    grad_out = spread_squeeze(grad_out, grad_squeeze, ctx.return_squeeze)
    grads = _gradients(grad_out, x, w1, b1, w2, b2, input_scale, act_weight, cheap_act_weight, *ctx.scalars[:-1])
    parameters = (w1, b1, w2, b2, input_scale, act_weight, cheap_act_weight)
    gx, *gw, slope, cheap_slope = grads[0], *existing(grads[1:], parameters)
    return gx, *gw, grad_out if ctx.has_residual else None, slope, cheap_slope, *[None] * 6


call_ghost_module = differentiable("ghost_module", _setup, _backward)


def ghost_module(
    x: torch.Tensor,
    primary_weight: torch.Tensor,
    primary_bias: torch.Tensor | None,
    cheap_weight: torch.Tensor | None,
    cheap_bias: torch.Tensor | None,
    *,
    out_channels: int | None = None,
    act: str = "relu",
    cheap_act: str = "relu",
    act_slope: float | None = None,
    cheap_act_slope: float | None = None,
    act_weight: torch.Tensor | None = None,
    cheap_act_weight: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | Any:  # with ``return_squeeze`` a tuple
    """Ghost module in one pass: primary 1x1 convolution, cheap operation, concatenation, slice.

    y1 = act(conv1x1(x * input_scale) + primary_bias); y2 = cheap_act(depthwise(y1) + cheap_bias), whose channel j reads
    y1's channel j // (s - 1); out = concat(y1, y2)[:, :out_channels] + residual. Source: Han et al. 2020 (GhostNet,
    arXiv 1911.11907), section 3.1; BatchNorms are folded into weights and biases by the caller.

    Args:
        x: N x C x H x W, any floating dtype, NCHW or channels_last; the output has its dtype and memory format.
        primary_weight: m x C x 1 x 1, in x's dtype, or float32 beside a half-precision x (as all parameters).
        primary_bias: m, or None.
        cheap_weight: m(s - 1) x 1 x d x d with d odd (padding d // 2), or None: ratio 1, a plain convolution.
        cheap_bias: m(s - 1), or None.
        out_channels: number of channels of the output, more than m and at most ms (default: ms).
        act, cheap_act: activation of each half, a name of ``ghost_ops.activations.ACTIVATIONS``, such as relu or gelu.
        act_slope, cheap_act_slope: negative slope of leaky_relu (None: 0.01), alpha of elu (None: 1).
        act_weight, cheap_act_weight: PReLU's weight, 1 element or one per channel of its half.
        input_scale: N x C, the excitation of the input, applied as it is read.
        residual: N x out_channels x H x W, added to the output as it is written.
        return_squeeze: whether the mean of the output over H and W is returned too.

    Returns:
        N x out_channels x H x W, and with ``return_squeeze`` also its mean over H and W, N x out_channels.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    x, residual, input_scale = autocast(x, residual, input_scale)
    check = Checks("ghost_module")
    check.map("x", x)
    m = check.primary(primary_weight, x)
    check.optional("primary_bias", primary_bias, (m,), x)
    cheap = 0
    if cheap_weight is None:
        if cheap_bias is not None:
            check.fail("cheap_bias", "None without cheap_weight", "a tensor")
        if cheap_act_weight is not None:
            check.fail("cheap_act_weight", "None without cheap_weight", "a tensor")
        cheap_act = "none"
    else:
        cheap = check.cheap(cheap_weight, m, x)
        check.optional("cheap_bias", cheap_bias, (cheap,), x)
    codes = check.halves(
        x, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.input_scale(input_scale, x)
    check.residual(residual, x, codes[0])
    out, squeeze = call_ghost_module(
        select("ghost_module", x, None if cheap_weight is None else cheap_weight.shape[-1]),
        x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
        *codes, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out


ghost_module_eval_operator = without_gradients("ghost_module_eval")


def ghost_module_eval(
    x: torch.Tensor,
    primary_weight: torch.Tensor,
    primary_bias: torch.Tensor | None,
    primary_gamma: torch.Tensor | None,
    primary_beta: torch.Tensor | None,
    primary_mean: torch.Tensor,
    primary_var: torch.Tensor,
    cheap_weight: torch.Tensor,
    cheap_bias: torch.Tensor | None,
    cheap_gamma: torch.Tensor | None,
    cheap_beta: torch.Tensor | None,
    cheap_mean: torch.Tensor,
    cheap_var: torch.Tensor,
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
    input_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    return_squeeze: bool = False,
) -> torch.Tensor | Any:  # with ``return_squeeze`` a tuple
    """Ghost module in inference, whose BatchNorms use their running statistics, in one pass.

    y1 = act(bn(conv1x1(x * input_scale))); y2 = cheap_act(bn(depthwise(y1))), whose channel j reads y1's channel
    j // (s - 1); out = concat(y1, y2)[:, :out_channels] + residual, where bn(v) is (v - mean) / sqrt(var + eps) * gamma
    + beta. The BatchNorms are applied within the pass, from the tensors as they are at the call. Source: Han et al.
    2020 (GhostNet, arXiv 1911.11907), section 3.1; Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.1.

    This function is for inference: it has no gradients. :func:`ghost_module` with folded BatchNorms has them.

    Args:
        x: N x C x H x W, any floating dtype, NCHW or channels_last; the output has its dtype and memory format.
        primary_weight: m x C x 1 x 1, in x's dtype, or float32 beside a half-precision x (as all parameters).
        primary_bias: m, or None.
        primary_gamma, primary_beta: the affine parameters of the BatchNorm after the primary convolution, m, or None.
        primary_mean, primary_var: its running mean and variance, m.
        cheap_weight: m(s - 1) x 1 x d x d with d odd (padding d // 2).
        cheap_bias: m(s - 1), or None.
        cheap_gamma, cheap_beta: the affine parameters of the BatchNorm after the cheap operation, m(s - 1), or None.
        cheap_mean, cheap_var: its running mean and variance, m(s - 1).
        primary_eps, cheap_eps: numbers that are added to the variances.

    The other arguments are those of :func:`ghost_module`.

    Returns:
        N x out_channels x H x W, and with ``return_squeeze`` also its mean over H and W, N x out_channels.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
        NotImplementedError: in the backward, where a gradient is asked for.
    """
    x, residual, input_scale = autocast(x, residual, input_scale)
    check = Checks("ghost_module_eval")
    check.map("x", x)
    m = check.primary(primary_weight, x)
    cheap = check.cheap(cheap_weight, m, x)
    check.batch_norm("primary", primary_bias, primary_gamma, primary_beta, m, x)
    check.batch_norm("cheap", cheap_bias, cheap_gamma, cheap_beta, cheap, x)
    for name, p, channels in (
        ("primary_mean", primary_mean, m),
        ("primary_var", primary_var, m),
        ("cheap_mean", cheap_mean, cheap),
        ("cheap_var", cheap_var, cheap),
    ):
        check.parameter(name, p, (channels,), x)
    codes = check.halves(
        x, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.input_scale(input_scale, x)
    check.residual(residual, x, codes[0])
    epsilons = check.numbers(primary_eps=primary_eps, cheap_eps=cheap_eps)
    out, squeeze = ghost_module_eval_operator(  # which hands what no kernel takes to the reference
        x, primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight,
        cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, input_scale, residual, act_weight,
        cheap_act_weight, *codes, *epsilons, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out
