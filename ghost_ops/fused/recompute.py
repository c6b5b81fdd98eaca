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
from ..ops.strides import restride
from . import batch_norm
from .batch_norm import BATCH
from .convolutions import ConvCall, decide_convolution, run_convolution, run_convolution_with
from .errors import NotNow
from .ghost_call import GhostCall
from .squeeze_excite import ExciteCall
from .squeeze_excite import execute as excite


class BlockCall(NamedTuple):
    """What was decided for one call of a block.

    Attributes:
        ghost1, ghost2: the calls of the Ghost modules, or of what computes one and says how it is recomputed; the input
            of the second is a stand-in.
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
    height, width = first.output_size()
    for layer in depthwise:
        height, width = layer.output_size(height, width)
    # an input of the right shape, dtype and device for those whose own is not there yet
    like = x.new_empty(1).expand(x.shape[0], ghost2._ghost_ops.channels(ghost2), height, width)
    second = ghost2._ghost_ops.choose(ghost2, like)
    excited = None if se is None else se._ghost_ops.choose(se, like)
    tensors = [*first.read(), *second.read()]
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
        y, statistics1 = call.ghost1.run(x)
        for conv in call.depthwise:
            y = run_convolution(conv, y)
        if call.se is not None:
            y = excite(call.se, y, call.se.tensors)
        out, statistics2 = call.ghost2.run(y)
        residual = x
        for conv in call.shortcut:
            residual = run_convolution(conv, residual)
        ctx.call = _without_tensors(call)  # autograd's own count in the backward
        ctx.counts = len(statistics1), len(statistics2), len(call.ghost1.read()), len(call.ghost2.read())
        ctx.save_for_backward(x, *statistics1, *statistics2, *tensors)
        return out + residual

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        call = ctx.call
        of_first, of_second, *counts = ctx.counts
        x, *saved = ctx.saved_tensors
        statistics1, statistics2 = saved[:of_first], saved[of_first : of_first + of_second]
        needs = ctx.needs_input_grad
        x = x.detach().requires_grad_(needs[1])
        tensors = [
            t if t is None else t.detach().requires_grad_(need)
            for t, need in zip(saved[of_first + of_second :], needs[2:], strict=True)
        ]
        of_ghost1, of_ghost2, of_convs, of_se = _cut(call, counts, tensors)
        between = len(call.depthwise)
        with torch.enable_grad(), torch.autocast(**call.autocast):
            y = call.ghost1.run_again(x, of_ghost1, statistics1, True)
            for conv, found, batch in zip(call.depthwise, of_convs, call.batch):
                y = run_convolution_with(conv, y, found, batch)
            if call.se is not None:
                y = excite(call.se, y, of_se)
            out = call.ghost2.run_again(y, of_ghost2, statistics2, False)
            residual = x
            for conv, found, batch in zip(call.shortcut, of_convs[between:], call.batch[between:], strict=True):
                residual = run_convolution_with(conv, residual, found, batch)
        outputs = [t for t in (out, residual) if t.requires_grad]
        leaves = [t if need else None for t, need in zip((x, *tensors), needs[1:], strict=True)]
        wanted = [t for t in leaves if t is not None]
        grads = torch.autograd.grad(outputs, wanted, [grad_out.to(t.dtype) for t in outputs], allow_unused=True)
        grads = iter(grads)
        found = [None if t is None else next(grads) for t in leaves]
        return None, *[g if g is None else restride(g, t.stride()) for g, t in zip(found, leaves)]


def _without_tensors(call: BlockCall) -> BlockCall:
    ghost1, ghost2 = call.ghost1.without_tensors(), call.ghost2.without_tensors()
    se = None if call.se is None else call.se._replace(x=None, tensors=())
    return call._replace(ghost1=ghost1, ghost2=ghost2, se=se, tensors=())


def _cut(call: BlockCall, counts: list[int], tensors: list) -> tuple[list, list, list[list], list]:
    """The tensors of the two Ghost modules, of which each has as many as given, of each convolution, and of the
    squeeze-and-excite layer."""
    first, ghosts = counts[0], sum(counts)
    end = ghosts + 7 * len(call.batch)
    convs = [tensors[i : i + 7] for i in range(ghosts, end, 7)]
    return tensors[:first], tensors[first:ghosts], convs, tensors[end:]


def _autocast_now(x: torch.Tensor) -> dict[str, object]:
    device = x.device.type
    return {
        "device_type": device,
        "dtype": torch.get_autocast_dtype(device),
        "enabled": torch.is_autocast_enabled(device),
        "cache_enabled": False,
    }
