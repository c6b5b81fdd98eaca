"""``CompiledProgram``: the steps of a fused module, and where their parameters are."""

from __future__ import annotations

from operator import is_

import torch

from ..program import decode
from . import batch_norm
from .batch_norm import BATCH
from .errors import NotNow
from .layers import ParameterSource
from .parameters import check_parameters


class CompiledProgram:
    """A program, and the sources of its parameters.

    Attributes:
        code: the list of its steps.
        sources: in the order of the parameters.
        channels: of the input.
    """

    def __init__(self, code: list[int], sources: list[ParameterSource]) -> None:
        self.code = code
        self.sources = sources
        self.channels = decode(code)[0].channels
        self._key = [_key(source, source.tensors()) for source in sources]
        self._entries = [entry for source in sources for entry in source.entries() if entry is not None]
        self._norms = [source.norm for source in sources if source.norm is not None]
        self._computes = any(source.parts()[0] is not source for source in sources)
        self._numbers = [_constants(source) for source in sources]
        self._seen: tuple | None = None

    def parameters(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        """The parameters as they are now; None where the program must be built anew.

        At batch 1 a check of everything costs as much as the arithmetic of a small block, so that what was checked for
        the same tensors is only looked through for what may have changed since.

        Raises:
            Unfusable: a kernel must not read one of them, or PyTorch would refuse it beside x.
        """
        try:
            now = [entries[name] for entries, name in self._entries]
        except KeyError as name:
            raise NotNow(f"{name} of one of its children is not a parameter or buffer of its own") from None
        if self._seen is not None and not torch._C._is_any_autocast_enabled():
            then, dtype, found, dtypes, shapes = self._seen
            same = dtype is x.dtype and x.is_cpu and all(map(is_, now, then))
            if same and [t.dtype for t in found] == dtypes and [t.shape for t in found] == shapes:
                for norm in self._norms:
                    if norm.training:
                        raise NotNow("one of its BatchNorms uses batch statistics")
                same = [_constants(source) for source in self.sources] == self._numbers
                return found if same else None
        found = self._checked(x)
        if found is not None:
            seen = now, x.dtype, found, [t.dtype for t in found], [t.shape for t in found]
            self._seen = None if self._computes else seen
        return found

    def _checked(self, x: torch.Tensor) -> list[torch.Tensor] | None:
        found: list[torch.Tensor] = []
        for source, key in zip(self.sources, self._key, strict=True):
            for part in source.parts():
                own = part.tensors()
                check_parameters(x, own[:2], own[2:])
            tensors = source.tensors()
            if _key(source, tensors) != key:
                return None
            if batch_norm.statistics(source.norm) is BATCH:
                raise NotNow("one of its BatchNorms uses batch statistics")
            found += [t for t in tensors if t is not None]
        return found


def _key(source: ParameterSource, tensors: tuple[torch.Tensor | None, ...]) -> tuple:
    """What a program's steps depend on."""
    weight = tensors[0]
    return (weight is not None and weight.shape, *(t is None for t in tensors), *_constants(source))


def _constants(source: ParameterSource) -> tuple[float | None, float]:
    """The numbers that its steps hold."""
    return source.norm and source.norm.eps, source.slope()
