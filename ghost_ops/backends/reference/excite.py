"""``excite``: gate(W4 act(W3 q + b3) + b4) of a squeeze q that is there already (Hu et al. 2018, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F

from ...activations import activate, apply_gate
from .cheap_concat import match


def excite(squeeze, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate):
    """The gate's values (N x C) of means that are there already, as a Ghost module returns them."""
    hidden = F.linear(squeeze, match(reduce_weight, squeeze), match(reduce_bias, squeeze))
    logits = F.linear(activate(hidden, act), match(expand_weight, squeeze), match(expand_bias, squeeze))
    return apply_gate(logits, gate)
