"""The activations, which are in ``ghost_ops.activations`` now."""

from ..activations import *  # noqa: F403
