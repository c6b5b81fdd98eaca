"""``branched_module_train``: two convolutions that are sums of branches over batch statistics, and its backward."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..activations import ACTIVATIONS, PRELU, default_slope
from ..backends.layout import kept_dtype
from ..dispatch import select
from ._library import differentiable, existing, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map, fake_module_output
from .flops import convolution_backward_flops, convolution_flops, count_flops

__all__ = ["branched_module_train"]
NAME = "branched_module_train"
_NUMBERS = 9  # of the arguments behind the tensors, without ``keep_products``


class BranchedResult(NamedTuple):
    """Output of :func:`branched_module_train`, and the batch statistics of its branches, one branch behind the other;
    the variances are biased."""

    out: torch.Tensor
    primary_mean: torch.Tensor
    primary_var: torch.Tensor
    cheap_mean: torch.Tensor
    cheap_var: torch.Tensor


def _fake(x, gate, w1, gamma1, beta1, w2, scale_weight, gamma2, beta2, branches, identity, out_channels, *args):
    m = w1.shape[0] // branches
    out, _ = fake_module_output(x, out_channels, False)
    cheap = w2.shape[0] + (0 if scale_weight is None else m) + (m if identity else 0)
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics = (x.new_empty(c, dtype=wide) for c in (w1.shape[0], w1.shape[0], cheap, cheap))
    shape = (x.shape[0], *x.shape[2:], branches, m + -m % 8) if args[-1] else (0,)
    return out, *statistics, x.new_empty(shape, dtype=kept_dtype(x))


def _fake_backward(grad_out, x, gate, *args):
    parameters = args[:7]
    return fake_map(x), x.new_empty(0) if gate is None else fake_map(gate), *(fake_gradient(p, x) for p in parameters)


def _count(count, x, w1, w2, scale_weight, branches):
    y1 = (x[0], w1[0] // branches, *x[2:])
    of_branch = (y1[1], *w2[1:])
    total = count(x, w1) + w2[0] // y1[1] * count(y1, of_branch)
    return total if scale_weight is None else total + count(y1, scale_weight)


@count_flops(NAME)
def _flops(x, gate, w1, gamma1, beta1, w2, scale_weight, gamma2, beta2, branches, *_, **__):
    return _count(convolution_flops, x, w1, w2, scale_weight, branches)


@count_flops(f"{NAME}_backward")
def _backward_flops(grad_out, x, gate, w1, gamma1, beta1, w2, scale_weight, gamma2, beta2, *args, **__):
    return _count(convolution_backward_flops, x, w1, w2, scale_weight, args[5])


register_fake(NAME, _fake)
register_fake(f"{NAME}_backward", _fake_backward)
_gradients = refuse_double_backward(f"{NAME}_backward")


def _setup(ctx, inputs, output):
    tensors, ctx.scalars, keep_products = inputs[:9], inputs[9:-1], inputs[-1]
    _, *statistics, products = output
    ctx.save_for_backward(*tensors, *statistics, products if keep_products else None)
    ctx.mark_non_differentiable(*statistics, products)
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    tensors = ctx.saved_tensors
    grad_x, *grads = _gradients(grad_out, *tensors, *ctx.scalars)
    return grad_x, *existing(grads, tensors[1:9]), *[None] * (_NUMBERS + 1)


call_branched_module_train = differentiable(NAME, _setup, _backward)


def train(args: tuple) -> BranchedResult:
    """:func:`branched_module_train` of checked arguments in the order of the schema, without the last one."""
    decision = select(NAME, args[0], args[5].shape[-1])
    keep = not decision.is_reference and _worth_keeping(args[0], args[2].shape[0])
    return BranchedResult(*call_branched_module_train(decision, *args, keep)[:-1])


def _worth_keeping(x: torch.Tensor, products: int) -> bool:
    """Whether the primary products are saved instead of recomputed: where they are small beside x, which is saved
    anyway."""
    return torch.is_grad_enabled() and 2 * x.shape[1] >= 3 * products


def branched_module_train(
    x: torch.Tensor,
    primary_weight: torch.Tensor,
    primary_gamma: torch.Tensor | None,
    primary_beta: torch.Tensor | None,
    cheap_weight: torch.Tensor,
    cheap_gamma: torch.Tensor | None,
    cheap_beta: torch.Tensor | None,
    *,
    scale_weight: torch.Tensor | None = None,
    branches: int = 1,
    identity: bool = True,
    out_channels: int | None = None,
    act: str = "relu",
    cheap_act: str = "relu",
    act_slope: float | None = None,
    cheap_act_slope: float | None = None,
    primary_eps: float = 1e-5,
    cheap_eps: float = 1e-5,
    gate: torch.Tensor | None = None,
) -> BranchedResult:
    """A module whose two convolutions are sums of branches, each with its own BatchNorm over batch statistics.

    y1 = act(sum of bn(conv1x1(x))); y2 = cheap_act(sum of bn(depthwise(y1)), with bn(scale_weight y1) and bn(y1) where
    they are there). The output is y2, or concat(y1, y2)[:, :out_channels] where more than m channels are asked for.
    RepGhost in training (Chen et al. 2022, arXiv 2211.06088, section 3.2) has one branch each and the identity;
    GhostNetV3 (Liu et al. 2024, arXiv 2404.11202, section 3.1) has several, and concatenates. bn is that of
    :func:`ghost_module_train`.

    For the backward x and the statistics are saved; everything else is recomputed (docs/gradients.md). On the CPU the
    primary products are saved too, in float32, where x has at least one and a half times their channels.

    Args:
        x: N x C x H x W with more than one value a channel, any floating dtype, NCHW or channels_last; the output has
            its dtype and memory format.
        primary_weight: (branches m) x C x 1 x 1, one branch behind the other, in x's dtype, or float32 beside a
            half-precision x (as all parameters).
        primary_gamma, primary_beta: the affine parameters of the BatchNorms after it, branches m, or None.
        cheap_weight: (k m) x 1 x d x d with d odd (padding d // 2): the filters of k branches, one behind the other.
        cheap_gamma, cheap_beta: the affine parameters of the cheap sum's BatchNorms, m for each of its branches: the
            depthwise ones, the one that scales, the identity; or None.
        scale_weight: m x 1 x 1 x 1, a branch that scales y1, or None.
        branches: of the primary sum.
        identity: whether y1 itself is a branch of the cheap sum.
        out_channels: m, or up to 2 m; None: 2 m.
        act, cheap_act, act_slope, cheap_act_slope: as of :func:`ghost_module`; an activation without a weight.
        primary_eps, cheap_eps: numbers that are added to the variances.
        gate: as of :func:`ghost_module_train`.

    Returns:
        The output, N x out_channels x H x W, and the batch statistics of both sums' branches, in float32 (float64 of a
        float64 x), with which the caller updates running statistics.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    x, gate = autocast(x, gate)
    check = Checks(NAME)
    check.map("x", x)
    all_primary = check.primary(primary_weight, x)
    if isinstance(branches, bool) or not isinstance(branches, int) or branches < 1 or all_primary % branches:
        check.fail("branches", f"an int that divides the {all_primary} primary channels", repr(branches))
    m = all_primary // branches
    cheap = check.cheap(cheap_weight, m, x)
    check.optional("scale_weight", scale_weight, (m, 1, 1, 1), x)
    cheap += (0 if scale_weight is None else m) + (m if identity else 0)
    for name, p, channels in (
        ("primary_gamma", primary_gamma, all_primary),
        ("primary_beta", primary_beta, all_primary),
        ("cheap_gamma", cheap_gamma, cheap),
        ("cheap_beta", cheap_beta, cheap),
    ):
        check.optional(name, p, (channels,), x)
    out_channels = 2 * m if out_channels is None else out_channels
    if isinstance(out_channels, bool) or not isinstance(out_channels, int) or not m <= out_channels <= 2 * m:
        check.fail("out_channels", f"{m} to {2 * m}, once to twice the channels of a branch", repr(out_channels))
    codes, slopes = [], []
    for argument, name, slope in (("act", act, act_slope), ("cheap_act", cheap_act, cheap_act_slope)):
        if name not in ACTIVATIONS or ACTIVATIONS.index(name) == PRELU:
            known = ", ".join(a for a in ACTIVATIONS if a != ACTIVATIONS[PRELU])
            check.fail(argument, f"one of {known}", repr(name))
        codes.append(ACTIVATIONS.index(name))
        slopes.append(default_slope(codes[-1]) if slope is None else slope)
    if x.shape[0] * x.shape[2] * x.shape[3] <= 1:
        check.fail("x", "more than 1 value per channel when training", f"input size {tuple(x.shape)}")
    if gate is not None:
        check.map("gate", gate, x)
        if gate.shape[:2] != (x.shape[0], out_channels):
            check.fail("gate", f"shape {x.shape[0]}x{out_channels}xanyxany", "x".join(map(str, gate.shape)))
    numbers = check.numbers(
        act_slope=slopes[0], cheap_act_slope=slopes[1], primary_eps=primary_eps, cheap_eps=cheap_eps
    )
    return train((
        x, gate, primary_weight, primary_gamma, primary_beta, cheap_weight, scale_weight, cheap_gamma, cheap_beta,
        branches, bool(identity), out_channels, *codes, *numbers,
    ))  # fmt: skip
