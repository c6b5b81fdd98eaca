"""``ghost_module``: one kernel, with excitation, residual and squeeze on the way, after a gather of its weights."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch

from ...activations import WITH_NUMBER
from ...program import Folded, Ghost, Layer
from . import launch
from .elsewhere import elsewhere
from .weights import Block, Weights, ghost_module_block

Shapes = tuple[tuple[int, ...] | None, ...]


_captured: set[torch.Tensor] = set()  # indices that CUDA graphs read; nothing tells when a graph is deleted


@lru_cache(maxsize=128)  # not with the weight (tensor_cache.py), which may be folded anew for every call
def _block_of(step: Ghost, shapes: Shapes, half: bool, device: torch.device) -> tuple[Block, torch.Tensor, int]:
    """What the kernel is told, the index of its weights in parameters that are one after the other, and how many of
    these are matrices. The shapes are those of weight, bias and slopes of both convolutions."""
    at, places = 1, []
    for shape in shapes:
        size = 0 if shape is None else prod(shape)
        places.append(None if shape is None else torch.arange(at, at + size, dtype=torch.float64).view(shape))
        at += size
    w = Weights(half)
    block = ghost_module_block(w, step, Folded(*places[:3]), Folded(*places[3:]) if step.cheap_channels else None)
    index, matrices = w.index()
    return block, index.to(device), matrices


def _is_captured(index: torch.Tensor) -> bool:
    """Whether a CUDA graph is captured that reads it."""
    return index.is_cuda and torch.cuda.is_current_stream_capturing()


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
    step = Ghost(0, 1, -1, False, False, c, m, made, out_channels, kernel, Layer(act=act), Layer(act=cheap_act))
    slopes = [
        torch.full((1,), slope, device=x.device) if code in WITH_NUMBER else weight
        for code, slope, weight in ((act, act_slope, act_weight), (cheap_act, cheap_act_slope, cheap_act_weight))
    ]
    tensors = [primary_weight, primary_bias, slopes[0]]
    tensors += [cheap_weight, cheap_bias, slopes[1]] if made else [None] * 3
    shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
    block, index, matrices = _block_of(step, shapes, x.dtype != torch.float32, x.device)
    if launch.find(tuple(block.numbers(*x.shape[2:])), x.dtype, x.shape[0], x.device) is None:
        return elsewhere("ghost_module", *arguments)
    if _is_captured(index):
        _captured.add(index)
    parameters = torch.cat([t.reshape(-1) for t in tensors if t is not None]).float()
    weights = launch.gather(parameters, index, matrices, x)
    scale = None if input_scale is None else input_scale.to(x.dtype).contiguous()
    return launch.launch_ghost_module(x, *weights, block, scale, residual, return_squeeze)
