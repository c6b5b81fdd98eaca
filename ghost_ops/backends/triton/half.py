"""What follows a convolution, as tensors and as arguments of kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...activations import NONE, PRELU
from . import launch


class Half(NamedTuple):
    """What follows a convolution: its bias, BatchNorm (mean None: no BatchNorm) and activation."""

    bias: torch.Tensor | None = None
    act: int = NONE
    slope: float = 0.0
    weight: torch.Tensor | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    eps: float = 0.0

    def arguments(self, name: str) -> dict:
        """A kernel's arguments, each beginning with ``name``."""
        vectors = ("bias", "gamma", "beta", "mean", "var")
        found = {f"{name}_{field}": launch.vector(getattr(self, field)) for field in vectors}
        prelu = self.weight if self.act == PRELU else None
        return found | {
            f"{name}_eps": self.eps,
            f"{name}_slopes": launch.vector(prelu),
            f"{name}_slopes_stride": int(prelu is not None and prelu.numel() > 1),
            f"{name}_slope": self.slope,
            f"{name.upper()}_ACT": self.act,
        }


NOTHING = Half()
