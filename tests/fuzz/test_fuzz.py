"""A little of ``make fuzz``: every failure that it ever found, a few drawn cases, and that a fault shows."""

from __future__ import annotations

from itertools import product

import pytest
import torch

import ghost_ops
from ghost_ops.backends import native

from ..ops.cases import LAYOUTS, Case, in_layout
from . import lives, operators, run

KEPT = sorted(run.CORPUS.glob("*.json"))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Small maps."""


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Where failures of this test are kept."""
    monkeypatch.setattr(run, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(run, "RUNNING", tmp_path / "running.json")
    run.CORPUS.mkdir()
    return run.CORPUS


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_has_failed_once(path):
    run.check_file(path)


@pytest.mark.parametrize("kind, examples", [("net", 6), ("call", 40)])
def test_drawn(kind, examples, corpus):
    search = run.Search(kind, shrinks=False)
    search.round(0, examples)
    assert not search.failures and search.cases >= examples // 2


def test_a_fault_is_found_and_kept(corpus, monkeypatch):
    """Ghost modules whose result is off by a hundredth."""
    if not native.available():
        pytest.skip("without kernels there is nothing to be wrong")
    fuse = ghost_ops.fuse

    def wrong(net, **options):
        fuse(net, **options)
        net.head.register_forward_hook(lambda module, args, out: out * 1.01)
        return net

    monkeypatch.setattr(ghost_ops, "fuse", wrong)
    search = run.Search("net", shrinks=False)
    search.round(0, 10)
    (kept,) = corpus.iterdir()
    assert search.failures and "Differs" in search.failures[0]
    with pytest.raises(lives.Differs):
        run.check_file(kept)
    monkeypatch.setattr(ghost_ops, "fuse", fuse)
    run.check_file(kept)


def test_calls_are_the_same_from_a_file():
    for shape, layout in product(((2, 4, 5, 3), (1, 1, 1, 1), (2, 3, 4, 1)), LAYOUTS):
        x = torch.randn(shape).bfloat16()
        case = Case({"x": in_layout(x, layout), "bias": None}, {"stride": 2}, 2)
        name, again = operators.from_plain(operators.to_plain("depthwise", case))
        assert name == "depthwise" and again.options == case.options and again.threads == 2
        assert torch.equal(again.tensors["x"], x) and again.tensors["bias"] is None
        assert again.tensors["x"].stride() == case.tensors["x"].stride()
