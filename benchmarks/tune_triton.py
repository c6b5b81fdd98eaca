"""Measure tiles of the Triton kernels on this device, and write its row of ``ghost_ops/backends/triton/tiles.json``.

For every kernel and class of shapes some layers of GhostNet-100 are timed with each candidate tile; the tile with the
least sum of times, each relative to the default's, is taken, if it is at least 3 % better than the default. Candidates
that do not compile, or need more shared memory than there is, are left out.

    python benchmarks/tune_triton.py [--batch 64] [--write]
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch
from rich.console import Console

from ghost_ops import functional
from ghost_ops.backends import triton as backend

LAYERS = {  # channels, primary channels, side
    "large": ((16, 24, 112), (24, 36, 56), (72, 12, 56)),
    "small": ((40, 60, 28), (112, 336, 14), (672, 80, 14), (160, 480, 7), (960, 80, 7)),
}
DTYPES = {"half": torch.float16, "float": torch.float32}
CANDIDATES = {
    "pixels": (16, 32, 64, 128), "channels": (16, 32, 64, 128), "depth": (32, 64), "warps": (4, 8), "stages": (2, 3, 4),
    "band": (256, 784, 1024, 2048),
}  # fmt: skip
SIDES = {
    "single_pass": ("pixels", "channels", "depth", "warps", "stages", "band"),
    "product": ("pixels", "channels", "depth", "warps", "stages"),
    "depthwise": ("pixels", "channels", "warps"),
    "weight_gradient": ("pixels", "channels", "depth", "warps", "stages"),
}
BETTER = 0.97


def call_of(kernel: str, c: int, m: int, side: int, dtype: torch.dtype, batch: int) -> Callable[[], object]:
    """A call in which the kernel weighs: inference of the single pass, a training step of the others."""
    x = torch.randn(batch, c, side, side, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    w1, w2 = torch.randn(m, c, 1, 1, device="cuda"), torch.randn(m, 1, 3, 3, device="cuda")
    if kernel == "single_pass":
        w1, w2 = w1.to(dtype), w2.to(dtype)
        return lambda: functional.ghost_module(x, w1, None, w2, None)
    leaves = [t.requires_grad_() for t in (x, w1, w2)]

    def step() -> None:
        out = functional.ghost_module_train(leaves[0], leaves[1], None, None, None, leaves[2], None, None, None).out
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def seconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=10, rep=40, return_mode="median") / 1e3


def candidates(kernel: str) -> Iterator[dict[str, int]]:
    names = SIDES[kernel]
    for values in itertools.product(*(CANDIDATES[name] for name in names)):
        tile = dict(zip(names, values))
        if tile["pixels"] * tile["channels"] <= 8192:
            yield tile


def tune(kernel: str, size: str, kind: str, batch: int, console: Console) -> dict[str, int] | None:
    """The best tile of a class, None where the default is as good."""
    from ghost_ops.backends.triton import tiles

    calls = [call_of(kernel, *layer, DTYPES[kind], batch) for layer in LAYERS[size]]
    defaults = [seconds(call) for call in calls]
    best, found = BETTER * len(calls), None
    for tile in candidates(kernel):
        try:
            with tiles.override(kernel, **tile):
                score = 0.0
                for call, default in zip(calls, defaults):
                    score += seconds(call) / default
                    if score > best:
                        break
        except Exception:  # too much shared memory, or a shape that the compiler does not take
            score = math.inf
        if score < best:
            best, found = score, tile
            console.print(f"{kernel}/{size}/{kind}: {tile}: {best / len(calls):.2f} of the default's time")
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(list(SIDES)), help="Default: all.")
@click.option("--write", is_flag=True, help="Put what was found into tiles.json; else it is printed.")
def main(batch: int, kernels: tuple[str, ...], write: bool) -> None:
    """Regenerate this device's row of the tile table."""
    why = backend.reason() or (None if torch.cuda.is_available() else "no CUDA device is there")
    why = why or backend.refuse_device(torch.device("cuda", torch.cuda.current_device()))
    if why is not None:
        raise click.ClickException(f"tiles are measured on a device: {why}")
    from ghost_ops.backends.triton import tiles

    console, rows = Console(), {}
    for kernel, size, kind in itertools.product(kernels or SIDES, LAYERS, DTYPES):
        found = tune(kernel, size, kind, batch, console)
        if found is not None:
            rows[f"{kernel}/{size}/{kind}"] = found
    architecture, table = tiles.architecture(torch.device("cuda", torch.cuda.current_device())), tiles.table()
    table[architecture] = table.get(architecture, {}) | rows
    text = layout(table)
    if write:
        Path(tiles.__file__).with_name("tiles.json").write_text(text)
    else:
        console.print(text)


def layout(table: dict[str, dict[str, dict[str, int]]]) -> str:
    """A tile a line."""
    blocks = []
    for architecture, rows in table.items():
        lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(tile)}" for key, tile in rows.items())
        blocks.append(f"  {json.dumps(architecture)}: {{" + (f"\n{lines}\n  }}" if rows else "}"))
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    main()
