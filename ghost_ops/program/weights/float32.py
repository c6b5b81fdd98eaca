"""Weights of products as float32."""

from __future__ import annotations

import torch

from .format import PANEL, WeightFormat, register_format, to_panels

FLOAT32 = 0


@register_format
class Float32(WeightFormat):
    """A panel's row is one input. The packed form may be converted to any floating-point dtype."""

    precision = FLOAT32
    name = "float32"
    dtype = torch.float32

    def rows(self, inputs: int) -> int:
        return inputs

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        return to_panels(weight)

    def numbers(self, packed: torch.Tensor) -> torch.Tensor:
        self.check(packed)
        return packed

    def unpack(self, numbers: torch.Tensor, begin: int, outputs: int, inputs: int) -> torch.Tensor:
        panels = numbers[begin : begin + self.size(outputs, inputs)].split(PANEL * inputs)
        return torch.cat([panel.reshape(inputs, -1).t() for panel in panels])[:outputs]
