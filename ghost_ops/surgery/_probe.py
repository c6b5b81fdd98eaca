"""Runs a copy of an unknown module: which children it calls, in which order, and what comes out.

A composition of its children is held against it: values, gradients and which results need them, in training and in
eval, on inputs of several sizes, without gradients, with NaN, infinite and huge values, and under autocast
(``_inputs``). What a forward does besides (``_observe``) and what it leaves behind (``_state``) is seen on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ..activations import Function
from ..fused.block import Block
from ..fused.errors import first_line
from ..fused.layers import NORMS, is_activation, is_conv, is_norm
from ._compare import agree, difference
from ._copy import Refused, drawn_copy
from ._fit import fit
from ._inputs import Inputs, ambient, autocast
from ._observe import Recorder, Watch
from ._state import Generators, State

_KNOWN = (nn.Conv2d, nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict, *NORMS)
_FAR = 30.0  # factor of an input
_ROUGH = 0.05  # between results under bfloat16 autocast
_GRADIENTS = 1e-4  # between gradients in float32
Forward = Callable[[torch.Tensor], torch.Tensor]


class Call(NamedTuple):
    """One call of a child that calls no others: its path inside the probed module, and the child's copy."""

    path: str
    module: nn.Module


@dataclass(frozen=True)
class Trial:
    """One way of running a forward.

    Attributes:
        x: the input.
        training: the mode of the module.
        grad: whether gradients are on.
        x_grad, parameters_grad: what of it needs gradients.
        autocast: whether autocast to bfloat16 is on.
    """

    x: torch.Tensor
    training: bool = False
    grad: bool = False
    x_grad: bool = False
    parameters_grad: bool = False
    autocast: bool = False


class Result(NamedTuple):
    """What came out: values, gradients of the input and of every parameter, and whether the values need any."""

    out: torch.Tensor
    gradients: list[torch.Tensor | None]
    requires_grad: bool


