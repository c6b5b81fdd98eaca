"""Arguments of direct calls: what does not fit is an error before a kernel reads past it.

The public functions check more, and say it better (``ops/checks.py``); the operators may be called without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import DTYPES

if TYPE_CHECKING:
    from .half import Half


def expect(name: str, t: torch.Tensor | None, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """An optional tensor of this shape on the device of ``like``, of a dtype that kernels read; raises ValueError."""
    if t is None:
        return
    if tuple(t.shape) != shape:
        raise ValueError(f"ghost_ops: {name}: expected shape {shape}, got {tuple(t.shape)}")
    if t.device != like.device:
        raise ValueError(f"ghost_ops: {name}: expected the device of the map, {like.device}, got {t.device}")
    if t.dtype not in DTYPES:
        raise ValueError(f"ghost_ops: {name}: expected float32, float16 or bfloat16, got {t.dtype}")


def expect_half(name: str, half: Half, channels: int, like: torch.Tensor) -> None:
    for field in ("bias", "gamma", "beta", "mean", "var"):
        expect(f"{name}_{field}", getattr(half, field), (channels,), like)
    if half.weight is not None and half.weight.numel() != 1:
        expect(f"{name}_act_weight", half.weight, (channels,), like)


def expect_module(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    one: Half,
    cheap_weight: torch.Tensor | None,
    two: Half,
    out_channels: int,
) -> None:
    """A Ghost module's tensors fit each other; with ``weight`` None x is the primary convolution's result."""
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f"ghost_ops: x: expected N x C x H x W with at least one pixel, got {tuple(x.shape)}")
    c = x.shape[1]
    m = c if weight is None else weight.shape[0]
    expect("primary_weight", weight, (m, c, 1, 1), x)
    expect_half("primary", one, m, x)
    made = 0
    if cheap_weight is not None:
        made, d = cheap_weight.shape[0], cheap_weight.shape[-1]
        expect("cheap_weight", cheap_weight, (max(made // m, 1) * m, 1, d, d), x)
        expect_half("cheap", two, made, x)
    least = m + 1 if made else m
    if not least <= out_channels <= m + made:
        raise ValueError(f"ghost_ops: out_channels: expected {least} to {m + made}, got {out_channels}")
