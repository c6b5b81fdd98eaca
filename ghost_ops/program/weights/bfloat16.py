"""Weights of products as bfloat16, in pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .format import PANEL, WeightFormat, register_format, to_panels, up

BFLOAT16 = 1


@register_format
class BFloat16(WeightFormat):
    """A panel's row is two inputs: an element holds both, the first in its lower half; a zero follows an odd last one.

    The packed form is int32, which no ``.to(dtype)`` converts. In floating point it is there twice, as float32 and then
    as bfloat16; whatever an element really is, the other reading is noise.
    """

    precision = BFLOAT16
    name = "bfloat16"
    dtype = torch.int32
    readings = 3

    def rows(self, inputs: int) -> int:
        return up(inputs, 2) // 2

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        pairs = F.pad(weight, (0, weight.shape[1] % 2)).contiguous()
        return to_panels(_rounded(pairs).view(torch.int32))

    def numbers(self, packed: torch.Tensor) -> torch.Tensor:
        self.check(packed)
        packed = packed.contiguous()
        return torch.cat([packed.view(torch.float32), packed.view(torch.bfloat16).float()])

    def unpack(self, numbers: torch.Tensor, begin: int, outputs: int, inputs: int) -> torch.Tensor:
        halves, depth = numbers[numbers.numel() // self.readings :], self.rows(inputs)
        panels = halves[2 * begin : 2 * (begin + self.size(outputs, inputs))].split(2 * PANEL * depth)
        rows = [panel.reshape(depth, -1, 2).transpose(0, 1).flatten(1) for panel in panels]
        return torch.cat(rows)[:outputs, :inputs]


def _rounded(weight: torch.Tensor) -> torch.Tensor:
    """Float32 as bfloat16, in int16: to nearest even; NaN stays a quiet NaN, where PyTorch's depend on the machine."""
    bits = weight.view(torch.int32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return torch.where(weight.isnan(), (bits >> 16) | 0x40, rounded).to(torch.int16)
