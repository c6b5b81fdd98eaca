"""Budgets: what the launches of some cases may take, so that kernels only get better (``budgets.json``).

The rules are those of ``RULES``. Where a launch does not meet one, the file has its present value as the limit, and the
reason, by kernel. A budget that is far above what there is fails too, so that improvements are written down:

    python -m benchmarks.static_model --write-budgets
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import launches, model
from .build import Seen, see
from .launches import Recorded
from .work import work_of

FILE = Path(__file__).with_name("budgets.json")
LEAST_BYTES = 24 << 20  # launches that move less are not looked at: they join what others leave
LOOSE, TIGHT = 1.1, 1.005  # a budget is at most so many times what there is, and what there is may round


@dataclass(frozen=True)
class Rule:
    """A limit that every launch should keep.

    Attributes:
        value: of what a launch's machine code shows.
        least, most: the limit, whichever there is.
        says: what is wrong otherwise.
    """

    value: Callable[[Seen], float]
    says: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float, limit: float | None = None) -> bool:
        """Whether the rule, or an exemption's limit in its place, is kept."""
        if self.least is not None:
            return value * TIGHT >= (self.least if limit is None else limit)
        return value <= (self.most if limit is None else limit) * TIGHT


RULES = {
    "warps": Rule(lambda s: s.facts.resident() * s.facts.warps, "too few warps are resident on a processor", least=16),
    "bits": Rule(lambda s: s.narrowest or 64, "loads or stores in loops are narrow", least=64),
    "divisions": Rule(lambda s: s.divisions, "loops divide", most=0),
    "lead": Rule(lambda s: round(s.lead, 2), "a load is waited for soon after it", least=0.5),
    "waits": Rule(lambda s: round(s.facts.loop.phases, 2), "an iteration waits for memory more than once", most=1),
    "spilled": Rule(lambda s: s.spilled, "registers are spilled", most=0),
}


def looked_at(case: str) -> dict[str, Recorded]:
    """The launches of a case that have budgets, by label."""
    found = launches.case(case)
    moved = [(done.read + done.written) for done in (work_of(one.name, one.arguments) for one in found)]
    return {label: one for label, one, size in zip(launches.labels(found), found, moved) if size >= LEAST_BYTES}


def present(seen: Seen) -> dict[str, float]:
    """A launch's budget if it is to be what it is now."""
    found = {"us": round(model.predict(seen.facts).time, 1), "per_result": round(seen.per_result, 2)}
    values = {name: rule.value(seen) for name, rule in RULES.items()}
    return found | {name: value for name, value in values.items() if not RULES[name].met(value)}


def complaints(seen: Seen, budget: dict[str, float]) -> list[str]:
    """What is wrong with a launch, or with its budget."""
    found = []
    now = {"us": model.predict(seen.facts).time, "per_result": seen.per_result}
    for name, value in now.items():
        if round(value, 2) > budget[name] * TIGHT + 0.05:
            found.append(f"{name}: {value:.2f}, the budget is {budget[name]}")
        if budget[name] > value * LOOSE + 0.05:
            found.append(f"{name}: {value:.2f}, so a budget of {budget[name]} is too large: write the new one")
    for name, rule in RULES.items():
        value, limit = rule.value(seen), budget.get(name)
        if not rule.met(value, limit):
            found.append(
                f"{name}: {value}: {rule.says}" + ("" if limit is None else f"; the exemption ends at {limit}")
            )
        elif limit is not None and rule.met(value):
            found.append(f"{name}: {value}: no exemption is needed any more")
        elif limit is not None and not rule.met(limit, value):  # the other way round: the limit is worse than the value
            found.append(f"{name}: {value}, so the exemption of {limit} is too wide: write the new one")
    return found


def load() -> dict:
    return json.loads(FILE.read_text())


def unreasoned(budgets: dict) -> list[str]:
    """Exemptions without a reason, and reasons without an exemption."""
    used = {
        (label.split()[0], name)
        for case in budgets["launches"].values()
        for label, budget in case.items()
        for name in budget.keys() & RULES.keys()
    }
    given = {(kernel, name) for kernel, reasons in budgets["reasons"].items() for name, why in reasons.items() if why}
    return [f"no reason: {one}" for one in sorted(used - given)] + [f"no launch: {one}" for one in sorted(given - used)]


def write(budgets: dict) -> dict:
    """The budgets of the same cases as they are now, and of exemptions the reasons that are known; "" for others."""
    new = {case: {label: present(see(one)) for label, one in looked_at(case).items()} for case in budgets["launches"]}
    reasons: dict[str, dict[str, str]] = {}
    for case in new.values():
        for label, budget in case.items():
            for name in filter(budget.__contains__, RULES):
                kernel = label.split()[0]
                reasons.setdefault(kernel, {})[name] = budgets["reasons"].get(kernel, {}).get(name, "")
    return {"triton": _triton(), "reasons": reasons, "launches": new}


def _triton() -> str:
    import triton

    return triton.__version__
