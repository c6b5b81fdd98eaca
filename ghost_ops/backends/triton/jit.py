"""Which integers a Triton kernel is compiled for.

Triton compiles a kernel anew where an integer argument becomes 1, or ceases to be a multiple of 16. The size of a
batch, and what follows from it, is not looked at, so that the last, smaller batch of an epoch compiles nothing.
Channels, sides of maps and their strides are: they decide how maps are read, most of all in NCHW.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import triton

SIZES = frozenset("N PIXELS splits per_split per_group per_program groups ROWS".split())
IMAGES = "_n"  # strides of images


def kernel(function: Callable) -> triton.runtime.JITFunction:
    """``triton.jit`` for what is launched; functions of kernels take ``triton.jit`` itself."""
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if _is_size(name) and "constexpr" not in str(p.annotation)]
    return triton.jit(do_not_specialize=names)(function)


def _is_size(name: str) -> bool:
    return name in SIZES or name.endswith(IMAGES) or name.rstrip("0123456789").rstrip("_") in SIZES
