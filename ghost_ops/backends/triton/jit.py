"""Which integers a Triton kernel is compiled for.

Triton compiles a kernel anew where an integer argument becomes 1, or ceases to be a multiple of 16. The size of a
batch, and what follows from it, is not looked at, so that the last, smaller batch of an epoch compiles nothing.
Of channels, sides of maps and their strides only 1 is: what divides them is said by UNIT (``maps.assume_multiple``),
which has fewer values. Strides of channels are specialised for both, since UNIT does not speak of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import triton

SIZES = frozenset(
    "N PIXELS splits per_split per_group per_program groups ROWS row_step channel_step vectors counted cleared".split()
)
IMAGES = "_n"  # strides of images
STRIDES = ("_h", "_w", "_step")


def kernel(function: Callable) -> triton.runtime.JITFunction:
    """``triton.jit`` for what is launched; functions of kernels take ``triton.jit`` itself."""
    parameters = inspect.signature(function).parameters
    names = [name for name, p in parameters.items() if "constexpr" not in str(p.annotation)]
    sizes, integers = list(filter(_is_size, names)), list(filter(_is_integer, names))
    return triton.jit(do_not_specialize=sizes, do_not_specialize_on_alignment=integers)(function)


def _plain(name: str) -> str:
    """The name without the number of one of several alike."""
    return name.rstrip("0123456789").rstrip("_")


def _is_size(name: str) -> bool:
    return name in SIZES or name.endswith(IMAGES) or _plain(name) in SIZES


def _is_integer(name: str) -> bool:
    """Whether it is a number of channels, a side of a map or a stride, by the names that kernels give these."""
    return _plain(name).isupper() or _plain(name).endswith(STRIDES)
