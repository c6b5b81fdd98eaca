"""Compiles recorded launches for a device that is not there, and keeps what their code shows."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from tests.triton import aot

from . import model, sass, work
from .launches import Recorded
from .model import Facts


@dataclass(frozen=True)
class Seen:
    """What the machine code of a launch shows.

    Attributes:
        facts: what the model reads.
        narrowest: bits of the narrowest access to global memory in a loop; None where there is none.
        divisions: instructions in loops that belong to divisions which are not by constants.
        lead: see ``model.lead``, of the hottest loop.
        spilled: bytes of a thread's stack.
        per_result: instructions of threads in loops for each valid result.
    """

    facts: Facts
    narrowest: int | None
    divisions: int
    lead: float
    spilled: int
    per_result: float


def _cache() -> Path:
    from triton import knobs

    return Path(os.environ.get("TRITON_CACHE_DIR") or knobs.cache.dir) / "static_model"


@functools.lru_cache(maxsize=1)
def _version() -> str:
    """Of what reads machine code: what an older one found is not used."""
    files = (Path(__file__).with_name(f"{name}.py") for name in ("sass", "model", "build"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def look(function: sass.Function, trips: tuple[int, ...]) -> dict:
    """What the code of a function shows, for loops of so many trips."""
    each = model.trips_of(function, trips)
    loop, _ = model.hottest(function, each)
    part, iterations, rest = model.parts_of(function, trips)
    within = [one for top in function.main_loops for inner, _ in top.walk() for one in function.own(inner)]
    loads = [] if loop is None else [one for one in function.own(loop) if one.kind in ("load", "copy")]
    return {
        "registers": function.registers, "spilled": function.stack, "loop": vars(part), "iterations": iterations,
        "rest": vars(rest), "tail": vars(model.tail_of(function)), "divisions": sum(one.divides for one in within),
        "narrowest": min((one.bits for one in within if one.kind in ("load", "store", "copy")), default=None),
        "loads": len(loads), "loaded": sum(one.bits for one in loads) // 8,
        "copied": sum(one.bits for one in loads if one.kind == "copy") // 8,
        "looped": iterations * part.instructions + rest.instructions - len(function.own(None)),
        "lead": 1.0 if loop is None else model.lead(function, loop),
    }  # fmt: skip


def _looked_at(cubin: bytes, name: str, trips: tuple[int, ...]) -> dict:
    key = hashlib.sha256(b"|".join((cubin, repr((name, trips)).encode(), _version().encode()))).hexdigest()
    at = _cache() / f"{key}.json"
    if at.exists():
        return json.loads(at.read_text())
    found = look(sass.disassemble(cubin)[name], trips)
    at.parent.mkdir(parents=True, exist_ok=True)
    part = at.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(found))
    part.replace(at)
    return found


def see(recorded: Recorded, architecture: str = "sm_90") -> Seen:
    """Compiles a launch, unless it was before, and reads its machine code."""
    done = work.work_of(recorded.name, recorded.arguments)
    one = aot.launch_of(recorded.kernel, recorded.arguments, recorded.warps, recorded.stages)
    built = aot.build(one, architecture)
    found = _looked_at(built.asm["cubin"], recorded.name, done.trips)
    known = {k: found[k] for k in ("registers", "loop", "rest", "tail", "iterations", "loads", "loaded", "copied")}
    facts = Facts.of(
        known | {
            "warps": recorded.warps, "shared": built.metadata.shared, "grid": math.prod(recorded.grid),
            "read": done.read, "written": done.written, "results": done.results,
        }
    )  # fmt: skip
    others = (found[name] for name in ("narrowest", "divisions", "lead", "spilled"))
    return Seen(facts, *others, facts.per_result(found["looped"]))
