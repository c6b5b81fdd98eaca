"""A Ghost bottleneck that saves only its input, and recomputes the rest in the backward.

The block is one autograd function. Its inputs are the block's input and every tensor that the block reads, its outputs
the block's output and their gradients: the backward reads no module, so that hooks on parameters run once, and weights
that were replaced, frozen or computed by something else give what PyTorch gives.

Of a block autograd then holds x, the batch statistics of its Ghost modules, and its parameters. The second forward has
the statistics of the first: a Ghost module takes one pass instead of three, the last of them none, and no running
statistic is updated twice. Batch statistics of other convolutions are taken again from the same values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ..dispatch import refuse_autocast, refuse_call
from ..ops import ghost_module_train as training
from . import batch_norm
from .batch_norm import BATCH
from .convolutions import ConvCall, decide_convolution, run_convolution, run_convolution_with
from .errors import NotNow
from .ghost_module import TRAIN, GhostCall, execute, folded, train, train_arguments
from .layers import ConvBNAct
from .squeeze_excite import ExciteCall
from .squeeze_excite import execute as excite

_STATISTICS = 4  # of a Ghost module over batch statistics
_NO_STATISTICS = (None,) * _STATISTICS


class BlockCall(NamedTuple):
    """What was decided for one call of a block.

    Attributes:
        ghost1, ghost2: the calls of the Ghost modules; the input of the second is a stand-in.
        depthwise, shortcut: the convolutions between the Ghost modules and around them.
        batch: for each of these convolutions whether its BatchNorm uses batch statistics.
        se: the squeeze-and-excite layer's call, over a stand-in, or None.
        tensors: what the block reads, in the order of ``_cut``.
        autocast: autocast's state, for the second forward.
    """

    ghost1: GhostCall
    depthwise: tuple[ConvCall, ...]
    se: ExciteCall | None
    ghost2: GhostCall
    shortcut: tuple[ConvCall, ...]
    batch: tuple[bool, ...]
    tensors: tuple
    autocast: dict[str, object]


def prepare(plan: tuple, x: torch.Tensor) -> BlockCall:
    """Decide everything before any part has run; raises ``Unfusable`` where the parts must run on their own."""
    why = refuse_call(x) or refuse_autocast(x)
    if why is not None:
        raise NotNow(why)
    _, ghost1, depthwise, se, ghost2, shortcut = plan
    first = ghost1._ghost_ops.choose(ghost1, x)
    layers = (*depthwise, *shortcut)
    batch = tuple([batch_norm.statistics(layer.norm) is BATCH for layer in layers])
    height, width = x.shape[2:]
    for layer in depthwise:
        height, width = _size_after(layer, height, 0), _size_after(layer, width, 1)
    # an input of the right shape, dtype and device for those whose own is not there yet
    like = x.new_empty(1).expand(x.shape[0], ghost2._ghost_ops.channels(ghost2), height, width)
    second = ghost2._ghost_ops.choose(ghost2, like)
    excited = None if se is None else se._ghost_ops.choose(se, like)
    tensors = [*_of_ghost(first), *_of_ghost(second)]
    for layer, uses_batch in zip(layers, batch, strict=True):
        found = layer.tensors()
        tensors += [*found[:4], None, None, found[6]] if uses_batch else found
    tensors += [] if excited is None else excited.tensors
    calls = tuple([decide_convolution(layer, x) for layer in layers])
    between, around = calls[: len(depthwise)], calls[len(depthwise) :]
    return BlockCall(first, between, excited, second, around, batch, tuple(tensors), _autocast_now(x))


def run_recomputed(call: BlockCall, x: torch.Tensor) -> torch.Tensor:
    """The block's output."""
    return _Recompute.apply(call, x, *call.tensors)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, *tensors):
        y, statistics1 = _ghost(call.ghost1, x)
        for conv in call.depthwise:
            y = run_convolution(conv, y)
        if call.se is not None:
            y = excite(call.se, y, call.se.tensors)
        out, statistics2 = _ghost(call.ghost2, y)
        residual = x
        for conv in call.shortcut:
            residual = run_convolution(conv, residual)
        ctx.call = _without_tensors(call)  # autograd's own count in the backward
        ctx.save_for_backward(x, *statistics1, *statistics2, *tensors)
        return out + residual

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        call = ctx.call
        x, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        x = x.detach().requires_grad_(needs[1])
        tensors = [
            t if t is None else t.detach().requires_grad_(need)
            for t, need in zip(saved[2 * _STATISTICS :], needs[2:], strict=True)
        ]
        of_ghost1, of_ghost2, of_convs, of_se = _cut(call, tensors)
        between = len(call.depthwise)
        with torch.enable_grad(), torch.autocast(**call.autocast):
            y = _ghost_again(call.ghost1, x, of_ghost1, saved[:_STATISTICS], True)
            for conv, found, batch in zip(call.depthwise, of_convs, call.batch):
                y = run_convolution_with(conv, y, found, batch)
            if call.se is not None:
                y = excite(call.se, y, of_se)
            out = _ghost_again(call.ghost2, y, of_ghost2, saved[_STATISTICS : 2 * _STATISTICS], False)
            residual = x
            for conv, found, batch in zip(call.shortcut, of_convs[between:], call.batch[between:], strict=True):
                residual = run_convolution_with(conv, residual, found, batch)
        outputs = [t for t in (out, residual) if t.requires_grad]
        leaves = [t if need else None for t, need in zip((x, *tensors), needs[1:], strict=True)]
        wanted = [t for t in leaves if t is not None]
        grads = torch.autograd.grad(outputs, wanted, [grad_out.to(t.dtype) for t in outputs], allow_unused=True)
        grads = iter(grads)
        return None, *[None if t is None else next(grads) for t in leaves]


