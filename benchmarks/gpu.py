"""The GPU benchmark: Ghost modules, whole nets and training steps on a CUDA device, against PyTorch at its best.

Every result is compared with float64 before it is timed; the baselines take turns within a round (A B A B), and medians
are reported. A launch costs the host up to 30 us on some machines, which decides the time at every batch size, so both
sides are timed as CUDA graphs too. Writes ``<out>/<device>.json`` after every case, the most telling
cases first, and ``<device>.png`` in the end where matplotlib is.

    python benchmarks/gpu.py [--part modules --part nets --part train] [--batch 256] [--minutes 8] [--dry-run]

``--dry-run`` runs everything once on the CPU at a tiny size, to see that it works: it times nothing worth reading.
"""

from __future__ import annotations

import copy
import gc
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import ghost_ops
from ghost_ops.bench import machine, other_models
from ghost_ops.bench.baselines import fold
from ghost_ops.bench.cases import ModuleCase, NetCase, module_cases
from ghost_ops.bench.report import to_json
from ghost_ops.bench.results import FAILED, WRONG, Result, error_of
from ghost_ops.bench.roofline import Limits
from ghost_ops.bench.run import Report
from ghost_ops.bench.timing import interleave
from ghost_ops.bench.training import TrainCase
from ghost_ops.dispatch import select
from ghost_ops.fused import GraphedNet
from ghost_ops.surgery.saved import saved_bytes

PARTS = ("modules", "nets", "train")
BATCHES = (1, 32, 256, 1024)
TELLING = (256, 1)  # the batches that come first
TRAIN_BATCHES = (256, 32)
MODES = ("default", "reduce-overhead", "max-autotune")  # torch.compile's; all but the first use CUDA graphs
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}  # relative to the largest element
LAST = torch.channels_last
GRAPHED = ", CUDA graph"
WARM_UPS = 3  # before a capture: kernels are compiled, libraries choose theirs


class Device:
    """The CUDA device, or in a dry run the CPU, with what timing needs of it."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.name = "cpu" if dry else "cuda"
        self.label = "dry run" if dry else torch.cuda.get_device_name()

    def forget(self) -> None:
        """Drop what the last case compiled and kept: a compiler takes only so many nets of a class."""
        torch._dynamo.reset()
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def peak(self, call: Callable[[], object]) -> int | None:
        """Device memory that a call takes beyond what is there before it."""
        if self.dry:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def bandwidth(self) -> float:
        """Bytes a second that a copy reads and writes."""
        size = 1 << (20 if self.dry else 30)
        a, b = (torch.empty(size, dtype=torch.uint8, device=self.name) for _ in range(2))
        return 2 * size / min(interleave({"copy": lambda: b.copy_(a)}, rounds=5)["copy"].samples)


def compiled(net: nn.Module, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.compile(net, mode=None if mode == "default" else mode)


def by_backend(name: str, run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """``run`` with this backend first; raises where it does not come first on this machine."""

    def called(x: torch.Tensor) -> torch.Tensor:
        with ghost_ops.use_backend(name):
            choice = select("program", x)
            if choice.backend != name:
                raise RuntimeError(str(choice))
            return run(x)

    return called


def is_graph(name: str) -> bool:
    """Whether a baseline replays CUDA graphs, whose memory is not that of a call."""
    return name.endswith((GRAPHED, *MODES[1:]))


def inference_baselines(case: ModuleCase | NetCase, net: nn.Module, modes: tuple[str, ...]) -> dict[str, Callable]:
    """Functions that make a forward of the plain net, which is on the device and in the dtype; ours first."""
    on_device = next(net.parameters()).is_cuda  # not in a dry run
    found: dict[str, Callable] = {}

    def add(name: str, build: Callable[[], nn.Module], around: Callable = lambda run: run) -> None:
        """As it is, and as a CUDA graph."""
        found[name] = lambda: around(build())
        if on_device:
            found[f"{name}{GRAPHED}"] = lambda: around(GraphedNet(build()))

    def folded() -> nn.Module:
        return fold(net).eval().to(memory_format=LAST)

    if isinstance(case, ModuleCase) or case.net.startswith("ghostnet"):
        add("ghost_ops.freeze", lambda: ghost_ops.freeze(net))
        if on_device:
            add("ghost_ops.freeze, CUDA C++", lambda: ghost_ops.freeze(net), lambda run: by_backend("cuda", run))
        found["ghost_ops.fuse"] = lambda: ghost_ops.fuse(copy.deepcopy(net))
    found["eager, NCHW"] = lambda: copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    add("eager, channels_last", lambda: copy.deepcopy(net).to(memory_format=LAST))
    add("BN folded, channels_last", folded)
    for mode in modes:
        found[f"torch.compile {mode}"] = lambda mode=mode: compiled(folded(), mode)
    return found


def new_result(part: str, case: str, batch: int, dtype: torch.dtype, name: str) -> Result:
    group = "target" if name.startswith("ghost_ops") else "pytorch"
    return Result(part, case, batch, 1, 1, name, name, group, dtype=str(dtype).removeprefix("torch."))


def floor_bytes(case: ModuleCase | NetCase, batch: int, dtype: torch.dtype) -> int:
    """The least that must move, in this dtype (the cases count float32)."""
    return case.bytes(batch) * dtype.itemsize // 4


def run_inference(
    device: Device, part: str, case: ModuleCase | NetCase, batch: int, dtype: torch.dtype, rounds: int,
    modes: tuple[str, ...], bandwidth: float,
) -> list[Result]:  # fmt: skip
    net = case.build().to(device.name, dtype)
    x = case.input(batch).to(device.name, dtype).contiguous(memory_format=LAST)
    few = x[:8]
    exact = case.build().to(device.name).double().eval()
    exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    rows, calls, size = [], {}, floor_bytes(case, batch, dtype)
    with torch.no_grad():
        expected = exact(few.double())
        del exact
        for name, build in inference_baselines(case, net, modes).items():
            row = new_result(part, case.name, batch, dtype, name)
            row.bytes, row.roof = size, size / bandwidth
            rows.append(row)
            try:
                run, seen = build(), x.contiguous() if "NCHW" in name else x
                row.error = error_of(run(seen)[:8], expected)
                if row.error > TOLERANCE[dtype]:
                    row.refuse(WRONG, "its result differs from float64")
                    continue
                call = lambda run=run, seen=seen: run(seen)
                row.resident_bytes = None if is_graph(name) else device.peak(call)
                calls[id(row)] = call
            except Exception as error:  # a baseline's failure is a result of that baseline
                row.refuse(FAILED, f"{type(error).__name__}: {error}"[:200])
        take_turns(device, rows, calls, rounds)
    return rows


def graphed(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A whole training step as one CUDA graph; gradients stay in its memory from replay to replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def run_training(device: Device, batch: int, dtype: torch.dtype, rounds: int, modes: tuple[str, ...]) -> list[Result]:
    """Steps under autocast: zero_grad, forward, cross-entropy, backward, SGD. Compared by the loss of the first."""
    case = TrainCase(side=64 if device.dry else 224)
    images, labels = (t.to(device.name) for t in case.batch(batch))
    ours, eager = (LAST, ghost_ops.fuse), (LAST, lambda net: net)
    baselines = {"ghost_ops.fuse, channels_last": ours}
    if not device.dry:
        baselines |= {f"ghost_ops.fuse{GRAPHED}": ours, f"eager, channels_last{GRAPHED}": eager}
    baselines |= {"eager, channels_last": eager, "eager, NCHW": (torch.contiguous_format, lambda net: net)}
    for mode in modes:
        baselines[f"torch.compile {mode}"] = (LAST, lambda net, mode=mode: compiled(net, mode))
    rows, calls = [], {}
    with torch.no_grad():
        expected = float(F.cross_entropy(case.build().to(device.name).double()(images.double()), labels))
    for name, (layout, prepare) in baselines.items():
        row = new_result("train", case.name, batch, dtype, name)
        rows.append(row)
        net = case.build().to(device.name).to(memory_format=layout)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x = images.contiguous(memory_format=layout)
        try:
            run = prepare(net)

            def loss(run=run, x=x):
                with torch.autocast(device.name, dtype):
                    return F.cross_entropy(run(x), labels)

            def step(loss=loss, optimizer=optimizer):
                torch.compiler.cudagraph_mark_step_begin()  # the compiler's graphs may reuse what the last step left
                optimizer.zero_grad(set_to_none=True)
                found = loss()
                found.backward()
                optimizer.step()
                return found.detach()

            call = graphed(step) if name.endswith(GRAPHED) else step
            row.error = abs(float(call()) - expected) / abs(expected)
            if not row.error <= TOLERANCE[torch.bfloat16]:
                row.refuse(WRONG, "its loss differs from float64")
                continue
            if not is_graph(name):
                row.saved_bytes, row.resident_bytes = saved_bytes(loss, net), device.peak(call)
            calls[id(row)] = call
        except Exception as error:
            row.refuse(FAILED, f"{type(error).__name__}: {error}"[:200])
    take_turns(device, rows, calls, rounds)
    return rows


def take_turns(device: Device, results: list[Result], calls: dict[int, Callable], rounds: int) -> None:
    """Times those that have a call, in turn, and relates all to the fastest of ours."""
    least = 0 if device.dry else 0.05
    timings = interleave(calls, rounds=rounds, threads=torch.get_num_threads(), min_seconds=least)
    running = [result for result in results if id(result) in timings]
    for result in running:
        result.take(timings[id(result)])
    ours = min((result.seconds for result in running if result.group == "target"), default=None)
    for result in running if ours else ():
        result.speedup = result.seconds / ours


def plot(rows: list[Result], path: Path, title: str) -> None:
    """Times of every baseline relative to our fastest: whole nets and steps by batch, modules in the geometric mean."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = {}
    for row in rows:
        if row.speedup:
            baselines = groups.setdefault((row.kind, row.dtype), {})
            baselines.setdefault((row.baseline, row.batch), []).append(row.speedup)
    if not groups:
        return
    figure = Figure(figsize=(6 * len(groups), 4.5), layout="constrained")
    figure.suptitle(title)
    for axes, ((part, dtype), baselines) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items()):
        for name in dict.fromkeys(found for found, _ in baselines):
            points = sorted((n, statistics.geometric_mean(v)) for (found, n), v in baselines.items() if found == name)
            axes.plot(*zip(*points), marker="o", label=name)
        axes.set(xscale="log", xlabel="batch", ylabel="times as long as ours", title=f"{part}, {dtype}")
        axes.axhline(1, color="black", linewidth=0.5)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def show(rows: list[Result], console: Console) -> None:
    table = Table("part", "case", "batch", "dtype", "baseline", "ms", "x ours", "GB/s", "of floor", "peak MiB", "note")
    for r in rows:
        number = lambda v, form: "" if v is None else format(v, form)
        rate = r.bytes / r.seconds / 1e9 if r.bytes and r.seconds else None
        table.add_row(
            r.kind, r.case, str(r.batch), r.dtype, r.label, number(r.seconds and r.seconds * 1e3, ".3f"),
            number(r.speedup, ".2f"), number(rate, ".0f"), number(r.share, ".0%"),
            number(r.resident_bytes and r.resident_bytes / 2**20, ".0f"), r.reason,
        )  # fmt: skip
    console.print(table)