class Probe:
    """A copy of ``module`` to be run.

    Args:
        module: stays as it is.
        channels: number of channels of its input, N x channels x H x W.
        units: paths of children that are known and called as a whole: what they do inside is not recorded.

    Raises:
        Refused: it cannot be copied and run so.
    """

    def __init__(self, module: nn.Module, channels: int, units: Iterable[str] = ()) -> None:
        self.units = tuple(units)
        self._generator = torch.Generator().manual_seed(0)
        self._cotangents: dict[tuple, torch.Tensor] = {}
        self._theirs: list[Result] = []
        self._far: tuple[list[Trial], list[torch.Tensor]] | None = None
        with ambient():
            self.copy = drawn_copy(module, self._generator)
            self._modules, self._parameters = list(self.copy.modules()), list(self.copy.parameters())
            constants = {size for t in (*self._parameters, *self.copy.buffers()) for size in t.shape} | {channels}
            self.watch = Watch(frozenset(constants))
            self._recorder = Recorder(self.watch)
            self._trace: list[Call] | None = None
            self._open: list[tuple[str, int]] = []
            self._listen()
            self._inputs = Inputs(self._generator, module, channels, constants)

    @property
    def input(self) -> torch.Tensor:
        """What it is run on first."""
        return self._inputs.first

    @property
    def reads(self) -> tuple[tuple[str, str], ...]:
        """Path and name of every plain attribute that the forwards read which fused code skips."""
        return tuple(self._recorder.values)

    def observe(self) -> tuple[list[torch.Tensor], list[Call]]:
        """What it makes of the input in training and in eval, and the calls of its children: the same in both.

        Raises:
            Refused: it cannot be run, or it calls other children in training than in eval.
        """
        try:
            return self._observe()
        except Refused as refused:
            cast = self.watch.casts()
            if cast is not None:
                self.watch.object(f"its forward casts tensors ({cast!r})")
            self._to(torch.float32)  # what cannot be run in float64 may hold tensors of its own in float32
            try:
                return self._observe()
            except Refused:
                self.refuse()
                raise refused from None

    def _observe(self) -> tuple[list[torch.Tensor], list[Call]]:
        self._theirs, self._far, traces = [], None, []
        with ambient(), self._noting():
            for trial in self._first():
                self._trace = []
                traces.append(self._trace)
                try:
                    self._theirs.append(self._run(self._watched, trial))
                finally:
                    self._trace = None
        if traces[0] != traces[1]:
            raise Refused("it calls other children in training than in eval")
        return [result.out for result in self._theirs], traces[0]

    def computes(self, compose: Forward, far: bool = False) -> bool:
        """Whether ``compose`` gives the same values in eval; a cheap question. ``far``: for large inputs too."""
        with ambient():
            trials, theirs = self._values() if far else ([Trial(self.input)], [self._theirs[1].out])
            ours = [self._ours(compose, trial) for trial in trials]
        return all(mine is not None and agree(mine.out, out) for mine, out in zip(ours, theirs))

    def function_of(self, before: Forward, channels: slice, factor: Forward | None = None) -> Function | None:
        """The activation that makes these channels of the output in eval of what ``before`` makes of the input.

        Args:
            before: the children put together as far as it is known.
            channels: which of the output.
            factor: what the output is then multiplied by, in its shape; None for nothing.
        """
        with ambient():
            trials, theirs = self._values()
            ours = [self._ours(before, trial) for trial in trials]
            factors = [] if factor is None else [self._ours(factor, trial) for trial in trials]
            if None in ours or None in factors:
                return None
            after = [out[:, channels] for out in theirs]
            return fit([result.out for result in ours], after, [result.out[:, channels] for result in factors] or None)

    def _values(self) -> tuple[list[Trial], list[torch.Tensor]]:
        """What it computes in eval, for inputs that reach beyond where activations bend too."""
        if self._far is None:
            trials = [Trial(self.input), Trial(_FAR * self.input)]
            self._far = trials, [self._run(self._watched, trial).out for trial in trials]
        return self._far

    def difference(self, compose: Forward) -> str:
        """How far the values of ``compose`` are from the module's in eval, as a phrase."""
        with ambient():
            ours = self._ours(compose, Trial(self.input))
        return "it fails" if ours is None else difference(ours.out, self._theirs[1].out)

    def confirm(self, compose: Forward, mismatch: str, kind: type[Block]) -> None:
        """Make sure that ``compose`` can stand in for the forward in every respect; the cheap questions come first.

        Args:
            compose: the children put together.
            mismatch: the sentence for a forward that computes something else.
            kind: what it should compute.

        Raises:
            Refused: it cannot.
        """
        self.refuse()
        with ambient():
            reason = next(self._differences(compose, mismatch), None)
            if reason is None:
                self._to(torch.float32)
                try:
                    with self._noting():
                        further = self._further_differences(compose, kind)
                        reason = next((r for r in further if r is not None or self.watch.objections), None)
                except Refused as refused:
                    reason = str(refused)
        self.refuse()
        reason = reason or self._recorder.unwatchable()
        if reason is not None:
            raise Refused(reason)

    def explain(self, mismatch: str) -> str:
        """The sentence for a forward that computes something else, with what may be the cause."""
        with ambient(), self._noting():
            again = self._run(self._watched, self._first()[1])
        if not agree(again.out, self._theirs[1].out):
            return "its results differ from one call to the next"
        return mismatch + self.watch.explain()

    def refuse(self) -> None:
        """Raise ``Refused`` if its forward was seen to do something that fused code does not."""
        if self.watch.objections:
            raise Refused(self.watch.objections[0])

    # Trials

    def _first(self) -> list[Trial]:
        return [Trial(self.input, training, True, True, True) for training in (True, False)]

    def _differences(self, compose: Forward, mismatch: str) -> Iterator[str | None]:
        """Why ``compose`` cannot stand in, as seen from values in float64."""
        for trial, theirs in zip(self._first(), self._theirs):
            ours = self._ours(compose, trial)
            if ours is None or not agree(ours.out, theirs.out):
                yield self.explain(mismatch)

    def _further_differences(self, compose: Forward, kind: type[Block]) -> Iterator[str | None]:
        """After each trial in float32, in which PyTorch's convolutions are fast, why it cannot, or None."""
        one, *others = self._inputs.others(bool(self.watch.unfollowed))
        both = Trial(one, False, True, True, True)
        for trial in (Trial(self.input, True, True, True, True), both):
            theirs, ours = self._run(self._watched, trial, True), self._ours(compose, trial, True)
            if ours is None or not agree(ours.out, theirs.out):
                yield f"on an input of {_size(trial.x)} it computes something else{self.watch.explain()}"
            elif theirs.requires_grad != ours.requires_grad or not _all_agree(ours.gradients, theirs.gradients):
                yield f"its gradients are not those of a {kind.kind}{self.watch.explain()}"
            yield None
            again = self._run(self._watched, Trial(trial.x, trial.training))
            yield None if agree(again.out, theirs.out) else "it computes something else without gradients"
        for x_grad, parameters_grad in ((True, False), (False, True), (False, False)):
            some = self._run(self._watched, Trial(one, False, True, x_grad, parameters_grad), True)
            wanted = [t if x_grad else None for t in theirs.gradients[:1]]
            wanted += [t if parameters_grad else None for t in theirs.gradients[1:]]
            if not agree(some.out, theirs.out) or not _all_agree(some.gradients, wanted):
                yield "it computes something else where only its input or only its parameters need gradients"
            elif some.requires_grad != any(t is not None for t in wanted):
                yield "whether its result needs gradients does not follow from its input and its parameters"
            yield None
        for x in others:
            yield self._compare(compose, Trial(x), f"on an input of {_size(x)} it computes something else")
        hard = Trial(self._inputs.hard())
        yield self._compare(compose, hard, "with NaN, infinite or huge values it computes something else")
        for dtype in kind.autocast_dtypes:
            trial = Trial(one.to(dtype), autocast=True)
            yield self._compare(compose, trial, "under autocast it computes something else", _ROUGH)

    def _compare(self, compose: Forward, trial: Trial, reason: str, tolerance: float | None = None) -> str | None:
        for _ in range(3 if trial.autocast else 1):  # with AMX some of PyTorch's bfloat16 convolutions give stray NaN
            theirs, ours = self._run(self._watched, trial), self._ours(compose, trial)
            if ours is not None and agree(ours.out, theirs.out, tolerance):
                return None
        return reason + self.watch.explain()

    # Running

    def _watched(self, x: torch.Tensor) -> torch.Tensor:
        self.watch.quiet = 1
        self._open.clear()
        with self.watch:
            return self.copy.forward(x)

    def _ours(self, compose: Forward, trial: Trial, backward: bool = False) -> Result | None:
        """What ``compose`` makes of it, or None where the children cannot be put together so."""
        self.watch.quiet = 1
        self._open.clear()
        try:
            return self._run(compose, trial, backward)
        except Refused:
            return None

    def _run(self, forward: Forward, trial: Trial, backward: bool = False) -> Result:
        for module in self._modules:
            module.__dict__["training"] = trial.training  # not by train(), which may be the class's own
        for parameter in self._parameters:
            parameter.requires_grad_(trial.parameters_grad)
        leaf = trial.x.clone().requires_grad_(trial.x_grad)
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(trial.grad))
            x = leaf.clone()  # no leaf, so that writing into it is seen rather than refused
            if trial.autocast:
                stack.enter_context(autocast())
            try:
                out = forward(x)
            except Exception as error:
                raise Refused(f"running it on a {_size(x)} input failed ({first_line(error)})") from error
        if not isinstance(out, torch.Tensor) or out.dim() != 4:
            raise Refused("it does not return one N x C x H x W tensor")
        if not _equal(x, leaf):
            raise Refused("it writes into its input")
        if vars(out) or vars(x):
            raise Refused("it gives tensors attributes of their own")
        return Result(out.detach(), self._gradients(out, leaf) if backward else [], out.requires_grad)

    def _gradients(self, out: torch.Tensor, leaf: torch.Tensor) -> list[torch.Tensor | None]:
        inputs = [leaf, *self._parameters]
        if not out.requires_grad:
            return [None] * len(inputs)
        wanted = [t for t in inputs if t.requires_grad]
        try:
            found = iter(torch.autograd.grad(out, wanted, self._cotangent(out), allow_unused=True))
        except Exception as error:
            raise Refused(f"its gradients cannot be computed ({first_line(error)})") from error
        return [next(found) if t.requires_grad else None for t in inputs]

    def _cotangent(self, out: torch.Tensor) -> torch.Tensor:
        key = (*out.shape, out.dtype)
        if key not in self._cotangents:
            self._cotangents[key] = self._inputs.cotangent(out)
        return self._cotangents[key]

    def _to(self, dtype: torch.dtype) -> None:
        """Change what the copy and its input are made of."""
        for t in (*self._parameters, *self.copy.buffers()):
            if t.is_floating_point():
                t.data = t.data.to(dtype)
        self._inputs.to(dtype)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note what is no longer as it was afterwards, and put it back."""
        state, generators = State(self.copy), Generators()
        try:
            yield
        finally:
            if generators.have_moved():
                self.watch.object("its forward draws random numbers", first=True)
                generators.restore()
            changed = state.difference()
            if changed is not None:
                self.watch.object(f"its forward leaves something behind: it changes {changed}", first=True)
                state.restore()

    def _is_inside(self, path: str) -> bool:
        return any(path == unit or path.startswith(f"{unit}.") for unit in self.units)

    def _listen(self) -> None:
        """Follow the calls of the children, and look away inside of those that are known."""
        paths: dict[nn.Module, list[str]] = {}
        for path, child in self.copy.named_modules(remove_duplicate=False):
            if path and not any(path.startswith(f"{unit}.") for unit in self.units):
                paths.setdefault(child, []).append(path)

        def enter(child: nn.Module, _args: object) -> None:
            if self._trace is not None:
                inside = f"{self._open[-1][0]}." if self._open else ""  # a shared child has many paths: the nearest
                path = next((p for p in paths[child] if p.startswith(inside)), paths[child][0])
                self._open.append((path, len(self._trace)))
            self.watch.quiet += child in quiet

        def leave(child: nn.Module, _args: object, _out: object) -> None:
            self.watch.quiet -= child in quiet
            if self._trace is not None:
                path, before = self._open.pop()
                if len(self._trace) == before:
                    self._trace.append(Call(path, child))

        quiet = {child for child in paths if _is_known(child) or any(self._is_inside(p) for p in paths[child])}
        for child in (self.copy, *paths):
            if child not in quiet and type(child) not in _KNOWN:
                self._recorder.record(child, paths.get(child, [""])[0])
        for child in paths:
            child.register_forward_pre_hook(enter)
            child.register_forward_hook(leave)


def _is_known(module: nn.Module) -> bool:
    """Whether fused code reads what it needs of it live: nothing is to be watched."""
    if type(module) in _KNOWN or is_conv(module) or is_norm(module):
        return not module._modules
    return is_activation(module)


def _size(x: torch.Tensor) -> str:
    return " x ".join(str(n) for n in x.shape)


def _all_agree(ours: list[torch.Tensor | None], theirs: list[torch.Tensor | None]) -> bool:
    return all(agree(a, b, _GRADIENTS) for a, b in zip(ours, theirs, strict=True))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
