"""Watches one run of an operator: what it allocates, what its kernels get, what it returns.

Every tensor that a kernel gets, and every result, must be an argument, an allocation made within, or a view of one of
these. Then the same kernels can be started again for other arguments, without the operator's Python
(``launch_replay.py``, ``launch_native.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver

from . import launch

ALIGNMENT = 256  # bytes between tensors that share one allocation
_ALLOCATIONS = tuple(f"aten::{name}" for name in "empty empty_strided empty_like new_empty new_empty_strided".split())
_is_alias_of = torch._C._is_alias_of


class Address(NamedTuple):
    """Where an argument of a kernel points: so many bytes from a base.

    Bases are the operator's arguments, then the allocations that its results lie in, then the scratch memory.
    """

    base: int
    distance: int


class Launch(NamedTuple):
    """A kernel that was started.

    Attributes:
        compiled: what Triton made of it.
        grid: programs in x, y and z.
        arguments: by name, in the kernel's order; an ``Address`` in the place of each tensor.
    """

    compiled: object
    grid: tuple[int, int, int]
    arguments: dict[str, object]


class Recorded(NamedTuple):
    """What a run did. Holds the run's tensors, so whoever makes a replay of it keeps none of this but the launches.

    Attributes:
        device: number of the device that was current.
        arguments: the operator's tensors.
        results: what it returned; a replay returns one tensor where ``single``, else a tuple.
        allocations: the tensors that the results lie in.
        lies_in: for each result the place of its allocation.
        scratch: bytes of memory for all other allocations.
        launches: what was started, in order.
    """

    device: int
    arguments: list[Tensor]
    results: tuple[Tensor, ...]
    single: bool
    allocations: list[Tensor]
    lies_in: list[int]
    scratch: int
    launches: list[Launch]


class Recording(TorchDispatchMode):
    """Watches while it is entered. ``refused``: the run did what a replay would not do."""

    def __init__(self, arguments: list[Tensor]):
        super().__init__()
        self.arguments = len(arguments)
        self.bases: list[Tensor] = []  # arguments, then allocations
        self.known: dict[int, tuple[Tensor, int]] = {}  # by id: the tensor, which so stays alive, and its base
        self.launches: list[Launch] = []
        self.devices: set[int] = set()
        self.refused = False
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
            found = {name: arguments[name] for name in kernel.arg_names}
            for name, value in found.items():
                if isinstance(value, Tensor):
                    base = self.known[id(value)][1]
                    found[name] = Address(base, value.data_ptr() - self.bases[base].data_ptr())
            _ = compiled.run, compiled.function, compiled.packed_metadata
            self.launches.append(Launch(compiled, (*grid, 1, 1)[:3], found))
        except (AttributeError, KeyError):  # a kernel of another kind, a tensor of another origin
            self.refused = True
        self.devices.add(driver.active.get_current_device())
        self.refused |= bool(getattr(kernel, "pre_run_hooks", None))

    def recorded(self, results: object) -> Recorded | None:
        """What was watched; None where it cannot be done again in this way."""
        device = self.bases[0].device
        if type(results) not in (Tensor, tuple) or self.refused:
            return None
        if len(self.devices) > 1 or any(t.device != device for t in self.bases):
            return None
        single = type(results) is Tensor
        results = (results,) if single else results
        made: dict[int, int] = {}  # by base: its place among the allocations that results lie in
        lies_in = []
        for t in results:
            base = self.known.get(id(t), (None, 0))[1]
            if base < self.arguments or t.dtype != self.bases[base].dtype:
                return None
            lies_in.append(made.setdefault(base, len(made)))
        places = {base: Address(base, 0) for base in range(self.arguments)}
        places |= {base: Address(self.arguments + place, 0) for base, place in made.items()}
        scratch = 0
        for base, t in enumerate(self.bases):
            if base not in places:
                places[base] = Address(self.arguments + len(made), scratch)
                scratch += launch.cdiv(t.untyped_storage().nbytes(), ALIGNMENT) * ALIGNMENT

        def placed(value: object) -> object:
            if type(value) is not Address:
                return value
            start = places[value.base]
            return Address(start.base, start.distance + value.distance)

        launches = [
            Launch(compiled, grid, {name: placed(value) for name, value in arguments.items()})
            for compiled, grid, arguments in self.launches
        ]
        return Recorded(
            next(iter(self.devices), 0),
            self.bases[: self.arguments],
            results,
            single,
            [self.bases[base] for base in made],
            lies_in,
            scratch,
            launches,
        )
