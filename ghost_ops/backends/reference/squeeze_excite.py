"""``squeeze_excite``: x times gate(W4 act(W3 mean(x) + b3) + b4) (Hu et al. 2018, section 3; gates: activation.py)."""

from __future__ import annotations

import torch.nn.functional as F

from ...activations import activate, activate_backward, apply_gate, gate_backward
from .cheap_concat import given, match


def squeeze_excite(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The excited x, and what the backward needs: squeeze (N x C), hidden before act (N x R), logits (N x C)."""
    squeeze = x.mean((2, 3))
    hidden = F.linear(squeeze, match(reduce_weight, x), match(reduce_bias, x))
    logits = F.linear(activate(hidden, act), match(expand_weight, x), match(expand_bias, x))
    return x * apply_gate(logits, gate)[:, :, None, None], squeeze, hidden, logits


def squeeze_excite_backward(
    grad_out, x, squeeze, hidden, logits, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate
):
    """Gradients of x, reduce weight and bias, expand weight and bias (empty where there is no bias)."""
    size = max(x.shape[2] * x.shape[3], 1)
    grad_logits = gate_backward((grad_out * x).sum((2, 3)), logits, gate)
    grad_hidden, _ = activate_backward(grad_logits @ match(expand_weight, x), hidden, act)
    grad_squeeze = grad_hidden @ match(reduce_weight, x)
    grad_x = grad_out * apply_gate(logits, gate)[:, :, None, None] + (grad_squeeze / size)[:, :, None, None]
    return (
        grad_x,
        (grad_hidden.T @ squeeze).to(reduce_weight.dtype),
        given(grad_hidden.sum(0), reduce_bias, x),
        (grad_logits.T @ activate(hidden, act)).to(expand_weight.dtype),
        given(grad_logits.sum(0), expand_bias, x),
    )
