"""Runs parts one after another in worker processes, each until its deadline, and keeps a report on disk up to date.

A worker is a process that runs part after part, so that PyTorch is imported and the device set up once. It is replaced
after a part that raised, hung or died: what a CUDA error leaves behind fails everything that comes later. A part that
runs ``beside`` the others has a worker of its own, until the first part begins that must have the machine to itself.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OK, WRONG, FAILED, TIMED_OUT = "ok", "wrong", "failed", "timed out"
NOT_REACHED, SKIPPED, RUNNING = "not reached", "skipped", "running"
LEAST = 1.0  # seconds with which a part is still begun
Report = Callable[[dict], None]


class Wrong(Exception):
    """A part raises it where it has found a wrong result."""


class Failed(Exception):
    """A part that something depends on has failed; says why."""


class Skipped(Exception):
    """A part raises it where it has nothing to do here; says why."""


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: its name in the report and on the command line.
        function: ``module:function``. It takes the settings (a dict) and ``report``, which it may call with its result
            so far, and returns its result: a dict that JSON can hold.
        share: seconds, in relation to those of the other parts.
        decides: whether the run fails where this part does not end well.
        beside: whether it runs beside the parts that follow, until one that is ``alone``. It has no share.
        alone: whether nothing may run beside it, as when times are measured.
    """

    name: str
    function: str
    share: float
    decides: bool = False
    beside: bool = False
    alone: bool = False


class Record:
    """The report, written as a whole and atomically whenever anything in it changes."""

    def __init__(self, path: Path, head: dict, parts: Sequence[Part]) -> None:
        self.path = path
        rows = [{"part": p.name, "status": NOT_REACHED, "reason": "", "seconds": 0.0, "result": {}} for p in parts]
        self.data = {**head, "seconds": 0.0, "ok": None, "parts": rows}
        self._rows = {row["part"]: row for row in rows}
        self._began = time.monotonic()
        self.write()

    def update(self, part: str, **changes: object) -> None:
        self._rows[part] |= changes
        self.write()

    def status(self, part: str) -> str:
        return self._rows[part]["status"]

    def write(self) -> None:
        self.data["seconds"] = round(time.monotonic() - self._began, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = self.path.with_suffix(".json.new")
        own.write_text(json.dumps(finite(self.data), separators=(",", ":"), default=str) + "\n")
        own.replace(self.path)


def finite(value: object) -> object:
    """Rounded to six digits; JSON has neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def serve(pipe, settings: dict) -> None:
    """A worker: runs the parts that come through the pipe, and sends back what they report."""
    os.setsid()  # so that the processes that it starts end with it
    _end_with_parent()
    while True:
        try:
            name, function = pipe.recv()
        except EOFError:
            return
        try:
            module, _, called = function.partition(":")
            run = getattr(importlib.import_module(module), called)
            outcome = OK, "", run(settings, lambda result, name=name: pipe.send((name, RUNNING, "", result)))
        except Wrong as found:
            outcome = WRONG, str(found), None
        except Skipped as why:
            outcome = SKIPPED, str(why), None
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error}"[:1000]
            outcome = FAILED, f"{said} ({Path(where.filename).name}:{where.lineno})", None
        pipe.send((name, *outcome))


def _end_with_parent() -> None:
    """A worker that hangs must not outlive a run that is killed. Linux only; elsewhere it may."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Worker:
    def __init__(self, settings: dict) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, settings))
        self.process.start()
        theirs.close()
        self.part: Part | None = None
        self.began = 0.0

    def begin(self, part: Part) -> None:
        self.part, self.began = part, time.monotonic()
        self.pipe.send((part.name, part.function))

    def ask(self, part: Part) -> dict:
        """The result of a part that nothing else can do without. Raises ``Failed`` where there is none in time."""
        self.begin(part)
        try:
            while self.pipe.poll(max(0.0, self.began + part.share - time.monotonic())):
                _, status, reason, result = self.pipe.recv()
                if status == OK:
                    return result
                if status != RUNNING:
                    raise Failed(reason)
        except (EOFError, OSError):
            self.process.join(5)
            raise Failed(_ended(self.process.exitcode)) from None
        raise Failed(f"{part.name}: no answer within {part.share:.0f} s")

    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def listen(self, until: float, record: Record) -> bool:
        """Records what comes until the part has ended, or the time is over. Whether it has ended."""
        while True:
            try:
                if not self.pipe.poll(max(0.0, until - time.monotonic())):
                    return False
                name, status, reason, result = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join(5)
                why = _ended(self.process.exitcode)
                record.update(self.part.name, status=FAILED, reason=why, seconds=self.seconds())
                return True
            changes = {"status": status, "reason": reason, "seconds": self.seconds()}
            record.update(name, **changes, **({} if result is None else {"result": result}))
            if status != RUNNING:
                return True

    def end(self) -> None:
        """Ends the process, and those that it has started, whatever they are doing."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join(10)  # what waits for a device that hangs may never end
        self.pipe.close()


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def run_parts(
    parts: Sequence[Part],
    settings: dict,
    record: Record,
    end: float,
    on_part: Callable[[Part, float], None],
    worker: Worker | None = None,
) -> None:
    """Runs the parts in their order.

    A part has its share of the time until ``end`` (of ``time.monotonic``), and what the parts before it have left.

    Args:
        on_part: called with each part that begins, and the seconds that it has.
        worker: an idle worker, which this function ends.
    """
    shares = [part.share for part in parts]
    total, begin = sum(shares) or 1.0, time.monotonic()
    aside: Worker | None = None
    try:
        for i, part in enumerate(parts):
            deadline = begin + (end - begin) * sum(shares[: i + 1]) / total
            if part.beside:
                aside = Worker(settings)
                aside.begin(part)
                record.update(part.name, status=RUNNING, reason="beside the next parts")
                continue
            if part.alone and aside is not None:
                aside = _stop(aside, record)
            if deadline - time.monotonic() < LEAST:
                record.update(part.name, reason="no time was left")
                continue
            worker = worker or Worker(settings)
            on_part(part, deadline - time.monotonic())
            record.update(part.name, status=RUNNING)
            worker.begin(part)
            if not worker.listen(deadline, record):
                why = f"stopped after {worker.seconds():.0f} s; its result so far is kept"
                record.update(part.name, status=TIMED_OUT, reason=why, seconds=worker.seconds())
            if record.status(part.name) not in (OK, WRONG, SKIPPED):
                worker.end()
                worker = None
        if aside is not None:
            aside = _stop(aside, record, end)
    finally:
        for one in (worker, aside):
            if one is not None:
                one.end()


def _stop(aside: Worker, record: Record, until: float = 0.0) -> None:
    if not aside.listen(until, record):
        why = f"stopped after {aside.seconds():.0f} s, since a part begins that must be alone"
        record.update(aside.part.name, status=TIMED_OUT, reason=why, seconds=aside.seconds())
    aside.end()
