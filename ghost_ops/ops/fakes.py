"""Empty results with the right shapes and memory formats, for the operators' fakes."""

from __future__ import annotations

import torch

from ..backends.layout import memory_format


def fake_map(x: torch.Tensor) -> torch.Tensor:
    """A map of x's shape, in its memory format, such as x's gradient."""
    return torch.empty_like(x, memory_format=memory_format(x))


def fake_gradient(parameter: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """The gradient of an optional parameter: empty where there is none."""
    return x.new_empty(0) if parameter is None else torch.empty_like(parameter, memory_format=torch.contiguous_format)


def fake_module_output(x: torch.Tensor, out_channels: int, return_squeeze: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A Ghost module's output, in x's memory format, and its squeeze: N x out_channels, or empty."""
    out = x.new_empty(x.shape[0], out_channels, *x.shape[2:]).to(memory_format=memory_format(x))
    return out, x.new_empty((x.shape[0], out_channels) if return_squeeze else (0,))
