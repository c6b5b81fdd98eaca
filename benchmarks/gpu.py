"""The GPU benchmark: Ghost modules, whole nets and training steps on a CUDA device, beside PyTorch at its best.

Every result is compared with float64 before it is timed; peers take turns within a round (A B A B), timed by the
device's own events; medians are reported. A launch costs the host up to 30 us on some machines, which decides at every
batch, so both sides are timed as CUDA graphs too. Writes ``<out>/<device>.json`` after every case, the most telling
cases first, and ``<device>.png`` in the end where matplotlib is.

    python benchmarks/gpu.py [--part modules --part nets --part train] [--batch 256] [--minutes 8] [--dry-run]

``--dry-run`` runs everything once on the CPU at a tiny size, to see that it works: it times nothing worth reading.
"""

from __future__ import annotations

import copy
import gc
import json
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import ghost_ops
from ghost_ops.bench import machine
from ghost_ops.bench.cases import ModuleCase, NetCase, module_cases
from ghost_ops.bench.peers import fold
from ghost_ops.bench.training import TrainCase, saved_bytes
from ghost_ops.dispatch import select
from ghost_ops.fused import GraphedNet

PARTS = ("modules", "nets", "train")
BATCHES = (1, 32, 256, 1024)
TELLING = (256, 1)  # the batches that come first
TRAIN_BATCHES = (256, 32)
MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; all but the first with CUDA graphs
RIVALS = ("mobilenet_v3_large", "resnet18")
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}  # of the largest element
LAST = torch.channels_last
GRAPHED = ", CUDA graph"
WARM_UPS = 3  # before a capture: kernels are compiled, libraries choose theirs


@dataclass
class Row:
    """One peer on one case. ``seconds`` is None where it failed, and ``note`` says why."""

    part: str
    case: str
    batch: int
    dtype: str
    peer: str
    seconds: float | None = None
    error: float | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    gb_per_second: float | None = None
    share_of_floor: float | None = None
    speedup: float | None = None  # of our fastest against this peer
    note: str = ""


