"""``batch_norm_act_train``: what follows a convolution in training, BatchNorm and activation, as one operator."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..activations import default_slope
from ..dispatch import select
from ._library import differentiable, existing, refuse_double_backward, register_fake
from .batch_statistics import empty_statistics
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map
from .flops import count_flops

__all__ = ["batch_norm_act_train"]


class BatchNormResult(NamedTuple):
    """The output, and the batch's means and biased variances, which update the running ones."""

    out: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor


def _fake(z, *_):
    return fake_map(z), empty_statistics(z, z.shape[1]), empty_statistics(z, z.shape[1])


def _fake_backward(grad_out, z, gamma, beta, act_weight, *_):
    return fake_map(z), *(fake_gradient(p, z) for p in (gamma, beta, act_weight))


@count_flops("batch_norm_act_train", "batch_norm_act_train_backward")
def _flops(*_, **__):
    return 0  # PyTorch's counter counts products only


register_fake("batch_norm_act_train", _fake)
register_fake("batch_norm_act_train_backward", _fake_backward)
_gradients = refuse_double_backward("batch_norm_act_train_backward")


def _setup(ctx, inputs, output):
    *tensors, act, act_slope, eps = inputs
    ctx.scalars = act, act_slope, eps
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 7
    z, gamma, beta, act_weight, mean, var = ctx.saved_tensors
    gz, *grads = _gradients(grad_out, z, gamma, beta, act_weight, mean, var, *ctx.scalars)
    return gz, *existing(grads, (gamma, beta, act_weight)), None, None, None


call_batch_norm_act_train = differentiable("batch_norm_act_train", _setup, _backward)


def train(args: tuple) -> BatchNormResult:
    """:func:`batch_norm_act_train` of checked arguments in the order of the schema."""
    return BatchNormResult(*call_batch_norm_act_train(select("batch_norm_act_train", args[0]), *args))


def batch_norm_act_train(
    z: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    *,
    act: str = "relu",
    act_slope: float | None = None,
    act_weight: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> BatchNormResult:
    """BatchNorm over batch statistics, and the activation after it.

    out = act((z - mean) / sqrt(var + eps) * gamma + beta), with the mean and the biased variance of each channel over
    the batch: ``torch.nn.BatchNorm2d`` in training (Ioffe and Szegedy, arXiv:1502.03167). For the backward only z and
    the statistics are saved; what the activation gets is computed again.

    Args:
        z: N x C x H x W with more than one value a channel, any floating dtype, NCHW or channels_last: the result of a
            convolution. The output has its dtype and memory format.
        gamma, beta: C each, in z's dtype, or float32 beside a half-precision z, or None.
        act: the activation, one of ``ghost_ops.activations.ACTIVATIONS``.
        act_slope: of ``"leaky_relu"`` and ``"elu"``; PyTorch's default where it is None.
        act_weight: of ``"prelu"``: 1 or C elements; None with any other.
        eps: added to the variance.

    Returns:
        The output, and the batch's means and biased variances, C each, in at least float32.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument; one value a channel, as
            ``torch.nn.BatchNorm2d`` raises.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    (z,) = autocast(z)
    check = Checks("batch_norm_act_train", "z")
    check.map("z", z)
    channels = z.shape[1]
    check.optional("gamma", gamma, (channels,), z)
    check.optional("beta", beta, (channels,), z)
    code = check.activation("act", act, act_weight, channels, z)
    check.several_values("z", z)
    numbers = check.numbers(act_slope=default_slope(code) if act_slope is None else act_slope, eps=eps)
    return train((z, gamma, beta, act_weight, code, *numbers))
