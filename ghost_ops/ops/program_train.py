"""A program in training, on backends that run whole ones: forward over batch statistics, and backward.

It is no operator of PyTorch's dispatcher, since it updates running statistics on the way: compilers and function
transforms see the operators of the parts instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..backends.registry import BACKENDS
from ..dispatch import Decision
from ..program.training import PER_LAYER, LayerTensors, trained, training_program
from ._library import once_differentiable
from .strides import restride

MEMORY = ("balanced", "low", "fast")
_BUFFERS = frozenset(LayerTensors._fields.index(name) for name in ("mean", "var", "batches"))


class TrainSignature(NamedTuple):
    """What follows from a program and from which of its layers' tensors there are, found once.

    Attributes:
        count: number of ``tensors`` of a call.
        parameters, buffers: places among them of those that are there.
        found: of each gradient that the backward returns, its place among the parameters.
        removed: places among the parameters of biases that batch statistics remove, whose gradients are 0.
    """

    count: int
    parameters: tuple[int, ...]
    buffers: tuple[int, ...]
    found: tuple[int, ...]
    removed: tuple[int, ...]


class TrainCall(NamedTuple):
    """What a program is called with, beside its input.

    Attributes:
        decision: the backend.
        number: the program's, see ``program/training.py``.
        tensors: of each layer those of ``LayerTensors``.
        momenta: of each layer's BatchNorm; None where there is none, or where it averages all batches.
        memory: what is saved for the backward: ``"balanced"``: the maps that the backward reads; ``"low"``: the input
            and the batch statistics only; ``"fast"``: also the results of primary convolutions.
        signature: ``signature_of`` the tensors.
    """

    decision: Decision
    number: int
    tensors: list[torch.Tensor | None]
    momenta: list[float | None]
    memory: str
    signature: TrainSignature


def signature_of(number: int, tensors: Sequence[torch.Tensor | None]) -> TrainSignature:
    """The signature of calls of a program with tensors that are there or not as these are."""
    there = [i for i, t in enumerate(tensors) if t is not None]
    parameters = [i for i in there if i % PER_LAYER not in _BUFFERS]
    buffers = [i for i in there if i % PER_LAYER in _BUFFERS]
    layers = [LayerTensors(*tensors[i : i + PER_LAYER]) for i in range(0, len(tensors), PER_LAYER)]
    returned = trained(training_program(number), layers)
    found = [parameters.index(i * PER_LAYER + LayerTensors._fields.index(name)) for i, name in returned]
    removed = sorted(set(range(len(parameters))) - set(found))
    return TrainSignature(len(tensors), *map(tuple, (parameters, buffers, found, removed)))


def run_program_train(call: TrainCall, x: torch.Tensor) -> torch.Tensor:
    """The program's result on x, N x C x H x W; updates running statistics. Differentiable, once; but not with respect
    to x where ``TrainingProgram.has_input_gradient`` is False."""
    _, number, tensors, momenta, _, signature = call
    parameters = [tensors[i] for i in signature.parameters]
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        out = _ProgramTrain.apply(call, x, *parameters)
    else:
        out = BACKENDS[call.decision.backend].load("program_train")(x, tensors, momenta, number, "low")[0]
    if signature.buffers and not torch.is_inference_mode_enabled():  # PyTorch does not see that they are written
        torch.autograd.graph.increment_version([tensors[i] for i in signature.buffers])
    return out


class _ProgramTrain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, *parameters):
        decision, number, tensors, momenta, memory, signature = call
        out, *saved = BACKENDS[decision.backend].load("program_train")(x, tensors, momenta, number, memory)
        ctx.of = decision.backend, number, memory, signature  # no tensors: autograd counts what is saved
        ctx.save_for_backward(x, *parameters, *saved)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        # Gradients are off but where a graph of the backward is wanted, which then refuses to be differentiated.
        return (_twice if torch.is_grad_enabled() else _backward)(ctx, grad_out)


def _backward(ctx, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    backend, number, memory, signature = ctx.of
    x, *rest = ctx.saved_tensors
    count = len(signature.parameters)
    tensors: list[torch.Tensor | None] = [None] * signature.count
    for i, p in zip(signature.parameters, rest):
        tensors[i] = p
    run = BACKENDS[backend].load("program_train_backward")
    grad_x, *found = run(grad_out, x, tensors, rest[count:], number, memory)
    _, of_x, *needs = ctx.needs_input_grad
    gradients: list[torch.Tensor | None] = [None] * count
    for i, gradient in zip(signature.found, found, strict=True):
        if needs[i]:
            gradients[i] = restride(gradient, rest[i].stride())
    for i in signature.removed:
        if needs[i]:
            gradients[i] = torch.zeros_like(rest[i])
    return None, grad_x if of_x else None, *gradients


_twice = once_differentiable(_backward)
