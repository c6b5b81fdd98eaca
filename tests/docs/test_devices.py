"""The pages of devices and their charts are those that docs/site/devices.py makes from the result files."""

import json
from xml.etree import ElementTree

import pytest

from ghost_ops.bench.report import read_json

from .test_site import DOCS, load

devices = load(DOCS / "site" / "devices.py")
TEXTS, CHARTS = devices.pages()


def test_the_pages_are_those_of_the_script():
    stale = [name for name, text in TEXTS.items() if (devices.FOLDER / name).read_text() != text]
    assert not stale, "run python docs/site/devices.py"


def test_the_charts_are_those_of_the_script():
    files = {path.name: path.read_text() for path in (devices.FOLDER / "plots").iterdir()}
    assert files == CHARTS, "run python docs/site/devices.py"
    for text in files.values():
        ElementTree.fromstring(text)


@pytest.mark.parametrize("device", devices.DEVICES, ids=lambda device: device.name)
def test_what_is_faster_elsewhere_is_on_the_page(device):
    """Every timed net that another engine computes faster, counted apart from the script."""
    lost = 0
    for part in ("nets", "nets-16", "train"):
        path = devices.RESULTS / f"{device.prefix}-{part}.json"
        if path.exists():
            rows = [r for r in read_json(path).results if r.status == "ok"]
            for key in {(r.batch, r.threads) for r in rows}:
                here = [r for r in rows if (r.batch, r.threads) == key]
                best = min(r.seconds for r in here if r.group != "target")
                lost += sum(r.group == "target" and not r.baseline.endswith("nchw") and r.seconds > best for r in here)
    listed = [
        line for line in TEXTS[f"{device.name}.md"].splitlines() if line.startswith(("| GhostNet-100,", "| a train"))
    ]
    assert len(listed) == lost


def test_each_result_has_its_commit_and_date():
    for name, text in TEXTS.items():
        sources = [line for line in text.replace("\n  ", " ").splitlines() if line.startswith("- [")]
        assert sources and all("commit " in line and " 2026" in line for line in sources), name


def test_a_changed_result_changes_the_chart(tmp_path, monkeypatch):
    for path in devices.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    path = tmp_path / "turin-nets.json"
    found = json.loads(path.read_text())
    found["rows"][0]["seconds"] *= 2
    path.write_text(json.dumps(found))
    monkeypatch.setattr(devices, "RESULTS", tmp_path)
    texts, charts = devices.pages()
    assert {name for name in charts if charts[name] != CHARTS[name]} == {"zen5-nets.svg", "zen5-scaling.svg"}
    assert {name for name in texts if texts[name] != TEXTS[name]} == {"zen5.md"}
