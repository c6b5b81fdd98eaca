"""What a recorded launch does: trips of its loops, valid results, and bytes, from its kernel's name and arguments.

A kernel that is new or changed needs its entry in ``KERNELS``: the launch's tests fail without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

import torch

from ghost_ops.backends.triton.excite import SPLITS
from ghost_ops.backends.triton.sums import MANY

SECTOR = 32  # bytes: the least that moves


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Kernel:
    """How the launches of a kernel are read. Each function gets the launch's arguments by name.

    Attributes:
        trips: of the kernel's loops as they stand in its source, the outermost first; of a kernel whose loops do not
            all stand in one nest, such a tuple for each nest. The trips of loops that the code lacks must be 1.
        results: valid results: elements of the map that the kernel makes, or that it sums.
        writes: the tensors that it writes, with spaces between; all others are read.
        updates: those that it reads and writes.
        slices: of maps that are touched in parts, the first channel and the one after the last.
    """

    trips: Callable[[dict], tuple[int, ...] | tuple[tuple[int, ...], ...]]
    results: Callable[[dict], int]
    writes: str
    slices: Callable[[dict], dict[str, tuple[int, int]]] = lambda a: {}
    updates: str = ""


def touched(t: torch.Tensor, first: int = 0, last: int | None = None) -> int:
    """Bytes of the sectors that channels ``first`` to ``last`` of a map are in; of another tensor, its bytes."""
    size = t.element_size()
    if last == first:
        return 0
    if t.dim() != 4 or (last is None and first == 0):
        return t.numel() * size
    channels = (t.shape[1] if last is None else last) - first
    pixels = t.numel() // t.shape[1]
    if t.stride(1) != 1:
        return pixels * channels * size
    step, run, at = t.stride(3) * size, channels * size, first * size
    some = lcm(step, SECTOR) // step  # pixels until their places in sectors repeat
    seen = {s for p in range(some) for s in range((p * step + at) // SECTOR, (p * step + at + run - 1) // SECTOR + 1)}
    return pixels * len(seen) * SECTOR // some


def moved(kernel: Kernel, arguments: dict) -> tuple[int, int]:
    """Bytes that a launch reads, and that it writes, each once."""
    slices = kernel.slices(arguments)
    read = written = 0
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            size = touched(value, *slices.get(name, (0, None)))
            read += size * (name not in kernel.writes.split())
            written += size * (name in (*kernel.writes.split(), *kernel.updates.split()))
    return read, written


def _rows(a: dict, more: int = 0) -> tuple[int]:
    return (a["per_split"] + more,)


def _stencil(a: dict) -> tuple[int]:
    return _rows(a, a["D"] - 1)


def _pixels(t: torch.Tensor) -> int:
    return t.numel() // t.shape[1]


def _map(name: str) -> Callable[[dict], int]:
    return lambda a: a[name].numel()


def _cheap_slices(a: dict) -> dict[str, tuple[int, int]]:
    if a["partials"] is not None:
        return {"y": (0, a["M"]), "out": (0, 0)}
    whole = a["AFFINE"] or a["residual"] is not None
    return {"y": (0, a["M"]), "out": (0 if whole else a["M"], a["OUT_CHANNELS"])}


def _second_half(a: dict) -> dict[str, tuple[int, int]]:
    return {"grad": (a["M"], a["OUT_CHANNELS"])}


def _products(channels: str, step: str = "BK") -> Callable[[dict], tuple[int, ...]]:
    return lambda a: (a["per_group"], cdiv(a[channels], a[step]))


def _groups(a: dict) -> tuple[int]:
    return (cdiv(a["groups"], a["BG"]),)


def _given(a: dict, name: str) -> list:
    """The arguments ``<name>_0``, ``<name>_1``, ... of a ``total_kernel``'s totals that are needed."""
    return [a[f"{name}_{i}"] for i in range(7) if a[f"ROWS_{i}"] > 0]


def _splits(a: dict) -> tuple[int, ...]:
    """Trips of the loop over the splits of sums. A launch with few splits does not have that loop."""
    return (cdiv(a["splits"], SPLITS),) if a["MANY"] else ()