def ordered(
    parts: tuple[str, ...], modules: list[ModuleCase], nets: list[NetCase], batches: tuple[int, ...],
    train_batches: tuple[int, ...],
) -> list[tuple[str, ModuleCase | NetCase | None, int]]:  # fmt: skip
    """Part, case and batch, the most telling first, for a run that is cut short: GhostNet itself, its training, its
    modules, the other models, then all of these at other batches."""
    telling = [batch for batch in TELLING if batch in batches] or list(batches)
    others = [batch for batch in batches if batch not in telling]
    found = []
    for some in (telling, others):
        found += [("nets", nets[0], batch) for batch in some]
        found += [("train", None, batch) for batch in (train_batches if some is telling else ())]
        found += [("modules", case, batch) for batch in some for case in modules]
        found += [("nets", case, batch) for batch in some for case in nets[1:]]
    return [one for one in found if one[0] in parts]


def save(rows: list[Result], device: Device, bandwidth: float, out: Path) -> Path:
    """Writes all results so far as JSON, in the place of what was written before; returns the path."""
    name = re.sub(r"[^a-z0-9]+", "-", device.label.lower()).strip("-")
    where = machine.describe() | {"gpu": device.label, "cuda": torch.version.cuda}
    limits = Limits(1, 0.0, "not measured", {"DRAM": bandwidth}, {})
    found = Report(where, {}, [limits.as_dict()], rows)
    out.mkdir(parents=True, exist_ok=True)
    path, own = out / f"{name}.json", out / f"{name}.json.new"
    own.write_text(to_json(found))
    own.replace(path)
    return path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Default: all.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help=f"Default: {BATCHES}.")
