"""The static model of a kernel's time: its parts, itself against measured times, and the budgets of real launches."""

from __future__ import annotations

import copy
import importlib
import json
import math
import pkgutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.static_model import budgets, build, launches, measured, model, sass, work
from benchmarks.static_model.model import H200, Facts, Part, predict
from ghost_ops.backends import triton as package

BUDGETS = budgets.load()
LOOPS = sass.parse((Path(__file__).parent / "sass" / "loops.sass").read_text())
SOURCE = """
for (int row = 0; row < rows; row++) {              // nested
  float sum = 0;
  for (int column = threadIdx.x; column < columns; column += 32) sum += x[row * columns + column];
  if (row == 2) total = __shfl_xor_sync(-1, sum, 1);
  if (sum > total) out[row] = sum;
}
for (int row = threadIdx.x; row < rows; row += 32) out[row / step] = x[row];  // divides, of shorts
for (int row = 0; row < rows; row++) sum += x[row];  // joins
partials[blockIdx.x] = sum;
if (threadIdx.x == 0) before = atomicAdd(counter, 1);
if (before == gridDim.x - 1)
  for (int block = 0; block < gridDim.x; block++) total += partials[block];
"""  # of which loops.sass was compiled by nvcc 13.0, without unrolling


def test_loops_are_found_with_what_is_in_them():
    nested, divides = LOOPS["nested"], LOOPS["divides"]
    ((outer, depth), (inner, deeper)) = nested.loops[0].walk()
    assert len(nested.loops) == len(divides.loops) == 1 and (depth, deeper) == (1, 2)
    assert dict(nested.counts(inner)) == {"move": 1, "load": 1, "integer": 4, "float": 1, "control": 1}
    assert nested.counts(outer)["store"] == 1 and nested.counts(outer)["load"] == 0
    assert nested.counts(outer)["exchange"] == 0
    assert [one.base for one in nested.taken_once(outer)] == ["SHFL"]  # behind row == 2
    assert nested.counts(None)["store"] == 1
    all_of = sum(len(nested.own(part)) + (len(nested.taken_once(part)) if part else 0) for part in (None, outer, inner))
    assert all_of == len(nested.code) - 1  # but for what follows the end


def test_an_instruction_has_its_schedule():
    inner = LOOPS["nested"].loops[0].inner[0]
    load = next(one for one in LOOPS["nested"].own(inner) if one.kind == "load")
    use = next(one for one in LOOPS["nested"].own(inner) if one.kind == "float")
    assert load.writes is not None and load.writes in use.waits and 1 <= load.stall <= 15
    assert (load.bits, load.opcode, use.registers()) == (32, "LDG.E", {0, 3})
    moved = {one.bits for one in LOOPS["divides"].own(LOOPS["divides"].loops[0]) if one.kind in ("load", "store")}
    assert moved == {16}
    with pytest.raises(ValueError, match="no instruction"):
        sass._instruction(0, "@@@", 0)


def test_divisions_show():
    """By what a launch gives, the reciprocal is found before the loop; within it one product a division is left."""
    divides = LOOPS["divides"]
    assert sum(one.divides for one in divides.own(divides.loops[0])) == 1
    assert not any(
        one.divides for top in LOOPS["nested"].loops for part, _ in top.walk() for one in LOOPS["nested"].own(part)
    )


def test_a_warp_is_gone_through_as_its_loops_say():
    loop, iterations, rest = model.parts_of(LOOPS["nested"], (10, 100))
    assert (loop.instructions, iterations) == (8, 1000)
    assert rest.instructions == 10 * 22 + 15 + 1
    assert 0.9 < loop.phases <= 1  # the load is waited for at once
    for trips in ((1, 5), (2, 3), (7, 50)):
        loop, iterations, rest = model.parts_of(LOOPS["nested"], trips)
        assert iterations == math.prod(trips) and rest.instructions == 22 * trips[0] + 16
        slow, fast = (model._whole(LOOPS["nested"], model.trips_of(LOOPS["nested"], trips), t) for t in (700, 0))
        assert slow.instructions == fast.instructions == rest.instructions + 8 * iterations
        assert slow.now - fast.now == pytest.approx(700 * trips[0] * trips[1], rel=0.1)


