"""Draws cases until the time is over, and keeps what fails: ``python -m tests.fuzz.run --seconds 600``.

A failure is made as small as Hypothesis finds it and written to ``tests/fuzz/corpus``, where the tests run it ever
after.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # small maps by several threads, which would wait busily

import click
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ..ops.cases import Case
from . import lives, nets, operators

CORPUS = Path(__file__).parent / "corpus"
RUNNING = Path(tempfile.gettempdir()) / f"ghost-ops-fuzz-{os.getpid()}.json"  # what was running when a process ended
SEEDS = st.integers(0, 2**16)


def a_life() -> st.SearchStrategy[dict]:
    node = st.tuples(st.sampled_from(nets.KINDS), st.integers(0, 2), SEEDS).map(list)
    action = st.tuples(st.sampled_from(list(lives.ACTIONS)), SEEDS).map(list)
    return st.fixed_dictionaries({
        "seed": SEEDS,
        "channels": st.sampled_from(nets.CHANNELS),
        "size": st.tuples(st.integers(1, 3), st.integers(3, 13), st.integers(3, 13)).map(list),
        "nodes": st.lists(node, min_size=1, max_size=6),
        "actions": st.lists(action, min_size=1, max_size=8).map(lambda found: [["fuse", 0], *found]),
    })  # fmt: skip


@st.composite
def a_call(draw: st.DrawFn) -> tuple[str, Case]:
    name = draw(st.sampled_from(list(operators.DRAWS)))
    return name, operators.DRAWS[name](draw)


@dataclass(frozen=True)
class Kind:
    """What is drawn, how it is checked, and how it is a file."""

    strategy: st.SearchStrategy
    check: Callable[[Any], None]
    to_plain: Callable[[Any], dict]
    from_plain: Callable[[dict], Any]
    cases: int  # of a round: a call takes a fiftieth of a net's time


KINDS = {
    "net": Kind(a_life(), lives.live, dict, dict, 20),
    "call": Kind(a_call(), lambda call: operators.check_call(*call), lambda call: operators.to_plain(*call),
                 operators.from_plain, 1000),
}  # fmt: skip


def check_file(path: Path) -> None:
    """Run a failure that was kept."""
    entry = json.loads(path.read_text())
    kind = KINDS[entry["kind"]]
    kind.check(kind.from_plain(entry["case"]))


class Search:
    """Cases of one kind, drawn in rounds of a seed each. ``shrinks``: failures are made small, which takes a while."""

    def __init__(self, kind: str, shrinks: bool = True) -> None:
        self.phases = (Phase.generate, Phase.shrink) if shrinks else (Phase.generate,)
        self.kind, self.cases, self.failures, self.last = kind, 0, [], None

    def round(self, number: int, cases: int | None = None) -> None:
        kind = KINDS[self.kind]

        @seed(number)
        @settings(
            max_examples=cases or kind.cases,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=self.phases,
        )
        @given(kind.strategy)
        def run(case: Any) -> None:
            self.cases += 1
            self.last = case
            RUNNING.write_text(
                json.dumps({"kind": self.kind, "why": "it ended the process", "case": kind.to_plain(case)})
            )
            kind.check(case)

        try:
            run()
        except Exception as error:  # the smallest case was the last that ran
            self._keep(error)

    def _keep(self, error: Exception) -> None:
        case = KINDS[self.kind].to_plain(self.last)
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        text = json.dumps({"kind": self.kind, "why": why, "case": case}, indent=1)
        name = f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        (CORPUS / name).write_text(text + "\n")
        self.failures.append(why)
        click.echo(f"{name}: {why}\n{json.dumps(case)[:2000]}")
        traceback.print_exception(error, limit=-6)


@click.command(help=__doc__.splitlines()[0])
@click.option("--seconds", default=600.0)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Default: all, in turn.")
@click.option("--first", default=0, help="Seed of the first round.")
@click.option("--cases", type=int, help="Cases of a round. Default: 20 nets, 1000 calls.")
def main(seconds: float, kinds: tuple[str, ...], first: int, cases: int | None) -> None:
    torch.set_num_threads(1)
    click.echo(f"a case that ends the process is in {RUNNING}")
    searches = [Search(kind) for kind in kinds or KINDS]
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end:
        for search in searches:
            search.round(number, cases)
        number += 1
    failed = 0
    for search in searches:
        click.echo(
            f"{search.kind}: {search.cases} cases in rounds {first} to {number - 1}, {len(search.failures)} failed"
        )
        failed += len(search.failures)
    RUNNING.unlink(missing_ok=True)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
