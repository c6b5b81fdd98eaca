"""A cache of results that live as long as the tensor that they were computed for.

The backends of programs on a device keep an index tensor as large as the packed parameters. Captured CUDA graphs read
it, so it must live as long as a graph may run, which is as long as the packed parameters exist, since the graph reads
them too. It must not live longer, or frozen nets that were deleted would still hold device memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from torch.utils.weak import WeakIdKeyDictionary

Result = TypeVar("Result")
_MISSING = object()


class TensorCache(Generic[Result]):
    """``function(tensor, *key)``, whose results are kept while ``tensor`` exists.

    The tensor counts by its identity. Tensors with the same key share one result, which goes with the last of them.
    Any number of threads may call; a result is computed once.

    Args:
        function: what computes a result, an object that can be referenced weakly, or None. The result must depend on
            the key only, and must not hold the tensor.
        size: number of results that are kept for each tensor; the one used least recently goes.
    """

    def __init__(self, function: Callable[..., Result], size: int | None = None) -> None:
        self._function = function
        self._size = size
        self._lock = threading.RLock()
        self.cache_clear()

    def __call__(self, tensor: torch.Tensor, *key: Hashable) -> Result:
        with self._lock:
            results = self._of_tensor.get(tensor)
            if results is None:
                results = self._of_tensor[tensor] = OrderedDict()
            result = results.get(key, _MISSING)
            if result is _MISSING:
                result = self._existing.get(key)
                if result is None:
                    result = self._function(tensor, *key)
                if result is not None:
                    self._existing[key] = result
                results[key] = result
                if self._size is not None and len(results) > self._size:
                    results.popitem(last=False)
            elif self._size is not None:
                results.move_to_end(key)
            return result

    def __len__(self) -> int:
        """Number of results that exist."""
        return len(self._existing)

    def cache_clear(self) -> None:
        """Forget all results."""
        with self._lock:
            self._of_tensor = WeakIdKeyDictionary()
            self._existing: WeakValueDictionary[tuple, Result] = WeakValueDictionary()


def cached_with_tensor(size: int | None = None) -> Callable[[Callable[..., Result]], TensorCache[Result]]:
    """A decorator: the function as a :class:`TensorCache`."""
    return lambda function: TensorCache(function, size)