def test_what_the_last_thread_block_does_is_the_tail():
    joins = LOOPS["joins"]
    ours, last = joins.loops
    assert joins.main_loops == [ours] and last.blocks < joins.tail
    assert not LOOPS["nested"].tail and model.tail_of(LOOPS["nested"]) == Part()
    before = [one.kind for one in joins.own(None)]
    assert before.count("atomic") == 1 and before.count("store") == 1  # of the partial sum; the result's is in the tail
    loop, iterations, rest = model.parts_of(joins, (100,))
    assert iterations == 100 and loop.instructions == len(joins.own(ours))
    assert rest.instructions == len(before)
    tail = model.tail_of(joins)
    assert tail.instructions == sum(len(joins.blocks[block]) for block in joins.tail) and tail.phases > 0.9
    alone = predict(facts(tail=tail)).time - predict(facts()).time
    assert alone == pytest.approx((tail.cycles + 700 * tail.phases) / H200.hertz * 1e6)


def test_trips_of_loops_that_are_not_there_are_left_out():
    nested, divides = LOOPS["nested"], LOOPS["divides"]
    inner, outer = nested.loops[0].inner[0].header, nested.loops[0].header
    assert model.trips_of(nested, (5, 1, 6)) == {outer: 5, inner: 6}
    assert model.trips_of(nested, (9,)) == {outer: 1, inner: 9}
    assert model.trips_of(divides, (4, 3)) == {divides.loops[0].header: 3}


def test_loops_of_several_nests_have_their_own_trips():
    nested, two = LOOPS["nested"], copy.copy(LOOPS["joins"])
    known = model.trips_of(nested, (5, 6))
    assert model.trips_of(nested, ((5, 6),)) == model.trips_of(nested, ((1, 1), (5, 6))) == known
    with pytest.raises(ValueError, match="the code 1 nests"):
        model.trips_of(nested, ((5, 6), (2,)))
    vars(two)["tail"] = frozenset()  # so that the last block's loop is the second one of all
    first, second = (loop.header for loop in two.loops)
    assert model.trips_of(two, ((5,), (7,))) == {first: 5, second: 7}
    assert model.trips_of(two, (5,)) == {first: 5, second: 5}


def facts(**changes) -> Facts:
    values = {
        "registers": 64, "warps": 4, "shared": 0, "grid": 1320, "loop": Part(100, 150, 0), "iterations": 100,
        "rest": Part(200, 300, 0), "loads": 2, "loaded": 16, "copied": 0, "read": 1e6, "written": 1e6, "results": 1e6,
    }  # fmt: skip
    return Facts(**(values | changes))


def test_each_bound_of_the_model_bounds():
    quick = facts()
    assert quick.resident() == 8 and facts(registers=200).resident() == 2 and facts(shared=100 << 10).resident() == 2
    assert facts(grid=10**6).resident() == 8 and facts(registers=16, warps=1).resident() == 32
    base = predict(quick).time
    assert base == pytest.approx(1.5 + 1e6 / H200.hertz * (1320 * 4 * 10200 / (132 * 4)) + predict(quick).bytes)
    assert predict(facts(read=1e9)).time > 1e9 / H200.bytes_per_second * 1e6 > base
    assert predict(facts(copied=1600)).time > predict(facts(copied=0.1)).time == base
    assert predict(facts(loop=Part(100, 150, 8))).time > 1.5 * base  # each iteration waits for memory
    few = facts(registers=255, loop=Part(100, 150, 1), read=0)
    assert predict(few).latency > 1.4 * predict(facts(registers=64, loop=Part(100, 150, 1), read=0)).latency
    assert quick.per_result(10000) == pytest.approx(1320 * 4 * 32 * 100 * 100 / 1e6)
    assert Facts.of(json.loads(json.dumps(asdict(quick)))) == quick


