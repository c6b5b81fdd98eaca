"""An operator's launches, recorded once for each kind of call, then started again without the Python between.

A launch through Triton costs the host tens of microseconds: strides, tiles and specialisations are found anew, though
they depend on nothing but the arguments' shapes, strides, dtypes, devices and alignment, the options, and a little
global state. These are the cache's key. A recording runs the implementation in full and watches it: every tensor that a
kernel gets, and every result, must be an argument, an allocation made within, or a view of one of these. A replay
allocates the same, puts the addresses into the prepared arguments, and hands them to Triton's compiled launcher.

What cannot be cached runs in full: operators that compute in torch between their launches (noted once for the key),
tensors on the CPU or without memory, overridden tiles, launch hooks, and a Triton that starts kernels in another way.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable
from functools import partial

import torch
import triton
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import JITFunction, driver

from . import launch, tiles

LIMIT = 4096  # entries of all operators together: the oldest goes
ALIGNMENT = 256  # bytes between tensors that share one allocation
_CALL = (  # how Triton starts a kernel (3.6 and 3.7), as a replay does
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)
_STREAM = 3  # its place there
_CONSTANTS = frozenset((int, float, bool, str, type(None)))
_ALLOCATIONS = tuple(f"aten::{name}" for name in "empty empty_strided empty_like new_empty new_empty_strided".split())
_is_alias_of = torch._C._is_alias_of
# What torch.backends and os.environ.get look at, which take 1 us more.
_conv_tf32, _matmul_tf32 = torch._C._get_cudnn_allow_tf32, torch._C._get_cublas_allow_tf32
_environment, _table = os.environ._data, os.environ.encodekey("GHOST_OPS_TILES")
_runtime = triton.knobs.runtime
_launches: dict[tuple, Callable | None] = {}  # None: runs in full
_publishing = threading.Lock()


def on_device(t: Tensor) -> bool:
    """Whether an operator whose first argument is ``t`` runs as compiled kernels."""
    return getattr(t, "is_cuda", False)


@functools.cache
def _launches_as_known() -> bool:
    try:
        return _CALL in " ".join(inspect.getsource(JITFunction.run).split())
    except (OSError, TypeError):
        return False


def why_not_cached() -> str | None:
    """Why no launches are cached with this Triton, as the end of a sentence; None where they are."""
    if _launches_as_known():
        return None
    return (
        f"Triton {triton.__version__} starts kernels in another way than Triton 3.6 and 3.7, so that launches are not "
        "cached and each costs the host several times as long: install one of these, or a later ghost_ops"
    )


@functools.cache
def _warn_of_slow_launches() -> None:
    """Once in a process, when an operator would first cache its launches."""
    if (why := why_not_cached()) is not None:
        warnings.warn(f"ghost_ops: results are right, but calls are slow, since {why}", UserWarning, stacklevel=2)


def _switched_off() -> bool:
    """Whether launches depend on more than the key, or are watched."""
    if launch.instead is not None or launch.recorder.current is not None:
        return True
    if tiles._assumed is not None or any(tiles._overrides.values()):
        return True
    enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook  # chains of hooks, or hooks
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _read(args: tuple, key: list, pointers: list) -> None:
    """Adds what launches depend on to the key, and the tensors' addresses; TypeError where that cannot be told."""
    for a in args:
        kind = type(a)
        if kind is Tensor or kind is Parameter:
            pointers.append(pointer := a.data_ptr())
            key.append((a.shape, a.stride(), a.dtype, a.get_device(), pointer % 16 == 0))
        elif kind in _CONSTANTS:
            key.append(a)
        elif kind is list or kind is tuple:
            key += (len(a), *map(type, a))
            _read(a, key, pointers)
        else:
            raise TypeError(f"cached_launches: {kind}")


