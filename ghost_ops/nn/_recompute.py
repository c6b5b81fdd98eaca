"""A Ghost bottleneck that keeps its input for the backward, and computes what lies inside once more.

Of a block autograd then holds x, the batch statistics of its Ghost modules and its parameters. The second forward has
the statistics of the first: a Ghost module takes one pass instead of three, the last of them none, and no running
statistic is updated twice. Batch statistics of other convolutions are taken again from the same values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..ops.ghost_module_train import TrainResult
from . import _batch_norm, _depthwise
from ._batch_norm import BATCH
from ._structure import Half, Unfusable, refuse_autocast, refuse_input, refuse_now

if TYPE_CHECKING:
    from .fused_bottleneck import FusedGhostBottleneck


_KEPT = len(TrainResult._fields) - 1
_NONE_KEPT = (None,) * _KEPT


def check(block: FusedGhostBottleneck, x: torch.Tensor) -> None:
    """Raises ``Unfusable`` where the parts must run in turn, before any of them has run."""
    why = refuse_now() or refuse_input(x) or refuse_autocast(x)
    if why is not None:
        raise Unfusable(why)
    _, ghost1, depthwise, _, ghost2, shortcut = block._current_plan()
    height, width = x.shape[2:]
    for half in (*depthwise, *shortcut):
        _batch_norm.statistics(half.norm)
    for half in depthwise:
        height, width = (_size_after(half, side, i) for i, side in enumerate((height, width)))
    ghost1._route(x)
    ghost2._route(x.new_empty(1).expand(x.shape[0], ghost2.channels(), height, width))


def run(block: FusedGhostBottleneck, x: torch.Tensor) -> torch.Tensor:
    """The block's output; ``check`` has passed."""
    parameters = [p for p in block.parameters() if p.requires_grad]
    return _Recompute.apply(block, x, *parameters)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, block, x, *parameters):
        ctx.plan = _, ghost1, depthwise, se, ghost2, shortcut = block._current_plan()
        y, kept1 = ghost1.keep(x)
        for half in depthwise:
            y = _depthwise.run(half, y)
        if se is not None:
            y = se(y)
        out, kept2 = ghost2.keep(y)
        residual = x
        for half in shortcut:
            residual = _depthwise.run(half, residual)
        # what the second forward must do as the first did, whatever becomes of the modules in between
        ctx.batch = {half: _batch_norm.statistics(half.norm) is BATCH for half in (*depthwise, *shortcut)}
        ctx.autocast = _autocast_now(x)
        ctx.save_for_backward(x, *kept1 or _NONE_KEPT, *kept2 or _NONE_KEPT, *parameters)
        return out + residual

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        _, ghost1, depthwise, se, ghost2, shortcut = ctx.plan
        x, *saved = ctx.saved_tensors
        kept1, kept2, parameters = saved[:_KEPT], saved[_KEPT : 2 * _KEPT], saved[2 * _KEPT :]
        x = x.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            y = ghost1.again(x, kept1)
            for half in depthwise:
                y = _step_again(half, y, ctx.batch[half])
            if se is not None:
                y = se(y)
            out = ghost2.again(y, kept2, wanted=False)
            residual = x
            for half in shortcut:
                residual = _step_again(half, residual, ctx.batch[half])
        wanted = [x, *parameters] if x.requires_grad else parameters
        outputs = [t for t in (out, residual) if t.requires_grad]
        grads = torch.autograd.grad(outputs, wanted, [grad_out.to(t.dtype) for t in outputs], allow_unused=True)
        return None, *([] if x.requires_grad else [None]), *grads


def _step_again(half: Half, x: torch.Tensor, batch: bool) -> torch.Tensor:
    """``_depthwise.run`` that updates nothing, with batch statistics or the running ones."""
    norm, z = half.norm, _depthwise.convolve(half, x)
    if norm is not None:
        running = (None, None) if batch else (norm.running_mean, norm.running_var)
        z = F.batch_norm(z, *running, norm.weight, norm.bias, batch, 0.0, norm.eps)
    return z if half.act is None else half.act(z)


def _size_after(half: Half, side: int, axis: int) -> int:
    """Pixels along an axis after a convolution."""
    stride, padding, dilation, _, _ = half.geometry
    if isinstance(padding, str):
        return side
    return (side + 2 * padding[axis] - dilation[axis] * (half.conv.kernel_size[axis] - 1) - 1) // stride[axis] + 1


def _autocast_now(x: torch.Tensor) -> dict[str, object]:
    device = x.device.type
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
        "cache_enabled": False,
    }
