"""A module that nobody knows, run on a copy: which children it calls, in which order, and what comes out.

The copy is in float64 on the CPU and has random parameters and statistics of the same shapes, so that neither a large
net nor a freshly initialised one (ones and zeros, where half of all mistakes are invisible) is any different.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin

from ..nn._structure import SYNCED

TOLERANCE = 1e-9  # of float64 results that should differ by rounding alone
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_NORMS = (nn.modules.batchnorm._NormBase,)


class Refused(Exception):
    """Why a module is left alone, in a sentence."""


class Call(NamedTuple):
    """One call of a child that calls no others: its path inside the probed module, and the child's copy."""

    path: str
    module: nn.Module


class Probe:
    """A copy of ``module`` to be run.

    Args:
        module: stays as it is.
        channels: of its input, N x channels x H x W.
        units: paths of children that are called as a whole: what they call inside is not recorded.

    Raises:
        Refused: it cannot be copied and run so.
    """

    def __init__(self, module: nn.Module, channels: int, units: Iterable[str] = ()) -> None:
        _check(module)
        self.generator = torch.Generator().manual_seed(0)
        self.units = tuple(units)
        substitutes = self._substitutes(module)
        try:
            self.copy = copy.deepcopy(module, substitutes)
        except Exception as error:
            raise Refused(f"it cannot be copied ({_first_line(error)})") from error
        for child in self.copy.modules():
            if isinstance(child, _NORMS):
                child.momentum = 0.0  # runs in training leave the running statistics alone
            if isinstance(child, SYNCED):  # the copy runs alone, and PyTorch's refuses the CPU
                child.__class__ = nn.BatchNorm2d
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        side = 4 + max((max(c.dilation) * (max(c.kernel_size) - 1) for c in convs), default=0)
        batch = max(2, 64 // channels)  # of few channels more, so that no mistake hides behind dead ones
        self.input = self._normal(batch, channels, side + 1, side) + 2 * self._normal(batch, channels, 1, 1)

    def observe(self) -> tuple[list[torch.Tensor], list[Call]]:
        """What it makes of the input in training and in eval, and the calls of its children: the same in both."""
        traces: list[list[Call]] = []

        def recorded(x: torch.Tensor) -> torch.Tensor:
            traces.append([])
            with self._recording(traces[-1]):
                return self.copy.forward(x)

        results = self.outputs(recorded)
        if traces[0] != traces[1]:
            raise Refused("it calls other children in training than in eval")
        return results, traces[0]

    def outputs(self, run: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """What ``run`` makes of the input in training and in eval."""
        results = []
        for training in (True, False):
            self.copy.train(training)
            x = self.input.clone()
            with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
                try:
                    out = run(x)
                except Exception as error:
                    size = " x ".join(str(n) for n in x.shape)
                    raise Refused(f"running it on a {size} input failed ({_first_line(error)})") from error
            if not isinstance(out, torch.Tensor) or out.dim() != 4:
                raise Refused("it does not return one N x C x H x W tensor")
            if not torch.equal(x, self.input):
                raise Refused("it writes into its input")
            results.append(out)
        return results

    @contextmanager
    def _recording(self, calls: list[Call]) -> Iterator[None]:
        open_calls: list[tuple[str, int]] = []
        paths: dict[nn.Module, list[str]] = {}
        for path, child in self.copy.named_modules(remove_duplicate=False):
            if path and not any(path.startswith(f"{unit}.") for unit in self.units):
                paths.setdefault(child, []).append(path)

        def enter(child: nn.Module, _args: object) -> None:
            inside = f"{open_calls[-1][0]}." if open_calls else ""  # a shared child has many paths: the nearest
            path = next((p for p in paths[child] if p.startswith(inside)), paths[child][0])
            open_calls.append((path, len(calls)))

        def leave(child: nn.Module, _args: object, _out: object) -> None:
            path, before = open_calls.pop()
            if len(calls) == before:
                calls.append(Call(path, child))

        handles = [child.register_forward_pre_hook(enter) for child in paths]
        handles += [child.register_forward_hook(leave) for child in paths]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _substitutes(self, module: nn.Module) -> dict[int, object]:
        """A deepcopy memo: random tensors in the place of parameters and buffers, no hooks in that of hooks."""
        memo: dict[int, object] = {}
        for path, child in module.named_modules():
            for name, value in vars(child).items():
                if "_hooks" in name and isinstance(value, dict):
                    memo[id(value)] = OrderedDict()
            for name, t in (*child._parameters.items(), *child._buffers.items()):
                if t is None or id(t) in memo:
                    continue
                if isinstance(t, UninitializedTensorMixin):
                    raise Refused(f"its child {path!r} is not initialised yet")
                if type(t) not in _PLAIN_TENSORS:
                    raise Refused(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
                new = self._random(child, name, t) if t.is_floating_point() else torch.zeros_like(t, device="cpu")
                memo[id(t)] = nn.Parameter(new, requires_grad=False) if isinstance(t, nn.Parameter) else new
        return memo

    def _random(self, owner: nn.Module, name: str, t: torch.Tensor) -> torch.Tensor:
        if isinstance(owner, _NORMS):  # of a kind that leaves no channel dead behind a ReLU
            uniform = torch.rand(t.shape, dtype=torch.float64, device="cpu", generator=self.generator)
            return uniform + (0.5 if name in ("weight", "running_var") else -0.5)
        fan_in = t[0].numel() if t.dim() > 1 and t.numel() else 1
        return self._normal(*t.shape) / fan_in**0.5

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, device="cpu", generator=self.generator)


def agree(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Whether two lists of results are the same up to rounding in float64."""
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not (a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1):  # written so that NaN is no agreement
            return False
    return True


def _check(module: nn.Module) -> None:
    """What is seen without running: a wrapper has one input and calls the class's forward."""
    if "forward" in vars(module):
        raise Refused("its forward was replaced on the instance")
    if type(module).__call__ is not nn.Module.__call__:
        raise Refused("its class has a __call__ of its own")
    parameters = list(inspect.signature(module.forward).parameters.values())
    if len(parameters) != 1 or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise Refused(f"its forward takes more than one input {inspect.signature(module.forward)}")
    for path, child in module.named_modules():
        if "parametrizations" in child._modules:
            raise Refused(f"its child {path!r} is parametrised")
        if isinstance(child, (nn.Conv2d, nn.Linear)) and path and "weight" not in child._parameters:
            raise Refused(f"the weight of its child {path!r} is computed, not a parameter")
        if "forward" in vars(child):
            raise Refused(f"the forward of its child {path!r} was replaced on the instance")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