def test_loads_that_find_their_bytes_in_a_cache_take_less():
    alike = {"loop": Part(100, 150, 4), "loads": 10, "loaded": 80}
    asked = facts(**alike).asked(80)
    near, far = (facts(**alike, read=asked * share) for share in (0.1, 1.0))
    assert far.times()[1] - near.times()[1] == pytest.approx(3 * (model.LOAD - model.NEAR))


def test_the_model_agrees_with_measured_times():
    """Each within twofold, and 1.3 in the mean: of kernels that were measured, as they were then."""
    known = measured.measured()
    assert len(known) > 80 and sum(one.unexplained for one in known) <= 1
    assert not disagreements(known)


def disagreements(known: Sequence[measured.Measured]) -> list[str]:
    ratios = {one: predict(one.facts).time / one.us for one in known}
    logs = [math.log(ratio) for ratio in ratios.values()]
    mean, spread = math.exp(statistics.mean(logs)), statistics.pstdev(logs)
    print(f"{len(known)} kernels: mean ratio {mean:.3f}, spread (standard deviation of the logarithm) {spread:.3f}")
    found = [] if 1 / 1.3 < mean < 1.3 and spread < 0.25 else [f"mean {mean:.2f}, spread {spread:.2f}"]
    return found + [
        f"{one.case}: {one.launch}: predicted / measured = {ratio:.2f}"
        for one, ratio in ratios.items()
        if (not 0.5 <= ratio <= 2) != one.unexplained
    ]


@pytest.mark.parametrize("change", ["registers", "loop", "bytes"])
def test_the_test_of_the_model_can_fail(change):
    """Whoever forgets residency, latency or bytes misses the measured times."""
    other = {"registers": {"registers": 16}, "loop": {"loop": Part(1, 1, 0)}, "bytes": {"read": 0, "written": 0}}
    changed = (replace(one, facts=replace(one.facts, **other[change])) for one in measured.measured())
    assert len(disagreements(list(changed))) > 1


@pytest.mark.parametrize("case", BUDGETS["launches"])
def test_launches_keep_their_budgets(case):
    if triton.__version__ != BUDGETS["triton"]:
        pytest.skip(f"the budgets are of Triton {BUDGETS['triton']}, this is {triton.__version__}")
    found = budgets.looked_at(case)
    assert found.keys() == BUDGETS["launches"][case].keys(), "python -m benchmarks.static_model --write-budgets"
    bad = [
        f"{label}: {complaint}"
        for label, one in found.items()
        for complaint in budgets.complaints(build.see(one), BUDGETS["launches"][case][label])
    ]
    assert not bad, "\n".join(bad)


def test_every_exemption_has_a_reason():
    assert budgets.unreasoned(BUDGETS) == []
    spoilt = copy.deepcopy(BUDGETS)
    kernel, reasons = next(iter(spoilt["reasons"].items()))
    name = next(iter(reasons))
    reasons[name] = ""
    assert budgets.unreasoned(spoilt) == [f"no reason: {(kernel, name)}"]
    reasons[name] = "why"
    reasons["spilled"] = "why"
    assert budgets.unreasoned(spoilt) == [f"no launch: {(kernel, 'spilled')}"]


