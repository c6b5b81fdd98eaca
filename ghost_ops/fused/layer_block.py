"""``LayerBlock``: a block that is described by its layers, as people write one of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..dispatch import Decision, plain, refuse_call
from .behaviour import Fused, block_of, plain_forward
from .block import Block, Reads, Route
from .builder import Builder
from .convolutions import decide_convolution, run_convolution
from .errors import NotNow, Unfusable
from .layers import ConvBNAct
from .structure import Structure


class Plan(NamedTuple):
    """The structure that was read, and the layers."""

    structure: Structure
    layers: object


class LayerBlock(Block):
    """A block of your own: what it looks like, its layers, what it computes of them, and its steps.

    A class that derives from it defines ``kind``, ``Parts``, :meth:`find`, :meth:`read`, :meth:`compute` and, for
    inference in one operator call, :meth:`lower`; ``ghost_ops.register_block`` makes it known. ``docs/blocks.md`` has
    an example.

    Attributes:
        kind: what ``explain`` calls such a module.
        Parts: a frozen dataclass of the paths of its pieces. Every string in it, and in its tuples, is a path.
        holds_blocks: whether its pieces are blocks themselves, such as Ghost modules. These are fused first.
        priority: blocks of a higher priority are looked for first.
    """

    verifies_program = True

    @classmethod
    def find(cls, module: nn.Module) -> object | None:
        """The parts of a module that looks like this block; None of any other.

        Cheap: it is asked about every module of a net. What it finds is held against :meth:`compute` afterwards.

        Raises:
            Unfusable: the module looks like this block but is not one; ``explain`` shows the sentence.
        """
        raise NotImplementedError

    def read(self, structure: Structure, parts: Any) -> tuple:
        """The layers that :meth:`compute` and :meth:`lower` take, read from the children of a module.

        Args:
            structure: ``structure.conv_bn_act(conv, norm, act)`` reads a convolution with what follows it by their
                paths, ``structure.find(path)`` any other child. What is read is watched from then on: hooks,
                parametrisations, swapped children send the module back to PyTorch.
            parts: what :meth:`find` has found.

        Returns:
            a tuple, best a named one, of ``ConvBNAct`` and modules.

        Raises:
            Unfusable: no operator computes one of them.
        """
        raise NotImplementedError

    def compute(self, layers: Any, x: torch.Tensor) -> torch.Tensor:
        """What the module computes of x, N x C x H x W, in training and wherever no program serves.

        It calls layers by :meth:`call`, and PyTorch's functions.
        """
        raise NotImplementedError

    def lower(self, layers: Any, builder: Builder, source: int) -> int:
        """Write the steps that compute the module in eval, by the methods of ``builder``.

        Args:
            source: slot of the input; it must not be released.

        Returns:
            slot of the output.

        Raises:
            Unfusable: no program computes the module as it is now.
        """
        raise Unfusable(f"a {self.kind} has no program")

    def in_channels(self, layers: Any) -> int:
        """Number of channels of the input: those of the first layer, where a block does not say otherwise."""
        first = layers[0]
        if isinstance(first, ConvBNAct):
            return first.conv.in_channels
        block = block_of(first)
        if block is None:
            raise TypeError(f"{type(self).__name__}.in_channels: expected a method, got none, and no first convolution")
        return block.channels(first)

    @staticmethod
    def call(layer: ConvBNAct | nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The output of a layer by the fastest operator: depthwise convolutions by ours, modules as they are."""
        if isinstance(layer, ConvBNAct):
            return run_convolution(decide_convolution(layer, x), x)
        return layer(x)

    @staticmethod
    def lower_child(child: nn.Module, builder: Builder, source: int, **options: object) -> int:
        """Write the steps of a fused child, such as a Ghost module; returns the slot of its output.

        Args:
            options: of a Ghost module: ``residual``, ``scaled`` and ``squeeze``, as of ``Builder.ghost``.

        Raises:
            Unfusable: the child is not fused.
        """
        block = block_of(child)
        if block is None:
            raise Unfusable(f"one of its children is a {type(child).__name__} that is not fused")
        return block.lower_module(child, builder, source, keep_source=True, **options)

    # How it is recognised and run

    @classmethod
    def match(cls, candidate: object) -> tuple[object, Reads] | None:
        parts = cls.find(candidate.module)
        if parts is None:
            return None
        if not isinstance(parts, cls.Parts):
            raise TypeError(f"{cls.__name__}.find: expected {cls.Parts.__name__} or None, got {parts!r}")
        block = cls(parts)
        probe = candidate.probe(block.in_channels(block.read(Structure(candidate.module), parts)))
        probe.observe()
        copied = block.read(Structure(probe.copy, is_probed=True), parts)

        def compose(x: torch.Tensor) -> torch.Tensor:
            return block.compute(copied, x)

        if not probe.computes(compose):
            raise Unfusable(f"{cls.__name__}.compute computes something else: {probe.difference(compose)}")
        probe.confirm(compose, f"it does not compute what {cls.__name__}.compute does", cls)
        return parts, candidate.reads(probe)

    def describe(self, module: nn.Module, structure: Structure) -> Plan:
        layers = self.read(structure, self.parts_of(module))
        return Plan(structure.close(), layers)

    def channels(self, module: nn.Module) -> int:
        return self.in_channels(self.current_plan(module).layers)

    def lower_module(
        self, module: nn.Module, builder: Builder, source: int, *, keep_source: bool = False
    ) -> int:  # fmt: skip
        out = self.lower(self.current_plan(module).layers, builder, source)
        builder.release(*[] if keep_source else [source])
        return out

    def plans(self, module: nn.Module) -> tuple:
        plan = self.current_plan(module)
        inner = [layer for layer in _flat(plan.layers) if isinstance(layer, Fused)]
        return plan, *[found for layer in inner for found in block_of(layer).plans(layer)]

    def route_without_program(self, module: nn.Module, x: torch.Tensor, why: str | None) -> Route:
        reasons = () if why is None else (why,)
        try:
            refusal = refuse_call(x)
            if refusal is not None:
                raise NotNow(refusal)
            layers = self.current_plan(module).layers
        except Unfusable as reason:
            return Route(plain(str(reason)), lambda: plain_forward(module, x))
        return Route(Decision("its layers in turn", "reference", None, reasons), lambda: self.compute(layers, x))


def _flat(layers: object) -> Iterable[object]:
    """The layers, those in tuples inside included."""
    if isinstance(layers, (tuple, list)) and not isinstance(layers, ConvBNAct):
        for layer in layers:
            yield from _flat(layer)
    else:
        yield layers
