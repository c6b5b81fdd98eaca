"""The nets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Factory = TypeVar("Factory", bound=Callable[..., nn.Module])

MODELS: dict[str, Callable[..., nn.Module]] = {}
"""Name of each net, as timm has it where timm has the net, and the function that makes it, untrained.

Each takes ``num_classes``, ``in_chans``, ``device`` and ``dtype``, those of a GhostNet ``fused`` too.
"""


def register_model(factory: Factory) -> Factory:
    """A decorator: the function's net is in ``MODELS`` under the function's name."""
    MODELS[factory.__name__] = factory
    return factory
