"""The inputs that a copy of an unknown module is run on, and the surroundings in which it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ._copy import normal

_HUGE = 1e30  # far beyond what a guard for float16 lets pass
_MANY = 2**21  # elements of an input beyond which a size is not tried


class Inputs:
    """Maps of so many channels, in float64 at first.

    Args:
        generator: that of the copy.
        module: the module that they are for.
        channels: number of channels.
        constants: numbers that sizes should differ from, so that they can be told apart.

    Attributes:
        first: the one that most is asked of.
    """

    def __init__(self, generator: torch.Generator, module: nn.Module, channels: int, constants: set[int]) -> None:
        self._generator, self._channels, self._dtype = generator, channels, torch.float64
        self._side = smallest_side(module)
        batch = max(2, 64 // channels)  # more for few channels, so that no mistake hides behind dead ones
        width = _free(self._side, constants)
        self.first = self.draw(_free(batch, constants), _free(width + 1, constants), width)

    def draw(self, batch: int, height: int, width: int) -> torch.Tensor:
        x = normal(self._generator, batch, self._channels, height, width)
        return (x + 2 * normal(self._generator, batch, self._channels, 1, 1)).to(self._dtype)

    def cotangent(self, out: torch.Tensor) -> torch.Tensor:
        """The gradient of an output."""
        return normal(self._generator, *out.shape).to(out.dtype)

    def others(self, branches: bool) -> Iterator[torch.Tensor]:
        """Of other sizes, the first of one image and laid out channels_last. ``branches``: very many, since a branch on
        a size may have gone unseen."""
        side = self._side
        yield self.draw(1, side + 2, side + 3).to(memory_format=torch.channels_last)
        if branches:
            squares = [(2, n, n) for n in (7, 14, 28, 32, 56, 64, 112, 128, 224)]
            for batch, height, width in ((1, side, 600), (1, 600, side), (300, side, side), *squares):
                if min(height, width) >= side and batch * self._channels * height * width <= _MANY:
                    yield self.draw(batch, height, width)

    def hard(self) -> torch.Tensor:
        """Images with what people guard against, of which each is harmless to the others in eval."""
        x = self.draw(5, self._side, self._side + 1)
        x[0] *= _HUGE
        for image, value in enumerate((float("nan"), float("inf"), float("-inf")), 1):
            x[image, -1, 1, 1] = value
        x[4] = 0
        return x

    def to(self, dtype: torch.dtype) -> None:
        """Be of another dtype from here on."""
        self.first, self._dtype = self.first.to(dtype), dtype


def smallest_side(module: nn.Module) -> int:
    """Height and width that an input should have at least, for the largest kernel inside."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return 4 + max((max(_pair(c.dilation)) * (max(_pair(c.kernel_size)) - 1) for c in convs), default=0)


def _free(size: int, taken: set[int]) -> int:
    while size in taken:
        size += 1
    return size


@contextmanager
def autocast() -> Iterator[None]:
    """Autocast on the CPU, and, for a forward that turns that of CUDA off, on CUDA by name."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before)


@contextmanager
def ambient() -> Iterator[None]:
    """The same surroundings whatever the caller's are."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(one_thread())
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """On maps as small as a probe's, threads only wait for each other. Each change of their number ends them, and the
    next large operation starts them again: a survey makes one change."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
