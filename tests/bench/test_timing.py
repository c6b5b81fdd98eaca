import math
import time
from dataclasses import replace

import pytest
import torch

from ghost_ops.bench import roofline
from ghost_ops.bench.roofline import Limits
from ghost_ops.bench.timing import Timing, geometric_mean, in_turn, interleave, ratio, torch_threads


def test_samples_are_interleaved():
    order = []
    timings = interleave({"a": int, "b": int, "c": int}, rounds=3, min_seconds=1e-4, on_sample=order.append)
    assert order == ["a", "b", "c"] * 3
    assert all(len(t.samples) == 3 and t.number > 1 for t in timings.values())


def test_passes_go_through_the_calls_in_order():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    timings = in_turn(calls, rounds=2, min_seconds=1e-4)
    assert order == list("abc") * (len(order) // 3) and list(timings) == list("abc")
    assert all(len(t.samples) == 2 and t.number >= 1 for t in timings.values())
    assert min(in_turn({"sleep": lambda: time.sleep(0.003)}, rounds=1, min_seconds=1e-3)["sleep"].samples) >= 0.003
    assert in_turn({}, rounds=1) == {}


def test_a_sample_is_the_time_of_one_call():
    timing = interleave({"sleep": lambda: time.sleep(0.003)}, rounds=2, min_seconds=0.009)["sleep"]
    assert timing.number >= 2 and min(timing.samples) >= 0.003


def test_threads_are_set_while_calls_run_and_put_back():
    before, seen = torch.get_num_threads(), set()
    other = before % 2 + 1
    interleave({"a": lambda: seen.add(torch.get_num_threads())}, rounds=1, threads=other, min_seconds=1e-5)
    assert seen == {other} and torch.get_num_threads() == before
    with pytest.raises(KeyError), torch_threads(other):
        raise KeyError
    assert torch.get_num_threads() == before


def test_nonsense_is_refused():
    for arguments in ({"rounds": 0}, {"rounds": 1, "threads": 0}):
        with pytest.raises(ValueError, match="expected at least 1"):
            interleave({}, **arguments)


def test_statistics():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0), 1)
    assert timing.median == 3 and timing.spread == 2
    assert Timing((5.0,), 1).spread == 0
    assert ratio(timing, Timing((1.5,), 1)) == 2
    assert geometric_mean([1, 4]) == pytest.approx(2)
    assert geometric_mean([1, 8], [2, 1]) == pytest.approx(2)
    assert math.isnan(geometric_mean([]))


def test_roof_is_the_greater_of_both_limits():
    limits = Limits(1, 100.0, "", {"L2": 50.0, "L3": 10.0, "DRAM": 1.0}, {"L2": 100, "L3": 1000})
    assert [limits.level(size) for size in (100, 101, 1000, 1001)] == ["L2", "L3", "L3", "DRAM"]
    assert limits.roof(flops=300, size=100) == 3
    assert limits.roof(flops=300, size=1000) == 100
    assert limits.roof(flops=0, size=2000) == 2000
    assert limits.peak("bfloat16") == limits.peak() == 100
    faster = replace(limits, bfloat16_flops=300.0)
    assert faster.peak("bfloat16") == 300 and faster.peak() == 100
    assert faster.roof(300, 100, "bfloat16") == 2 and faster.roof(600, 50, "bfloat16") == 2
    assert faster.roof(300, 100) == 3


def test_limits_are_measured():
    limits = roofline.measure(1, 0.01, bfloat16=True)
    assert limits.flops > 0 and limits.bfloat16_flops > 0 and limits.capacity["L2"] < limits.capacity["L3"]
    assert limits.bandwidth["L2"] >= limits.bandwidth["L3"] >= limits.bandwidth["DRAM"] > 0
