"""Parameters and multiply-adds of a net before and after its convolutions were replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

WIDTH = 120


@dataclass(frozen=True)
class Cost:
    """What a module costs.

    Attributes:
        parameters: their number.
        multiply_adds: of convolutions and linear layers, of one call of the net.
    """

    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class CostRow:
    """A module that was replaced.

    Attributes:
        name: its path; empty for the whole net.
        kinds: names of its class before and after.
        before, after: what it costs.
    """

    name: str
    kinds: tuple[str, str]
    before: Cost
    after: Cost


@dataclass(frozen=True)
class CostComparison:
    """Two nets side by side; as text and for rich a table.

    Attributes:
        rows: the modules that were replaced, in the order of the net.
        total: the whole nets.
    """

    rows: tuple[CostRow, ...]
    total: CostRow

    def __rich__(self) -> Table:
        table = Table("module", "class", title="Parameters and multiply-adds, before and after")
        for _ in range(2):
            for name in ("before", "after", ""):
                table.add_column(name, justify="right")
        table.columns[2].header, table.columns[5].header = "parameters", "multiply-adds"
        for row in self.rows:
            table.add_row(row.name, " -> ".join(row.kinds), *_numbers(row.before, row.after))
        inside = [sum(values) for values in zip(*map(_values, self.rows))] or [0] * 4
        others = [whole - part for whole, part in zip(_values(self.total), inside)]
        table.add_row("the others", "", *_numbers(Cost(*others[:2]), Cost(*others[2:])), end_section=True)
        table.add_row("the net", self.total.kinds[1], *_numbers(self.total.before, self.total.after))
        return table

    def __str__(self) -> str:
        console = Console(
            width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False
        )
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")


def compare_costs(before: nn.Module, after: nn.Module, example: object) -> CostComparison:
    """Count the parameters and multiply-adds of a net and of what was made of it, by :func:`ghostify` or otherwise.

    Copies of both nets run once in eval. Multiply-adds are those of convolutions and linear layers, half of what
    ``torch.utils.flop_counter`` counts.

    Args:
        before, after: the two nets.
        example: their input: a tensor, or a tuple or list of arguments, or a mapping of keyword arguments.

    Raises:
        TypeError: one of them is not a ``torch.nn.Module``.
        whatever a net raises on this input.
    """
    for name, net in (("before", before), ("after", after)):
        if not isinstance(net, nn.Module):
            raise TypeError(f"compare_costs: {name}: expected a torch.nn.Module, got {type(net).__name__}")
    old, new = dict(before.named_modules()), dict(after.named_modules())
    work = _work(before, example), _work(after, example)
    rows = [_row(path, old[path], new[path], work) for path in _replaced(old, new)]
    return CostComparison(tuple(rows), _row("", before, after, work))


def _replaced(old: Mapping[str, nn.Module], new: Mapping[str, nn.Module]) -> list[str]:
    """Paths of modules of another class, the outermost, in which there are parameters afterwards."""
    paths: list[str] = []
    for path, module in new.items():
        is_inside = any(path.startswith(f"{outer}.") for outer in paths)
        is_other = path and path in old and type(old[path]) is not type(module)
        if is_other and not is_inside and any(True for _ in module.parameters()):
            paths.append(path)
    return paths


def _row(path: str, old: nn.Module, new: nn.Module, work: tuple[dict[str, int], dict[str, int]]) -> CostRow:
    costs = [Cost(sum(p.numel() for p in net.parameters()), of.get(path, 0)) for net, of in zip((old, new), work)]
    return CostRow(path, (type(old).__name__, type(new).__name__), *costs)


def _work(net: nn.Module, example: object) -> dict[str, int]:
    """Multiply-adds by path."""
    from torch.utils.flop_counter import FlopCounterMode  # 0.1 s

    net = copy.deepcopy(net).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(example, Mapping):
            net(**example)
        else:
            net(*example) if isinstance(example, (tuple, list)) else net(example)
    root = type(net).__name__
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    found = {name.removeprefix(f"{root}."): count for name, count in counts.items() if name.startswith(f"{root}.")}
    return {**found, "": counts.get("Global", 0)}


def _values(row: CostRow) -> tuple[int, ...]:
    return row.before.parameters, row.before.multiply_adds, row.after.parameters, row.after.multiply_adds


def _numbers(before: Cost, after: Cost) -> list[str]:
    shown = []
    for old, new in ((before.parameters, after.parameters), (before.multiply_adds, after.multiply_adds)):
        shown += [f"{old:,}", f"{new:,}", f"{new / old:.2f}" if old else ""]
    return shown
