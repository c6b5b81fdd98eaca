"""The epilogue of a convolution: bias, BatchNorm and activation, as arguments of kernels, and their gradients."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ...activations import NONE, PRELU, RELU
from . import launch
from .activation import AT_LEAST


class Epilogue(NamedTuple):
    """Bias, BatchNorm (none where ``mean`` is None) and activation after a convolution.

    Where ``var`` is None but ``mean`` is not, ``gamma`` is the ready factor, gamma / sqrt(var + eps).
    """

    bias: torch.Tensor | None = None
    act: int = NONE
    slope: float = 0.0
    weight: torch.Tensor | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    eps: float = 0.0

    def arguments(self, name: str, *, at_run_time: bool = False) -> dict:
        """Arguments of a kernel, whose names begin with ``name``.

        ``at_run_time``: whether there is ReLU or no activation is decided then, so that both are one kernel.
        """
        act, slope = self.act, self.slope
        if at_run_time and act in (NONE, RELU):
            act, slope = AT_LEAST, 0.0 if act == RELU else -math.inf
        vectors = ("bias", "gamma", "beta", "mean", "var")
        found = {f"{name}_{field}": launch.vector(getattr(self, field)) for field in vectors}
        prelu = self.weight if self.act == PRELU else None
        return found | {
            f"{name}_eps": self.eps,
            f"{name}_slopes": launch.vector(prelu),
            f"{name}_slopes_stride": int(prelu is not None and prelu.numel() > 1),
            f"{name}_slope": slope,
            f"{name.upper()}_ACT": act,
        }


NO_EPILOGUE = Epilogue()


class EpilogueGradients(NamedTuple):
    """Gradients of an epilogue's parameters, empty where there is no parameter."""

    bias: torch.Tensor
    slopes: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor
