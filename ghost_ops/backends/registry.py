"""The description of a backend, and the rule for where the code of an operator is.

``ops/schemas.inc`` is the only list of operators. A backend's implementation of ``ghost_module_train_backward`` is the
function of that name in its file ``ghost_module_train.py``: the file with the longest name that the operator's name
begins with.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

CHEAP_KERNELS = (1, 3, 5, 7)  # sizes of depthwise convolutions that have kernels


def _read_schemas() -> dict[str, str]:
    text = (Path(__file__).resolve().parents[1] / "ops" / "schemas.inc").read_text()
    return {line.split("(", 1)[0]: line for line in text.splitlines() if "->" in line}


SCHEMAS = _read_schemas()  # by operator


@functools.cache
def find(package: str, operator: str) -> Callable | None:
    """The implementation of an operator in a backend's package, whose file is imported; None where it has none."""
    words = operator.split("_")
    for count in range(len(words), 0, -1):
        file = f"{package}.{'_'.join(words[:count])}"
        if importlib.util.find_spec(file) is not None:
            return getattr(importlib.import_module(file), operator, None)
    return None


@dataclass(frozen=True)
class Backend:
    """A way to run operators: on which devices it runs, and what it takes.

    Attributes:
        name: name for users and in decisions.
        is_candidate: ``(device, forced) -> bool``: whether it is considered for a device; ``forced`` is the name that
            ``use_backend`` asks for, or None.
        refuse_device: why it does not run on a device, as the end of a sentence; None where it does.
        has: whether it implements an operator.
        dtypes: of maps that it takes; None for all.
        kernels: sizes of depthwise convolutions that it takes; None for all.
        dispatch_key: PyTorch's dispatch key under which ``ops`` registers its operators; None where they are
            registered elsewhere, or cannot run.
        load: gives its implementation of an operator; needed with ``dispatch_key``.
        missing: why it does not run on this machine, as the end of a sentence; None where it does.
        off_until: what must be set before it runs by itself; None where nothing must.
        can_be_forced: whether ``use_backend`` takes its name.
        fuses_epilogues: whether it is faster with squeeze, excitation and shortcut fused into Ghost module kernels.
        slowed: why its calls cost more than they should, as the end of a sentence; None where they do not.
        describe_program: ``(x, packed, steps) -> str``: says how it runs a program; None where it has nothing to say.
        lacks: why it does not implement an operator, as the end of a sentence, where that was decided.
    """

    name: str
    is_candidate: Callable[[torch.device, str | None], bool]
    refuse_device: Callable[[torch.device], str | None]
    has: Callable[[str], bool]
    dtypes: tuple[torch.dtype, ...] | None = None
    kernels: tuple[int, ...] | None = None
    dispatch_key: str | None = None
    load: Callable[[str], Callable] | None = None
    missing: Callable[[], str | None] = lambda: None
    off_until: Callable[[], str | None] = lambda: None
    can_be_forced: bool = False
    fuses_epilogues: bool = False
    slowed: Callable[[], str | None] = lambda: None
    describe_program: Callable[[torch.Tensor, torch.Tensor, list[int]], str] | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)

    def state(self) -> str:
        """ "ready", or why it is missing, off or slow."""
        why, off = self.missing(), self.off_until()
        if why is not None:
            return f"missing: {why}"
        slowed = self.slowed()
        state = "ready" if off is None else f"ready, off until {off}"
        return state if slowed is None else f"{state}, but slow, since {slowed}"

    def refuse(self, operator: str, device: torch.device, dtype: torch.dtype, kernel: int | None) -> str | None:
        """Why it does not take a configuration, as the end of a sentence; None where it does.

        Args:
            kernel: size of the operator's depthwise convolution, or None where it has none.
        """
        why = self.refuse_device(device)
        if why is not None:
            return why
        if not self.has(operator):
            why = self.lacks.get(operator)
            return f"it has no {operator}" if why is None else f"it has no {operator}, since {why}"
        if self.dtypes is not None and dtype not in self.dtypes:
            taken = _joined(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            return f"its kernels take {taken}, the input is {str(dtype).removeprefix('torch.')}"
        if self.kernels is not None and kernel is not None and kernel not in self.kernels:
            what = "depthwise convolution" if operator.startswith("depthwise") else "cheap operation"
            return f"its kernels take a {what} of size {_joined(map(str, self.kernels), 'or')}, this one is {kernel}"
        return None


BACKENDS: dict[str, Backend] = {}  # by name, in the order in which they are asked; ``backends/__init__.py`` fills it


def _joined(names, word: str = "and") -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
