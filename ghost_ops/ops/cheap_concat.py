"""``cheap_concat``: the tail of a Ghost module whose primary convolution is not 1x1."""

from __future__ import annotations

import torch

from ..backends import reference
from ..dispatch import select
from ._library import differentiable, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .ghost_module import fake_gradient, fake_map, fake_single_pass, spread_squeeze


def _fake(z, cheap_weight, *args):
    return fake_single_pass(z, args[-6], args[-1])


def _fake_backward(grad_out, z, cheap_weight, cheap_bias, act_weight, cheap_act_weight, *_):
    parameters = (cheap_weight, cheap_bias, act_weight, cheap_act_weight)
    return fake_map(z), *(fake_gradient(p, z) for p in parameters)


register_fake("cheap_concat", _fake)
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
    gw, gb, *slopes = [None if p is None else g for p, g in zip(parameters, grads, strict=True)]
    return gz, gw, gb, grad_out if ctx.has_residual else None, *slopes, *[None] * 6


_call = differentiable("cheap_concat", _setup, _backward)


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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Activation, cheap operation and concatenation after a primary convolution of any size, stride or dilation.

    y1 = act(z); y2 = cheap_act(depthwise(y1) + cheap_bias); out = concat(y1, y2)[:, :out_channels] + residual.

    Args:
        z: N x m x H x W, the primary convolution's result with its bias (and BatchNorm, folded) applied.

    The other arguments and the results are those of :func:`ghost_module`.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    z, residual = autocast(z, residual)
    check = Checks("cheap_concat", "z")
    check.map("z", z)
    m = z.shape[1]
    cheap = check.cheap(cheap_weight, m, z)
    check.optional("cheap_bias", cheap_bias, (cheap,), z)
    out_channels = check.out_channels(m + cheap if out_channels is None else out_channels, m, m + cheap)
    act_code = check.activation("act", act, act_weight, m, z)
    cheap_act_code = check.activation("cheap_act", cheap_act, cheap_act_weight, cheap, z)
    check.residual(residual, z, out_channels)
    slopes = check.slopes(act_slope=(act_slope, act_code), cheap_act_slope=(cheap_act_slope, cheap_act_code))
    run = reference.cheap_concat if select("cheap_concat", z, cheap_weight.shape[-1]).is_reference else _call
    out, squeeze = run(
        z, cheap_weight, cheap_bias, residual, act_weight, cheap_act_weight, out_channels, act_code, cheap_act_code,
        *slopes, bool(return_squeeze),
    )  # fmt: skip
    return (out, squeeze) if return_squeeze else out
