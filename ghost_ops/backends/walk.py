"""The steps of a program on a device, one after the other: what its backends there share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from ..activations import activate, apply_gate
from .reference.program import Folded
from .steps import Conv, Dense, Depthwise, Excite, Ghost, Layer, Load, Pool, Step, Store


class Walk:
    """One call: the slots, the squeeze, the excitation and the features as they come to be.

    A backend says how a Ghost module runs, and where it can do better than PyTorch, an excitation and a mean.
    """

    def __init__(self, x: torch.Tensor, steps: Sequence[Step], folded: Iterator[Folded]) -> None:
        if not isinstance(steps[0], (Load, Conv)) or x.shape[1] != steps[0].channels:
            raise ValueError(f"program: x: expected the {steps[0].channels} channels of the steps, got {x.shape[1]}")
        self.maps: dict[int, torch.Tensor] = {}
        self.squeeze = self.excitation = self.features = None
        self.folded = folded
        self.steps = steps
        self.walk(x)
        self.result = self.maps[steps[-1].source] if isinstance(steps[-1], Store) else self.features
        if self.result is x:
            self.result = x.clone()

    def walk(self, x: torch.Tensor) -> None:
        for step in self.steps:
            self.take(step, x)

    def take(self, step: Step, x: torch.Tensor) -> None:
        wanted = getattr(step, "squeeze", False)
        if isinstance(step, Load):
            self.maps[step.out] = x
        elif isinstance(step, Conv):
            self.maps[step.out] = self.convolve(x, step.layer, step.stride, step.padding)
        elif isinstance(step, Ghost):
            self.maps[step.out], squeeze = self.ghost(step)
            self.squeeze = squeeze if wanted else self.squeeze
        elif isinstance(step, Depthwise):
            self.maps[step.out], squeeze = self.depthwise(step)
            self.squeeze = squeeze if wanted else self.squeeze
        elif isinstance(step, Excite):
            self.excitation = self.excite(step)
        elif isinstance(step, Pool):
            self.features = self.squeeze
        elif isinstance(step, Dense):
            self.features = self.dense(self.features, step.layer)

    def ghost(self, step: Ghost) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Its output, and where it is wanted its squeeze."""
        raise NotImplementedError

    def depthwise(self, step: Depthwise) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Its output, and where it is wanted its squeeze."""
        out = self.convolve(self.maps[step.source], step.layer, step.stride, step.kernel // 2, step.channels)
        return out, self.mean(out) if step.squeeze else None

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    def excite(self, step: Excite) -> torch.Tensor:
        return apply_gate(self.dense(self.dense(self.squeeze, step.reduce), step.expand), step.gate)

    def dense(self, v: torch.Tensor, layer: Layer) -> torch.Tensor:
        weight, bias, slopes = next(self.folded)
        return activate(F.linear(v, weight.flatten(1), bias), layer.act, layer.slope, slopes)

    def convolve(self, x: torch.Tensor, layer: Layer, stride: int, padding: int, groups: int = 1) -> torch.Tensor:
        return self.convolved(x, next(self.folded), layer, stride, padding, groups)

    def convolved(
        self, x: torch.Tensor, folded: Folded, layer: Layer, stride: int, padding: int, groups: int
    ) -> torch.Tensor:
        weight, bias, slopes = folded
        return activate(F.conv2d(x, weight, bias, stride, padding, 1, groups), layer.act, layer.slope, slopes)