class Device:
    """The CUDA device, or in a dry run the CPU, with what timing needs of it."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.name = "cpu" if dry else "cuda"
        self.label = "dry run" if dry else torch.cuda.get_device_name()

    def forget(self) -> None:
        """What the last case compiled and kept: a compiler takes only so many nets of a class."""
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

    def seconds(self, call: Callable[[], object], number: int) -> float:
        if self.dry:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / number

    def bandwidth(self) -> float:
        """Bytes a second of a copy, read and written."""
        size = 1 << (20 if self.dry else 30)
        a, b = (torch.empty(size, dtype=torch.uint8, device=self.name) for _ in range(2))
        b.copy_(a)
        return 2 * size / min(self.seconds(lambda: b.copy_(a), 10) for _ in range(5))


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


def is_graph(peer: str) -> bool:
    """Whether a peer replays CUDA graphs, whose memory is not that of a call."""
    return peer.endswith((GRAPHED, *MODES[1:]))


def inference_peers(case: ModuleCase | NetCase, net: nn.Module, modes: tuple[str, ...]) -> dict[str, Callable]:
    """What makes of the plain net, on the device and in the dtype, a forward; ours first."""
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


def floor_bytes(case: ModuleCase | NetCase, batch: int, dtype: torch.dtype) -> int:
    """The least that must move, in this dtype (the cases count float32)."""
    return case.bytes(batch) * dtype.itemsize // 4


def run_inference(
    device: Device, part: str, case: ModuleCase | NetCase, batch: int, dtype: torch.dtype, rounds: int,
    modes: tuple[str, ...], bandwidth: float,
) -> list[Row]:  # fmt: skip
    net = case.build().to(device.name, dtype)
    x = case.input(batch).to(device.name, dtype).contiguous(memory_format=LAST)
    few = x[:8]
    exact = case.build().to(device.name).double().eval()
    exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in net.state_dict().items()})
    rows, calls = [], {}
    with torch.no_grad():
        expected = exact(few.double())
        del exact
        for name, build in inference_peers(case, net, modes).items():
            row = Row(part, case.name, batch, str(dtype).removeprefix("torch."), name)
            rows.append(row)
            try:
                run, seen = build(), x.contiguous() if "NCHW" in name else x
                result = run(seen)[:8]
                row.error = float((result.double() - expected).abs().max() / expected.abs().max())
                if not row.error <= TOLERANCE[dtype]:
                    row.note = "wrong"
                    continue
                calls[id(row)] = call = lambda run=run, seen=seen: run(seen)
                row.peak_bytes = None if is_graph(name) else device.peak(call)
            except Exception as error:  # a peer's failure is a result of that peer
                row.note = f"{type(error).__name__}: {error}"[:200]
        size = floor_bytes(case, batch, dtype)
        take_turns(device, rows, calls, rounds)
        for row in rows:
            if row.seconds:
                row.gb_per_second = size / row.seconds / 1e9
                row.share_of_floor = size / bandwidth / row.seconds
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


def run_training(device: Device, batch: int, dtype: torch.dtype, rounds: int, modes: tuple[str, ...]) -> list[Row]:
    """Steps under autocast: zero_grad, forward, cross-entropy, backward, SGD. Compared by the loss of the first."""
    case = TrainCase(side=64 if device.dry else 224)
    images, labels = (t.to(device.name) for t in case.batch(batch))
    ours, eager = (LAST, ghost_ops.fuse), (LAST, lambda net: net)
    peers = {"ghost_ops.fuse, channels_last": ours}
    if not device.dry:
        peers |= {f"ghost_ops.fuse{GRAPHED}": ours, f"eager, channels_last{GRAPHED}": eager}
    peers |= {"eager, channels_last": eager, "eager, NCHW": (torch.contiguous_format, lambda net: net)}
    for mode in modes:
        peers[f"torch.compile {mode}"] = (LAST, lambda net, mode=mode: compiled(net, mode))
    rows, calls = [], {}
    with torch.no_grad():
        expected = float(F.cross_entropy(case.build().to(device.name).double()(images.double()), labels))
    for name, (layout, prepare) in peers.items():
        row = Row("train", case.name, batch, str(dtype).removeprefix("torch."), name)
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
                row.note = "wrong"
                continue
            if not is_graph(name):
                row.saved_bytes, row.peak_bytes = saved_bytes(loss, net), device.peak(call)
            calls[id(row)] = call
        except Exception as error:
            row.note = f"{type(error).__name__}: {error}"[:200]
    take_turns(device, rows, calls, rounds)
    return rows


def take_turns(device: Device, rows: list[Row], calls: dict[int, Callable], rounds: int) -> None:
    """Medians over rounds in which every peer has its turn; sets our fastest beside them."""
    running = [row for row in rows if id(row) in calls]
    samples: dict[int, list[float]] = {id(row): [] for row in running}
    for row in running:
        for _ in range(1 if device.dry else 10):
            calls[id(row)]()
    numbers = {id(row): max(1, int(0.05 / max(device.seconds(calls[id(row)], 3), 1e-6))) for row in running}
    for _ in range(rounds):
        for row in running:
            samples[id(row)].append(device.seconds(calls[id(row)], numbers[id(row)]))
    for row in running:
        row.seconds = statistics.median(samples[id(row)])
    ours = min((row.seconds for row in running if row.peer.startswith("ghost_ops")), default=None)
    for row in running if ours else ():
        row.speedup = row.seconds / ours


def plot(rows: list[Row], path: Path, title: str) -> None:
    """Times of every peer relative to our fastest: whole nets and steps by batch, modules in the geometric mean."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = {}
    for row in rows:
        if row.speedup:
            peers = groups.setdefault((row.part, row.dtype), {})
            peers.setdefault((row.peer, row.batch), []).append(row.speedup)
    if not groups:
        return
    figure = Figure(figsize=(6 * len(groups), 4.5), layout="constrained")
    figure.suptitle(title)
    for axes, ((part, dtype), peers) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items()):
        for name in dict.fromkeys(peer for peer, _ in peers):
            points = sorted((batch, statistics.geometric_mean(v)) for (peer, batch), v in peers.items() if peer == name)
            axes.plot(*zip(*points), marker="o", label=name)
        axes.set(xscale="log", xlabel="batch", ylabel="times as long as ours", title=f"{part}, {dtype}")
        axes.axhline(1, color="black", linewidth=0.5)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def show(rows: list[Row], console: Console) -> None:
    table = Table("part", "case", "batch", "dtype", "peer", "ms", "x ours", "GB/s", "of floor", "peak MiB", "note")
    for r in rows:
        number = lambda v, form: "" if v is None else format(v, form)
        table.add_row(
            r.part, r.case, str(r.batch), r.dtype, r.peer, number(r.seconds and r.seconds * 1e3, ".3f"),
            number(r.speedup, ".2f"), number(r.gb_per_second, ".0f"), number(r.share_of_floor, ".0%"),
            number(r.peak_bytes and r.peak_bytes / 2**20, ".0f"), r.note,
        )  # fmt: skip
    console.print(table)


def ordered(
    parts: tuple[str, ...], modules: list[ModuleCase], nets: list[NetCase], batches: tuple[int, ...],
    train_batches: tuple[int, ...],
) -> list[tuple[str, ModuleCase | NetCase | None, int]]:  # fmt: skip
    """Part, case and batch, the most telling first, for a run that is cut short: GhostNet itself, its training, its
    modules, its rivals, then all of these at other batches."""
    telling = [batch for batch in TELLING if batch in batches] or list(batches)
    others = [batch for batch in batches if batch not in telling]
    found = []
    for some in (telling, others):
        found += [("nets", nets[0], batch) for batch in some]
        found += [("train", None, batch) for batch in (train_batches if some is telling else ())]
        found += [("modules", case, batch) for batch in some for case in modules]
        found += [("nets", case, batch) for batch in some for case in nets[1:]]
    return [one for one in found if one[0] in parts]


def save(rows: list[Row], device: Device, bandwidth: float, out: Path) -> Path:
    """All rows so far, as JSON, in the place of what was written before; returns its path."""
    name = re.sub(r"[^a-z0-9]+", "-", device.label.lower()).strip("-")
    found = {
        "machine": machine.describe() | {"gpu": device.label, "cuda": torch.version.cuda},
        "copy_bytes_per_second": bandwidth, "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path, own = out / f"{name}.json", out / f"{name}.json.new"
    own.write_text(json.dumps(found, indent=1))
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
    """Time ours beside PyTorch's best on a CUDA device."""
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
    nets = [NetCase("ghostnet_100", side=64 if dry else 224), *(() if dry else map(NetCase, RIVALS))]
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
