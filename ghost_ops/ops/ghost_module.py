"""``ghost_module``: the single pass, and ``ghost_module_eval``: the same with BatchNorms folded on the way in."""

from __future__ import annotations

import torch

from ..backends import reference
from ..dispatch import select
from ._library import (
    differentiable,
    memory_format,
    refuse_double_backward,
    register_fake,
    without_gradients,
)
from .checks import Checks, autocast


def _fake(x, primary_weight, *args):
    out_channels, return_squeeze = args[-6], args[-1]
    return fake_single_pass(x, out_channels, return_squeeze)


def fake_single_pass(x, out_channels, return_squeeze):
    """Shapes of (out, squeeze), as every single-pass operator returns them: out in x's memory format."""
    out = x.new_empty(x.shape[0], out_channels, *x.shape[2:])
    out = out.to(memory_format=memory_format(x))
    return out, x.new_empty((x.shape[0], out_channels) if return_squeeze else (0,))


def _fake_eval(x, *args):
    return fake_single_pass(x, args[-8], args[-1])


def fake_gradient(parameter, x):
    """Gradient of an optional parameter: empty where there is none."""
    return x.new_empty(0) if parameter is None else torch.empty_like(parameter, memory_format=torch.contiguous_format)


def fake_map(x):
    """Gradient of a map, in its memory format."""
    return torch.empty_like(x, memory_format=memory_format(x))


def _fake_backward(
    grad_out, x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight,
    *_,
):  # fmt: skip
    parameters = (primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, act_weight, cheap_act_weight)
    return fake_map(x), *(fake_gradient(p, x) for p in parameters)


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
    parameters = (w1, b1, w2, b2, input_scale)
    gx, *rest = grads
    gw = [None if p is None else g for p, g in zip(parameters, rest[:5], strict=True)]
    slopes = [None if p is None else g for p, g in zip((act_weight, cheap_act_weight), rest[5:], strict=True)]
    return gx, *gw, grad_out if ctx.has_residual else None, *slopes, *[None] * 6


_call = differentiable("ghost_module", _setup, _backward)


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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
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
        out_channels: channels kept, more than m and at most ms (default all).
        act, cheap_act: names from ``ghost_ops.activations.ACTIVATIONS``, such as relu or gelu, each for its half.
        act_slope, cheap_act_slope: negative slope of leaky_relu (0.01 where it is None), alpha of elu (1).
        act_weight, cheap_act_weight: PReLU's weight, 1 element or one per channel of its half.
        input_scale: N x C, the excitation of the input, applied as it is read.
        residual: N x out_channels x H x W, added to the output as it is written.
        return_squeeze: also return the mean of the output over H and W, N x out_channels.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor.
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
    out_channels = check.out_channels(m + cheap if out_channels is None else out_channels, m, m + cheap)
    act_code = check.activation("act", act, act_weight, m, x)
    cheap_act_code = check.activation("cheap_act", cheap_act, cheap_act_weight, cheap, x)
    check.optional("input_scale", input_scale, (x.shape[0], x.shape[1]), x)
    check.residual(residual, x, out_channels)
    slopes = check.slopes(act_slope=(act_slope, act_code), cheap_act_slope=(cheap_act_slope, cheap_act_code))
    kernel = None if cheap_weight is None else cheap_weight.shape[-1]
    run = reference.ghost_module if select("ghost_module", x, kernel).is_reference else _call
    out, squeeze = run(
        x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
        out_channels, act_code, cheap_act_code, *slopes, bool(return_squeeze),
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
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

    The other arguments and the results are those of :func:`ghost_module`.

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
    out_channels = check.out_channels(m + cheap if out_channels is None else out_channels, m, m + cheap)
    act_code = check.activation("act", act, act_weight, m, x)
    cheap_act_code = check.activation("cheap_act", cheap_act, cheap_act_weight, cheap, x)
    check.optional("input_scale", input_scale, (x.shape[0], x.shape[1]), x)
    check.residual(residual, x, out_channels)
    slopes = check.slopes(act_slope=(act_slope, act_code), cheap_act_slope=(cheap_act_slope, cheap_act_code))
    epsilons = check.numbers(primary_eps=primary_eps, cheap_eps=cheap_eps)
    out, squeeze = ghost_module_eval_operator(  # which hands what no kernel takes to the reference
        x, primary_weight, primary_bias, primary_gamma, primary_beta, primary_mean, primary_var, cheap_weight,
        cheap_bias, cheap_gamma, cheap_beta, cheap_mean, cheap_var, input_scale, residual, act_weight,
        cheap_act_weight, out_channels, act_code, cheap_act_code, *slopes, *epsilons, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out
