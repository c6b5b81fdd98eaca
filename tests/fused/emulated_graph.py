"""CUDA graphs without CUDA: what a capture records on the CPU, and replays into the very tensors that it returned.

As on a device

- nothing is executed in a capture: tensors from outside keep their values, those made within hold garbage (NaN) until
  the first replay;
- a replay writes what the capture returned, and whatever shares a pool with it is garbage from then on;
- a replay moves no version counter;
- what the host would wait for makes the capture fail.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ghost_ops.backends.triton import launch
from ghost_ops.fused.graph import Captured

_NO_KERNEL = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def tensors_of(values: object) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_of(value)


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def _spoil(t: torch.Tensor) -> None:
    """Put garbage into all of the memory of a tensor."""
    whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
    whole.fill_(torch.nan if t.dtype.is_floating_point else 99)


def _same_version(t: torch.Tensor) -> AbstractContextManager:
    return nullcontext() if t.is_inference() else torch.autograd._unsafe_preserve_version_counter(t)


class _Recorder(TorchDispatchMode):
    sees_launches = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []  # operator or launch, arguments, the results that are new tensors
        self.made: dict[int, torch.Tensor] = {}
        self.outside: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # what it did not make, with the values before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        inputs = list(tensors_of((*args, *kwargs.values())))
        self._keep(inputs)
        before, launch.instead = launch.instead, None  # what an operator launches is part of it
        try:
            result = func(*args, **kwargs)
        finally:
            launch.instead = before
        known = {_storage(t) for t in inputs}
        new = [t for t in tensors_of(result) if _storage(t) not in known]
        self.made.update({_storage(t): t.detach() for t in new})
        if func._schema.name.partition("::")[2] not in _NO_KERNEL:
            self.calls.append((func, args, kwargs, [t.detach() for t in new]))
        return result

    def _keep(self, inputs: list[torch.Tensor]) -> None:
        for t in inputs:  # all of them, since schemas do not tell all that is written
            if _storage(t) not in self.made and _storage(t) not in self.outside:
                self.outside[_storage(t)] = t.detach(), t.detach().clone()

    def launched(self, kernel: object, grid: tuple, arguments: dict, warps: int, stages: int) -> None:
        """A kernel of Triton's that is started past PyTorch's operators: it is interpreted."""
        with _disable_current_modes():
            self._keep(list(tensors_of(list(arguments.values()))))
            run = lambda: kernel[grid](**arguments, num_warps=warps, num_stages=stages)
            self.calls.append((run, (), {}, []))
            run()

    def undo(self) -> None:
        for t, value in self.outside.values():
            with _same_version(t):
                t.copy_(value)
        for t in self.made.values():
            _spoil(t)


class _Graph:
    """One that was captured."""

    def __init__(self, recorder: _Recorder, pool: weakref.WeakSet, log: list) -> None:
        self.recorder = recorder
        self.pool = pool
        self.log = log
        pool.add(self)

    def replay(self) -> None:
        self.log.append(self)
        mine = self.recorder
        with ExitStack() as stack:
            stack.enter_context(torch._C._AutoDispatchBelowAutograd())
            stack.enter_context(torch.autocast("cpu", enabled=False))
            for t, _ in mine.outside.values():
                stack.enter_context(_same_version(t))
            for other in self.pool:
                for storage, t in other.recorder.made.items() if other is not self else ():
                    if storage not in mine.outside:
                        _spoil(t)
            for func, args, kwargs, results in mine.calls:
                result, inputs = func(*args, **kwargs), {_storage(t) for t in tensors_of((*args, *kwargs.values()))}
                new = [t for t in tensors_of(result) if _storage(t) not in inputs]
                for old, value in zip(results, new, strict=True):
                    old.copy_(value)


class Event:
    def __init__(self, done: bool) -> None:
        self.done = done

    def query(self) -> bool:
        return self.done


class EmulatedGraphs:
    """Stands in the place of ``ghost_ops.fused.graph.CudaGraphs``.

    Attributes:
        replays: the graphs that were replayed, in order.
        captures: how many were captured.
        current: name of the caller's stream.
        waits: which stream waited for which.
        device_is_idle: whether events are over at once.
        in_capture: whether the user captures a graph of his own.
    """

    def __init__(self) -> None:
        self.replays: list[_Graph] = []
        self.captures = 0
        self.pools = 0
        self.current: object = "main"
        self.waits: list[tuple[object, object]] = []
        self.events: list[Event] = []
        self.device_is_idle = True
        self.in_capture = False
        self._capturing = threading.local()

    def refuse(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"its input is on {device}"

    def is_capturing(self) -> bool:
        return self.in_capture or getattr(self._capturing, "now", False)

    def new_pool(self) -> weakref.WeakSet:
        self.pools += 1
        return weakref.WeakSet()

    def stream(self, device: torch.device) -> object:
        return self.current

    def wait(self, stream: object, earlier: object) -> None:
        self.waits.append((stream, earlier))

    def event(self, stream: object) -> Event:
        self.events.append(Event(self.device_is_idle))
        return self.events[-1]

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, "aside"
        try:
            yield
        finally:
            self.current = before

    def capture(self, run: Callable[[], object], pool: weakref.WeakSet) -> Captured:
        assert self.current == "aside" and not torch.is_autocast_cache_enabled()
        self.captures += 1
        recorder = _Recorder()
        self._capturing.now, launch.instead = True, recorder.launched
        try:
            with recorder:
                result = run()
        finally:
            self._capturing.now, launch.instead = False, None
            with torch._C._AutoDispatchBelowAutograd():
                recorder.undo()
        return Captured(_Graph(recorder, pool, self.replays).replay, result)
