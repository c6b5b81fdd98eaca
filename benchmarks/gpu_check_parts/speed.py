"""Training steps and inference, ours and PyTorch's, in turn; ``torch.compile`` mode by mode, since each takes long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import torch

from ghost_ops.bench.gpu import Device, Inference, Training, inference_baselines, training_baselines
from ghost_ops.bench.results import WRONG, Result

from .cases import net_case, train_case
from .runner import Report, Wrong

MODES = ("default", "reduce-overhead")
COMPILED = "torch.compile"
ANCHORS = {  # timed again beside every compiled contender
    "train": ("ghost_ops.fuse", "eager, channels_last"),
    "net": ("ghost_ops.freeze", "eager, channels_last"),
}
LEFT_OUT = ("NCHW", "CUDA C++")  # the long benchmark has them
BATCH, BATCHES = 256, (256, 1)
ROUNDS = 7
KEPT = ("baseline", "status", "reason", "error", "seconds", "spread", "resident_bytes", "saved_bytes")


def groups(kind: str, names: Iterable[str]) -> list[list[str]]:
    """What is timed in turn: first all that is ready at once, then each compiled contender beside the anchors."""
    names = [name for name in names if not any(out in name for out in LEFT_OUT)]
    ready = [name for name in names if COMPILED not in name]
    return [ready, *([*ANCHORS[kind], name] for name in names if COMPILED in name)]


def training(settings: dict, report: Report) -> dict:
    """A training step of the net under autocast to float16 at batch 256."""
    device = Device(settings["dry"])
    contest = _training(device)
    ways, found = training_baselines(device, MODES[:1] if device.dry else MODES), {}
    for group in groups("train", ways):
        device.forget()
        rows = contest.run({name: ways[name] for name in group}, 1 if device.dry else ROUNDS)
        found[group[-1] if COMPILED in group[-1] else "ready"] = _brief(rows)
        report(found)
    return _verdict(found)


def inference(settings: dict, report: Report) -> dict:
    """The net in float16 at batch 256 and 1."""
    device, found = Device(settings["dry"]), {}
    for batch in BATCHES[1:] if device.dry else BATCHES:
        contest = _inference(device, batch)
        ways = inference_baselines(device, contest.case, contest.net, MODES[:1] if device.dry else MODES)
        at = found.setdefault(f"batch {batch}", {})
        for group in groups("net", ways):
            device.forget()
            rows = contest.run("net", {name: ways[name] for name in group}, 1 if device.dry else ROUNDS)
            at[group[-1] if COMPILED in group[-1] else "ready"] = _brief(rows)
            report(found)
    for at in found.values():
        _verdict(at)
    return found


def warm_compiler(settings: dict, report: Report) -> dict:
    """Fills the compiler's caches on disk with what the timed parts compile, while other parts compare results.

    Graphs and kernels that are found there later take seconds instead of a minute.
    """
    device, done = Device(settings["dry"]), {}

    def note(what: str, rows: list[Result]) -> None:
        done[what] = rows[0].reason or rows[0].status
        device.forget()
        report(done)

    contest = _training(device)
    for name, way in training_baselines(device, MODES[:1] if device.dry else MODES).items():
        if COMPILED in name:
            note(f"training, {name}", contest.run({name: way}, 1))
    for batch in BATCHES[1:] if device.dry else BATCHES:
        contest = _inference(device, batch)
        ways = inference_baselines(device, contest.case, contest.net, MODES[:1] if device.dry else MODES)
        for name, build in ways.items():
            if COMPILED in name:
                note(f"inference at batch {batch}, {name}", contest.run("net", {name: build}, 1))
    return done


def _training(device: Device) -> Training:
    dtype = torch.bfloat16 if device.dry else torch.float16
    return Training(device, train_case(device), 2 if device.dry else BATCH, dtype)


def _inference(device: Device, batch: int) -> Inference:
    return Inference(device, net_case(device), batch, torch.bfloat16 if device.dry else torch.float16)


def _brief(rows: list[Result]) -> list[dict]:
    return [{name: value for name, value in asdict(row).items() if name in KEPT} for row in rows]


def _verdict(found: dict[str, list[dict]]) -> dict:
    wrong = [row for rows in found.values() for row in rows if row["status"] == WRONG]
    if wrong:
        raise Wrong("; ".join(f"{row['baseline']}: {row['reason']}" for row in wrong)[:500])
    return found
