"""What is ready to be timed: a module in one of the three ways, compared with float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .. import surgery
from ..bench.outputs import as_one
from ..bench.results import TOLERANCES, error_of
from ..fused import FrozenProgram
from ..fused.behaviour import block_of
from ..fused.builder import Builder
from ..fused.errors import Unfusable, first_line
from ..surgery.freeze.compare import Arguments
from .count import Traffic


@dataclass
class Ready:
    """A module with its arguments.

    Attributes:
        module: what is called; None where there is none.
        call: calls it on its arguments; None where it is not to be timed.
        why: why it is not.
        error: the largest difference from float64 so far, over the largest element; None where it was not compared.
        bytes: what its operators read and write; None where it is not to be timed.
    """

    module: nn.Module | None = None
    call: Callable[[], object] | None = None
    why: str = ""
    error: float | None = None
    bytes: int | None = None
    _reference: torch.Tensor | None = None
    _tolerance: float = 0.0

    @classmethod
    def of(
        cls, module: nn.Module, source: nn.Module, arguments: Arguments, dtype: torch.dtype, eager: float | None = None
    ) -> Ready:
        """A module that stands for ``source``, compared with it.

        Args:
            module: in the dtype in which it is timed.
            source: the plain module, in any dtype; copies of it run.
            arguments: of any dtype.
            eager: the error of the plain module in ``dtype``, of which twice as much is allowed where that is more than
                ``TOLERANCES`` says; None where it is not known.
        """
        given, exact = arguments.copied(dtype), arguments.copied(torch.float64)
        with torch.no_grad():
            reference = as_one(copy.deepcopy(source).double()(*exact.args, **exact.kwargs))
        tolerance = max(TOLERANCES[str(dtype).removeprefix("torch.")], 2 * (eager or 0.0))
        ready = cls(module, lambda: module(*given.args, **given.kwargs), _reference=reference, _tolerance=tolerance)
        if ready.compare():
            with torch.no_grad(), Traffic() as traffic:
                ready.call()
            ready.bytes = traffic.total
        return ready

    def compare(self) -> bool:
        """Whether a fresh result is that of float64; what is wrong, or fails, is not to be timed any more."""
        if self.call is None:
            return False
        try:
            with torch.no_grad():
                out = as_one(self.call())
        except Exception as error:
            self.call, self.why = None, f"it fails where the plain module does not: {first_line(error)}"
            return False
        self.error = max(self.error or 0.0, error_of(out.detach(), self._reference))
        if self.error > self._tolerance:
            self.call = None
            self.why = f"its result differs from float64 by {self.error:.1e} of the largest element"
        return self.call is not None


def frozen(
    module: nn.Module, source: nn.Module, arguments: Arguments, dtype: torch.dtype, eager: float | None = None
) -> Ready:
    """A module frozen, as programs; not to be timed where nothing of it can be.

    Args:
        module: in eval mode, plain, or fused already, which is faster; it is not changed.
        source: the plain module, which it is compared with.
        arguments: what it is called with.
        eager: as of :meth:`Ready.of`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            made = surgery.freeze(module, dtype, example=arguments.kwargs or arguments.args)
        except ValueError as error:
            return Ready(why=str(error).removeprefix("freeze: "))
    if not any(isinstance(inner, FrozenProgram) for inner in made.modules()):
        said = [str(one.message).removeprefix("freeze: ") for one in caught if one.category is UserWarning]
        return Ready(why="; ".join(said) or "nothing of it was frozen")
    return Ready.of(made, source, arguments, dtype, eager)


def frozen_block(fused: nn.Module, source: nn.Module, arguments: Arguments, dtype: torch.dtype) -> Ready:
    """A fused block as a program of its own, of the steps that ``freeze`` would write for it; faster than ``freeze``.

    Args:
        fused: in eval mode; it is not changed.
        source: the plain module.
        arguments: what it is called with.
    """
    block, builder = block_of(fused), Builder()
    try:
        builder.store(block.lower_module(fused, builder, builder.load(block.channels(fused))))
        module = FrozenProgram.of(builder.finish(), (type(source).__name__,), dtype)
    except Unfusable:
        return frozen(source, source, arguments, dtype)
    return Ready.of(module, source, arguments, dtype)
