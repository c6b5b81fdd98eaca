"""``dfc_gate_train``: the gate of DFC attention over batch statistics, and its backward."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..backends.layout import kept_dtype, memory_format
from ..backends.reference.dfc_gate_train import dfc_gate
from ..dispatch import select
from ._library import differentiable, existing, once_differentiable, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .fakes import fake_gradient, fake_map
from .flops import convolution_backward_flops, convolution_flops, count_flops

__all__ = ["dfc_gate_train"]
_STATISTICS = 6


class GateResult(NamedTuple):
    """The gate that :func:`dfc_gate_train` makes, and the batch statistics of its three convolutions, which update the
    running ones; the variances are biased."""

    gate: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    row_mean: torch.Tensor
    row_var: torch.Tensor
    column_mean: torch.Tensor
    column_var: torch.Tensor


def _fake(x, weight, *_):
    m, (n, _, height, width) = weight.shape[0], x.shape
    out = x.new_empty(n, m, height // 2, width // 2).to(memory_format=memory_format(x))
    wide = torch.promote_types(x.dtype, torch.float32)
    statistics = (x.new_empty(m, dtype=wide) for _ in range(_STATISTICS))
    return out, *statistics, x.new_empty((n, height // 2, width // 2, m), dtype=kept_dtype(x))


def _fake_backward(grad_out, x, *args):
    return fake_map(x), *(fake_gradient(p, x) for p in args[:9])


def _count(count, x, weight, row_weight, column_weight, small):
    y = (x[0], weight[0], *small)
    return count((*x[:2], *small), weight) + count(y, row_weight) + count(y, column_weight)


@count_flops("dfc_gate_train")
def _flops(x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, *_, **__):
    return _count(convolution_flops, x, weight, row_weight, column_weight, (x[2] // 2, x[3] // 2))


@count_flops("dfc_gate_train_backward")
def _backward_flops(grad_out, x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, *_, **__):
    return _count(convolution_backward_flops, x, weight, row_weight, column_weight, grad_out[2:])


register_fake("dfc_gate_train", _fake)
register_fake("dfc_gate_train_backward", _fake_backward)
_gradients = refuse_double_backward("dfc_gate_train_backward")


def _keep(ctx, inputs, statistics, product):
    x, *parameters = inputs[:10]
    ctx.scalars = inputs[10:]
    ctx.save_for_backward(x, *parameters, *statistics, product)


def _setup(ctx, inputs, output):
    _, *statistics, product = output
    _keep(ctx, inputs, statistics, product)
    ctx.mark_non_differentiable(*statistics, product)
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    tensors = ctx.saved_tensors
    gx, *grads = _gradients(grad_out, *tensors, *ctx.scalars)
    return gx, *existing(grads, tensors[1:10]), *[None] * 4


call_dfc_gate_train = differentiable("dfc_gate_train", _setup, _backward)


class _Recompute(torch.autograd.Function):
    """``dfc_gate_train`` with given batch statistics, which keeps no product."""

    @staticmethod
    def forward(ctx, statistics, *args):
        _keep(ctx, args, statistics, None)
        return dfc_gate(*args, statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        return None, *_backward(ctx, grad_out)


def train(args: tuple) -> GateResult:
    """:func:`dfc_gate_train` of checked arguments in the order of the schema."""
    return GateResult(*call_dfc_gate_train(select("dfc_gate_train", args[0]), *args)[:-1])


def recompute(args: tuple, statistics: tuple) -> torch.Tensor:
    """The gate of :func:`train`, recomputed for the gradients from the statistics that the first call returned."""
    decision = select("dfc_gate_train", args[0])
    if decision.backend == "reference":
        return call_dfc_gate_train(decision, *args)[0]
    return _Recompute.apply(statistics, *args)


def dfc_gate_train(
    x: torch.Tensor,
    weight: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    row_weight: torch.Tensor,
    row_gamma: torch.Tensor | None,
    row_beta: torch.Tensor | None,
    column_weight: torch.Tensor,
    column_gamma: torch.Tensor | None,
    column_beta: torch.Tensor | None,
    *,
    gate: str = "sigmoid",
    eps: float = 1e-5,
    row_eps: float = 1e-5,
    column_eps: float = 1e-5,
) -> GateResult:
    """The gate of DFC attention, with BatchNorm over batch statistics after each of its convolutions.

    gate(bn(columns(bn(rows(bn(conv1x1(avg_pool(x)))))))), where avg_pool takes the mean of 2 x 2 pixels, and rows and
    columns are depthwise convolutions of one row and of one column. :func:`ghost_module_train` multiplies its output by
    the result. Source: Tang et al. 2022 (GhostNetV2, arXiv 2211.12905), section 4.1; bn as in
    :func:`ghost_module_train`.

    For the backward x, the statistics and the product conv1x1(avg_pool(x)) are saved; everything else is recomputed.

    Args:
        x: N x C x H x W with H and W of at least 2, and N (H // 2) (W // 2) of at least 2; any floating dtype, NCHW or
            channels_last; the gate has its dtype and memory format.
        weight: M x C x 1 x 1, in x's dtype, or float32 beside a half-precision x (as all parameters).
        gamma, beta: the affine parameters of the BatchNorm after it, M, or None; likewise ``row_gamma``, ``row_beta``,
            ``column_gamma`` and ``column_beta``.
        row_weight: M x 1 x 1 x K with K odd (padding K // 2).
        column_weight: M x 1 x K x 1 with K odd.
        gate: clamp, hard_sigmoid, sigmoid or identity, as in :func:`squeeze_excite`.
        eps, row_eps, column_eps: numbers that are added to the variances.

    Returns:
        The gate, N x M x H // 2 x W // 2, and the batch statistics, six times M, in float32 (float64 of a float64 x),
        with which the caller updates running statistics.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    (x,) = autocast(x)
    check = Checks("dfc_gate_train")
    check.map("x", x)
    n, channels, height, width = x.shape
    if height < 2 or width < 2:
        check.fail("x", "at least two rows and columns", f"{height}x{width}")
    if n * (height // 2) * (width // 2) <= 1:
        check.fail("x", "more than 1 value per channel after pooling", f"input size {tuple(x.shape)}")
    check.parameter("weight", weight, (None, channels, 1, 1), x)
    m = weight.shape[0]
    if m < 1:
        check.fail("weight", "at least one output channel", m)
    check.optional("gamma", gamma, (m,), x)
    check.optional("beta", beta, (m,), x)
    for name, w, affine, size in (
        ("row", row_weight, (row_gamma, row_beta), (1, None)),
        ("column", column_weight, (column_gamma, column_beta), (None, 1)),
    ):
        check.parameter(f"{name}_weight", w, (m, 1, *size), x)
        if w.numel() // m % 2 == 0:
            check.fail(f"{name}_weight", "an odd number of taps", w.numel() // m)
        check.optional(f"{name}_gamma", affine[0], (m,), x)
        check.optional(f"{name}_beta", affine[1], (m,), x)
    code = check.gate(gate)
    numbers = check.numbers(eps=eps, row_eps=row_eps, column_eps=column_eps)
    return train((
        x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, code,
        *numbers,
    ))  # fmt: skip