@triton.jit
def copying_kernel(x, out, W, step, per_split, DIVIDES: tl.constexpr, UNIT: tl.constexpr, BW: tl.constexpr):
    """Copies rows; with DIVIDES each element to a place that a division finds."""
    columns = tl.arange(0, BW)
    for row in range(per_split):
        at = row * (W // UNIT * UNIT) + columns
        v = tl.load(x + at, mask=columns < W, other=0.0)
        to = at // (step + row) if DIVIDES else at
        tl.store(out + to, v, mask=columns < W)


def seen_of_copying(monkeypatch, **options) -> build.Seen:
    kernel = work.Kernel(lambda a: (a["per_split"],), lambda a: a["out"].numel(), "out")
    monkeypatch.setitem(work.KERNELS, "copying_kernel", kernel)
    x = torch.empty(1 << 24, dtype=torch.float16, device="meta")
    arguments = {"x": x, "out": x, "W": 1024, "step": 3, "per_split": 100, "BW": 1024, "DIVIDES": False, "UNIT": 8}
    return build.see(launches.Recorded(copying_kernel, (160,), arguments | options, 4, 1))


def test_a_bad_kernel_breaks_each_rule(monkeypatch):
    good = seen_of_copying(monkeypatch)
    broken = {name for name, rule in budgets.RULES.items() if not rule.met(rule.value(good))}
    assert broken <= {"lead", "waits"}  # it copies: nothing is read ahead
    budget = budgets.present(good)
    assert budgets.complaints(good, budget) == []

    narrow = seen_of_copying(monkeypatch, UNIT=1, W=1023)
    assert narrow.narrowest == 16 and narrow.per_result > 2 * good.per_result
    said = "\n".join(budgets.complaints(narrow, budget))
    assert "bits: 16" in said and "per_result" in said and "us" in said

    dividing = seen_of_copying(monkeypatch, DIVIDES=True)
    assert dividing.divisions > 0
    assert any(one.startswith("divisions") for one in budgets.complaints(dividing, budget))

    full = replace(good, facts=replace(good.facts, registers=255))
    spilled, waiting = replace(good, spilled=8), replace(good, facts=replace(good.facts, loop=Part(30, 50, 3)))
    for name, one in (("warps", full), ("spilled", spilled), ("waits", waiting)):
        assert any(complaint.startswith(name) for complaint in budgets.complaints(one, budget)), name


def test_a_loose_budget_is_an_error(monkeypatch):
    seen = seen_of_copying(monkeypatch)
    budget = budgets.present(seen)
    for name in ("us", "per_result"):
        assert any("too large" in one for one in budgets.complaints(seen, budget | {name: 1.2 * budget[name] + 1}))
        assert any("the budget is" in one for one in budgets.complaints(seen, budget | {name: 0.8 * budget[name]}))
    assert budgets.complaints(seen, budget | {"warps": 8}) == ["warps: 64: no exemption is needed any more"]
    wide = budgets.complaints(seen, budget | {"lead": budget["lead"] / 2})
    assert len(wide) == 1 and "too wide" in wide[0]


def test_bytes_are_counted_in_sectors():
    t = torch.empty((2, 48, 4, 4), dtype=torch.float16, device="meta", memory_format=torch.channels_last)
    assert work.touched(t) == 2 * 48 * 16 * 2
    assert work.touched(t, 0, 16) == 32 * 32  # half a pixel's first sectors
    assert work.touched(t, 24, 48) == 32 * 64  # 48 bytes from 48 on are in two sectors
    assert work.touched(t, 0, 8) == 32 * 32 and work.touched(t, 8, 24) == 32 * 64
    assert work.touched(t, 5, 5) == 0
    nchw = torch.empty((2, 48, 4, 4), dtype=torch.float16, device="meta")
    assert work.touched(nchw, 0, 24) == nchw.numel()


def test_what_is_read_and_written_follows_from_the_arguments():
    found = dict(zip(launches.labels(case := launches.case("train 16->24@112")), case))
    half = 256 * 24 * 112 * 112 * 2
    done = {label: work.work_of(one.name, one.arguments) for label, one in found.items()}
    for label, read, written in (("product_kernel 2", 2 / 3, 1), ("cheap_kernel 1", 1, 0), ("cheap_kernel 2", 1, 2)):
        assert done[label].read == pytest.approx(read * half, rel=0.02), label
        assert done[label].written == pytest.approx(written * half, abs=0.03 * half), label
    assert done["cheap_kernel 2"].results == half // 2
    with pytest.raises(KeyError, match=r"static_model/work\.py"):
        work.work_of("a_new_kernel", {})


def test_every_kernel_has_an_entry():
    found = set()
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        members = vars(importlib.import_module(info.name)).items()
        found |= {name for name, v in members if isinstance(v, triton.JITFunction) and name.endswith("_kernel")}
    assert found == work.KERNELS.keys()


@pytest.mark.parametrize("name", ["train 16->24", "frozen 3->4@", "train 16->24@112+scale", "frozen 16->8@56+more"])
def test_unknown_cases_are_refused(name):
    with pytest.raises(ValueError, match="expected"):
        launches.case(name)
