"""The measures of ``benchmarks/training_spread.py``: on made-up runs they tell near from far."""

import sys
from pathlib import Path

import pytest
import torch

from ghost_ops.backends import native

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def script():
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import training_spread
    finally:
        sys.path.remove(folder)
    return training_spread


def made_up(script, seed, distance=0.0, accuracy=0.9, deviation=0.01):
    noise = torch.Generator().manual_seed(seed)
    losses, weights = (torch.randn(n, generator=noise, dtype=torch.float64) * deviation for n in (30, 50))
    return script.Run(1 + losses + distance, torch.zeros(50).double(), 1 + weights + distance, accuracy)


@pytest.mark.parametrize("distance", [0.0, 0.05])
def test_spread_tells_near_from_far(distance, script):
    plain = {str(seed): made_up(script, seed) for seed in range(1, 30)}
    found = script.spread(plain, {"as drawn": made_up(script, 99, distance, deviation=0.008)}, made_up(script, 100))
    for measure in script.MEASURES:
        assert found[measure]["within"] == (distance == 0.0), (measure, found[measure])
        assert found[measure]["plain_to_plain"]["largest"] >= found[measure]["plain_to_plain"]["median"] > 0


@pytest.mark.parametrize("shift, within", [(0.0, True), (0.01, True), (0.05, False), (-0.05, False)])
def test_accuracies_are_paired_by_seed(shift, within, script):
    plain = {s: [made_up(script, 0, accuracy=0.9 + 0.02 * s + d) for d in (0.0, 0.01, -0.01)] for s in range(5)}
    fused = {s: made_up(script, 0, accuracy=0.9 + 0.02 * s + shift) for s in range(5)}
    found = script.accuracies(plain, fused)
    assert found["plain_deviation"] == pytest.approx(0.01)
    assert found["mean_difference"] == pytest.approx(shift)
    assert found["within"] == within


@pytest.mark.skipif(not native.available(), reason="would compare plain PyTorch with itself")
def test_training_depends_on_the_seed_and_repeats(script, one_thread):
    data, drawn, permuted = script.load(8), script.Order("as drawn"), script.Order("permuted", 1)
    settings = {"steps": 3, "threads": 1}
    fused, again = (script.train(data, 0, drawn, fused=True, **settings) for _ in range(2))
    plain = script.train(data, 0, drawn, fused=False, **settings)
    other = script.train(data, 0, permuted, fused=False, **settings)
    assert fused.same(again) and not fused.same(plain) and not plain.same(other)
    for run in (fused, other):
        assert torch.equal(run.start, plain.start)
        torch.testing.assert_close(run.losses[0], plain.losses[0], rtol=1e-5, atol=0)
    assert not torch.equal(script.train(data, 1, drawn, fused=False, **settings).start, plain.start)
