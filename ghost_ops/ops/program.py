"""``program``: a net, or a part of it, in one call; ``program_maps``: the same where it returns several results;
``program_pack``: the form that its parameters take.

A program is inference: BatchNorms use their running statistics, and nothing is differentiable. ``program`` reads
parameters that were packed before, ``program_eval`` those of the net as they are now. The precision in the head of the
steps says in which form they are packed: float32, or the weights of products as bfloat16 in an int32 tensor, which
``program`` and ``program_maps`` alone take.
"""

from __future__ import annotations

import warnings
import weakref

import torch

from ..program import decode, only_result, output_shapes, output_sizes, weights_of
from ..program.packing import packed_size
from ._library import below_autograd, memory_format, overload, register_fake, without_gradients
from .flops import convolution_flops, count_flops

_EXPORTED = (
    "torch.export records a frozen net with its kernels, ghost_ops::program, for AOTInductor and the exported module "
    "itself. Other tools read no convolutions there, and a quantiser leaves them in floating point: give these "
    "ghost_ops.thaw(net, fold=True), or exported.run_decompositions(ghost_ops.decompositions())"
)

_exports = weakref.WeakSet()  # the FakeTensorModes of exports that were warned of: each has one


def _warn_of_export(x):
    """Warn once an export, which may record several programs, goes over each more than once, and so do its
    decompositions."""
    mode = getattr(x, "fake_mode", None)
    if mode not in _exports:
        if mode is not None:
            _exports.add(mode)
        warnings.warn(_EXPORTED, UserWarning, stacklevel=2)


def _fake_maps(x, _packed, steps):
    if torch.compiler._is_exporting_flag and not torch.onnx.is_in_onnx_export():
        _warn_of_export(x)
    shapes = output_shapes(decode(steps), *x.shape[:1], *x.shape[2:])
    layouts = (memory_format(x) if len(shape) == 4 else torch.contiguous_format for shape in shapes)
    return [x.new_empty(shape).to(memory_format=layout) for shape, layout in zip(shapes, layouts)]


def _fake(x, parameters, steps):
    return only_result(_fake_maps(x, parameters, steps))


def _fake_pack(parameters, steps):
    weights = weights_of(steps)
    return torch.empty(packed_size(decode(steps), weights), dtype=weights.dtype)


@count_flops("program", "program_maps", "program_eval")
def _flops(x, _parameters, steps, **_):
    decoded = decode(steps)
    sizes = output_sizes(decoded, *x[2:])
    return sum(
        convolution_flops((x[0], shape[1]), shape, size)
        for step, size in zip(decoded, sizes, strict=True)
        for _, shape in step.layers()
    )


@count_flops("program_pack")
def _pack_flops(*_, **__):
    return 0


register_fake("program", _fake)
register_fake("program_maps", _fake_maps)
register_fake("program_eval", _fake)
register_fake("program_pack", _fake_pack)

_eval_operator = overload("program_eval")


def call_program_eval(x: torch.Tensor, parameters: list[torch.Tensor], steps: list[int]) -> torch.Tensor:
    """``program_eval`` where nothing needs a gradient, in eager mode: at batch 1 another look costs."""
    return below_autograd(_eval_operator, (x, parameters, steps))


program, program_maps, program_pack, program_eval = map(
    without_gradients, ("program", "program_maps", "program_pack", "program_eval")
)
