"""What a program's products keep their weights in: the interface, and the formats that there are."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

PANEL = 16  # columns of a packed panel; csrc/cpu/kernels/kernels.h has the same
_FORMATS: dict[int, WeightFormat] = {}


def up(n: int, to: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // to) * to


class WeightFormat:
    """How the weight of a product, outputs x inputs, is arranged in the packed form of a program.

    The packed form is one tensor of ``dtype``, of four bytes an element. Weights of products are in panels: 16 outputs
    (8 in the last one, where no more are left) for each row of inputs in turn. All else is float32, by its bits.

    Backends for devices gather from the packed form without knowing what each element is. So they read it in every way
    that it may be meant (``numbers``), and an index says which number is the right one.

    Attributes:
        precision: code in the head of the list of steps.
        name: in messages.
        dtype: of the packed form.
        readings: numbers that an element is read as.
    """

    precision: ClassVar[int]
    name: ClassVar[str]
    dtype: ClassVar[torch.dtype]
    readings: ClassVar[int] = 1

    def rows(self, inputs: int) -> int:
        """Number of elements that the inputs of one output take."""
        raise NotImplementedError

    def size(self, outputs: int, inputs: int) -> int:
        """Number of elements that a weight takes."""
        return up(outputs, 8) * self.rows(inputs)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """A float32 weight, outputs x inputs, in panels."""
        raise NotImplementedError

    def numbers(self, packed: torch.Tensor) -> torch.Tensor:
        """A packed form in floating point: each element as float32, and then in the other readings."""
        raise NotImplementedError

    def places(self, length: int, first: int = 0) -> torch.Tensor:
        """Where each of the numbers of a packed form of this length stands among them, counted from ``first``."""
        return torch.arange(first, first + length * self.readings, dtype=torch.float64)

    def unpack(self, numbers: torch.Tensor, begin: int, outputs: int, inputs: int) -> torch.Tensor:
        """The weight, outputs x inputs, that begins at element ``begin`` of the packed form with these numbers."""
        raise NotImplementedError

    def check(self, packed: torch.Tensor) -> None:
        """Raises ValueError where a packed form is not of this format."""
        if (packed.dtype == torch.int32) != (self.dtype == torch.int32):
            kind = "int32" if self.dtype == torch.int32 else "floats"
            expected = f"{kind} for steps of precision {self.precision} ({self.name})"
            raise ValueError(f"program: packed: expected {expected}, got {str(packed.dtype).removeprefix('torch.')}")


def register_format(cls: type[WeightFormat]) -> type[WeightFormat]:
    """Makes a format known by its precision."""
    if cls.precision in _FORMATS:
        taken = _FORMATS[cls.precision].name
        raise ValueError(f"register_format: expected a precision that no format has, got {cls.precision} ({taken})")
    _FORMATS[cls.precision] = cls()
    return cls


def weight_format(precision: int) -> WeightFormat:
    """The format of a precision. Raises ValueError where there is none."""
    if precision not in _FORMATS:
        raise ValueError(f"program: steps: expected a precision of {_known()}, got {precision}")
    return _FORMATS[precision]


def _known() -> str:
    return " or ".join(f"{precision} ({f.name})" for precision, f in sorted(_FORMATS.items()))


def to_panels(rows: torch.Tensor) -> torch.Tensor:
    """Outputs x elements, laid in panels."""
    rows = F.pad(rows, (0, 0, 0, up(rows.shape[0], 8) - rows.shape[0]))
    return torch.cat([panel.t().reshape(-1) for panel in rows.split(PANEL)])
