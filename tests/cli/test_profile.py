import importlib.util
import json

import pytest

from ghost_ops.bench import roofline
from tests.profiling.conftest import LIMITS

from .command import error_of, found_by, invoke

PROFILE = "profile", "tests.cli.nets:small", "--size", "32", "--rounds", "1", "--threads", "1"


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(roofline, "measure", lambda threads, seconds, bfloat16: LIMITS)
    monkeypatch.setattr("ghost_ops.profiling.session.ROUND_SECONDS", 1e-3)


def test_json_on_standard_output():
    found = found_by(*PROFILE, "--batch", "2", "--json", "-")
    assert found["input"] == "float32 2 x 3 x 32 x 32" and found["threads"] == 1 and found["rounds"] == 1
    assert [row["name"] for row in found["modules"]] == ["0 to 2", "3", "4 to 6"]
    assert found["net"]["multiply_adds"] == 2 * (16 * 16 * (8 * 27 + 8 * 8 + 8 * 9) + 16 * 5)


def test_the_table_file_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    paths = tmp_path / "profile.json", tmp_path / "profile.png"
    result = invoke(*PROFILE, "--top", "1", "--json", paths[0], "--plot", paths[1])
    assert result.exit_code == 0, result.output
    assert "2 more modules" in result.stdout and "between the modules" in result.stdout
    assert len(json.loads(paths[0].read_text())["modules"]) == 3 and paths[1].read_bytes().startswith(b"\x89PNG")


def test_channels_last_and_bfloat16():
    found = found_by(*PROFILE, "--channels-last", "--dtype", "bfloat16", "--json", "-")
    assert found["dtype"] == "bfloat16" and found["net"]["frozen"]["error"] > 1e-5


def test_what_cannot_be_written_is_said_before_any_work(tmp_path, monkeypatch):
    for option in ("--json", "--plot"):
        path = tmp_path / "none" / "x.png"
        assert f"the folder {path.parent} does not exist" in error_of(*PROFILE, option, path)
        assert "is a folder" in error_of(*PROFILE, option, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = error_of(*PROFILE, "--plot", "x.png")
    assert message == 'matplotlib is not installed: pip install "ghost-ops[bench]"'


def test_a_format_that_pictures_do_not_have(tmp_path):
    pytest.importorskip("matplotlib")
    result = invoke(*PROFILE, "--plot", tmp_path / "x.docx")
    assert result.exit_code == 1 and result.stderr.strip().splitlines()[-1].startswith(
        f"Error: {tmp_path}/x.docx cannot"
    )
