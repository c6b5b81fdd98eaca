"""A page for each device that was measured, with its charts, made from benchmarks/results and from nothing else.

``python docs/site/devices.py`` writes docs/performance/<device>.md and docs/performance/plots/*.svg; a test compares
them with what this file makes. Each chart names its file, with the commit, the version and the date that it was
measured with.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from charts import LOSS, OTHER, OURS, Bar, Panel, Point, bars, roofline
from wrapping import wrapped

from ghost_ops.bench.report import read_json
from ghost_ops.bench.results import OK, Result
from ghost_ops.bench.run import Report

ROOT = Path(__file__).resolve().parents[2]
RESULTS, FOLDER = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance"
HIDDEN = ("ghost_ops_nchw", "frozen_nchw")
ENGINES = ("onnxruntime", "openvino", "openvino_nhwc", "ncnn", "executorch", "openvino_bfloat16")


class Device(NamedTuple):
    """A device: its page's name and title, what its result files begin with, and a sentence about it."""

    name: str
    title: str
    prefix: str
    about: str


DEVICES = (
    Device("zen5", "Zen 5 (AVX-512)", "turin", "An AMD EPYC: two virtual cores of a shared machine."),
    Device(
        "xeon",
        "Xeon (AVX-512, AMX)",
        "emerald",
        "An Intel Xeon (Emerald Rapids): two virtual cores of a shared machine.",
    ),
    Device("zen4", "Zen 4 (AVX-512)", "genoa", "An AMD EPYC: two virtual cores of a shared machine."),
    Device("zen3", "Zen 3 (AVX2)", "milan", "An AMD EPYC without AVX-512: two virtual cores of a shared machine."),
    Device("zen2", "Zen 2 (AVX2)", "rome", "An AMD EPYC without AVX-512: two virtual cores of a shared machine."),
)


def _source(path: Path, machine: dict) -> str:
    """Where figures come from: the file, the commit and version, and the day."""
    day = datetime.fromisoformat(machine["date"])
    version = machine["ghost_ops"] if machine["ghost_ops"][0].isdigit() else "from its sources"
    return (
        f"[{path.name}](../../benchmarks/results/{path.name}): commit {machine['commit'][:12]}, ghost_ops {version}, "
        f"torch {machine['versions']['torch']}, instruction set {machine['isa']}, {day.day} {day:%B %Y}"
    )


def _name(result: Result) -> str:
    return {"ghost_ops": "ghost_ops.fuse", "ghost_ops, memory=low": "ghost_ops.fuse, low memory"}.get(
        result.label, result.label.replace("OpenVINO, NHWC in and out", "OpenVINO, NHWC ends")
    )


def _ms(seconds: float) -> str:
    ms = seconds * 1e3
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _setting(batch: int, threads: int) -> str:
    return f"batch {batch}, {_count(threads, 'thread')}"


def _is_ours(result: Result) -> bool:
    return result.group == "target"


