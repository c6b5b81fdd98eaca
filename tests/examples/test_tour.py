"""The tour runs from its first cell to its last, and is a notebook: jupytext's cells in Python's percent format."""

import runpy
import tempfile
from pathlib import Path

import pytest
import torch

from ghost_ops.bench import roofline
from ghost_ops.bench.timing import torch_threads
from ghost_ops.models import compare_costs
from tests.profiling.conftest import LIMITS

TOUR = Path(__file__).resolve().parents[2] / "examples" / "tour.py"


def as_in_a_notebook(monkeypatch):
    """Rich finds that it is in a notebook, where it would show an empty box for each text that is made by a console."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: pytest.fail("a report displays something while it is made"))


def test_a_comparison_of_costs_is_a_text_in_a_notebook_too(monkeypatch):
    as_in_a_notebook(monkeypatch)
    conv = torch.nn.Conv2d(3, 4, 3)
    assert "parameters" in str(compare_costs(conv, conv, torch.zeros(1, 3, 8, 8)))


def test_the_tour_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(roofline, "measure", lambda threads, seconds, bfloat16: LIMITS)
    monkeypatch.setattr("ghost_ops.profiling.session.ROUND_SECONDS", 1e-3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    as_in_a_notebook(monkeypatch)
    with torch.random.fork_rng(), torch_threads(1):
        found = runpy.run_path(str(TOUR))
    assert found["accuracy"] > 0.8 and len(found["maps"].pairs(3)) == 3
    assert found["difference"] <= 1e-5 * found["answers"].abs().max()
    assert {path.name for path in found["folder"].iterdir()} == {"ghosts.png", "digits.pt2"}
    text = capsys.readouterr().out
    assert "GhostBottleneck" in text and "sum of the modules" in text and "same answers: 100.0%" in text


def test_the_tour_is_a_notebook():
    """Text cells are comments only; every other cell is code that compiles on its own."""
    header, *cells = TOUR.read_text().split("\n# %%")
    assert header.startswith("# ---\n# jupyter:") and all(line.startswith("#") for line in header.splitlines() if line)
    texts = [cell for cell in cells if cell.startswith(" [markdown]\n")]
    assert len(texts) >= 8 and all(line.startswith("#") for cell in texts for line in cell.splitlines()[1:] if line)
    for cell in cells:
        if cell not in texts:
            assert cell.startswith("\n")
            compile(cell, str(TOUR), "exec")
