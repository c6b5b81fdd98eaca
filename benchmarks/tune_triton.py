"""Measure tiles of the Triton kernels on this device, and write its row of ``ghost_ops/backends/triton/tiles.json``.

For every kernel and class of shapes some layers of GhostNet-100 are timed with each candidate tile, in inference and in
training, as CUDA graphs, so that the host does not count; the tile with the least sum of times, each relative to the
default's, is taken, if it is at least 2 % better than the default. Candidates that do not compile, or need more shared
memory than there is, are left out.

    python benchmarks/tune_triton.py [--batch 128] [--kernel stencil] [--class half] [--write]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import click
import torch
from rich.console import Console

from ghost_ops.activations import RELU
from ghost_ops.backends import triton as backend

LAYERS = {  # channels, primary channels, side
    "large": ((16, 24, 112), (24, 36, 56), (72, 12, 56)),
    "small": ((40, 60, 28), (80, 100, 14), (112, 336, 14), (160, 480, 7), (960, 80, 7)),
}
CLASSES = {"half": torch.float16, "float": torch.float32}
SIDES = {
    "product": ("pixels", "channels", "depth", "warps", "stages"),
    "product_gradient": ("pixels", "channels", "depth", "warps", "stages"),
    "module": ("values", "warps", "channels", "stages"),
    "stencil": ("values", "warps", "channels"),
    "stencil_gradient": ("values", "warps", "channels"),
    "weight_gradient": ("pixels", "channels", "depth", "warps", "stages"),
}
CANDIDATES = {
    "product": (
        (64, 64, 64, 4, 3), (64, 64, 128, 4, 2), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3), (128, 64, 64, 8, 4),
        (128, 64, 128, 8, 2), (128, 32, 64, 4, 3), (128, 32, 64, 8, 3), (256, 32, 64, 8, 3), (256, 64, 64, 8, 3),
        (64, 128, 64, 8, 3), (128, 128, 64, 8, 3), (64, 32, 32, 4, 2), (32, 32, 32, 4, 2),
    ),
    "product_gradient": (
        (64, 64, 64, 4, 2), (64, 64, 64, 8, 3), (128, 64, 64, 8, 2), (128, 64, 64, 4, 2), (64, 128, 64, 8, 2),
        (32, 32, 32, 4, 2),
    ),
    "module": ((16, 4, 64, 2), (16, 4, 64, 1), (16, 4, 64, 3), (8, 4, 64, 2), (16, 8, 64, 2), (16, 4, 32, 2)),
    "stencil": ((8, 4, 128), (4, 4, 128), (8, 2, 128), (8, 1, 64), (4, 2, 64), (8, 4, 32), (16, 4, 128)),
    "stencil_gradient": ((4, 4, 128), (2, 4, 128), (8, 4, 128), (4, 2, 128), (4, 8, 128), (4, 4, 32)),
    "weight_gradient": ((64, 64, 64, 4, 2), (64, 64, 64, 4, 3), (128, 64, 64, 4, 2), (32, 32, 32, 4, 2)),
}  # fmt: skip
BETTER = 0.98
CALLS, REPLAYS = 3, 7


def calls_of(c: int, m: int, side: int, dtype: torch.dtype, batch: int, device: str = "cuda") -> list[Callable]:
    """A Ghost module in inference, and forward and backward in training with parameters in float32."""
    new = lambda *shape, kind=dtype: torch.randn(shape, device=device, dtype=kind)
    x, grad = (new(batch, k, side, side).to(memory_format=torch.channels_last) for k in (c, 2 * m))
    weights = new(m, c, 1, 1), new(m), new(m, 1, 3, 3), new(m)
    own = lambda *shape: new(*shape, kind=torch.float32)
    w1, w2, norms = own(m, c, 1, 1), own(m, 1, 3, 3), [own(m) for _ in range(4)]
    codes = 2 * m, RELU, RELU, 0.0, 0.0, 1e-5, 1e-5
    infer, train, backward = (
        backend.load(name) for name in ("ghost_module", "ghost_module_train", "ghost_module_train_backward")
    )

    def inference() -> None:
        infer(x, *weights, None, None, None, None, *codes[:5], False)

    def training() -> None:
        statistics = train(x, w1, None, *norms[:2], w2, None, *norms[2:], None, None, *codes, False)[1:5]
        backward(grad, x, w1, *norms[:2], w2, *norms[2:], None, None, *statistics, None, *codes)

    return [inference, training]


def seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call as part of a CUDA graph."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    found = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / CALLS)
    return sorted(found)[len(found) // 2]


def candidates(kernel: str) -> list[dict[str, int]]:
    return [dict(zip(SIDES[kernel], values)) for values in CANDIDATES[kernel]]


def tune(kernel: str, size: str, kind: str, batch: int, console: Console) -> dict[str, int] | None:
    """The best tile of a class, None where the default is as good."""
    from ghost_ops.backends.triton import tiles

    calls = [call for layer in LAYERS[size] for call in calls_of(*layer, CLASSES[kind], batch)]
    if "gradient" in kernel:
        calls = calls[1::2]
    defaults = [seconds(call) for call in calls]
    best, found = BETTER * len(calls), None
    for tile in candidates(kernel):
        times = []
        try:
            with tiles.override(kernel, **tile):
                for call in calls:
                    times.append(seconds(call))
        except Exception as why:  # too much shared memory, or a shape that the compiler does not take
            console.print(f"{kernel}/{size}/{kind}: {tile}: {type(why).__name__}")
            continue
        shares = [t / default for t, default in zip(times, defaults)]
        console.print(f"{kernel}/{size}/{kind}: {tile}: {' '.join(f'{s:.2f}' for s in shares)}")
        if sum(shares) < best:
            best, found = sum(shares), tile
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True)
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(list(SIDES)), help="Default: all.")
@click.option("--class", "kinds", multiple=True, type=click.Choice(list(CLASSES)), help="Default: all.")
@click.option("--write", is_flag=True, help="Put what was found into tiles.json; else it is printed.")
def main(batch: int, kernels: tuple[str, ...], kinds: tuple[str, ...], write: bool) -> None:
    """Regenerate this device's row of the tile table."""
    why = backend.reason() or (None if torch.cuda.is_available() else "no CUDA device is there")
    why = why or backend.refuse_device(torch.device("cuda", torch.cuda.current_device()))
    if why is not None:
        raise click.ClickException(f"tiles are measured on a device: {why}")
    from ghost_ops.backends.triton import tiles

    console, rows = Console(), {}
    for kernel, size, kind in itertools.product(kernels or SIDES, LAYERS, kinds or CLASSES):
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
