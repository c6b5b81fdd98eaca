"""What the modules of a net take: seconds, multiply-adds, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .parts import size_of

_ALLOCATIONS = ("empty", "new_empty")  # what they return was written by nobody


class Watch:
    """Within the block, how far a clock goes during the calls of modules. Hooks on these modules read it.

    Args:
        net: holds the modules.
        paths: of the modules.
        clock: any number that only grows: ``time.perf_counter``, or what a counter has counted.

    Attributes:
        spent: by path, over all calls.
    """

    def __init__(self, net: nn.Module, paths: Iterable[str], clock: Callable[[], float]) -> None:
        self._modules = {path: net.get_submodule(path) for path in paths}
        self._clock = clock
        self._stack = ExitStack()
        self.spent: dict[str, float] = dict.fromkeys(self._modules, 0)

    def __enter__(self) -> Watch:
        for path, module in self._modules.items():
            enter, leave = self._hooks(path)
            self._stack.callback(module.register_forward_pre_hook(enter).remove)
            self._stack.callback(module.register_forward_hook(leave).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _hooks(self, path: str) -> tuple[Callable, Callable]:
        clock, spent = self._clock, self.spent

        def enter(*_: object) -> None:
            spent[path] -= clock()

        def leave(*_: object) -> None:
            spent[path] += clock()

        return enter, leave


class Traffic(TorchDispatchMode):
    """Within the block, counts the bytes of the tensors that operators read and write.

    An operator that returns a view, or its argument unchanged, moves nothing. One that writes in place reads and writes
    the tensor. What stays in a cache between two operators is counted all the same.

    Attributes:
        total: bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        known = {t.untyped_storage().data_ptr() for t in read}
        is_view = all(t.untyped_storage().data_ptr() in known for t in written) and not func._schema.is_mutable
        if not is_view and not name.startswith(_ALLOCATIONS):
            self.total += size_of((read, written))
        return out
