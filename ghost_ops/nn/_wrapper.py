"""``Wrapper``: what all fused modules share: taking the place of somebody's module, and giving it back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

_OWN = ("_source", "_source_parts", "_plan", "_program", "memory")
_TRANSIENT = ("_plan", "_program", "_compiled_call_impl")  # of one object: neither copied nor pickled


class Wrapper(nn.Module):
    """Base of the fused modules, before the plain class in the method resolution order.

    A wrapper of a foreign module has the very state of it: the same dictionaries of children, parameters, buffers and
    hooks, the same attributes. Whatever is done to either is done to both, paths and keys of the net do not change, and
    copies and pickles keep it so. The plain computation is the source's own forward.
    """

    _source: nn.Module | None = None
    _source_parts: object = None
    _plan: tuple | None = None

    @classmethod
    def wrap(cls, source: nn.Module, parts: object) -> Self:
        """A fused module in the place of ``source``, whose children, parameters and hooks it shares.

        Args:
            source: a module that computes what this class computes; the caller has made sure of it.
            parts: where its pieces are.

        Raises:
            TypeError: a source that is no module or is a fused module already.
            ValueError: a path in ``parts`` that does not exist, or a source whose forward was replaced.
        """
        if not isinstance(source, nn.Module) or isinstance(source, Wrapper):
            raise TypeError(f"{cls.__name__}.wrap: source: expected a plain module, got {type(source).__name__}")
        if "forward" in source.__dict__:
            raise ValueError(f"{cls.__name__}.wrap: source: expected its class's forward, got one set on the instance")
        for path in cls._paths(parts):
            try:
                source.get_submodule(path)
            except AttributeError:
                raise ValueError(
                    f"{cls.__name__}.wrap: parts: expected paths inside a {type(source).__name__}, got {path!r}"
                ) from None
        fused = cls.__new__(cls)
        fused.__dict__.update(source.__dict__)
        fused.__dict__.pop("_compiled_call_impl", None)
        fused.__dict__.update(_source=source, _source_parts=parts)
        return fused

    def unwrap(self) -> nn.Module:
        """The plain module in its present state: the source, or one of the plain class made of the same children."""
        source = self._source
        if source is None:
            source = self._plain_class.__new__(self._plain_class)
        source.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _OWN})
        return source

    def parts(self) -> object:
        """Where its pieces are."""
        return super().parts() if self._source is None else self._source_parts

    def train(self, mode: bool = True) -> Self:
        if self._source is not None:
            self._source.training = mode
        return super().train(mode)

    def why(self, x: torch.Tensor) -> str:
        """Which backend would run on an input such as x, and, if none of the operators does, why not."""
        raise NotImplementedError

    @staticmethod
    def _paths(parts: object) -> list[str]:
        raise NotImplementedError

    def _describe(self) -> tuple:
        """The plan: its ``Structure`` first; raises ``Unfusable``."""
        raise NotImplementedError

    def _current_plan(self) -> tuple:
        """The plan, made anew where something inside has changed; raises ``Unfusable``."""
        if torch.compiler.is_compiling():  # the compiler guards what it read
            return self._describe()
        plan = self.__dict__.get("_plan")
        if plan is None or plan[0].has_changed():
            plan = self.__dict__["_plan"] = None
            plan = self.__dict__["_plan"] = self._describe()
        return plan

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        """The computation of the plain module, through its children."""
        return super().forward(x) if self._source is None else self._source.forward(x)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _TRANSIENT}

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        for name in ("_plan", "_program"):
            replica.__dict__.pop(name, None)
        if self._source is not None:
            source = replica.__dict__["_source"] = self._source._replicate_for_data_parallel()
            for name in ("_modules", "_parameters", "_buffers"):
                source.__dict__[name] = replica.__dict__[name]
        return replica
