"""A benchmark run: every case with every peer, compared with float64, then timed side by side."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from . import machine
from .cases import ModuleCase, NetCase
from .engines import PEERS
from .machine import Unavailable
from .peers import OURS, Built, Peer
from .roofline import Limits
from .timing import Timing, geometric_mean, interleave, torch_threads

TOLERANCE = 1e-4  # of float32 results, relative to the largest element: an order above what rounding makes of a net
SCHEMA = 1
OK, WRONG, MISSING, FAILED = "ok", "wrong", "missing", "failed"

BEST_OF = {
    "best of PyTorch": ("eager_nchw", "eager", "folded", "compile", "compile_frozen"),
    "best of ONNX Runtime and OpenVINO": ("onnxruntime", "openvino", "openvino_nhwc"),
    "best of all": tuple(name for name, peer in PEERS.items() if peer.group != "ours"),
}


@dataclass
class Row:
    """One peer on one case.

    Attributes:
        kind: module, net or train.
        case, batch, threads, count: which; how many modules of the net are like this.
        peer, label, group: who.
        status: ok; wrong (its result is not the reference's); missing (not installed); failed (it raised).
        reason: of a status that is not ok.
        error: largest difference from float64 over the largest element; of a training step, see ``training``.
        seconds, spread: median and interquartile range; None unless ok.
        samples: seconds a call, one a round.
        speedup: how many times longer than ours it takes.
        flops, bytes, roof, share: the work, the least seconds for it on this machine, roof over seconds.
        saved_bytes: of a training step: what autograd keeps for the backward.
    """

    kind: str
    case: str
    batch: int
    threads: int
    count: int
    peer: str
    label: str
    group: str
    status: str = OK
    reason: str = ""
    error: float | None = None
    seconds: float | None = None
    spread: float | None = None
    samples: list[float] = field(default_factory=list)
    speedup: float | None = None
    flops: int | None = None
    bytes: int | None = None
    roof: float | None = None
    share: float | None = None
    saved_bytes: int | None = None

    def take(self, timing: Timing) -> None:
        self.seconds, self.spread, self.samples = timing.median, timing.spread, list(timing.samples)
        if self.roof is not None:
            self.share = self.roof / self.seconds

    def refuse(self, status: str, reason: str) -> None:
        """No result that was not compared, or was wrong, has a speed."""
        self.status, self.reason = status, reason
        self.seconds = self.spread = self.share = self.speedup = None
        self.samples = []


@dataclass
class Report:
    """The rows of a run, and what they were measured on."""

    machine: dict[str, object]
    settings: dict[str, object]
    limits: list[dict[str, object]]
    rows: list[Row]

    def summary(self) -> list[Summary]:
        return summarise(self.rows)

    def as_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "settings": self.settings,
            "limits": self.limits,
            "rows": [asdict(row) for row in self.rows],
            "summary": [asdict(line) for line in self.summary()],
        }


@dataclass(frozen=True)
class Summary:
    """Ours against a peer over all cases of a kind, batch and thread count.

    Attributes:
        mean: geometric mean of the speed-ups, each case counted as often as the net has it.
        worst, worst_case: the least speed-up, and where; below 1 is a loss.
        losses, cases: in how many of the cases ours is slower.
    """

    kind: str
    batch: int
    threads: int
    peer: str
    mean: float
    worst: float
    worst_case: str
    losses: int
    cases: int


def error_of(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest element of the reference; infinite for another shape or for NaN."""
    if result.shape != reference.shape:
        return float("inf")
    scale = reference.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = float((result.double() - reference).abs().max() / scale)
    return error if error == error else float("inf")


def run_case(
    case: ModuleCase | NetCase,
    batch: int,
    threads: int,
    peers: Sequence[Peer],
    *,
    rounds: int,
    limits: Limits | None = None,
    min_seconds: float = 0.02,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Build every peer, compare its result with float64, time those that agree, and compare again.

    Args:
        limits: of the machine, for the roofline; None leaves it out.
        on_step: told what is being done.
    """
    module, x = case.build(), case.input(batch)
    rows, built = [], {}
    with torch_threads(threads):
        with torch.no_grad():
            reference = copy.deepcopy(module).double()(x.double())
        work = case.flops(batch), case.bytes(batch)
        roof = None if limits is None else limits.roof(*work)
        for peer in peers:
            on_step(f"{peer.label}: building")
            row = Row(case.kind, case.name, batch, threads, case.count, peer.name, peer.label, peer.group)
            row.flops, row.bytes, row.roof = *work, roof
            rows.append(row)
            ready = _build(peer, module, x, threads, row)
            if ready is not None and _compare(ready, reference, row):
                built[peer.name] = ready
    calls = {name: ready.call for name, ready in built.items()}
    told = lambda name: on_step(PEERS[name].label)
    timings = interleave(calls, rounds=rounds, threads=threads, min_seconds=min_seconds, on_sample=told)
    with torch_threads(threads):
        for row in rows:
            if row.peer in timings:
                row.take(timings[row.peer])
                _compare(built[row.peer], reference, row)
    del built, calls
    gc.collect()
    return relate(rows)


def _build(peer: Peer, module: nn.Module, x: torch.Tensor, threads: int, row: Row) -> Built | None:
    try:
        return peer.build(module, x, threads)
    except Unavailable as why:
        row.refuse(MISSING, str(why))
    except Exception as error:  # an engine's failure is a result of that engine, not the end of the run
        row.refuse(FAILED, f"{type(error).__name__}: {error}"[:300])
    return None


def _compare(ready: Built, reference: torch.Tensor, row: Row) -> bool:
    """Whether a fresh result agrees with the reference; notes the error, and takes back a speed if not."""
    try:
        error = error_of(ready.result(ready.call()), reference)
        ready.check()
    except Exception as failure:
        row.refuse(FAILED, f"{type(failure).__name__}: {failure}"[:300])
        return False
    row.error = error if row.error is None else max(row.error, error)
    if row.error > TOLERANCE:
        row.refuse(WRONG, f"its result differs from float64 by {row.error:.1e} of the largest element")
        return False
    return True


def relate(rows: list[Row]) -> list[Row]:
    """Fill in the speed-ups of rows of one case."""
    ours = next((row.seconds for row in rows if row.peer == OURS), None)
    for row in rows:
        row.speedup = row.seconds / ours if ours and row.seconds else None
    return rows


def summarise(rows: Iterable[Row]) -> list[Summary]:
    """Geometric means over the cases, for each peer and for the best of several."""
    groups: dict[tuple, dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row.speedup is not None and row.group != "ours":
            groups.setdefault((row.kind, row.batch, row.threads), {}).setdefault(row.peer, {})[row.case] = row
    lines = []
    for key, peers in groups.items():
        best = {}
        for name, members in BEST_OF.items():
            candidates = [row for member in members for row in peers.get(member, {}).values()]
            chosen: dict[str, Row] = {}
            for row in candidates:
                if row.case not in chosen or row.speedup < chosen[row.case].speedup:
                    chosen[row.case] = row
            if len(members) > 1 and chosen and key[0] != "train":
                best[name] = chosen
        for name, by_case in {**peers, **best}.items():
            values = list(by_case.values())
            worst = min(values, key=lambda row: row.speedup)
            mean = geometric_mean([row.speedup for row in values], [row.count for row in values])
            losses = sum(row.speedup < 1 for row in values)
            lines.append(Summary(*key, name, mean, worst.speedup, worst.case, losses, len(values)))
    return lines


def new_report(settings: dict[str, object], limits: Sequence[Limits]) -> Report:
    return Report(machine.describe(), settings, [limit.as_dict() for limit in limits], [])
