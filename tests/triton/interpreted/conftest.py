"""The operators on CPU tensors by the interpreted kernels: the whole way from the public functions, autograd included.

The compiled library is left alone (GHOST_OPS_BACKEND=reference), so that the CPU's place among the operators is free.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch

from ghost_ops import dispatch
from ghost_ops.backends import native, triton
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.ops import _library
from tests.helpers import poisoned_memory

if native.available():
    raise RuntimeError("set GHOST_OPS_BACKEND=reference: these tests put other kernels in the library's place")
torch.set_num_threads(1)
for _name in filter(triton.has, SCHEMAS):
    _library._library.impl(_name, triton.load(_name), "CPU")
_interpreted = replace(
    triton.BACKEND, name="native", is_candidate=native.BACKEND.is_candidate, refuse_device=lambda device: None
)


MANY, ONE_OF = 15, 9  # of a file with so many tests, one of nine runs in `make test`


def pytest_collection_modifyitems(config, items):
    """`make interpreted` runs all."""
    if os.environ.get("GHOST_OPS_EVERY_INTERPRETED") == "1":
        return
    kept = []
    for _, of_file in itertools.groupby(items, key=lambda item: item.path):
        tests = list(of_file)
        kept += tests[:: ONE_OF if len(tests) >= MANY else 1]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Interpreted kernels are chosen, and memory that they get holds NaN."""
    monkeypatch.setitem(dispatch.BACKENDS, "native", _interpreted)
    dispatch._select.cache_clear()
    torch.manual_seed(0)
    with poisoned_memory(1 << 10, 1 << 12, 1 << 14, 1 << 16):
        yield
    dispatch._select.cache_clear()
