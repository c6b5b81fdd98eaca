"""``cheap_concat_train``: the tail of a Ghost module over batch statistics whose primary convolution is not 1x1."""

from __future__ import annotations

import torch

from ..dispatch import select
from ._library import differentiable, existing, refuse_double_backward, register_fake
from .batch_statistics import TrainResult, empty_statistics, shift_means, zero_gradient
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map, fake_module_output
from .flops import convolution_backward_flops, convolution_flops, count_flops

__all__ = ["cheap_concat_train"]


def _fake(z, primary_bias, primary_gamma, primary_beta, cheap_weight, *args):
    m, cheap = z.shape[1], cheap_weight.shape[0]
    out, _ = fake_module_output(z, args[-7], False)
    return out, *(empty_statistics(z, c) for c in (m, m, cheap, cheap))


def _fake_backward(
    grad_out, z, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight, *_
):
    parameters = (primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight, cheap_act_weight)
    return fake_map(z), *(fake_gradient(p, z) for p in parameters)


@count_flops("cheap_concat_train")
def _flops(z, bias, gamma, beta, cheap_weight, *_, **__):
    return convolution_flops(z, cheap_weight)


@count_flops("cheap_concat_train_backward")
def _backward_flops(grad_out, z, gamma, beta, cheap_weight, *_, **__):
    return convolution_backward_flops(z, cheap_weight)


register_fake("cheap_concat_train", _fake)
register_fake("cheap_concat_train_backward", _fake_backward)
_gradients = refuse_double_backward("cheap_concat_train_backward")


def _setup(ctx, inputs, output):
    z, b1, gamma1, beta1, w2, b2, gamma2, beta2, act_weight, cheap_act_weight, *ctx.scalars = inputs
    parameters = gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight
    ctx.save_for_backward(z, *parameters, *output[1:], b1, b2)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    *tensors, b1, b2 = ctx.saved_tensors
    gz, *grads = _gradients(grad_out, *tensors, *ctx.scalars)
    ggamma1, gbeta1, gw2, ggamma2, gbeta2, *slopes = existing(grads, tensors[1:8])
    return gz, zero_gradient(b1), ggamma1, gbeta1, gw2, zero_gradient(b2), ggamma2, gbeta2, *slopes, *[None] * 7


call_cheap_concat_train = differentiable("cheap_concat_train", _setup, _backward)


def train(args: tuple) -> TrainResult:
    """:func:`cheap_concat_train` of checked arguments in the order of the schema."""
    decision = select("cheap_concat_train", args[0], args[4].shape[-1])
    out, *statistics = call_cheap_concat_train(decision, *args)
    return TrainResult(out, *shift_means(statistics, (args[1], args[5]), torch.add))


def cheap_concat_train(
    z: torch.Tensor,
    primary_bias: torch.Tensor | None,
    primary_gamma: torch.Tensor | None,
    primary_beta: torch.Tensor | None,
    cheap_weight: torch.Tensor,
    cheap_bias: torch.Tensor | None,
    cheap_gamma: torch.Tensor | None,
    cheap_beta: torch.Tensor | None,
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
) -> TrainResult:
    """BatchNorm over batch statistics, activation, cheap operation with its own, and concatenation.

    y1 = act(bn(z + primary_bias)); y2 = cheap_act(bn(depthwise(y1))), whose channel j reads y1's channel j // (s - 1);
    out = concat(y1, y2)[:, :out_channels]: :func:`ghost_module_train` after its primary convolution, which may be of
    any size, stride or dilation here. For the backward only z and the statistics are saved; everything else is
    recomputed.

    Args:
        z: N x m x H x W with more than one value a channel, any floating dtype, NCHW or channels_last: the primary
            convolution's result without its bias. The output has its dtype and memory format.
        primary_bias: the primary convolution's, m, in z's dtype, or float32 beside a half-precision z (as all
            parameters), or None. Batch statistics remove it from the output, and its gradient is zero.

    The other arguments are those of :func:`ghost_module_train`.

    Returns:
        The output, N x out_channels x H x W, and the batch statistics as of :func:`ghost_module_train`.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument; one value a channel, as
            ``torch.nn.BatchNorm2d`` raises.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    (z,) = autocast(z)
    check = Checks("cheap_concat_train", "z")
    check.map("z", z)
    m = z.shape[1]
    cheap = check.cheap(cheap_weight, m, z)
    check.batch_norm("primary", primary_bias, primary_gamma, primary_beta, m, z)
    check.batch_norm("cheap", cheap_bias, cheap_gamma, cheap_beta, cheap, z)
    codes = check.halves(
        z, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.several_values("z", z)
    epsilons = check.numbers(primary_eps=primary_eps, cheap_eps=cheap_eps)
    return train(
        (
            z, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta,
            act_weight, cheap_act_weight, *codes, *epsilons,
        )
    )  # fmt: skip