def _without_tensors(call: BlockCall) -> BlockCall:
    ghost1, ghost2 = call.ghost1._replace(x=None, tensors=()), call.ghost2._replace(x=None, tensors=())
    se = None if call.se is None else call.se._replace(x=None, tensors=())
    return call._replace(ghost1=ghost1, ghost2=ghost2, se=se, tensors=())


def _of_ghost(call: GhostCall) -> tuple:
    """What a Ghost module reads for its gradients: not the running statistics that a forward over a batch updates."""
    if call.decision.operator is not TRAIN:
        return call.tensors
    t = call.tensors
    return *t[:4], None, None, *t[6:11], None, None, t[13]


def _cut(call: BlockCall, tensors: list) -> tuple[list, list, list[list], list]:
    """The tensors of the two Ghost modules, of each convolution, and of the squeeze-and-excite layer."""
    convs = len(call.batch)
    starts = range(28, 28 + 7 * convs, 7)
    return tensors[:14], tensors[14:28], [tensors[i : i + 7] for i in starts], tensors[28 + 7 * convs :]


def _ghost(call: GhostCall, x: torch.Tensor) -> tuple[torch.Tensor, tuple]:
    """The output of a Ghost module, and the batch statistics that it took or four None."""
    call = call._replace(x=x)
    if call.decision.operator is TRAIN:
        out, *statistics = train(call)
        return out, tuple(statistics)
    return execute(call), _NO_STATISTICS


def _ghost_again(call: GhostCall, x: torch.Tensor, tensors: list, statistics: list, need_output: bool) -> torch.Tensor:
    call = call._replace(x=x, tensors=tuple(tensors))
    if call.decision.operator is TRAIN:
        return training.recompute(train_arguments(call), tuple(statistics), need_output)
    return folded(call)


def _size_after(layer: ConvBNAct, side: int, axis: int) -> int:
    """Pixels along an axis after a convolution."""
    stride, padding, dilation, _, _ = layer.geometry
    if isinstance(padding, str):
        return side
    return (side + 2 * padding[axis] - dilation[axis] * (layer.kernel()[axis] - 1) - 1) // stride[axis] + 1


def _autocast_now(x: torch.Tensor) -> dict[str, object]:
    device = x.device.type
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
        "cache_enabled": False,
    }