class Page:
    """The page of one device, and the charts that it shows."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.charts: dict[str, str] = {}
        self.lines: list[str] = []
        self.losses: list[str] = []

    def report(self, part: str) -> tuple[Report, list[Result], str] | None:
        """A result file, its timed results, and where they come from; None where there is no such file."""
        path = RESULTS / f"{self.device.prefix}-{part}.json"
        if not path.exists():
            return None
        report = read_json(path)
        good = [r for r in report.results if r.status == OK and r.seconds is not None and r.baseline not in HIDDEN]
        return report, good, _source(path, report.machine)

    def chart(self, part: str, alt: str, svg: str, sources: Iterable[str]) -> None:
        name = f"{self.device.name}-{part}.svg"
        self.charts[name] = svg
        self.lines += [f"![{alt}](plots/{name})", "", *(f"- {source}" for source in sources), ""]

    def heading(self, title: str, *said: str) -> None:
        self.lines += [f"## {title}", "", *(line for line in said for line in (line, ""))]

    def lost(self, what: str, ours: Result, best: Result) -> None:
        """Note where something else was faster."""
        if best.seconds < ours.seconds:
            times = best.seconds / ours.seconds
            self.losses.append(
                f"| {what} | {_name(ours)}, {_ms(ours.seconds)} | {_name(best)}, {_ms(best.seconds)} | {times:.2f} |"
            )

    # The parts

    def nets(self) -> None:
        found = [f for f in (self.report("nets"), self.report("nets-16")) if f is not None]
        if not found:
            return
        groups: dict[tuple[int, int], list[Result]] = {}
        for _, results, _ in found:
            for result in results:
                groups.setdefault((result.batch, result.threads), []).append(result)
        sources = [source for *_, source in found]
        self.heading("GhostNet-100 beside other engines", "224 x 224, float32, the median of turns in one process.")
        panels = []
        for (batch, threads), results in groups.items():
            ordered = sorted(results, key=lambda r: r.seconds)
            panels.append(Panel(_setting(batch, threads), [_timed(r) for r in ordered]))
            best = min((r for r in results if not _is_ours(r)), key=lambda r: r.seconds)
            for ours in filter(_is_ours, results):
                self.lost(f"GhostNet-100, {_setting(batch, threads)}", ours, best)
        self.chart(
            "nets", "Times of GhostNet-100 in each engine", bars("GhostNet-100, time of a call", panels, NOTE), sources
        )
        self.heading("With the batch and with threads", "The same results as images a second: longer is better.")
        panels = []
        for name in dict.fromkeys(r.label for rs in groups.values() for r in rs):
            rows = [(k, r) for k, rs in groups.items() for r in rs if r.label == name]
            panel = [
                Bar(_setting(*k), r.batch / r.seconds, f"{r.batch / r.seconds:.0f} a second", _color(r))
                for k, r in rows
            ]
            panels.append(Panel(_name(rows[0][1]), panel))
        svg = bars("GhostNet-100, images a second", panels, "Each panel has a scale of its own.")
        self.chart("scaling", "Images a second at batch 1 and 16, with one and two threads", svg, sources)

    def sizes(self) -> None:
        panels, sources = [], []
        for part, what in (
            ("frozen-sizes", "float32"),
            ("frozen-bfloat16", "bfloat16"),
            ("amx-frozen-bfloat16", "bfloat16, AMX"),
        ):
            found = self.report(part)
            if found is None:
                continue
            sources.append(found[2])
            groups: dict[tuple[str, int, int], list[Result]] = {}
            for result in found[1]:
                groups.setdefault((result.case, result.batch, result.threads), []).append(result)
            for (case, batch, threads), results in groups.items():
                name, _, size = case.partition("@")
                title = (
                    f"{what}: {name.replace('ghostnet_', 'width ')}, {size or 224} pixels, {_setting(batch, threads)}"
                )
                if threads == 1:
                    panels.append(Panel(title, [_timed(r) for r in sorted(results, key=lambda r: r.seconds)]))
                ours = min(filter(_is_ours, results), key=lambda r: r.seconds)
                self.lost(
                    f"GhostNet, {title}", ours, min((r for r in results if not _is_ours(r)), key=lambda r: r.seconds)
                )
        if panels:
            self.heading("With the size of the image, and in bfloat16", "A frozen net beside OpenVINO, one thread.")
            self.chart(
                "sizes",
                "Times of a frozen GhostNet by width, image size and dtype",
                bars("GhostNet, sizes", panels, NOTE),
                sources,
            )

    def modules(self) -> None:
        found = self.report("modules")
        if found is None:
            return
        report, results, source = found
        self.heading(
            "Single Ghost modules",
            "How many times as fast as the fastest engine that was measured a frozen module is, for each of the 22 "
            "shapes of GhostNet-100, one thread. The dashed line is 1: left of it the engine is faster.",
        )
        self._ratios("modules", results, "frozen", ENGINES, "A frozen Ghost module beside the best engine", [source])
        self.lines += ["The same for a fused module, which folds and packs its weights on every call:", ""]
        title = "A fused Ghost module beside the best engine"
        self._ratios("modules-fused", results, "ghost_ops", ENGINES, title, [source])
        limits = next(limit for limit in report.limits if limit["threads"] == 1)
        points = [
            Point(r.flops / r.bytes, r.flops / r.seconds / 1e9, OURS if r.batch == 1 else OTHER)
            for r in results
            if r.baseline == "frozen" and r.flops
        ]
        self.heading(
            "Against the limit of the machine",
            "Each point is a frozen Ghost module, batch 1 in orange and batch "
            "16 in blue. The lines are what the machine was "
            "measured to do: its peak of multiply-adds, and its bandwidth from each cache and from memory.",
        )
        bandwidths = {name: value / 1e9 for name, value in limits["bandwidth"].items()}
        svg = roofline("Ghost modules under the roofline", points, limits["flops"] / 1e9, bandwidths, "One thread.")
        self.chart("roofline", "Ghost modules under the roofline", svg, [source])

    def training(self) -> None:
        found = self.report("train")
        if found is not None:
            _, results, source = found
            ordered = sorted(results, key=lambda r: r.seconds)
            panels = [
                Panel("time of a step", [_timed(r) for r in ordered]),
                Panel("memory saved for the backward", [_memory(r, r.saved_bytes) for r in ordered if r.saved_bytes]),
                Panel("peak memory of a step", [_memory(r, r.resident_bytes) for r in ordered if r.resident_bytes]),
            ]
            best = min((r for r in results if not _is_ours(r)), key=lambda r: r.seconds)
            for ours in filter(_is_ours, results):
                self.lost("a training step of GhostNet-100", ours, best)
            self.heading("Training", "A step of GhostNet-100: forward, backward and SGD, batch 32, two threads.")
            svg = bars("GhostNet-100, a training step", panels, NOTE)
            self.chart("training", "Time and memory of a training step", svg, [source])
        found = self.report("train-modules")
        if found is not None:
            _, results, source = found
            self.lines += [
                "Forward and backward of each Ghost module beside the better of "
                "eager PyTorch and torch.compile, batch 16, two "
                "threads:",
                "",
            ]
            others = ("eager", "eager_nchw", "compile")
            self._ratios("train-modules", results, "ghost_ops", others, "A fused Ghost module in training", [source])

    def zoo(self) -> None:
        found = self.report("zoo") or self.report("zoo-2")
        if found is None:
            return
        _, results, source = found
        self.heading(
            "Other people's nets",
            "How many times as fast as OpenVINO (the faster one of NCHW and "
            "NHWC) a frozen net is, one thread, and how many "
            "times as fast as eager PyTorch a fused net trains, batch 16, two threads.",
        )
        frozen = [r for r in results if r.kind == "zoo"]
        self._ratios("zoo", frozen, "frozen", ENGINES, "Frozen nets beside OpenVINO", [source])
        trained = [r for r in results if r.kind == "zoo_train"]
        self._ratios(
            "zoo-train", trained, "ghost_ops", ("eager",), "Fused nets in training beside eager PyTorch", [source]
        )

    def _ratios(
        self, part: str, results: list[Result], target: str, others: Sequence[str], title: str, sources: list[str]
    ) -> None:
        """A panel for each batch: how many times as fast as the best of the others the target is, case by case. Means
        count each case as often as the net has it."""
        panels = []
        for batch, threads in dict.fromkeys((r.batch, r.threads) for r in results):
            here = [r for r in results if (r.batch, r.threads) == (batch, threads)]
            lines, weighted = [], []
            for ours in (r for r in here if r.baseline == target):
                rivals = [r for r in here if r.case == ours.case and r.baseline in others]
                if rivals:
                    best = min(rivals, key=lambda r: r.seconds)
                    times = best.seconds / ours.seconds
                    weighted += [times] * ours.count
                    lines.append(
                        Bar(ours.case, times, f"{times:.2f}x, {_ms(ours.seconds)}", OURS if times >= 1 else LOSS)
                    )
                    self.lost(
                        f"{ours.case}{' in training' * ('train' in ours.kind)}, {_setting(batch, threads)}", ours, best
                    )
            mean = statistics.geometric_mean(weighted)
            slower = sum(line.value < 1 for line in lines)
            panels.append(
                Panel(
                    f"{_setting(batch, threads)}: {mean:.2f}x in the geometric mean, "
                    f"slower on {slower} of {len(lines)}",
                    lines,
                    1.0,
                )
            )
        self.chart(part, title, bars(title, panels, "Longer is better; red: the other is faster."), sources)

    def text(self) -> str:
        reports = [
            read_json(path)
            for path in sorted(RESULTS.glob(f"{self.device.prefix}-*.json"))
            if "convolutions" not in path.name and "spread" not in path.name
        ]
        machine = reports[0].machine
        for part in (self.nets, self.sizes, self.modules, self.training, self.zoo):
            part()
        caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in machine["caches"].items())
        engines = {
            k: v
            for r in reports
            for k, v in r.machine["versions"].items()
            if v and k not in ("python", "timm", "triton")
        }
        head = [
            f"# {self.device.title}",
            "",
            f"{self.device.about} Caches: {caches}. Beside it ran: "
            f"{', '.join(f'{k} {v}' for k, v in sorted(engines.items()))}.",
            "",
            "[This page](../site/devices.py) is made from the result files that "
            "it names. They hold what was measured then, at "
            "the commits that they name, not what today's code does. Every result was compared with float64 first "
            "([how it is measured](../../benchmarks/README.md)). Results of "
            "all devices side by side: [results](results.md).",
            "",
        ]
        tail = ["## Where something else is faster", ""]
        if self.losses:
            tail += ["| what | ours | the fastest other | times as fast |", "|---|---|---|---|", *self.losses]
        else:
            tail += ["Nowhere in these files."]
        return "\n".join([*head, *self.lines, *tail]) + "\n"


NOTE = "Shorter is better. Orange: ghost_ops."


def _color(result: Result) -> str:
    return OURS if _is_ours(result) else OTHER


def _timed(result: Result) -> Bar:
    return Bar(_name(result), result.seconds, _ms(result.seconds), _color(result))


def _memory(result: Result, size: float) -> Bar:
    return Bar(_name(result), size, f"{size / 2**20:.0f} MiB", _color(result))


def h200() -> tuple[str, dict[str, str]]:
    """The page of the GPU, whose file is of another form."""
    path = RESULTS / "h200.json"
    found = json.loads(path.read_text())
    machine, rows = found["machine"], found["rows"]

    def bar(row: dict, value: float, label: str) -> Bar:
        name = (
            row["peer"]
            .replace("channels_last", "NHWC")
            .replace("CUDA graph", "graph")
            .replace("CUDA C++", "C++")
            .replace("ghost_ops.fuse, NHWC", "ghost_ops.fuse")
        )
        return Bar(name.removesuffix(" default"), value, label, OURS if row["peer"].startswith("ghost_ops") else OTHER)

    def panel(part: str, title: str, key: str, label: Callable[[float], str]) -> Panel:
        mine = sorted((row for row in rows if row["part"] == part and row[key]), key=lambda row: row[key])
        return Panel(title, [bar(row, row[key], label(row[key])) for row in mine])

    def mib(size: float) -> str:
        return f"{size / 2**20:.0f} MiB"

    charts, lines = {}, []
    for part, title in (("nets", "inference"), ("train", "a training step")):
        panels = [panel(part, "time", "seconds", _ms), panel(part, "peak memory", "peak_bytes", mib)]
        charts[f"h200-{part}.svg"] = bars(f"GhostNet-100 on an H200, {title}", panels, NOTE)
        lines += [
            f"## {title[0].upper()}{title[1:]}",
            "",
            f"![Times and memory of {title} on an H200](plots/h200-{part}.svg)",
            "",
        ]
    losses = []
    for part in ("nets", "train"):
        others = [r for r in rows if r["part"] == part and not r["peer"].startswith("ghost_ops")]
        best = min(others, key=lambda r: r["seconds"])
        for row in rows:
            if row["part"] == part and row["peer"].startswith("ghost_ops") and row["seconds"] > best["seconds"]:
                times = best["seconds"] / row["seconds"]
                losses.append(
                    f"| {row['case']} | {row['peer']}, {_ms(row['seconds'])} "
                    f"| {best['peer']}, {_ms(best['seconds'])} | {times:.2f} |"
                )
    source = _source(path, machine).replace(
        f"instruction set {machine['isa']}", f"Triton {machine['versions']['triton']}"
    )
    text = [
        "# NVIDIA H200",
        "",
        f"{machine['gpu']}, CUDA {machine['cuda']}, a copy of {found['copy_bytes_per_second'] / 1e9:.0f} GB/s. "
        "GhostNet-100, 224 x 224, "
        "batch 256, float16, in training under autocast. Other batch sizes, "
        "bfloat16 and single modules have not been timed.",
        "",
        "[This page](../site/devices.py) is made from one result file. It "
        "holds what was measured then, at the commit that it "
        "names, not what today's code does: since then a fused block became "
        "one program with half the launches, which is not "
        "measured yet. Earlier runs are in [h200-runs.json](../../benchmarks/results/h200-runs.json).",
        "",
        f"- {source}",
        "",
        *lines,
        "## Where something else is faster",
        "",
        "| what | ours | the fastest other | times as fast |",
        "|---|---|---|---|",
        *losses,
    ]
    return "\n".join(text) + "\n", charts


def pages() -> tuple[dict[str, str], dict[str, str]]:
    """Text of every page and of every chart, by file name."""
    texts, charts = {}, {}
    for device in DEVICES:
        page = Page(device)
        texts[f"{device.name}.md"] = wrapped(page.text())
        charts |= page.charts
    text, more = h200()
    texts["h200.md"] = wrapped(text)
    return texts, charts | more


if __name__ == "__main__":
    (FOLDER / "plots").mkdir(exist_ok=True)
    texts, charts = pages()
    for folder, files in ((FOLDER, texts), (FOLDER / "plots", charts)):
        for name, text in files.items():
            (folder / name).write_text(text)
