"""``ghost_module_train``: a Ghost module over batch statistics, and its backward."""

from __future__ import annotations

import torch

from ..backends.layout import kept_dtype
from ..backends.reference.ghost_module_train import upsample
from ..dispatch import Decision, select
from ._library import differentiable, existing, once_differentiable, refuse_double_backward, register_fake
from .batch_statistics import TrainResult, empty_statistics, shift_means, zero_gradient
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map, fake_module_output
from .flops import convolution_backward_flops, convolution_flops, count_flops, module_flops
from .ghost_module import ghost_module_eval_operator

__all__ = ["ghost_module_train"]


def _fake(x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, *args):
    m, cheap, keep = primary_weight.shape[0], cheap_weight.shape[0], args[-1]
    out, _ = fake_module_output(x, args[-8], False)
    primary = x.new_empty((x.shape[0], *x.shape[2:], m), dtype=kept_dtype(x)) if keep else empty_statistics(x, 0)
    return out, *(empty_statistics(x, c) for c in (m, m, cheap, cheap)), primary


def _fake_backward(
    grad_out, x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, *_,
):  # fmt: skip
    parameters = (primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta)
    return fake_map(x), *(fake_gradient(p, x) for p in (*parameters, act_weight, cheap_act_weight))


def _fake_gated(x, gate, *args):
    return _fake(x, *args, False)[:-1]


def _fake_gated_backward(grad_out, x, gate, *args):
    grad_x, *grads = _fake_backward(grad_out, x, *args)
    return grad_x, fake_map(gate), *grads


@count_flops("ghost_module_train")
def _flops(x, primary_weight, bias, gamma, beta, cheap_weight, *_, **__):
    return module_flops(convolution_flops, x, primary_weight, cheap_weight)


@count_flops("ghost_module_train_backward")
def _backward_flops(grad_out, x, primary_weight, gamma, beta, cheap_weight, *_, **__):
    return module_flops(convolution_backward_flops, x, primary_weight, cheap_weight)


@count_flops("ghost_module_train_gated")
def _gated_flops(x, gate, *args, **__):
    return _flops(x, *args)


@count_flops("ghost_module_train_gated_backward")
def _gated_backward_flops(grad_out, x, gate, *args, **__):
    return _backward_flops(grad_out, x, *args)


register_fake("ghost_module_train", _fake)
register_fake("ghost_module_train_backward", _fake_backward)
register_fake("ghost_module_train_gated", _fake_gated)
register_fake("ghost_module_train_gated_backward", _fake_gated_backward)
_gradients = refuse_double_backward("ghost_module_train_backward")
_gated_gradients = refuse_double_backward("ghost_module_train_gated_backward")


def _keep(ctx, inputs, statistics, *more):
    x, w1, b1, gamma1, beta1, w2, b2, gamma2, beta2, act_weight, cheap_act_weight, *ctx.scalars = inputs
    parameters = w1, gamma1, beta1, w2, gamma2, beta2, act_weight, cheap_act_weight
    ctx.save_for_backward(x, *parameters, *statistics, *more, b1, b2)


def _setup(ctx, inputs, output):
    _, *statistics, primary = output
    *inputs, keep_primary = inputs
    _keep(ctx, inputs, statistics, primary if keep_primary else None)
    ctx.mark_non_differentiable(*statistics, primary)
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    *tensors, b1, b2 = ctx.saved_tensors
    grad_x, *grads = _gradients(grad_out, *tensors, *ctx.scalars)
    return grad_x, *_of_parameters(grads, tensors, b1, b2), *[None] * 8


def _of_parameters(grads, tensors, b1, b2):
    """The gradients of the parameters in the order of the forward's arguments."""
    gw1, ggamma1, gbeta1, gw2, ggamma2, gbeta2, *slopes = existing(grads, tensors[1:9])
    return gw1, zero_gradient(b1), ggamma1, gbeta1, gw2, zero_gradient(b2), ggamma2, gbeta2, *slopes


