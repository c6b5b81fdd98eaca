"""``dfc_gate_train``: the gate of DFC attention, whose BatchNorms use batch statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import apply_gate, gate_backward
from ...folding import fold
from ..layout import kept_dtype
from .batch_norm import affine, batch_norm, batch_norm_backward, batch_statistics, normalise
from .cheap_concat import given, match
from .ghost_module import pointwise_backward


def _along_axis(y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Depthwise convolution by filters of one row or one column."""
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return F.conv2d(y, match(weight, y), match(bias, y), padding=padding, groups=y.shape[1])


def dfc_gate_train(
    x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, gate, eps,
    row_eps, column_eps,
):  # fmt: skip
    """The gate, mean and variance of the three products, and the first of them, N x h x w x M."""
    z = F.conv2d(F.avg_pool2d(x, 2, 2), match(weight, x))
    z_row = _along_axis(batch_norm(z, gamma, beta, eps), row_weight)
    z_column = _along_axis(batch_norm(z_row, row_gamma, row_beta, row_eps), column_weight)
    out = apply_gate(batch_norm(z_column, column_gamma, column_beta, column_eps), gate)
    statistics = [t for product in (z, z_row, z_column) for t in batch_statistics(product, None)]
    return out, *statistics, z.detach().permute(0, 2, 3, 1).to(kept_dtype(z))


def dfc_gate(
    x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, gate, eps,
    row_eps, column_eps, statistics,
):  # fmt: skip
    """The gate with given means and variances; not an operator."""
    mean, var, row_mean, row_var, column_mean, column_var = statistics
    w, b = fold(weight, None, gamma, beta, mean, var, eps)
    y = F.conv2d(F.avg_pool2d(x, 2, 2), match(w, x), match(b, x))
    y = _along_axis(y, *fold(row_weight, None, row_gamma, row_beta, row_mean, row_var, row_eps))
    y = _along_axis(y, *fold(column_weight, None, column_gamma, column_beta, column_mean, column_var, column_eps))
    return apply_gate(y, gate)


def _along_axis_backward(grad, y, weight):
    """Gradients of the input and of the weight."""
    padding, channels = [weight.shape[2] // 2, weight.shape[3] // 2], y.shape[1]
    grad_y, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, y, weight, None, [1, 1], padding, [1, 1], False, [0, 0], channels, [True, True, False]
    )
    return grad_y, grad_weight


def dfc_gate_train_backward(
    grad_out, x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, mean,
    var, row_mean, row_var, column_mean, column_var, product, gate, eps, row_eps, column_eps,
):  # fmt: skip
    """Gradients of x, and of weight, gamma and beta of each layer. Without ``product`` it is computed again."""
    wide = torch.promote_types(x.dtype, torch.float32)
    w, w_row, w_column = (t.to(wide) for t in (weight, row_weight, column_weight))
    pooled = F.avg_pool2d(x.to(wide), 2, 2)
    z = F.conv2d(pooled, w) if product is None else product.permute(0, 3, 1, 2).to(wide)
    z_hat = normalise(z, mean, var, eps)
    y = affine(z_hat, gamma, beta)
    row_hat = normalise(_along_axis(y, w_row), row_mean, row_var, row_eps)
    y_row = affine(row_hat, row_gamma, row_beta)
    column_hat = normalise(_along_axis(y_row, w_column), column_mean, column_var, column_eps)
    logits = affine(column_hat, column_gamma, column_beta)

    grad = gate_backward(grad_out.to(wide), logits, gate)
    grad, grad_column_gamma, grad_column_beta = batch_norm_backward(
        grad, column_hat, column_gamma, column_var, column_eps
    )
    grad, grad_column = _along_axis_backward(grad, y_row, w_column)
    grad, grad_row_gamma, grad_row_beta = batch_norm_backward(grad, row_hat, row_gamma, row_var, row_eps)
    grad, grad_row = _along_axis_backward(grad, y, w_row)
    grad, grad_gamma, grad_beta = batch_norm_backward(grad, z_hat, gamma, var, eps)
    grad, grad_weight, _ = pointwise_backward(grad, pooled, w)
    grad_x = torch.ops.aten.avg_pool2d_backward(grad, x.to(wide), [2, 2], [2, 2], [0, 0], False, True, None)
    return (
        grad_x.to(x.dtype),
        grad_weight.to(weight.dtype),
        given(grad_gamma, gamma, x),
        given(grad_beta, beta, x),
        grad_row.to(row_weight.dtype),
        given(grad_row_gamma, row_gamma, x),
        given(grad_row_beta, row_beta, x),
        grad_column.to(column_weight.dtype),
        given(grad_column_gamma, column_gamma, x),
        given(grad_column_beta, column_beta, x),
    )
