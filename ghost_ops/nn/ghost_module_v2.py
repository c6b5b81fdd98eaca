"""``GhostModuleV2``: a Ghost module times the gate of DFC attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .ghost_module import GhostModule


def dfc_attention(inp: int, oup: int, **factory) -> nn.Sequential:
    """The layers of DFC attention (decoupled fully connected): 1x1, 1x5 and 5x1, each with a BatchNorm.

    Source: Tang et al. 2022 (GhostNetV2, arXiv 2211.12905).

    Args:
        inp, oup: input and output channels.
        device, dtype: of the parameters.
    """
    return nn.Sequential(
        nn.Conv2d(inp, oup, 1, bias=False, **factory),
        nn.BatchNorm2d(oup, **factory),
        nn.Conv2d(oup, oup, (1, 5), padding=(0, 2), groups=oup, bias=False, **factory),
        nn.BatchNorm2d(oup, **factory),
        nn.Conv2d(oup, oup, (5, 1), padding=(2, 0), groups=oup, bias=False, **factory),
        nn.BatchNorm2d(oup, **factory),
    )


class GhostModuleV2(GhostModule):
    """Ghost module whose output is multiplied by a gate that sees far along rows and columns, in plain PyTorch.

    Source: Tang et al. 2022 (GhostNetV2, arXiv 2211.12905); state_dict keys as in Huawei's and timm's nets.

    The input at half its size (average pooling) goes through ``short_conv``; its sigmoid, upsampled to the size of the
    output by the nearest value, multiplies the output.

    Args:
        inp, oup: input and output channels.
        ratio, dw_size, relu: as of :class:`GhostModule`. The primary convolution is 1x1 of stride 1.
        device, dtype: of the parameters.

    Shape: N x inp x H x W, at least 2 x 2, to N x oup x H x W.

    Raises:
        ValueError, TypeError: as :class:`GhostModule`.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        ratio: int = 2,
        dw_size: int = 3,
        relu: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inp, oup, ratio=ratio, dw_size=dw_size, relu=relu, device=device, dtype=dtype)
        self.short_conv = dfc_attention(inp, oup, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.short_conv(F.avg_pool2d(x, 2, 2)))
        out = super().forward(x)
        return out * F.interpolate(gate, size=(out.shape[2], out.shape[3]), mode="nearest")
