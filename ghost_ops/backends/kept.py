"""Tensors that are made of another one and kept until that changes.

A frozen net's packed parameters seldom change, and a device wants them in another form: another order, another dtype.
What is made of them is kept, and made again in the same memory as soon as they are others: another version, another
place, another storage. PyTorch counts a version for every change in place but those past it: through ``.data``, by
another library, by a CUDA graph. After such a change call ``torch.autograd.graph.increment_version``.

Streams and memory: each stream waits once for what another one has made. What is made lives as long as the source, or
as a graph that reads it (``reading``), and its memory is not given to others before the streams that read it are done.

Graphs: a capture of the caller's must read the source itself, since the source may change between two replays and
nothing of ours runs then. Whoever calls ``prepare`` before each replay says so with ``reading``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

Views = TypeVar("Views")
_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


class _Reading(threading.local):
    found: list[Kept] | None = None


_reading = _Reading()


@contextmanager
def reading() -> Iterator[list[Kept]]:
    """Within the block, of this thread, a capture may read what is kept already, which is added to the list.

    Whoever replays the graph holds these as long as the graph, and calls ``prepare`` of each before each replay.
    """
    before, _reading.found = _reading.found, []
    try:
        yield _reading.found
    finally:
        _reading.found = before


def apart(device: torch.device, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What ``call`` returns, made in the caller's stream by another thread.

    There no mode of the caller's holds, nor is memory taken from the pool of a graph that the caller prepares, as
    ``torch.compile`` does: such a pool may give the memory away.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def run() -> torch.Tensor:
        with torch.no_grad():
            if stream is None:
                return call()
            with torch.cuda.device(device), torch.cuda.stream(stream):
                return call()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


class Kept(Generic[Views]):
    """What was made of a source, which it does not hold.

    Args:
        source: a tensor that counts versions.
        make: makes a tensor of the source, always of the same size and dtype; must not hold the source.
        view: of the source and that tensor, what a caller wants: views of the latter.

    Attributes:
        views: the result of ``view``; of what the source was when ``prepare`` was called last.
    """

    def __init__(
        self,
        source: torch.Tensor,
        make: Callable[[torch.Tensor], torch.Tensor],
        view: Callable[[torch.Tensor, torch.Tensor], Views],
    ) -> None:
        self._source = TensorWeakRef(source)
        self._device = source.device
        self._make = make
        self._lock = threading.Lock()
        self._state, self._storage = _state_of(source), _storage_of(source)
        self._made = apart(self._device, lambda: make(source))
        self.views = view(source, self._made)
        self._has_made()

    def prepare(self) -> None:
        """See that ``views`` are of what the source is now, for what the current stream does next."""
        source = self._source()
        with self._lock:
            if source is not None and self._state != (state := _state_of(source)):
                with torch.no_grad():
                    self._made.copy_(self._make(source))
                self._state, self._storage = state, _storage_of(source)
                self._has_made()
            elif self._device.type == "cuda":
                raw = torch._C._cuda_getCurrentRawStream(self._device.index)
                if raw not in self._streams:
                    stream = torch.cuda.current_stream(self._device)
                    stream.wait_event(self._event)
                    self._made.record_stream(stream)
                    self._streams.add(raw)

    def _has_made(self) -> None:
        """The current stream has what was made; others have to wait for it."""
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            self._event = stream.record_event()
            self._made.record_stream(stream)
            self._streams = {stream.cuda_stream}


def _storage_of(source: torch.Tensor) -> StorageWeakRef:
    """While this exists no other storage has the address of the source's, even where that is gone."""
    return StorageWeakRef(source.untyped_storage())


def _state_of(source: torch.Tensor) -> tuple[int, ...]:
    return source._version, source.data_ptr(), source.untyped_storage()._cdata


class KeptOf(Generic[Views]):
    """``view(source, make(source, *key), *key)``, made once for each source and key, and again when the source changes.

    It is made for the call alone where a source counts no versions (one of inference mode), where a mode watches
    PyTorch's operators, or where the caller captures a graph. Any number of threads may call.
    """

    def __init__(self, make: Callable[..., torch.Tensor], view: Callable[..., Views]) -> None:
        self._make = make
        self._view = view
        self._lock = threading.RLock()
        self._of_source = WeakIdKeyDictionary()

    def __call__(self, source: torch.Tensor, *key: Hashable) -> Views:
        found = _reading.found
        if found is not None:
            kept = self._find(source, key, new=False)
            if kept is not None:
                found.append(kept)
                return kept.views
        elif _can_be_kept(source):
            kept = self._find(source, key, new=True)
            kept.prepare()
            return kept.views
        with torch.no_grad():
            return self._view(source, self._make(source, *key), *key)

    def _find(self, source: torch.Tensor, key: tuple, new: bool) -> Kept[Views] | None:
        make, view, place = self._make, self._view, (source.device, *key)
        with self._lock:
            of_source = self._of_source.get(source)
            kept = None if of_source is None else of_source.get(place)
            if kept is None and new:
                kept = Kept(source, lambda t: make(t, *key), lambda t, made: view(t, made, *key))
                if of_source is None:
                    of_source = self._of_source[source] = {}
                of_source[place] = kept
            return kept

    def __len__(self) -> int:
        """Number of sources of which something is kept."""
        return len(self._of_source)


def _can_be_kept(source: torch.Tensor) -> bool:
    if type(source) not in _PLAIN or source.is_inference() or torch._C._len_torch_dispatch_stack():
        return False
    if source.is_cuda:
        return not torch.cuda.is_current_stream_capturing()
    return source.is_cpu
