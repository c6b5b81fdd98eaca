"""Which integers a Triton kernel is compiled for.

Triton compiles a kernel anew where an integer argument becomes 1, or ceases to be a multiple of 16. That is worth it
for channels and their strides, which decide how maps are read. The sizes of batches, and what follows from them, are
not looked at, so that the last, smaller batch of an epoch compiles nothing; nor are those of maps, whose rows and
images are multiples of ``UNIT`` channels anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import triton

SIZES = frozenset("N H W IN_H IN_W OUT_H OUT_W PIXELS splits per_split per_group per_program groups ROWS".split())
STRIDES = ("_n", "_h", "_w")  # of images, rows and pixels


def kernel(function: Callable) -> triton.runtime.JITFunction:
    """``triton.jit`` for what is launched; functions of kernels take ``triton.jit`` itself."""
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if _is_size(name) and "constexpr" not in str(p.annotation)]
    return triton.jit(do_not_specialize=names)(function)


def _is_size(name: str) -> bool:
    return name in SIZES or name.endswith(STRIDES) or name.rstrip("0123456789").rstrip("_") in SIZES
