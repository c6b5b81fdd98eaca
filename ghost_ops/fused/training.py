"""``TrainedProgram``: a fused block as one program in training, on backends that run whole ones."""

from __future__ import annotations

from operator import is_
from typing import NamedTuple

import torch

from .. import program as s
from ..activations import WITH_NUMBER
from ..dispatch import Decision
from ..ops.program_train import TrainCall, TrainSignature, signature_of
from ..program.training import NotTrainable, number_of_program, training_program
from . import batch_norm
from .batch_norm import BATCH
from .builder import Builder
from .errors import NotNow, Unfusable
from .layers import ConvBNAct, ParameterSource
from .parameters import check_parameters


class TrainingBuilder(Builder):
    """Writes steps whose BatchNorms use batch statistics."""

    def _layer(self, source: ParameterSource) -> s.Layer:
        if isinstance(source, ConvBNAct) and source.norm is None:
            raise Unfusable("one of its convolutions has no BatchNorm")
        if not isinstance(source, ConvBNAct) and source.norm is not None:
            raise Unfusable("one of its linear layers has a BatchNorm")
        self.sources.append(source)
        eps = 0.0 if source.norm is None else source.norm.eps
        return s.Layer(0, eps, source.code, source.slope())

    def finish(self) -> TrainedProgram:
        code = s.encode(self.steps, max(self._slots, 1))
        try:
            return TrainedProgram(number_of_program(tuple(code)), self.sources)
        except NotTrainable as why:
            raise Unfusable(f"as one program: {why}") from None


class Seen(NamedTuple):
    """Tensors that were checked, with the dtypes, shapes and devices that they had: ``p.data = ...`` changes these."""

    key: tuple
    tensors: list[torch.Tensor | None]
    forms: list[tuple]
    signature: TrainSignature

    def is_as_it_was(self) -> bool:
        for t, dtype, shape, device in self.forms:
            if t.dtype is not dtype or t.shape != shape or t.device != device:
                return False
        return True


class TrainedProgram:
    """A program, and the sources of its parameters and buffers.

    Attributes:
        number: see ``program/training.py``.
    """

    def __init__(self, number: int, sources: list[ParameterSource]) -> None:
        self.number = number
        self._sources = sources
        self._norms = [source.norm for source in sources if source.norm is not None]
        self._entries = [entry for source in sources for entry in (*source.entries(), _batches(source))]
        self._eps = [(norm, norm.eps) for norm in self._norms]
        self._slopes = [(source, source.slope()) for source in sources if source.code in WITH_NUMBER]
        self._program = training_program(number)
        self._shapes = [shape for o in self._program.operations for _, shape in o.step.layers()]
        self._seen: Seen | None = None

    def call(self, decision: Decision, x: torch.Tensor, memory: str) -> TrainCall | None:
        """What the program is called with now; None where it must be built anew.

        Raises:
            NotNow: a kernel must not read one of the tensors, or PyTorch would refuse it beside x.
        """
        try:
            tensors = [None if entry is None else entry[0].get(entry[1]) for entry in self._entries]
        except AttributeError:
            raise NotNow("one of its children was taken apart") from None
        for norm in self._norms:
            if batch_norm.statistics(norm) is not BATCH:
                raise NotNow("one of its BatchNorms uses running statistics")
        for norm, eps in self._eps:
            if norm.eps != eps:
                return None
        for source, slope in self._slopes:
            if source.slope() != slope:
                return None
        key, seen = (x.dtype, x.device, torch.is_autocast_enabled(x.device.type)), self._seen
        if seen is None or seen.key != key or not all(map(is_, seen.tensors, tensors)) or not seen.is_as_it_was():
            self._check(x, tensors)
            forms = [(t, t.dtype, t.shape, t.device) for t in tensors if t is not None]
            seen = self._seen = Seen(key, tensors, forms, signature_of(self.number, tensors))
        if x.requires_grad and not self._program.has_input_gradient and torch.is_grad_enabled():
            raise NotNow("its input needs a gradient, which PyTorch computes for such a convolution")
        n, c, height, width = x.shape
        if c != self._program.channels or n * self._program.fewest_pixels(height, width) <= 1:
            raise NotNow("its input has other channels than its weights, or no more than one value a channel")
        momenta = [None if source.norm is None else source.norm.momentum for source in self._sources]
        return TrainCall(decision, self.number, tensors, momenta, memory, seen.signature)

    def _check(self, x: torch.Tensor, tensors: list[torch.Tensor | None]) -> None:
        """Refuse what PyTorch would refuse, and what no kernel reads."""
        per_layer = len(tensors) // len(self._sources)
        for i, (source, shape) in enumerate(zip(self._sources, self._shapes, strict=True)):
            weight, bias, gamma, beta, mean, var, slopes, batches = tensors[i * per_layer : (i + 1) * per_layer]
            if weight is None:
                raise NotNow("the weight of one of its layers is not a parameter of its own")
            check_parameters(x, (weight, bias), (gamma, beta, slopes))
            if weight.shape[:2] != shape[:2] or weight.numel() != torch.Size(shape).numel():
                raise NotNow("the weight of one of its layers does not have its shape")
            for t in (bias, gamma, beta, mean, var):
                if t is not None and t.shape != (shape[0],):
                    raise NotNow("one of its biases or statistics does not have a value a channel")
            if slopes is not None and slopes.numel() not in (1, shape[0]):
                raise NotNow("the weight of its PReLU does not have one value, or one a channel")
            for t in (mean, var, batches):
                if t is not None and (t.device != x.device or not t.is_contiguous()):
                    raise NotNow("running statistics are on another device, or not contiguous")
            if source.norm is not None and source.norm.affine and (gamma is None or beta is None):
                raise NotNow("a parameter of one of its BatchNorms is not one of its own")


def _batches(source: ParameterSource) -> tuple[dict, str] | None:
    return None if source.norm is None else (source.norm._buffers, "num_batches_tracked")
