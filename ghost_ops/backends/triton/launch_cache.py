"""An operator's launches, recorded once for each kind of call, then started again without the Python between.

A launch through Triton costs the host tens of microseconds: strides, tiles and specialisations are found anew, though
they depend on nothing but the arguments' shapes, strides, dtypes, devices and alignment, the options, and a little
global state. These are the cache's key. A recording (``launch_recording.py``) runs the implementation in full and
watches it. A replay allocates the same, puts the addresses into the prepared arguments, and starts the same kernels: in
C++ (``launch_native.py``), or where that cannot be, in Python (``launch_replay.py``).

What cannot be cached runs in full: operators that compute in torch between their launches (noted once for the key),
tensors on the CPU or without memory, overridden tiles, launch hooks, and a Triton that starts kernels in another way.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction

from . import launch, launch_native, tiles
from .launch_key import form_of, kind_of, read
from .launch_native import Kind, Native
from .launch_native import replay as native_replay
from .launch_recording import Recorded, Recording
from .launch_replay import python_replay

LIMIT = 4096  # entries of all operators together: the oldest goes
_CALL = (  # how Triton starts a kernel (3.6 and 3.7), as a replay does
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)
_runtime = triton.knobs.runtime
_wrapped = torch._C._are_functorch_transforms_active
_launches: dict[tuple, Callable | Native | None] = {}  # None: runs in full
_kinds: dict[tuple, Kind] = {}  # those of which C++ has recordings
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


def cached_launches(function: Callable) -> Callable:
    """An operator's implementation, replayed where that can be.

    The function must depend on nothing but its arguments, the tiles and ``allow_tf32``, take positional arguments, the
    first of them a tensor, the others tensors, numbers, texts, None, and lists of these, and return a tensor or a tuple
    of tensors. Its kernels may write to its arguments.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        if kwargs or not on_device(args[0]) or _switched_off():
            return function(*args, **kwargs)
        tensors = []
        try:
            key = kind_of(function, args, tensors)
        except (RuntimeError, TypeError):
            return function(*args)
        kind = _kinds.get(key)
        if kind is not None and not _wrapped():
            results = native_replay(tensors, kind.number)
            if results is not None:
                return results[0] if kind.single else tuple(results)
        return _call_from_python(function, args, key, tensors)

    return call


def _call_from_python(function: Callable, args: tuple, kind: tuple, tensors: list[Tensor]) -> object:
    """A call that C++ does not replay, or not yet. ``kind`` is the key without the tensors."""
    try:
        pointers = [t.data_ptr() for t in tensors]
        key = kind, *map(form_of, tensors, pointers)
    except RuntimeError:  # no memory: fake or functional tensors
        return function(*args)
    try:
        replay = _launches[key]
    except KeyError:
        return _record(function, args, key)
    if replay is None or type(replay) is Native:  # Native: another thread has just recorded it
        return function(*args)
    return replay(pointers)


def _record(function: Callable, args: tuple, key: tuple) -> object:
    """Runs the function in full and keeps its launches."""
    _warn_of_slow_launches()

    def stand_in(a):
        """Detached tensors: where this call passes one tensor twice, the next may pass two."""
        if isinstance(a, Tensor):
            return a.detach()
        return type(a)(map(stand_in, a)) if isinstance(a, (list, tuple)) else a

    args, tensors = stand_in(args), []
    read(args, [], tensors)
    recording = launch.recorder.current = Recording(tensors)
    try:
        with recording:
            results = function(*args)
    finally:
        launch.recorder.current = None
    recorded = recording.recorded(results) if _launches_as_known() else None
    if not _switched_off():  # by another thread, meanwhile
        with _publishing:
            if key not in _launches:
                while len(_launches) >= LIMIT:
                    _forget(next(iter(_launches)))
                _launches[key] = None if recorded is None else _replay_of(recorded, key[0])
    return results


def _replay_of(recorded: Recorded, kind_key: tuple) -> Callable | Native:
    kind = _kinds.get(kind_key) or Kind(recorded.single)
    replay = launch_native.add(recorded, kind) if kind.single is recorded.single else None
    if replay is None:
        return python_replay(recorded)
    kind.recordings += 1
    _kinds[kind_key] = kind
    return replay


def _forget(key: tuple) -> None:
    if type(_launches.pop(key)) is Native:
        kind = _kinds[key[0]]
        kind.recordings -= 1
        if kind.recordings == 0:
            del _kinds[key[0]]
