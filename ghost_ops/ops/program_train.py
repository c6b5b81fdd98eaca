"""A program in training, on backends that run whole ones: forward over batch statistics, and backward.

It is no operator of PyTorch's dispatcher, since it updates running statistics on the way: compilers and function
transforms see the operators of the parts instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..backends.registry import BACKENDS
from ..dispatch import Decision
from ..program.training import PER_LAYER, LayerTensors, trained, training_program
from ._library import once_differentiable

MEMORY = ("balanced", "low", "fast")
_BUFFERS = tuple(LayerTensors._fields.index(name) for name in ("mean", "var", "batches"))


class TrainCall(NamedTuple):
    """What a program is called with, beside its input.

    Attributes:
        decision: the backend.
        number: the program's, see ``program/training.py``.
        tensors: of each layer those of ``LayerTensors``.
        momenta: of each layer's BatchNorm; None where there is none, or where it averages all batches.
        memory: what is saved for the backward: ``"balanced"``: the maps that the backward reads; ``"low"``: the input
            and the batch statistics only; ``"fast"``: also the results of primary convolutions.
    """

    decision: Decision
    number: int
    tensors: list[torch.Tensor | None]
    momenta: list[float | None]
    memory: str


def run_program_train(call: TrainCall, x: torch.Tensor) -> torch.Tensor:
    """The program's result on x, N x C x H x W; updates running statistics. Differentiable, once; but not with respect
    to x where ``TrainingProgram.has_input_gradient`` is False."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *call.tensors))
    if wanted:
        out = _ProgramTrain.apply(call, x, *_without_buffers(call.tensors))
    else:
        out = BACKENDS[call.decision.backend].load("program_train")(
            x, call.tensors, call.momenta, call.number, "low"
        )[0]  # fmt: skip
    written = [t for i, t in enumerate(call.tensors) if t is not None and i % PER_LAYER in _BUFFERS]
    if written and not torch.is_inference_mode_enabled():
        torch.autograd.graph.increment_version(written)  # which PyTorch does not see
    return out


def _without_buffers(tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if i % PER_LAYER in _BUFFERS else t for i, t in enumerate(tensors)]


class _ProgramTrain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, *tensors):
        run = BACKENDS[call.decision.backend].load("program_train")
        out, *saved = run(x, call.tensors, call.momenta, call.number, call.memory)
        ctx.call = call._replace(tensors=[])  # autograd counts what is saved
        ctx.save_for_backward(x, *tensors, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        call, needs = ctx.call, ctx.needs_input_grad
        x, *saved = ctx.saved_tensors
        program = training_program(call.number)
        count = len(program.layers) * PER_LAYER
        tensors, saved = saved[:count], saved[count:]
        run = BACKENDS[call.decision.backend].load("program_train_backward")
        grad_x, *found = run(grad_out, x, tensors, saved, call.number, call.memory)
        gradients: list[torch.Tensor | None] = [None] * count
        layers = [LayerTensors(*tensors[i : i + PER_LAYER]) for i in range(0, count, PER_LAYER)]
        for (i, name), gradient in zip(trained(program, layers), found, strict=True):
            at = i * PER_LAYER + LayerTensors._fields.index(name)
            gradients[at] = gradient if needs[2 + at] else None
        for i, t in enumerate(tensors):
            if needs[2 + i] and gradients[i] is None:
                gradients[i] = torch.zeros_like(t)  # a bias, which batch statistics remove
        return None, grad_x if needs[1] else None, *gradients
