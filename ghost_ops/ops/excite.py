"""``excite``: the gate of squeeze-and-excite, from a mean that is there already."""

from __future__ import annotations

import torch

from ..activations import ACTIVATIONS, WITH_SLOPES
from ._library import register_fake, without_gradients
from .checks import Checks, autocast
from .flops import aten_formula, count_flops
from .strides import as_matrix

__all__ = ["excite"]


@count_flops("excite")
def excitation_flops(x, reduce_weight, reduce_bias, expand_weight, *_, **__):
    """FLOPs of the two linear layers, on a map or on its squeeze."""
    product = aten_formula("mm")
    (hidden, channels), batch = reduce_weight[:2], x[0]
    return product((batch, channels), (channels, hidden)) + product((batch, hidden), (hidden, channels))


register_fake("excite", lambda squeeze, *_: torch.empty_like(squeeze, memory_format=torch.contiguous_format))
excite_operator = without_gradients("excite")


def excitation_layers(
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
            w = as_matrix(w)
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
        act: activation of the hidden layer: any of :func:`ghost_module`'s but prelu and leaky_relu.
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
    layers = excitation_layers(check, squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    return excite_operator(squeeze, *layers)  # which hands what no kernel takes to the reference
