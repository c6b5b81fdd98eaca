"""A whole program in training: its steps forward over batch statistics, and backward, in kernels only.

Nothing is computed by PyTorch in between, so that all launches of a block are one entry of the launch cache. With
``memory="low"`` only the vectors of the BatchNorms are saved, and the backward begins with a second forward from the
program's input, which needs no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...program import Conv, Depthwise, Excite, Ghost
from ...program.training import INPUT, PER_LAYER, LayerTensors, Operation, TrainingProgram, trained, training_program
from ..layout import strides_are_channels_last
from . import launch
from .backward import ghost_module_bwd
from .cheap import cheap_half
from .convolution import convolution_before_norm, convolution_weight_gradient
from .depthwise import depthwise_before_norm
from .depthwise_gradients import depthwise_gradients
from .epilogue import NO_EPILOGUE, Epilogue
from .joins import Joins
from .launch_cache import cached_launches
from .norm import BatchNorm, NormVectors
from .normalise import norm_gradient_sums, normalise
from .products import primary_product
from .squeeze_excite import squeeze_excite_bwd, squeeze_excite_fwd
from .sums import Totals


class Kept(NamedTuple):
    """What the backward gets of an operation, beside the values that it reads.

    Attributes:
        norms: vectors of each BatchNorm, 4 x channels, see ``NormVectors``.
        maps: a convolution's result before its BatchNorm; of an excitation squeeze, hidden and logits.
    """

    norms: tuple[torch.Tensor, ...] = ()
    maps: tuple[torch.Tensor, ...] = ()


def _counts(operation: Operation, memory: str) -> tuple[int, int]:
    """Number of ``norms`` and ``maps`` that are saved of an operation."""
    step = operation.step
    if isinstance(step, Excite):
        norms, maps = 0, 3
    elif isinstance(step, Ghost) and step.cheap_channels:
        norms, maps = 2, int(memory == "fast")
    else:
        norms, maps = 1, 1
    return norms, 0 if memory == "low" else maps


class _Run:
    """A forward, or a second one where ``norms``, the vectors of each operation, are known.

    Attributes:
        values: by number.
        kept: of each operation.
    """

    def __init__(
        self, program: TrainingProgram, x: torch.Tensor, tensors: Sequence, momenta: Sequence[float | None],
        norms: Sequence[tuple[torch.Tensor, ...]] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.momenta, self.norms = program, momenta, norms
        self.layers = [LayerTensors(*tensors[i : i + PER_LAYER]) for i in range(0, len(tensors), PER_LAYER)]
        self.values: dict[int, torch.Tensor] = {INPUT: x}
        self.kept: list[Kept] = []
        self.shortcuts: dict[int, NormVectors] = {}  # what normalises a value that is added
        self.sums: torch.Tensor | None = None  # of the value that an excitation reads next
        self.joins: Joins | None = None

    def forward(self) -> None:
        if self.norms is None:
            self.joins = Joins(self.values[INPUT].device, [layer.batches for layer in self.layers])
        for operation in self.program.operations:
            FORWARD[type(operation.step)](self, operation)

    def is_needed(self, operation: Operation) -> bool:
        """Whether the operation's result is: a second forward stops before that of the last one."""
        return self.norms is None or operation.out != self.program.result

    def epilogue(self, number: int, layer: object, vectors: torch.Tensor) -> Epilogue:
        """What follows the convolution of layer ``number``, whose bias batch statistics remove."""
        t = self.layers[number]
        plain = Epilogue(None, layer.act, layer.slope, t.slopes, t.gamma, t.beta, None, None, layer.eps)
        return NormVectors(*vectors.unbind(0)).applied(plain)

    def batch_norm(self, number: int, layer: object) -> tuple[BatchNorm, torch.Tensor, NormVectors]:
        """The BatchNorm of layer ``number``, and where its vectors go, as a tensor and one by one."""
        t = self.layers[number]
        channels = t.weight.shape[0]
        vectors = launch.empty((4, channels), torch.float32, t.weight.device)
        norm = BatchNorm(t.gamma, t.beta, layer.eps, t.mean, t.var, t.batches, self.momenta[number], t.bias)
        return norm, vectors, NormVectors(*vectors.unbind(0))

    def residual(self, operation: Operation) -> torch.Tensor | None:
        return None if operation.residual < 0 else self.values[operation.residual]

    def ghost(self, operation: Operation) -> None:
        step, number = operation.step, operation.layer
        x, known = self.values[operation.source], self.norms and self.norms[len(self.kept)]
        z, needed = launch.scratch(x, step.primary), self.is_needed(operation)
        weight = self.layers[number].weight
        if known:
            primary_product(x, weight, to=z)
            first = known[0]
        else:
            norm, first, vectors = self.batch_norm(number, step.layer)
            primary_product(x, weight, to=z, joins=self.joins, norm=norm, vectors=vectors)
        primary = self.epilogue(number, step.layer, first)
        if not step.cheap_channels:
            if operation.is_shortcut:
                self.values[operation.out], self.shortcuts[operation.out] = z, NormVectors(*first.unbind(0))
            elif needed:
                self.values[operation.out], _ = normalise(z, primary, like=x, residual=self.residual(operation))
            self.kept.append(Kept((first,), (z,)))
            return
        out, weight = launch.new_map(x, step.out_channels) if needed else z, self.layers[number + 1].weight
        options = {"m": step.primary, "primary": primary}
        if known:
            second = known[1]
        else:
            norm, second, vectors = self.batch_norm(number + 1, step.cheap)
            cheap_half(z, out, weight, NO_EPILOGUE, **options, joins=self.joins, norm=norm, vectors=vectors)
        if needed:
            cheap = self.epilogue(number + 1, step.cheap, second)
            self.sums = cheap_half(
                z, out, weight, cheap, **options, residual=self.residual(operation),
                residual_norm=self.shortcuts.get(operation.residual), split_sums=operation.squeezes,
            )  # fmt: skip
            self.values[operation.out] = out
        self.kept.append(Kept((first, second), (z,)))

    def convolution(self, operation: Operation) -> None:
        step, number = operation.step, operation.layer
        x, known = self.values[operation.source], self.norms and self.norms[len(self.kept)]
        weight = self.layers[number].weight
        shape = weight, step.stride[0], step.padding[0]
        if known:
            z, kept = convolution_before_norm(x, *shape)[0], known[0]
        else:
            norm, kept, vectors = self.batch_norm(number, step.layer)
            z, _ = convolution_before_norm(x, *shape, joins=self.joins, norm=norm, vectors=vectors)
        if self.is_needed(operation):
            # As PyTorch has it: images may be NCHW in a net that is channels_last, and have one channel.
            like = z if any(map(strides_are_channels_last, (x, weight))) else x
            self.values[operation.out], _ = normalise(z, self.epilogue(number, step.layer, kept), like=like)
        self.kept.append(Kept((kept,), (z,)))

    def depthwise(self, operation: Operation) -> None:
        step, number = operation.step, operation.layer
        x, known = self.values[operation.source], self.norms and self.norms[len(self.kept)]
        weight = self.layers[number].weight
        if known:
            z, kept = depthwise_before_norm(x, weight, step.stride[0])[0], known[0]
        else:
            norm, kept, vectors = self.batch_norm(number, step.layer)
            z, _ = depthwise_before_norm(x, weight, step.stride[0], joins=self.joins, norm=norm, vectors=vectors)
        if self.is_needed(operation):
            norm = self.epilogue(number, step.layer, kept)
            self.values[operation.out], self.sums = normalise(z, norm, like=x, squeeze=operation.squeezes)
        self.kept.append(Kept((kept,), (z,)))

    def excite(self, operation: Operation) -> None:
        step, x = operation.step, self.values[operation.source]
        out, *vectors = squeeze_excite_fwd(x, *self._excitation(operation), step.reduce.act, step.gate, sums=self.sums)
        self.sums = None
        self.values[operation.out] = out
        self.kept.append(Kept((), tuple(vectors)))

    def _excitation(self, operation: Operation) -> list[torch.Tensor | None]:
        """Weights, as matrices, and biases of the two layers of an excitation."""
        layers = self.layers[operation.layer : operation.layer + 2]
        return [t for layer in layers for t in (layer.weight.flatten(1), layer.bias)]

    # The backward. Each takes what was kept and the gradient of the result, and returns the gradients of its layers'
    # parameters by name.

    def backward(self, grad_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients of the input, empty where the program finds none, and of every parameter, layer by layer."""
        self.gradients = {self.program.result: grad_out}
        # The first thing that is done is the last Ghost module's product, unless its result was kept.
        self.joins, self.totals = Joins(grad_out.device, started=bool(self.kept[-1].maps)), Totals()
        found: list[dict[str, torch.Tensor]] = [{} for _ in self.layers]
        for operation, kept in zip(reversed(self.program.operations), reversed(self.kept)):
            if operation.residual >= 0:
                self.gradients[operation.residual] = self.gradients[operation.out]
            for i, gradients in enumerate(BACKWARD[type(operation.step)](self, operation, kept)):
                found[operation.layer + i] = gradients
        self.totals.start()
        if not self.program.has_input_gradient:
            self.gradients[INPUT] = launch.empty((0,), grad_out.dtype, grad_out.device)
        return self.gradients[INPUT], *(found[i][name] for i, name in trained(self.program, self.layers))

    def ghost_bwd(self, operation: Operation, kept: Kept) -> list[dict[str, torch.Tensor]]:
        step, number = operation.step, operation.layer
        x, grad = self.values[operation.source], self.gradients.pop(operation.out)
        layers = self.layers[number : number + 2]
        primary = self._with_parameters(number, step.layer, kept.norms[0])
        cheap, weight = NO_EPILOGUE, None
        if step.cheap_channels:
            cheap, weight = self._with_parameters(number + 1, step.cheap, kept.norms[1]), layers[1].weight
        found = ghost_module_bwd(
            grad, x, layers[0].weight, primary, weight, cheap, step.out_channels, batch=True,
            residual=self.gradients.pop(operation.source, None), z=kept.maps[0] if kept.maps else None,
            joins=self.joins, totals=self.totals,
        )  # fmt: skip
        self.gradients[operation.source] = found.x
        gradients = [{"weight": found.weight, **_parameters(found.primary)}]
        if step.cheap_channels:
            gradients.append({"weight": found.cheap_weight, **_parameters(found.cheap)})
        return gradients

    def convolution_bwd(self, operation: Operation, kept: Kept) -> list[dict[str, torch.Tensor]]:
        step, number, z = operation.step, operation.layer, kept.maps[0]
        x, grad = self.values[operation.source], self.gradients.pop(operation.out)
        norm = self.epilogue(number, step.layer, kept.norms[0])
        own = self._with_parameters(number, step.layer, kept.norms[0])
        coefficients, found = norm_gradient_sums(grad, z, norm, joins=self.joins, own=own)
        weight, shape = self.layers[number].weight, (step.stride[0], step.padding[0])
        options = {"z": z, "norm": norm, "coefficients": coefficients, "totals": self.totals}
        return [{"weight": convolution_weight_gradient(grad, x, weight, *shape, **options), **_parameters(found)}]

    def depthwise_bwd(self, operation: Operation, kept: Kept) -> list[dict[str, torch.Tensor]]:
        step, number, z = operation.step, operation.layer, kept.maps[0]
        x, grad = self.values[operation.source], self.gradients.pop(operation.out)
        norm = self.epilogue(number, step.layer, kept.norms[0])
        own = self._with_parameters(number, step.layer, kept.norms[0])
        coefficients, found = norm_gradient_sums(grad, z, norm, joins=self.joins, own=own)
        grad_x, grad_weight, _ = depthwise_gradients(
            grad, x, self.layers[number].weight, step.stride[0], z=z, norm=norm, coefficients=coefficients,
            residual=self.gradients.pop(operation.source, None), totals=self.totals,
        )  # fmt: skip
        self.gradients[operation.source] = grad_x
        return [{"weight": grad_weight, **_parameters(found)}]

    def excite_bwd(self, operation: Operation, kept: Kept) -> list[dict[str, torch.Tensor]]:
        step, x = operation.step, self.values[operation.source]
        grad_x, *found = squeeze_excite_bwd(
            self.gradients.pop(operation.out), x, *kept.maps, *self._excitation(operation), step.reduce.act, step.gate
        )
        self.gradients[operation.source] = grad_x
        shaped = [t.view(layer.weight.shape) for t, layer in zip(found[::2], self.layers[operation.layer :])]
        return [{"weight": shaped[i], "bias": found[2 * i + 1]} for i in range(2)]

    def _with_parameters(self, number: int, layer: object, vectors: torch.Tensor) -> Epilogue:
        """The epilogue with the BatchNorm's own parameters, whose gradients are wanted."""
        t, (mean, var, *_) = self.layers[number], vectors.unbind(0)
        return Epilogue(None, layer.act, layer.slope, t.slopes, t.gamma, t.beta, mean, var, layer.eps)


def _parameters(found: object) -> dict[str, torch.Tensor]:
    return {"gamma": found.gamma, "beta": found.beta, "slopes": found.slopes}


def _pixels(x: torch.Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


FORWARD = {Conv: _Run.convolution, Ghost: _Run.ghost, Depthwise: _Run.depthwise, Excite: _Run.excite}
BACKWARD = {
    Conv: _Run.convolution_bwd, Ghost: _Run.ghost_bwd, Depthwise: _Run.depthwise_bwd, Excite: _Run.excite_bwd,
}  # fmt: skip


@cached_launches
def program_train(
    x: torch.Tensor, tensors: list[torch.Tensor | None], momenta: list[float | None], number: int, memory: str
) -> tuple[torch.Tensor, ...]:
    """The program's result on x, and what is saved for the backward; running statistics are updated in place.

    Args:
        x: N x C x H x W of float32, float16 or bfloat16.
        tensors: of each layer those of ``LayerTensors``.
        momenta: of each layer's BatchNorm.
        number: of the program, see ``program/training.py``.
        memory: what is saved: ``"balanced"``, ``"low"`` or ``"fast"``.
    """
    program = training_program(number)
    run = _Run(program, x, tensors, momenta)
    run.forward()
    saved = [run.values[value] for value in program.inner] if memory != "low" else []
    for operation, kept in zip(program.operations, run.kept):
        norms, maps = _counts(operation, memory)
        saved += (*kept.norms[:norms], *kept.maps[:maps])
    return run.values[program.result], *saved


@cached_launches
def program_train_backward(
    grad_out: torch.Tensor, x: torch.Tensor, tensors: list[torch.Tensor | None], saved: list[torch.Tensor],
    number: int, memory: str,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Gradients of x, empty where the program finds none, and of the parameters that ``trained`` lists.

    Args:
        saved: what ``program_train`` returned after the result.
    """
    program, rest = training_program(number), iter(saved)
    inner = {} if memory == "low" else {value: next(rest) for value in program.inner}
    kept = []
    for operation in program.operations:
        kept.append(Kept(*(tuple(next(rest) for _ in range(count)) for count in _counts(operation, memory))))
    run = _Run(program, x, tensors, [None] * len(program.layers), [one.norms for one in kept])
    if memory == "low":
        run.forward()
    else:
        run.values |= inner
        run.kept = kept
    return run.backward(grad_out)
