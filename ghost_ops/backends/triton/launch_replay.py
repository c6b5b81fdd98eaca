"""Replays recorded launches in Python: where C++ does not (``launch_native.py`` says why).

It allocates what the recorded run allocated, puts the addresses into the prepared arguments, and hands them to Triton's
compiled launcher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from triton.runtime import driver

from .launch_recording import Address, Recorded

_STREAM = 3  # its place among the arguments of Triton's launcher


def python_replay(recorded: Recorded) -> Callable[[list[int]], Tensor | tuple[Tensor, ...]]:
    """A function from the arguments' addresses to the results. It holds no tensor."""
    device = recorded.arguments[0].device
    makers = [
        partial(torch.empty_strided, tuple(t.shape), t.stride(), dtype=t.dtype, device=device)
        for t in recorded.allocations
    ]
    forms = []  # for each result its allocation, and what part of it, None for all
    for t, place in zip(recorded.results, recorded.lies_in, strict=True):
        allocation = recorded.allocations[place]
        view, whole = (
            (tuple(t.shape), t.stride(), t.storage_offset()),
            (tuple(allocation.shape), allocation.stride(), 0),
        )
        forms.append((place, None if view == whole else view))
    memory = partial(torch.empty, recorded.scratch, dtype=torch.uint8, device=device) if recorded.scratch else None

    # A replay's addresses: arguments, allocations, scratch memory, and places at a distance from these.
    bases = len(recorded.arguments) + len(makers) + 1
    distant: dict[Address, int] = {}
    launches = []
    for compiled, grid, arguments in recorded.launches:
        row = [*grid, None, compiled.function, compiled.packed_metadata, None, None, None, *arguments.values()]
        places = []
        for i, value in enumerate(row):
            if type(value) is Address:
                row[i] = None
                at = distant.setdefault(value, bases + len(distant)) if value.distance else value.base
                places.append((i, at))
        launches.append((compiled.run, row, places))
    return _replay(makers, memory, [*distant], launches, forms, recorded.single, recorded.device)


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
        for base, distance in distant:
            pointers.append(pointers[base] + distance)
        for run, row, places in launches:
            row = row.copy()
            row[_STREAM] = current
            for place, slot in places:
                row[place] = pointers[slot]
            run(*row)
        found = [made[place] if form is None else made[place].as_strided(*form) for place, form in forms]
        return found[0] if single else tuple(found)

    return replay