@click.option(
    "--train-batch", "train_batches", multiple=True, type=click.IntRange(2), help=f"Default: {TRAIN_BATCHES}."
)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(["float16", "bfloat16"]), help="Default: both.")
@click.option("--rounds", type=click.IntRange(1), default=11, show_default=True)
@click.option("--minutes", type=click.FloatRange(0), help="No case starts later than this.")
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(MODES), help=f"Of torch.compile. Default: {MODES[:2]}."
)
@click.option("--quick", is_flag=True, help="Without torch.compile, which takes most of the time.")
@click.option("--dry-run", "dry", is_flag=True, help="Once, tiny, on the CPU: does it work?")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent / "results", show_default=True)
def main(parts, batches, train_batches, dtypes, rounds, minutes, modes, quick, dry, out) -> None:
    """Time ghost_ops against PyTorch at its best on a CUDA device."""
    if not dry and not torch.cuda.is_available():
        raise click.ClickException("no CUDA device is there; --dry-run shows on the CPU that the benchmark works")
    end = None if minutes is None else time.monotonic() + 60 * minutes
    device, console = Device(dry), Console()
    console = console if console.is_terminal else Console(width=180)
    batches, train_batches = (batches or BATCHES, train_batches or TRAIN_BATCHES) if not dry else ((1,), (2,))
    kinds = [getattr(torch, name) for name in dtypes or (("bfloat16",) if dry else ("float16", "bfloat16"))]
    rounds, modes = 1 if dry else rounds, () if quick or dry else modes or MODES[:2]
    bandwidth, rows = device.bandwidth(), []
    modules = module_cases()[:2] if dry else module_cases()
    nets = [NetCase("ghostnet_100", side=64 if dry else 224), *(() if dry else map(NetCase, other_models.OTHER_MODELS))]
    cases = ordered(parts or PARTS, modules, nets, batches, train_batches)
    runs = [(*one, dtype) for one in cases for dtype in (kinds[:1] if one[0] == "train" else kinds)]
    for i, (part, case, batch, dtype) in enumerate(runs):
        if end is not None and time.monotonic() > end:
            console.print(f"{minutes:g} minutes are over: {len(runs) - i} of {len(runs)} cases were left out")
            break
        device.forget()
        if part == "train":
            found = run_training(device, batch, dtype, rounds, modes)
        else:
            found = run_inference(device, part, case, batch, dtype, rounds, modes, bandwidth)
        show(found, console)
        rows += found
        if not dry:
            path = save(rows, device, bandwidth, out)
    if dry or not rows:
        return
    try:
        plot(rows, path.with_suffix(".png"), device.label)
    except ImportError:
        console.print("matplotlib is not installed: no picture")


if __name__ == "__main__":
    main()
