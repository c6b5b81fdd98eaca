"""``squeeze_excite``: channel attention over the mean of the map."""

from __future__ import annotations

import torch

from ..backends import reference
from ..dispatch import Decision, select
from ._library import differentiable, refuse_double_backward, register_fake
from .checks import Checks, autocast
from .excite import excitation_layers
from .ghost_module import fake_gradient, fake_map


def _fake(x, reduce_weight, *_):
    n, c = x.shape[:2]
    return fake_map(x), x.new_empty(n, c), x.new_empty(n, reduce_weight.shape[0]), x.new_empty(n, c)


def _fake_backward(grad_out, x, squeeze, hidden, logits, *parameters):
    return fake_map(x), *(fake_gradient(p, x) for p in parameters[:4])


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
    return gx, *(None if p is None else g for p, g in zip(parameters, grads, strict=True)), None, None


_call = differentiable("squeeze_excite", _setup, _backward)


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
        reduce_weight: R x C, or R x C x 1 x 1 as of a 1x1 convolution.
        reduce_bias: R, or None.
        expand_weight: C x R, or C x R x 1 x 1.
        expand_bias: C, or None.
        act: activation of the hidden layer: any of :func:`ghost_module`'s but prelu and leaky_relu.
        gate: clamp, hard_sigmoid, sigmoid or identity.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    (x,) = autocast(x)
    check = Checks("squeeze_excite")
    check.map("x", x)
    layers = excitation_layers(check, x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    return call_squeeze_excite(select("squeeze_excite", x), x, *layers)


def call_squeeze_excite(decision: Decision, *args: object) -> torch.Tensor:
    """:func:`squeeze_excite` of checked arguments in the order of the schema, weights as matrices."""
    return (reference.squeeze_excite if decision.backend == "reference" else _call)(*args)[0]
