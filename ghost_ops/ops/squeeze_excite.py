"""``squeeze_excite``: channel attention over the mean of the map; ``excite``: its gate, from a mean that is there."""

from __future__ import annotations

import torch

from ..activations import ACTIVATIONS, WITH_SLOPES
from ..backends import reference
from ..dispatch import Decision, select
from ._library import differentiable, refuse_double_backward, register_fake, without_gradients
from .checks import Checks, autocast
from .ghost_module import fake_gradient, fake_map


def _fake(x, reduce_weight, *_):
    n, c = x.shape[:2]
    return fake_map(x), x.new_empty(n, c), x.new_empty(n, reduce_weight.shape[0]), x.new_empty(n, c)


def _fake_backward(grad_out, x, squeeze, hidden, logits, *parameters):
    return fake_map(x), *(fake_gradient(p, x) for p in parameters[:4])


register_fake("squeeze_excite", _fake)
register_fake("excite", lambda squeeze, *_: torch.empty_like(squeeze, memory_format=torch.contiguous_format))
register_fake("squeeze_excite_backward", _fake_backward)
_gradients = refuse_double_backward("squeeze_excite_backward")
excite_operator = without_gradients("excite")


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
        act: activation of the hidden layer: any of :func:`ghost_module`'s that has no slope.
        gate: clamp, hard_sigmoid, sigmoid or identity.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    (x,) = autocast(x)
    check = Checks("squeeze_excite")
    check.map("x", x)
    layers = _layers(check, x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    return run(select("squeeze_excite", x), x, *layers)


def run(decision: Decision, *args: object) -> torch.Tensor:
    """:func:`squeeze_excite` of checked arguments in the order of the schema, weights as matrices."""
    return (reference.squeeze_excite if decision.backend == "reference" else _call)(*args)[0]


def _layers(
    check: Checks,
    x: torch.Tensor,
    reduce_weight: object,
    reduce_bias: object,
    expand_weight: object,
    expand_bias: object,
    act: object,
    gate: object,
) -> tuple:
    """The checked layers of an excitation of x's channels: weights as matrices, and codes for names."""
    weights = []
    for name, w in (("reduce_weight", reduce_weight), ("expand_weight", expand_weight)):
        if isinstance(w, torch.Tensor) and w.dim() == 4 and w.shape[2:] == (1, 1):
            w = w.flatten(1)
        shape = (None, x.shape[1]) if name == "reduce_weight" else (x.shape[1], weights[0].shape[0])
        check.parameter(name, w, shape, x)
        weights.append(w)
    check.optional("reduce_bias", reduce_bias, (weights[0].shape[0],), x)
    check.optional("expand_bias", expand_bias, (x.shape[1],), x)
    if act in [ACTIVATIONS[code] for code in WITH_SLOPES]:
        check.fail("act", "an activation without slopes", repr(act))
    code = check.activation("act", act, None, x.shape[1], x)
    gate_code = check.gate(gate)
    return weights[0], reduce_bias, weights[1], expand_bias, code, gate_code


def excite(
    squeeze: torch.Tensor,
    reduce_weight: torch.Tensor,
    reduce_bias: torch.Tensor | None,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    *,
    act: str = "relu",
    gate: str = "hard_sigmoid",
) -> torch.Tensor:
    """Excitation of a squeeze that is there already: gate(expand(act(reduce(squeeze)))).

    :func:`ghost_module` and :func:`cheap_concat` return the squeeze of their output with ``return_squeeze``, and
    :func:`ghost_module` takes the excitation as ``input_scale``. Source: Hu et al. 2018 (arXiv 1709.01507), section
    3.2.

    This function is for inference: it has no gradients. :func:`squeeze_excite` has them.

    Args:
        squeeze: N x C, any floating dtype: the means of a map over H and W.
        reduce_weight: R x C, or R x C x 1 x 1 as of a 1x1 convolution, in squeeze's dtype, or float32 beside a
            half-precision squeeze (as all parameters).
        reduce_bias: R, or None.
        expand_weight: C x R, or C x R x 1 x 1.
        expand_bias: C, or None.
        act: activation of the hidden layer: any of :func:`ghost_module`'s that has no slope.
        gate: clamp, hard_sigmoid, sigmoid or identity, as in :func:`squeeze_excite`.

    Returns:
        N x C in squeeze's dtype, contiguous.

    Raises:
        ValueError: a shape, size or name that does not fit, naming the argument.
        TypeError: a dtype mix, or something that is not a tensor, naming the argument.
        NotImplementedError: in the backward, where a gradient is asked for.
    """
    (squeeze,) = autocast(squeeze)
    check = Checks("excite", "squeeze")
    check.vectors("squeeze", squeeze)
    layers = _layers(check, squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    return excite_operator(squeeze, *layers)  # which hands what no kernel takes to the reference
