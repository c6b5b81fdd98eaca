"""The former place of ``ghost_ops.activations``, for one release."""

from __future__ import annotations

import warnings

from .. import activations

_FUNCTIONS = ("ACTIVATIONS", "GATES", "activate", "activate_backward", "apply_gate", "gate_backward")
_CODES = ("NONE", "RELU", "RELU6", "LEAKY_RELU", "PRELU", "SILU", "HARD_SWISH")
_GATES = ("CLAMP", "HARD_SIGMOID", "SIGMOID", "IDENTITY")


def __getattr__(name: str) -> object:
    if name in _FUNCTIONS:
        found, now = getattr(activations, name), f"ghost_ops.activations.{name}"
    elif name in _CODES:
        found, now = (
            activations.ACTIVATIONS.index(name.lower()),
            f"ghost_ops.activations.ACTIVATIONS.index({name.lower()!r})",
        )
    elif name in _GATES:
        found, now = activations.GATES.index(name.lower()), f"ghost_ops.activations.GATES.index({name.lower()!r})"
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is {now} now", DeprecationWarning, stacklevel=2)
    return found