KERNELS = {
    "product_kernel": Kernel(
        _products("C"), lambda a: a["PIXELS"] * a["M"], "y partials", lambda a: {"y": (0, a["M"])}
    ),
    "cheap_kernel": Kernel(
        _stencil, lambda a: _pixels(a["y"]) * a["M"] * a["MULTIPLIER"], "out sums partials", _cheap_slices
    ),
    "module_kernel": Kernel(_stencil, _map("out"), "out sums"),
    "depthwise_kernel": Kernel(lambda a: _rows(a, (a["D"] - 1) // a["STRIDE"]), _map("out"), "out sums partials"),
    "convolution_kernel": Kernel(_rows, _map("out"), "out partials"),
    "cheap_epilogue_bwd_kernel": Kernel(_stencil, _map("grad_z2"), "grad_z2 partials", _second_half),
    "cheap_norm_bwd_kernel": Kernel(_rows, _map("grad_z2"), "", _second_half, updates="grad_z2"),
    "primary_epilogue_bwd_kernel": Kernel(_stencil, _map("grad_z"), "grad_z partials", lambda a: {"grad": (0, a["M"])}),
    "cheap_conv_bwd_kernel": Kernel(_rows, _map("grad_z"), "grad_z partials weights", lambda a: {"grad": (0, a["M"])}),
    "cheap_weight_bwd_kernel": Kernel(_rows, _map("grad_z2"), "weights"),
    "product_bwd_kernel": Kernel(lambda a: (a["per_group"],), lambda a: a["PIXELS"] * (a["M"] + a["C"]), "to partials"),
    "input_bwd_kernel": Kernel(
        lambda a: (a["per_group"], a["per_program"] if a["STEPS"] else cdiv(a["M"], a["BK"])), _map("to"), "to"
    ),
    "primary_weight_bwd_kernel": Kernel(
        lambda a: (a["per_group"],), lambda a: a["PIXELS"] * (a["M"] + a["C"]), "partials"
    ),
    "depthwise_bwd_kernel": Kernel(_rows, _map("x"), "to weights biases"),
    "convolution_weight_bwd_kernel": Kernel(_rows, _map("grad"), "partials"),
    "normalise_kernel": Kernel(lambda a: (cdiv(a["per_split"], a["ROWS"]),), _map("out"), "out sums"),
    "norm_bwd_kernel": Kernel(lambda a: (cdiv(a["per_split"], a["ROWS"]),), _map("z"), "to partials"),
    "statistics_kernel": Kernel(lambda a: (cdiv(a["per_split"], a["ROWS"]),), _map("z"), "partials"),
    "sums_kernel": Kernel(_rows, _map("x"), "sums"),
    "scale_kernel": Kernel(_rows, _map("out"), "out"),
    "pool_kernel": Kernel(_rows, _map("out"), "out"),
    "pool_bwd_kernel": Kernel(_rows, _map("to"), "to"),
    "line_kernel": Kernel(lambda a: _rows(a, a["ALONG"] - 1), _map("source"), "out partials"),
    "line_bwd_kernel": Kernel(_rows, _map("to"), "to weights partials"),
    "gate_kernel": Kernel(_rows, _map("x"), "", updates="x"),
    "gate_bwd_kernel": Kernel(lambda a: (a["per_split"], cdiv(a["MAP_H"], a["H"])), _map("to"), "to to_gate"),
    "start_joins_kernel": Kernel(lambda a: (), _map("counters"), "counters"),
    "join_statistics_kernel": Kernel(
        lambda a: (1, *_groups(a)), _map("partials"), "mean_out var_out scale_out shift_out"
    ),
    "join_gradients_kernel": Kernel(
        lambda a: (1, *_groups(a)), _map("partials"), "coefficients grad_bias grad_beta grad_gamma grad_slopes"
    ),
    "total_kernel": Kernel(
        lambda a: (cdiv(max(_given(a, "groups")), MANY),),  # those of the longest; few groups need no loop
        lambda a: sum(t.numel() for t in _given(a, "partials")),
        " ".join(f"out_{i}" for i in range(7)),
        lambda a: {f"{name}_{i}": (0, 0) for name in ("partials", "out") for i in range(7) if a[f"ROWS_{i}"] == 0},
    ),
    "layers_kernel": Kernel(
        lambda a: ((cdiv(a["C"], a["BK"]), *_splits(a)), (a["per_program"],)),
        _map("logits"),
        "squeeze hidden logits gated",
    ),
    "hidden_bwd_kernel": Kernel(
        lambda a: (cdiv(a["C"], a["BK"]), *_splits(a)), _map("grad_hidden"), "grad_logits grad_hidden"
    ),
    "layers_bwd_kernel": Kernel(  # a program goes through one of the three loops
        lambda a: (cdiv(a["ROWS"], a["BK"]), 1, 1),
        _map("grad_logits"),
        "grad_squeeze grad_reduce grad_reduce_bias grad_expand grad_expand_bias",
    ),
    "linear_kernel": Kernel(lambda a: (cdiv(a["INNER"], a["BK"]),), _map("out"), "out gated"),
}


@dataclass(frozen=True)
class Work:
    """Trips of a launch's loops, its valid results, and the bytes that it reads and writes."""

    trips: tuple[int, ...] | tuple[tuple[int, ...], ...]
    results: int
    read: int
    written: int


def work_of(name: str, arguments: dict) -> Work:
    """What a launch does.

    Raises:
        KeyError: a kernel that ``KERNELS`` does not have.
    """
    if name not in KERNELS:
        raise KeyError(f"the static model does not know {name}: write its entry in benchmarks/static_model/work.py")
    kernel = KERNELS[name]
    return Work(kernel.trips(arguments), kernel.results(arguments), *moved(kernel, arguments))
