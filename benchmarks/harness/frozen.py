"""``ghost-ops bench --frozen``: a frozen net and the engines that people deploy with, which run other nets too.

The bfloat16 net is compared with OpenVINO's; both are shown with their float32 nets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .baselines import BASELINES, FROZEN, FROZEN_BFLOAT16, Baseline
from .cases import SIDE, NetCase
from .engines import ENGINES
from .other_models import OTHER_MODELS
from .parts import run_parts
from .results import OTHER_MODEL, PartResult, Result
from .roofline import Limits
from .run import run_together

WIDTHS = ("ghostnet_100", "ghostnet_050", "ghostnet_130")
SIDES = (160, 320)  # other image sizes
NAMES = {
    "float32": (FROZEN, "eager", "compile_frozen", *(engine.name for engine in ENGINES)),
    "bfloat16": (FROZEN_BFLOAT16, "openvino_bfloat16", FROZEN, "openvino_nhwc"),
}


def frozen_cases(dtype: str = "float32") -> tuple[NetCase, ...]:
    """Nets to freeze, the first by default; in float32 the other models too."""
    kind = "frozen" if dtype == "float32" else f"frozen_{dtype}"
    sizes = [(name, SIDE) for name in WIDTHS] + [("ghostnet_100", side) for side in SIDES]
    frozen = tuple(NetCase(name, side, kind=kind) for name, side in sizes)
    return frozen + (tuple(NetCase(name, kind=OTHER_MODEL) for name in OTHER_MODELS) if dtype == "float32" else ())


def choose_cases(patterns: Sequence[str], dtype: str) -> list[NetCase]:
    """Cases whose name contains one of the patterns; without patterns, GhostNet-100 and the other models."""
    first, *others = frozen_cases(dtype)
    if not patterns:
        return [first, *(case for case in others if case.kind == OTHER_MODEL)]
    return [case for case in (first, *others) if any(pattern in case.name for pattern in patterns)]


def run_frozen(
    cases: Sequence[NetCase],
    batch: int,
    threads: int,
    dtype: str,
    wanted: Callable[[str], bool],
    limits: Limits,
    *,
    rounds: int,
    min_seconds: float = 0.02,
    on_step: Callable[[str], None] = lambda what: None,
) -> tuple[list[Result], list[PartResult]]:
    """Results of the nets, and of the parts of those that are frozen.

    The other models are timed in turn with the first net, in every engine that runs them.

    Args:
        wanted: says by the name of a baseline whether it runs.
    """
    options = {"rounds": rounds, "min_seconds": min_seconds}
    frozen = [case for case in cases if case.kind != OTHER_MODEL]
    groups = [[case] for case in frozen] or [[]]
    groups[0] += [case for case in cases if case.kind == OTHER_MODEL]
    rows, parts = [], []
    for group in groups:
        told = lambda what, name=group[0].name: on_step(f"{name}, batch {batch}: {what}")
        work = [(case, found) for case in group if (found := _baselines(case, dtype, wanted))]
        rows += run_together(work, batch, threads, limits=limits, on_step=told, **options)
    for case in frozen:
        on_step(f"{case.name}, batch {batch}: its parts")
        parts += run_parts(case, batch, threads, dtype, limits, **options)
    return rows, parts


def _baselines(case: NetCase, dtype: str, wanted: Callable[[str], bool]) -> list[Baseline]:
    found = [BASELINES[name] for name in NAMES[dtype] if wanted(name)]
    return [baseline for baseline in found if baseline.group == "engine" or case.kind != OTHER_MODEL]