def cached_launches(function: Callable) -> Callable:
    """An operator's implementation, replayed where that can be.

    The function must depend on nothing but its arguments, the tiles and ``allow_tf32``, take positional arguments, the
    first of them a tensor, and return a tensor or a tuple of tensors.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        if kwargs or not on_device(args[0]) or _switched_off():
            return function(*args, **kwargs)
        key, pointers = [function, *map(type, args)], []  # types, since 1, 1.0 and True are equal
        try:
            key += (_conv_tf32(), _matmul_tf32(), _environment.get(_table))
            _read(args, key, pointers)
        except (RuntimeError, TypeError):  # no memory (fake or functional tensors), other types, TF32 set in two ways
            return function(*args)
        key = tuple(key)
        try:
            replay = _launches[key]
        except KeyError:
            return _record(function, args, key)
        return function(*args) if replay is None else replay(pointers)

    return call


def _record(function: Callable, args: tuple, key: tuple) -> object:
    """Runs the function in full and keeps its launches."""
    _warn_of_slow_launches()
    tensors = []

    def stand_in(a):
        """Detached tensors: where this call passes one tensor twice, the next may pass two."""
        if isinstance(a, Tensor):
            tensors.append(a.detach())
            return tensors[-1]
        return type(a)(map(stand_in, a)) if isinstance(a, (list, tuple)) else a

    args = stand_in(args)
    recording = launch.recorder.current = _Recording(tensors)
    try:
        with recording:
            results = function(*args)
    finally:
        launch.recorder.current = None
    replay = recording.replay(results) if type(results) in (Tensor, tuple) else None
    if not _switched_off():  # by another thread, meanwhile
        with _publishing:
            while len(_launches) >= LIMIT:
                del _launches[next(iter(_launches))]
            _launches[key] = replay
    return results


class _Recording(TorchDispatchMode):
    """Watches one run of a function. ``refused``: it did what a replay would not do."""

    def __init__(self, arguments: list[Tensor]):
        super().__init__()
        self.arguments = len(arguments)
        self.bases: list[Tensor] = []  # arguments, then allocations
        self.known: dict[int, tuple[Tensor, int]] = {}  # by id: the tensor, which so stays alive, and its base
        self.launches: list[tuple[Callable, list, list]] = []
        self.devices: set[int] = set()
        self.refused = not _launches_as_known()
        for t in arguments:
            self._add(t)

    def _add(self, t: Tensor) -> None:
        self.known[id(t)] = t, len(self.bases)
        self.bases.append(t)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = out if isinstance(out, (list, tuple)) else (out,)
        if func._schema.is_mutable or not all(isinstance(t, Tensor) for t in found):
            self.refused = True  # computes in place, or tells Python what a tensor holds
        elif func._schema.name in _ALLOCATIONS:
            self._add(out)
        elif args and id(args[0]) in self.known:
            source, base = self.known[id(args[0])]
            self.known |= {id(t): (t, base) for t in found if t is not source and _is_alias_of(t, source)}
        return out  # what else it made is unknown: refused where a kernel or the caller gets it

    def launched(self, kernel, grid: tuple[int, ...], arguments: dict, compiled) -> None:
        """``launch.start_kernel`` calls this for every kernel that it has started."""
        try:
            row = [*(*grid, 1, 1)[:3], None, compiled.function, compiled.packed_metadata, None, None, None]
            row += [arguments[name] for name in kernel.arg_names]
            places = []  # for each address: its position, its base, and its distance from there in bytes
            for i, value in enumerate(row):
                if isinstance(value, Tensor):
                    base, row[i] = self.known[id(value)][1], None
                    places.append((i, base, value.data_ptr() - self.bases[base].data_ptr()))
            self.launches.append((compiled.run, row, places))
        except (AttributeError, KeyError):  # a kernel of another kind, a tensor of another origin
            self.refused = True
        self.devices.add(driver.active.get_current_device())
        self.refused |= bool(getattr(kernel, "pre_run_hooks", None))

    def replay(self, results: object) -> Callable | None:
        """A function from the arguments' addresses to the results, which holds no tensor; None where that is
        impossible."""
        single, device = isinstance(results, Tensor), self.bases[0].device
        if self.refused or len(self.devices) > 1 or any(t.device != device for t in self.bases):
            return None
        made: dict[int, int] = {}  # by base: its place among the tensors that a replay makes
        makers, forms = [], []
        for t in (results,) if single else results:
            base = self.known.get(id(t), (None, 0))[1]
            allocation = self.bases[base]
            if base < self.arguments or t.dtype != allocation.dtype:
                return None
            form = tuple(allocation.shape), allocation.stride()
            if base not in made:
                made[base] = len(makers)
                makers.append(partial(torch.empty_strided, *form, dtype=t.dtype, device=device))
            view = tuple(t.shape), t.stride(), t.storage_offset()
            forms.append((made[base], None if view == (*form, 0) else view))

        # A replay's addresses: arguments, results, scratch memory, and places at a distance from these.
        scratch, size = self.arguments + len(makers), 0
        starts = {base: (base, 0) for base in range(self.arguments)}
        starts |= {base: (self.arguments + place, 0) for base, place in made.items()}
        for base, t in enumerate(self.bases):
            if base not in starts:
                starts[base] = scratch, size
                size += launch.cdiv(t.untyped_storage().nbytes(), ALIGNMENT) * ALIGNMENT
        distant: dict[tuple[int, int], int] = {}

        def address(base: int, distance: int) -> int:
            slot, start = starts[base]
            distance += start
            return distant.setdefault((slot, distance), scratch + 1 + len(distant)) if distance else slot

        memory = partial(torch.empty, size, dtype=torch.uint8, device=device) if size else None
        launches = [(run, row, [(i, address(*where)) for i, *where in places]) for run, row, places in self.launches]
        return _replay(makers, memory, [*distant], launches, forms, single, next(iter(self.devices), 0))


def _replay(makers, memory, distant, launches, forms, single: bool, device: int) -> Callable:
    current_device, current_stream = driver.active.get_current_device, driver.active.get_current_stream

    def replay(pointers: list[int]) -> Tensor | tuple[Tensor, ...]:
        if current_device() != device:
            with torch.cuda.device(device):
                return replay(pointers)
        made = [make() for make in makers]
        for t in made:
            pointers.append(t.data_ptr())
        current = current_stream(device)
        held = memory and memory()  # the stream is done with it before others get it, as in a full run
        pointers.append(held.data_ptr() if memory else 0)
        for slot, distance in distant:
            pointers.append(pointers[slot] + distance)
        for run, row, places in launches:
            row = row.copy()
            row[_STREAM] = current
            for place, slot in places:
                row[place] = pointers[slot]
            run(*row)
        found = [made[place] if form is None else made[place].as_strided(*form) for place, form in forms]
        return found[0] if single else tuple(found)

    return replay
