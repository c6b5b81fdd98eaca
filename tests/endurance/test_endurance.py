"""What judges the long runs, and each of them for a moment."""

import os

import pytest
import torch

from .concurrency import Crowd, Shared, in_a_fork, in_loaders
from .import_orders import available, run_in_order
from .resident import BOUND, Samples, resident, trends, trim
from .soak import Soak

COUNT = 40


def sampled(values):
    return Samples([60.0 * i for i in range(len(values))], list(values), list(values))


def noise(seed=0):
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(seed)).tolist()


def test_a_leak_is_found_and_noise_is_not():
    flat = [400 + n for n in noise()]
    assert sampled(flat).growth() == []
    assert sampled([*flat[:3], 500.0, *flat[4:]]).growth() == []  # one sample in the midst of something
    leaking = sampled([value + 1.5 * BOUND * i / COUNT for i, value in enumerate(flat)]).growth()
    assert len(leaking) == 1 and leaking[0].startswith("memory held grows by")
    assert len(sampled([400 + 3.0 * i for i in range(COUNT)]).growth()) == 2
    assert sampled([500 - 3.0 * i for i in range(COUNT)]).growth() == []


def test_the_trend_of_a_line_is_its_rise():
    by_slope, by_quarters = trends([float(i) for i in range(COUNT)], [3.0 * i for i in range(COUNT)])
    assert by_slope == pytest.approx(3 * (COUNT - 1)) and by_quarters == pytest.approx(3 * COUNT)
    with pytest.raises(ValueError, match="at least 8 samples, got 7"):
        trends([0.0] * 7, [0.0] * 7)


def test_what_is_held_is_resident():
    trim()
    before = resident()
    held = torch.ones(4 << 20)
    assert 15 < resident() - before < 40
    del held
    trim()
    assert resident() - before < 8


def test_a_short_soak(monkeypatch):
    monkeypatch.setattr("tests.endurance.soak.RENEWED", 2)
    monkeypatch.setattr("tests.endurance.soak.COMPARED", 2)
    threads, soak = torch.get_num_threads(), Soak(0)
    try:
        for _ in range(2):
            soak.step()
    finally:
        torch.set_num_threads(threads)
    assert (soak.steps, soak.compared, soak.failures) == (2, 1, [])
    with torch.no_grad():
        next(iter(soak.source.parameters())).mul_(1.01)
    soak.check()
    assert "frozen torch.float32" in soak.failures[0]


@pytest.fixture(scope="module")
def shared():
    threads = torch.get_num_threads()
    yield Shared()
    torch.set_num_threads(threads)


def test_many_threads_forks_and_loaders_get_the_bits_of_a_call_by_itself(shared):
    with Crowd(shared) as crowd:
        found = in_a_fork(shared, 0) + in_loaders(shared, "fork") + in_a_fork(shared, 1)
        while min(crowd.calls) < 4 and not crowd.failures:
            crowd.stops.wait(0.01)
    assert found + crowd.failures == []


def test_a_crowd_notices_a_wrong_result(shared):
    expected = shared.expected[1][0][0]
    expected[0].add_(1e-6)
    try:
        assert any("_run_frozen, input 0" in found for found in with_one_thread(shared.some_wrong, 60, 0))
        assert in_loaders(shared, "fork", workers=1) == ["item 0 of a fork DataLoader"]
    finally:
        expected[0].copy_(shared.call(Shared.KINDS[0], shared.inputs[0])[0])


def with_one_thread(function, *arguments):
    torch.set_num_threads(1)
    return function(*arguments)


def test_a_forked_process_that_ends_is_noticed(shared, monkeypatch):
    monkeypatch.setattr(shared, "some_wrong", lambda calls, seed: os._exit(7))
    assert in_a_fork(shared, 0) == [f"a forked process ended with {7 << 8}"]


def test_ghost_ops_after_others():
    others = [name for name in ("openvino", "timm") if name in available()]
    assert run_in_order([*others, "ghost_ops"]) is None
    assert run_in_order([], first="raise SystemExit('wrong')") == ": ended with 1: wrong\n"
