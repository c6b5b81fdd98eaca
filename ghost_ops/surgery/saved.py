"""What autograd keeps for the backward, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Saved:
    """Counts, while ``watching``, the distinct storages that autograd saves, those of a net's own tensors left out."""

    def __init__(self, net: nn.Module) -> None:
        own = (t for t in (*net.parameters(), *net.buffers()) if type(t.data) is torch.Tensor)  # a shard has no storage
        self._own = {t.untyped_storage().data_ptr() for t in own}
        self._spans: list[dict[int, torch.UntypedStorage]] = []  # storages are held, so that no address is used twice

    @contextmanager
    def watching(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t):
            yield

    @contextmanager
    def span(self) -> Iterator[Callable[[], int]]:
        """Yields a function that gives the bytes since; spans may be nested."""
        seen: dict[int, torch.UntypedStorage] = {}
        self._spans.append(seen)
        try:
            yield lambda: sum(storage.nbytes() for storage in seen.values())
        finally:
            self._spans.pop()

    def _pack(self, t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self._own and not isinstance(t, nn.Parameter):  # one gathered from its shards
            for seen in self._spans:
                seen[storage.data_ptr()] = storage
        return t.detach()  # an operation that saved its own result with its history would never be freed


def saved_bytes(run: Callable[[], torch.Tensor], net: nn.Module) -> int:
    """Bytes of the distinct storages that autograd saves in ``run``, those of parameters and buffers left out."""
    saved = Saved(net)
    with saved.watching(), saved.span() as count:
        result = run()
    total = count()
    del result
    return total
