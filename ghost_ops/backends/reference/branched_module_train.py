"""``branched_module_train``: two convolutions that are sums of branches, with BatchNorms over batch statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...activations import activate, activate_backward
from ..layout import kept_dtype
from .batch_norm import affine, batch_norm, batch_norm_backward, batch_statistics, normalise
from .cheap_concat import depthwise, depthwise_backward, given, match
from .ghost_module import pointwise_backward
from .ghost_module_train import _downsample, upsample


def _split(z: torch.Tensor, m: int) -> torch.Tensor:
    """Branches that are one behind the other as a dimension: N x branches x m x H x W."""
    return z.unflatten(1, (-1, m))


def _cheap_branches(y, weight, scale_weight, identity, m):
    """What the BatchNorms of the cheap sum read, one behind the other."""
    found = [depthwise(y, w, None) for w in weight.split(m)]
    found += [] if scale_weight is None else [depthwise(y, scale_weight, None)]
    return torch.cat([*found, y] if identity else found, 1)


def branched_module_train(
    x, gate, primary_weight, primary_gamma, primary_beta, cheap_weight, scale_weight, cheap_gamma, cheap_beta, branches,
    identity, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps, keep_products=False,
):  # fmt: skip
    """The output, mean and variance of the branches of both sums, and the primary products where they are kept: N x H x
    W x branches x m, with as many zeros behind these as make their number one of 8."""
    m = primary_weight.shape[0] // branches
    z1 = F.conv2d(x, match(primary_weight, x))
    y1 = activate(_split(batch_norm(z1, primary_gamma, primary_beta, primary_eps), m).sum(1), act, act_slope)
    z2 = _cheap_branches(y1, cheap_weight, scale_weight, identity, m)
    y2 = activate(_split(batch_norm(z2, cheap_gamma, cheap_beta, cheap_eps), m).sum(1), cheap_act, cheap_act_slope)
    out = y2 if out_channels == m else torch.cat([y1, y2], 1)[:, :out_channels]
    out = out if gate is None else out * upsample(gate, out)
    kept = z1.new_empty(0, dtype=kept_dtype(z1))
    if keep_products:
        kept = F.pad(_split(z1.detach(), m).permute(0, 3, 4, 1, 2).to(kept.dtype), (0, -m % 8))
    return out, *batch_statistics(z1, None), *batch_statistics(z2, None), kept


def branched_module_train_backward(
    grad_out, x, gate, primary_weight, primary_gamma, primary_beta, cheap_weight, scale_weight, cheap_gamma, cheap_beta,
    primary_mean, primary_var, cheap_mean, cheap_var, products, branches, identity, out_channels, act, cheap_act,
    act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, gate, primary weight, gamma and beta, and cheap weight, scale weight, gamma and beta."""
    wide = torch.promote_types(x.dtype, torch.float32)
    m = primary_weight.shape[0] // branches
    xw, w1, w2, grad = x.to(wide), primary_weight.to(wide), cheap_weight.to(wide), grad_out.to(wide)
    if products is None:
        z1 = F.conv2d(xw, w1)
    else:
        z1 = products[..., :m].permute(0, 3, 4, 1, 2).flatten(1, 2).to(wide)
    z1_hat = normalise(z1, primary_mean, primary_var, primary_eps)
    a1 = _split(affine(z1_hat, primary_gamma, primary_beta), m).sum(1)
    y1 = activate(a1, act, act_slope)
    scale = None if scale_weight is None else scale_weight.to(wide)
    z2_hat = normalise(_cheap_branches(y1, w2, scale, identity, m), cheap_mean, cheap_var, cheap_eps)
    a2 = _split(affine(z2_hat, cheap_gamma, cheap_beta), m).sum(1)

    grad_gate = x.new_empty(0)
    if gate is not None:
        y2 = activate(a2, cheap_act, cheap_act_slope)
        out = y2 if out_channels == m else torch.cat([y1, y2], 1)[:, :out_channels]
        grad_gate, grad = _downsample(grad * out, gate).to(gate.dtype), grad * upsample(gate, x)
    first = 0 if out_channels == m else m
    grad_y2 = F.pad(grad[:, first:], (0, 0, 0, 0, 0, first + m - out_channels))
    grad_a2, _ = activate_backward(grad_y2, a2, cheap_act, cheap_act_slope)
    grad_z2, grad_cheap_gamma, grad_cheap_beta = batch_norm_backward(
        grad_a2.repeat(1, z2_hat.shape[1] // m, 1, 1), z2_hat, cheap_gamma, cheap_var, cheap_eps
    )
    grad_y1, weights = grad[:, :first] if first else 0, []
    for z, w in zip(grad_z2.split(m, 1), (*w2.split(m), *([] if scale is None else [scale]))):
        of_y1, of_weight, _ = depthwise_backward(z, y1, w)
        grad_y1 = grad_y1 + of_y1
        weights.append(of_weight)
    grad_y1 = grad_y1 + grad_z2[:, -m:] if identity else grad_y1
    grad_scale = x.new_empty(0) if scale is None else weights.pop().to(scale_weight.dtype)
    grad_a1, _ = activate_backward(grad_y1, a1, act, act_slope)
    grad_z1, grad_gamma, grad_beta = batch_norm_backward(
        grad_a1.repeat(1, branches, 1, 1), z1_hat, primary_gamma, primary_var, primary_eps
    )
    grad_x, grad_w1, _ = pointwise_backward(grad_z1, xw, w1)
    return (
        grad_x.to(x.dtype),
        grad_gate,
        grad_w1.to(primary_weight.dtype),
        given(grad_gamma, primary_gamma, x),
        given(grad_beta, primary_beta, x),
        torch.cat(weights).to(cheap_weight.dtype),
        grad_scale,
        given(grad_cheap_gamma, cheap_gamma, x),
        given(grad_cheap_beta, cheap_beta, x),
    )
