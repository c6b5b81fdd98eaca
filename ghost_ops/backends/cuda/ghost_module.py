"""``ghost_module``: one kernel, with excitation, residual and squeeze on the way."""

from __future__ import annotations

import torch

from ..activation import LEAKY_RELU
from ..reference.program import Folded
from ..steps import Ghost, Layer
from . import launch
from .elsewhere import elsewhere
from .weights import Weights, module


def _folded(weight: torch.Tensor, bias, act: int, slope: float, act_weight) -> Folded:
    slopes = weight.new_full((weight.shape[0],), slope) if act == LEAKY_RELU else act_weight
    return Folded(*(None if t is None else t.float() for t in (weight, bias, slopes)))


def ghost_module(
    x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
    out_channels, act, cheap_act, act_slope, cheap_act_slope, return_squeeze,
):  # fmt: skip
    """As the operator of that name, of maps in channels_last; NCHW maps go elsewhere."""
    arguments = (
        x, primary_weight, primary_bias, cheap_weight, cheap_bias, input_scale, residual, act_weight, cheap_act_weight,
        out_channels, act, cheap_act, act_slope, cheap_act_slope, return_squeeze,
    )  # fmt: skip
    last = torch.channels_last
    maps = [t for t in (x, residual) if t is not None]
    if not all(t.is_contiguous(memory_format=last) for t in maps) or (x.is_contiguous() and x.numel() > x.shape[1]):
        return elsewhere("ghost_module", *arguments)
    (m, c), made, kernel = primary_weight.shape[:2], 0, 1
    if cheap_weight is not None:
        made, kernel = cheap_weight.shape[0], cheap_weight.shape[-1]
    if not m <= out_channels <= m + made:
        raise ValueError(f"ghost_ops: out_channels: expected {m} to {m + made}, got {out_channels}")
    step = Ghost(0, 1, -1, False, return_squeeze, c, m, made, out_channels, kernel, Layer(0, 0.0, act),
                 Layer(0, 0.0, cheap_act))  # fmt: skip
    w = Weights(x.dtype != torch.float32)
    first = _folded(primary_weight, primary_bias, act, act_slope, act_weight)
    cheap = None
    if cheap_weight is not None:
        cheap = _folded(cheap_weight, cheap_bias, cheap_act, cheap_act_slope, cheap_act_weight)
    block = module(w, step, first, cheap)
    matrices, vectors = w.buffers()
    scale = None if input_scale is None else input_scale.to(x.dtype).contiguous()
    if launch.find(tuple(block.numbers(*x.shape[2:])), x.dtype, x.shape[0], x.device) is None:
        return elsewhere("ghost_module", *arguments)
    return launch.module(x, matrices.to(x.dtype), vectors, block, scale, residual, return_squeeze)
