"""What a call would launch on a device, found without computing: for compiling ahead, and for tests that count.

Within ``dry_run`` Triton's kernels are noted in the place of being started, and PyTorch's operators give results that
are allocated but not computed. So a training step takes a second on any machine, whether there is a device or not, and
leaves parameters and buffers as they were. Values are undefined: a call must not depend on any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .. import dispatch
from ..backends.registry import BACKENDS, SCHEMAS
from ..backends.triton import launch, load, tiles

NAMESPACE = "ghost_ops::"
_ALLOCATES = frozenset("empty empty_strided empty_like new_empty new_empty_strided".split())
_CONTROLS = frozenset("_local_scalar_dense is_nonzero".split())  # tell Python what a tensor holds


_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


@dataclass(frozen=True)
class TensorArgument:
    """What a launch depends on of a tensor. Triton takes it in the place of the tensor where it compiles only.

    Attributes:
        shape, strides, dtype: the tensor's.
        address: where it begins, of a tensor that may be gone.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    address: int

    @classmethod
    def of(cls, t: torch.Tensor) -> TensorArgument:
        return cls(tuple(t.shape), t.stride(), t.dtype, t.data_ptr())

    def data_ptr(self) -> int:
        return self.address


@dataclass(frozen=True)
class Launch:
    """A kernel as it would be started.

    Attributes:
        kernel: the Triton kernel.
        grid: programs along each axis.
        arguments: by name; a ``TensorArgument`` for each tensor.
        warps, stages: Triton's options.
        operator: the operator of ``ghost_ops`` that starts it; None where none does.
    """

    kernel: object
    grid: tuple[int, ...]
    arguments: dict[str, object]
    warps: int
    stages: int
    operator: str | None = None

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    def __str__(self) -> str:
        return f"{self.kernel.__name__}{list(self.grid)}"


@dataclass
class Launches:
    """What a call would launch.

    Attributes:
        kernels: those of this package, in order.
        operators: PyTorch's operators that compute something, by name, in order. One of them may be several kernels.
    """

    kernels: list[Launch] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Kernels and operators together."""
        return len(self.kernels) + len(self.operators)


@contextmanager
def dry_run(architecture: str | None = None) -> Iterator[Launches]:
    """Within the block, launches are noted and nothing is computed. It holds for the whole process.

    Args:
        architecture: the device that is assumed, such as ``"sm_90"``, wherever tensors are; None takes the device of
            each tensor, which must be one that these kernels run on.
    """
    found = Launches()
    mode = _DryRun(found)
    before = launch.instead
    launch.instead = mode.launched
    try:
        # A mode holds for the thread that enters it, and a backward on a device has one of its own otherwise.
        with _assumed(architecture), torch.autograd.set_multithreading_enabled(False), mode:
            yield found
    finally:
        launch.instead = before


@contextmanager
def _assumed(architecture: str | None) -> Iterator[None]:
    """Within the block every call that these kernels take goes to them, wherever its tensors are."""
    if architecture is None:
        yield
        return
    before, everywhere = BACKENDS["native"], lambda *_: True
    # In the place of the backend that is asked first.
    BACKENDS["native"] = replace(BACKENDS["triton"], is_candidate=everywhere, refuse_device=lambda device: None)
    dispatch._select.cache_clear()
    try:
        with tiles.assume(architecture):
            yield
    finally:
        BACKENDS["native"] = before
        dispatch._select.cache_clear()


class _DryRun(TorchDispatchMode):
    sees_launches = True

    def __init__(self, found: Launches) -> None:
        super().__init__()
        self.found = found
        self.operator: str | None = None

    def launched(self, kernel, grid: tuple[int, ...], arguments: dict, warps: int, stages: int) -> None:
        seen = {k: TensorArgument.of(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        self.found.kernels.append(Launch(kernel, grid, seen, warps, stages, self.operator))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        if name.startswith(NAMESPACE):
            return self._ours(name.removeprefix(NAMESPACE), func, args, kwargs)
        short = name.removeprefix("aten::")
        if short in _ALLOCATES or func.is_view or short in ("detach", "alias", "lift_fresh"):
            return func(*args, **kwargs)
        if short in _CONTROLS:
            return 1.0
        self.found.operators.append(short)
        return _uncomputed(func, args, kwargs)

    def _ours(self, name: str, func, args: tuple, kwargs: dict) -> object:
        implementation = load(name) if name in SCHEMAS else None
        if implementation is None:
            self.found.operators.append(f"{NAMESPACE}{name}")
            return _uncomputed(func, args, kwargs)
        before, self.operator = self.operator, name
        try:
            with self:
                return implementation(*args, **kwargs)
        finally:
            self.operator = before


def _uncomputed(func, args: tuple, kwargs: dict) -> object:
    """What an operator returns, not computed: shapes and strides are those that it has on meta tensors. What it would
    write into its arguments is not written."""
    named = zip((*args, *kwargs.values()), (*[a.name for a in func._schema.arguments], *kwargs))
    aliases = {a.name: a.alias_info for a in func._schema.arguments}
    written = [v for v, name in named if aliases[name] is not None and aliases[name].is_write]
    if func._schema.is_mutable and all(r.alias_info is not None for r in func._schema.returns):
        return written[0] if func._schema.returns else None
    tensors: list[torch.Tensor] = []

    def as_meta(value):
        if not isinstance(value, torch.Tensor):
            return value
        tensors.append(value)
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    args, kwargs = tree_map(as_meta, (args, kwargs))
    device = kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    results = func(*args, **kwargs)
    if func._schema.name in _CONVOLUTIONS:
        results = _as_on_device(results, args)

    def as_real(value):
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)

    return tree_map(as_real, results)


def _as_on_device(results: object, args: tuple) -> object:
    """The results of a convolution in the memory format that they have on a device: channels_last where one of the
    maps or the weight is, which meta tensors do not tell."""
    maps = [a for a in args[:3] if isinstance(a, torch.Tensor) and a.dim() == 4]
    if not any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in maps):
        return results

    def last(t: object) -> object:
        is_map = isinstance(t, torch.Tensor) and t.dim() == 4
        return t.contiguous(memory_format=torch.channels_last) if is_map else t

    return last(results) if isinstance(results, torch.Tensor) else tuple(map(last, results))
