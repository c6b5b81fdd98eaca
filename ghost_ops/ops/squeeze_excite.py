"""``squeeze_excite``: channel attention over the mean of the map."""

from __future__ import annotations

import torch

from ..dispatch import Decision, select
from ._library import differentiable, existing, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .excite import excitation_flops, excitation_layers
from .fakes import fake_gradient, fake_map
from .flops import count_flops

__all__ = ["squeeze_excite"]


def _fake(x, reduce_weight, *_):
    n, c = x.shape[:2]
    return fake_map(x), x.new_empty(n, c), x.new_empty(n, reduce_weight.shape[0]), x.new_empty(n, c)


def _fake_backward(grad_out, x, squeeze, hidden, logits, *parameters):
    return fake_map(x), *(fake_gradient(p, x) for p in parameters[:4])


@count_flops("squeeze_excite_backward")
def _backward_flops(grad_out, x, squeeze, hidden, logits, reduce_weight, *_, **__):
    # For each layer the gradients of its input and of its weight.
    return 2 * excitation_flops(x, reduce_weight, None, reduce_weight[::-1])


count_flops("squeeze_excite")(excitation_flops)
register_fake("squeeze_excite", _fake)
register_fake("squeeze_excite_backward", _fake_backward)
_gradients = refuse_double_backward("squeeze_excite_backward")


def _setup(ctx, inputs, output):
    x, w1, b1, w2, b2, *ctx.scalars = inputs
    _, *vectors = output
    ctx.save_for_backward(x, *vectors, w1, b1, w2, b2)
    ctx.mark_non_differentiable(*vectors)
    ctx.set_materialize_grads(False)  # or each of these would get one of zeros


def _backward(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * len(ctx.needs_input_grad)
    saved = ctx.saved_tensors  # asked for once: checkpointing gives them no second time
    parameters = saved[4:]
    gx, *grads = _gradients(grad_out, *saved, *ctx.scalars)
    return gx, *existing(grads, parameters), None, None


_call = differentiable("squeeze_excite", _setup, _backward)


def call_squeeze_excite(decision: Decision, *args: object) -> torch.Tensor:
    """:func:`squeeze_excite` of checked arguments in the order of the schema, weights as matrices."""
    return _call(decision, *args)[0]


def squeeze_excite(
    x: torch.Tensor,
    reduce_weight: torch.Tensor,
    reduce_bias: torch.Tensor | None,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    *,
    act: str = "relu",
    gate: str = "hard_sigmoid",
) -> torch.Tensor:
    """Squeeze-and-excite: x * gate(expand(act(reduce(mean of x over H and W)))).

    Source: Hu et al. 2018 (arXiv 1709.01507), section 3; the gates are those of the article's ``SELayer`` (clamp),
    Huawei's and timm's GhostNet (hard_sigmoid: relu6(v + 3) / 6), sigmoid, and identity.

    Args:
        x: N x C x H x W, any floating dtype, NCHW or channels_last.
        reduce_weight: R x C, or R x C x 1 x 1 as of a 1x1 convolution, in x's dtype, or float32 beside a half-precision
            x (as all parameters).
        reduce_bias: R, or None.
        expand_weight: C x R, or C x R x 1 x 1.
        expand_bias: C, or None.
        act: activation of the hidden layer: any of :func:`ghost_module`'s that has no slope.
        gate: clamp, hard_sigmoid, sigmoid or identity.

    Returns:
        N x C x H x W in x's dtype and memory format.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
    """
    (x,) = autocast(x)
    check = Checks("squeeze_excite")
    check.map("x", x)
    layers = excitation_layers(check, x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    return call_squeeze_excite(select("squeeze_excite", x), x, *layers)