def _setup_gated(ctx, inputs, output):
    x, gate, *others = inputs
    _keep(ctx, (x, *others), output[1:], gate)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward_gated(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    *tensors, gate, b1, b2 = ctx.saved_tensors
    grad_x, grad_gate, *grads = _gated_gradients(grad_out, tensors[0], gate, *tensors[1:], *ctx.scalars)
    return grad_x, grad_gate, *_of_parameters(grads, tensors, b1, b2), *[None] * 7


call_ghost_module_train = differentiable("ghost_module_train", _setup, _backward)
call_ghost_module_train_gated = differentiable("ghost_module_train_gated", _setup_gated, _backward_gated)


class _Recompute(torch.autograd.Function):
    """``ghost_module_train`` with given batch statistics: one pass, or none where only gradients are needed."""

    @staticmethod
    def forward(ctx, need_output, statistics, gate, *args):
        ctx.is_gated = gate is not None
        _keep(ctx, args, statistics, gate)  # in the place of z1, which is not kept
        x, w1, _, gamma1, beta1, w2, _, gamma2, beta2, act_weight, cheap_act_weight, *scalars = args
        mean1, var1, mean2, var2 = statistics
        if not need_output:
            return x.new_zeros(()).expand(x.shape[0], scalars[0], *x.shape[2:])
        out, _ = ghost_module_eval_operator(
            x, w1, None, gamma1, beta1, mean1, var1, w2, None, gamma2, beta2, mean2, var2, None, None, act_weight,
            cheap_act_weight, *scalars, False,
        )  # fmt: skip
        return out if gate is None else out.mul_(upsample(gate, out))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        if ctx.is_gated:
            grad_x, grad_gate, *grads = _backward_gated(ctx, grad_out)
            return None, None, grad_gate, grad_x, *grads
        return None, None, None, *_backward(ctx, grad_out)[:-1]


def _select(args: tuple) -> Decision:
    return select("ghost_module_train", args[0], args[5].shape[-1])


def train(args: tuple, gate: torch.Tensor | None = None) -> TrainResult:
    """:func:`ghost_module_train` of checked arguments in the order of the schema, without the last one."""
    decision = _select(args)
    if gate is not None:
        gated = select("ghost_module_train_gated", args[0], args[5].shape[-1])
        if not gated.is_reference:
            out, *statistics = call_ghost_module_train_gated(gated, args[0], gate, *args[1:])
            return TrainResult(out, *shift_means(statistics, (args[2], args[6]), torch.add))
    keep = decision.backend != "reference" and _worth_keeping(args[0], args[1].shape[0])
    out, *statistics, _ = call_ghost_module_train(decision, *args, keep)
    out = out if gate is None else out * upsample(gate, out)
    return TrainResult(out, *shift_means(statistics, (args[2], args[6]), torch.add))


def recompute(
    args: tuple, statistics: tuple, need_output: bool, gate: torch.Tensor | None = None
) -> torch.Tensor:  # fmt: skip
    """The output of :func:`train`, recomputed for the gradients.

    Args:
        args: the arguments of the first call, as :func:`train` takes them.
        statistics: the means and variances that the first call returned.
        need_output: False where only the gradients are needed; the values of the result are undefined then.
        gate: that of the first call.
    """
    decision = _select(args)
    if decision.backend == "reference":
        out = call_ghost_module_train(decision, *args, False)[0]
        return out if gate is None else out * upsample(gate, out)
    statistics = shift_means(statistics, (args[2], args[6]), torch.sub)
    if gate is not None and select("ghost_module_train_gated", args[0], args[5].shape[-1]).is_reference:
        out = _Recompute.apply(True, statistics, None, *args)
        return out * upsample(gate, out)
    return _Recompute.apply(need_output, statistics, gate, *args)


def ghost_module_train(
    x: torch.Tensor,
    primary_weight: torch.Tensor,
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
    gate: torch.Tensor | None = None,
) -> TrainResult:
    """Ghost module with BatchNorm over batch statistics after each of its convolutions.

    y1 = act(bn(conv1x1(x))); y2 = cheap_act(bn(depthwise(y1))), whose channel j reads y1's channel j // (s - 1); out =
    concat(y1, y2)[:, :out_channels], where bn(v) is (v - mean) / sqrt(var + eps) * gamma + beta with the mean and the
    biased variance of v over N, H and W. Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 3.1; Ioffe and
    Szegedy 2015 (arXiv 1502.03167), section 3.

    For the backward only x and the statistics are saved; everything else is recomputed (docs/gradients.md, section 2).
    On the CPU the product conv1x1(x) is saved too, in float32, where x has at least six times its channels.

    Args:
        x: N x C x H x W with more than one value a channel, any floating dtype, NCHW or channels_last; the output has
            its dtype and memory format.
        primary_weight: m x C x 1 x 1, in x's dtype, or float32 beside a half-precision x (as all parameters).
        primary_bias: m, or None. Batch statistics remove it from the output, and its gradient is zero.
        primary_gamma, primary_beta: the affine parameters of the BatchNorm after the primary convolution, m, or None.
        cheap_weight: m(s - 1) x 1 x d x d with d odd (padding d // 2).
        cheap_bias: m(s - 1), or None, as ``primary_bias``.
        cheap_gamma, cheap_beta: the affine parameters of the BatchNorm after the cheap operation, m(s - 1), or None.
        primary_eps, cheap_eps: numbers that are added to the variances.
        gate: N x out_channels x h x w of any size, in x's dtype, or None: the output is multiplied by it, upsampled to
            H x W by ``F.interpolate(gate, (H, W), mode="nearest")``, as of GhostNetV2 (:func:`dfc_gate_train`). Neither
            what it multiplies nor the upsampled gate is saved.

    The other arguments are those of :func:`ghost_module`.

    Returns:
        The output, N x out_channels x H x W, and the batch statistics, m, m, m(s - 1) and m(s - 1), in float32 (float64
        of a float64 x), with which the caller updates running statistics.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument; one value a channel, as
            ``torch.nn.BatchNorm2d`` raises.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    x, gate = autocast(x, gate)
    check = Checks("ghost_module_train")
    check.map("x", x)
    m = check.primary(primary_weight, x)
    cheap = check.cheap(cheap_weight, m, x)
    check.batch_norm("primary", primary_bias, primary_gamma, primary_beta, m, x)
    check.batch_norm("cheap", cheap_bias, cheap_gamma, cheap_beta, cheap, x)
    codes = check.halves(
        x, (m, cheap), out_channels, (act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight)
    )
    check.several_values("x", x)
    if gate is not None:
        check.map("gate", gate, x)
        if gate.shape[:2] != (x.shape[0], codes[0]):
            check.fail("gate", f"shape {x.shape[0]}x{codes[0]}xanyxany", "x".join(map(str, gate.shape)))
    epsilons = check.numbers(primary_eps=primary_eps, cheap_eps=cheap_eps)
    args = (
        x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma,
        cheap_beta, act_weight, cheap_act_weight, *codes, *epsilons,
    )  # fmt: skip
    return train(args, gate)


def _worth_keeping(x: torch.Tensor, m: int) -> bool:
    """Whether z1 is saved for the backward instead of recomputed: where it is small beside x, which is saved anyway."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and x.shape[1] >= 6 * m
