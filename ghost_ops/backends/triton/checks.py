"""Checks the arguments of direct calls, so that no kernel reads past a tensor.

The public functions check more and have better messages (``ops/checks.py``), but operators may be called directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import DTYPES

if TYPE_CHECKING:
    from .epilogue import Epilogue


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


def expect_epilogue(name: str, epilogue: Epilogue, channels: int, like: torch.Tensor) -> None:
    for field in ("bias", "gamma", "beta", "mean", "var"):
        expect(f"{name}_{field}", getattr(epilogue, field), (channels,), like)
    if epilogue.weight is not None and epilogue.weight.numel() != 1:
        expect(f"{name}_act_weight", epilogue.weight, (channels,), like)


def _expect_map(x: torch.Tensor) -> None:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise ValueError(f"ghost_ops: x: expected N x C x H x W with at least one pixel, got {tuple(x.shape)}")


def expect_depthwise(x: torch.Tensor, weight: torch.Tensor, primary: Epilogue, stride: int) -> tuple[int, int]:
    """The tensors of a depthwise convolution padded by half its kernel fit each other. Returns the output's sides."""
    _expect_map(x)
    c, d = x.shape[1], weight.shape[-1] if weight.dim() else 0
    expect("weight", weight, (c, 1, d, d), x)
    for name, t in (("bias", primary.bias), ("act_weight", primary.weight)):
        if name == "bias" or (t is not None and t.numel() != 1):
            expect(name, t, (c,), x)
    if stride < 1:
        raise ValueError(f"ghost_ops: stride: expected at least 1, got {stride}")
    height, width = ((side + 2 * (d // 2) - d) // stride + 1 for side in x.shape[2:])
    return height, width


def expect_excitation(
    like: torch.Tensor,
    reduce_weight: torch.Tensor,
    reduce_bias: torch.Tensor | None,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
) -> None:
    """The two layers fit each other and ``like``, which is N x C or N x C x H x W."""
    c, r = like.shape[1], reduce_weight.shape[0] if reduce_weight.dim() else 0
    expect("reduce_weight", reduce_weight, (r, c), like)
    expect("reduce_bias", reduce_bias, (r,), like)
    expect("expand_weight", expand_weight, (c, r), like)
    expect("expand_bias", expand_bias, (c,), like)


def expect_gate(
    x: torch.Tensor, weight: torch.Tensor, row_weight: torch.Tensor, column_weight: torch.Tensor, norms: tuple
) -> None:
    """The tensors of a DFC attention's gate fit each other; ``norms``: of its three BatchNorms."""
    _expect_map(x)
    if min(x.shape[2:]) < 2:
        raise ValueError(f"ghost_ops: x: expected at least two rows and columns, got {tuple(x.shape)}")
    m = weight.shape[0] if weight.dim() else 0
    expect("weight", weight, (m, x.shape[1], 1, 1), x)
    across, along = (t.shape[axis] if t.dim() == 4 else 1 for t, axis in ((row_weight, 3), (column_weight, 2)))
    expect("row_weight", row_weight, (m, 1, 1, across), x)
    expect("column_weight", column_weight, (m, 1, along, 1), x)
    if across % 2 == 0 or along % 2 == 0:
        raise ValueError(f"ghost_ops: row_weight, column_weight: expected odd numbers of taps, got {across}, {along}")
    for name, norm in zip(("primary", "row", "column"), norms):
        expect_epilogue(name, norm, m, x)


def expect_gating(gate: torch.Tensor, out: torch.Tensor) -> None:
    """A gate fits the map that it multiplies, whatever its sides are."""
    _expect_map(gate)
    expect("gate", gate, (*out.shape[:2], *gate.shape[2:]), out)


def expect_module(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    primary: Epilogue,
    cheap_weight: torch.Tensor | None,
    cheap: Epilogue,
    out_channels: int,
) -> None:
    """A Ghost module's tensors fit each other; with ``weight`` None x is the primary convolution's result."""
    _expect_map(x)
    c = x.shape[1]
    m = c if weight is None else weight.shape[0]
    expect("primary_weight", weight, (m, c, 1, 1), x)
    expect_epilogue("primary", primary, m, x)
    cheap_channels = 0
    if cheap_weight is not None:
        cheap_channels, d = cheap_weight.shape[0], cheap_weight.shape[-1]
        expect("cheap_weight", cheap_weight, (max(cheap_channels // m, 1) * m, 1, d, d), x)
        expect_epilogue("cheap", cheap, cheap_channels, x)
    least = m + 1 if cheap_channels else m
    if not least <= out_channels <= m + cheap_channels:
        raise ValueError(f"ghost_ops: out_channels: expected {least} to {m + cheap_channels}, got {out_channels}")
