"""CUDA graphs: how they are captured and replayed, and what the graphs of a net share.

``CudaGraphs`` is all that is asked of a device. Tests put an emulation in the place of ``device_graphs``, so that the
rules of :mod:`.graphed` and :mod:`.graphed_block` are tested without one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import NotNow

capturing = threading.Lock()  # PyTorch allows one capture at a time in a process


class Captured(NamedTuple):
    """A graph, and what the function that was captured returned: tensors that each replay writes."""

    replay: Callable[[], None]
    result: object


class CudaGraphs:
    """The CUDA graphs of PyTorch."""

    def __init__(self) -> None:
        self._others: dict[int, torch.cuda.Stream] = {}

    def refuse(self, device: torch.device) -> str | None:
        """Why work on this device cannot be captured; None where it can."""
        return None if device.type == "cuda" else f"its input is on {device}, and a CUDA graph needs a CUDA device"

    def is_capturing(self) -> bool:
        """Whether the caller's stream is being captured."""
        return torch.cuda.is_current_stream_capturing()

    def new_pool(self) -> object:
        """A pool of memory, which the graphs that are captured with it share."""
        return torch.cuda.graph_pool_handle()

    def stream(self, device: torch.device) -> object:
        """The caller's stream on a device."""
        return torch.cuda.current_stream(device)

    def wait(self, stream: object, earlier: object) -> None:
        """Let ``stream`` go on only when what ``earlier`` was given has run."""
        stream.wait_stream(earlier)

    def event(self, stream: object) -> object:
        """Something whose ``query()`` says whether all that ``stream`` was given has run."""
        return stream.record_event()

    def _other_stream(self) -> torch.cuda.Stream:
        """Always the same, since captures share the memory of a pool only where they are of one stream."""
        device = torch.cuda.current_device()
        if device not in self._others:
            self._others[device] = torch.cuda.Stream()
        return self._others[device]

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """Within the block the current stream is another one, which comes after the caller's, and the caller's then
        comes after it; it is the caller's again even where a capture ends in an error."""
        with torch.cuda.device(device):
            before, other = torch.cuda.current_stream(), self._other_stream()
            other.wait_stream(before)
            torch.cuda.set_stream(other)
            try:
                yield
            finally:
                torch.cuda.set_stream(before)
                before.wait_stream(other)

    def capture(self, run: Callable[[], object], pool: object) -> Captured:
        """Capture what ``run`` launches on the current stream, which must be one of ``aside``; nothing is executed.

        Other threads may go on working meanwhile. cuBLAS gets a workspace in the pool: that of the stream would be used
        by other graphs at the same time, and whoever clears workspaces would free it.
        """
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                result = run()
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        return Captured(graph.replay, result)


device_graphs = CudaGraphs()


class GraphPool:
    """What the graphs of a net share, and the order of their replays.

    In its memory lies what no graph reads after its own replay: intermediate results of backward passes, and of forward
    passes that have none. So graphs may overwrite each other's there, as long as one replay comes after the other on
    the device. ``turn`` sees to that, whatever thread and stream a call comes from. Copies and pickles start empty.

    Attributes:
        lock: held while a replay with its copies is put into a stream. Who holds it waits for no other thread.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._streams: dict[torch.device, object] = {}
        self._memory: dict[torch.device, object] = {}
        self._buffers: weakref.WeakValueDictionary[tuple, torch.Tensor] = weakref.WeakValueDictionary()
        self._dropped: list[tuple[object, object]] = []

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def memory(self, device: torch.device) -> object:
        """The pool on a device."""
        if device not in self._memory:
            self._memory[device] = device_graphs.new_pool()
        return self._memory[device]

    def buffer(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor that is free between two replays, of this shape, dtype and layout. Graphs that use it keep it."""
        key = tuple(like.shape), like.stride(), like.dtype, like.device, like.is_inference()
        found = self._buffers.get(key)
        if found is None:
            found = self._buffers[key] = torch.empty_like(like, requires_grad=False)
        return found

    @contextmanager
    def turn(self, device: torch.device) -> Iterator[None]:
        """Within the block the caller's stream comes after the last replay on this device, and no other can begin."""
        with self.lock:
            if self._dropped:
                self._dropped = [(graph, event) for graph, event in self._dropped if not event.query()]
            stream, last = device_graphs.stream(device), self._streams.get(device)
            if last is not None and last != stream:
                device_graphs.wait(stream, last)
            self._streams[device] = stream
            yield

    def drop(self, graphs: Iterable[object]) -> None:
        """Keep graphs, each with its ``device``, that are not wanted any more until their last replays have run."""
        with self.lock:
            for old in graphs:
                last = self._streams.get(old.device)
                if last is not None:
                    self._dropped.append((old, device_graphs.event(last)))


class Capturable(TorchDispatchMode):
    """Within the block an operation that no graph can hold raises ``NotNow``, before a capture comes to it.

    Args:
        device: where all the work has to be.
    """

    sees_launches = True  # it has nothing against them: what runs within the block is what runs without

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotNow(f"it draws random numbers ({func.name()})")
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            raise NotNow(f"what it does depends on values ({func.name()})")
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and t.device != self.device:
                reads = any(isinstance(value, torch.Tensor) and value.device == self.device for value in args)
                if t.dim() or reads:  # a constant on the host is part of a launch
                    raise NotNow(f"it makes a tensor on {t.device} ({func.name()})")
        return result


@contextmanager
def without_autocast_cache() -> Iterator[None]:
    """Within the block autocast casts a parameter each time: a cast that was kept would not be part of a graph."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
