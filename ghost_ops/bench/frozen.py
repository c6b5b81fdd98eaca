"""``ghost-ops bench --frozen``: a frozen net beside the engines that people deploy with, and other nets in these.

In bfloat16 it stands beside OpenVINO's, both with their float32 next to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .cases import NetCase, frozen_cases
from .engines import EVERY
from .parts import run_parts
from .peers import FROZEN, FROZEN_BFLOAT16, Peer
from .roofline import Limits
from .rows import PartRow, Row
from .run import run_together

_ENGINES = ("onnxruntime", "openvino", "openvino_nhwc", "ncnn", "executorch")
NAMES = {
    "float32": (FROZEN, "eager", "compile_frozen", *_ENGINES),
    "bfloat16": (FROZEN_BFLOAT16, "openvino_bfloat16", FROZEN, "openvino_nhwc"),
}
DTYPES = tuple(NAMES)


def choose_cases(patterns: Sequence[str], dtype: str) -> list[NetCase]:
    """Those whose name has one of the patterns; without any, GhostNet-100 and the rivals."""
    first, *others = frozen_cases(dtype)
    if not patterns:
        return [first, *(case for case in others if case.kind == "rival")]
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
) -> tuple[list[Row], list[PartRow]]:
    """Rows of the nets, and the parts of those that are frozen.

    The rivals are timed in turn with the first net, in every engine that runs them.

    Args:
        wanted: of a peer's name: whether it runs.
    """
    options = {"rounds": rounds, "min_seconds": min_seconds}
    frozen = [case for case in cases if case.kind != "rival"]
    groups = [[case] for case in frozen] or [[]]
    groups[0] += [case for case in cases if case.kind == "rival"]
    rows, parts = [], []
    for group in groups:
        told = lambda what, name=group[0].name: on_step(f"{name}, batch {batch}: {what}")
        work = [(case, found) for case in group if (found := _peers(case, dtype, wanted))]
        rows += run_together(work, batch, threads, limits=limits, on_step=told, **options)
    for case in frozen:
        on_step(f"{case.name}, batch {batch}: its parts")
        parts += run_parts(case, batch, threads, dtype, limits, **options)
    return rows, parts


def _peers(case: NetCase, dtype: str, wanted: Callable[[str], bool]) -> list[Peer]:
    peers = [EVERY[name] for name in NAMES[dtype] if wanted(name)]
    return [peer for peer in peers if peer.group == "engine" or case.kind != "rival"]
