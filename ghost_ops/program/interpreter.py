"""Runs the steps of a program one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F

from ..activations import activate
from .format import returning
from .layer import Folded, Layer
from .step import Step

Sizes = int | tuple[int, int]


class ProgramInterpreter:
    """One run of a program: the slots, the squeeze, the excitation and the features as they come to be.

    As it is it computes what the steps mean, in plain PyTorch. A backend overrides the operations that several kinds of
    step share (``convolve``, ``linear``, ``mean``), and names in ``kernels`` the kinds for which it has something of
    its own.

    Attributes:
        kernels: by kind of step, a method that takes the step and its layers in the place of ``Step.run``.
        maps: the map in each slot.
        squeeze: channel means, N x C, of the last map that was made with them.
        excitation: N x C.
        features: N x features.
        stored: features that are results, in order.
    """

    kernels: ClassVar[Mapping[type[Step], Callable[..., None]]] = {}

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.maps: dict[int, torch.Tensor] = {}
        self.squeeze: torch.Tensor | None = None
        self.excitation: torch.Tensor | None = None
        self.features: torch.Tensor | None = None
        self.stored: list[torch.Tensor] = []

    def run_steps(self, steps: Sequence[Step], folded: Iterable[list[Folded]]) -> list[torch.Tensor]:
        """The results of the steps, each with its layers."""
        for step, layers in zip(steps, folded, strict=True):
            self.take(step, layers)
        return self.results(steps)

    def take(self, step: Step, folded: list[Folded]) -> None:
        kernel = self.kernels.get(type(step))
        if kernel is None:
            step.run(self, folded)
        else:
            kernel(self, step, folded)

    def results(self, steps: Sequence[Step]) -> list[torch.Tensor]:
        """What the last steps return, or the features."""
        found = [step.result(self) for step in returning(steps)]
        return [result.clone() if result is self.x else result for result in found]

    # What steps read and write

    def input(self, channels: int) -> torch.Tensor:
        if self.x.shape[1] != channels:
            raise ValueError(f"program: x: expected the {channels} channels of the steps, got {self.x.shape[1]}")
        return self.x

    def read(self, slot: int) -> torch.Tensor:
        return self.known(self.maps.get(slot), f"slot {slot}")

    def write(
        self, slot: int, out: torch.Tensor, squeeze: bool = False, means: torch.Tensor | None = None
    ) -> None:  # fmt: skip
        """Fills a slot. With ``squeeze`` the map's channel means are the next squeeze; ``means`` are these if known."""
        self.maps[slot] = out
        if squeeze:
            self.squeeze = self.mean(out) if means is None else means

    def known(self, value: torch.Tensor | None, what: str) -> torch.Tensor:
        if value is None:
            raise ValueError(f"program: steps: expected {what} to be there before it is read")
        return value

    # What steps compute with

    def convolve(
        self, x: torch.Tensor, folded: Folded, layer: Layer, stride: Sizes = 1, padding: Sizes = 0, groups: int = 1,
        dilation: Sizes = 1,
    ) -> torch.Tensor:  # fmt: skip
        """A convolution with the activation of ``layer``; sizes are one number, or those of height and width."""
        weight, bias, slopes = (None if t is None else t.to(x.dtype) for t in folded)
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return activate(out, layer.act, layer.slope, slopes)

    def linear(self, v: torch.Tensor, folded: Folded, layer: Layer) -> torch.Tensor:
        return self.convolve(v[:, :, None, None], folded, layer).flatten(1)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Means of the channels of a map."""
        return x.mean((2, 3))
