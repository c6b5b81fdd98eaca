import json

import pytest

from ghost_ops import use_backend
from ghost_ops import verify as checks

from .command import error_of, invoke

BAD = checks.Outcome("ghost_module", "float32", "NCHW", "forward", "native", 2, 1e-3, 1e-7, 9.0, "output 0 | of it")
GOOD = checks.Outcome(
    "squeeze-and-excite", "bfloat16", "NCHW", "frozen", "native", 2, 1e-3, 1e-3, 0.5, "output", "mine"
)
LEFT = checks.Outcome("a block", "", "", "", "", 0, 0.0, 0.0, 0.0, "not compared: a.Block has no examples")


@pytest.fixture
def without_blocks(monkeypatch):
    """Which take a minute, and have tests of their own (tests/bench)."""
    monkeypatch.setattr("ghost_ops.verify.verify_blocks", lambda count, on_step: [GOOD])


def test_verify_exits_with_1_exactly_where_something_failed(without_blocks):
    result = invoke("verify", "--quick", "--json")
    found = json.loads(result.stdout)
    assert len(found["outcomes"]) == 81
    assert found["ok"] == all(o["ok"] for o in found["outcomes"])
    assert result.exit_code == (0 if found["ok"] else 1)


def test_verify_passes_on_the_reference_and_fails_on_what_is_wrong(without_blocks, monkeypatch):
    with use_backend("reference"):
        result = invoke("verify", "--quick")
    assert result.exit_code == 0 and "FAILED" not in result.stdout
    monkeypatch.setattr(checks, "verify", lambda count, on_step: [BAD, GOOD, LEFT])
    result = invoke("verify", "--quick")
    assert result.exit_code == 1 and "FAILED" in result.stdout and "output 0 | of it" in result.stdout
    assert "squeeze-and-excite: mine" in result.stdout and "not compared" in result.stdout


def test_a_report_is_markdown(monkeypatch):
    monkeypatch.setattr(checks, "verify", lambda count, on_step: [BAD, GOOD, LEFT])
    result = invoke("verify", "--report")
    lines = result.stdout.splitlines()
    assert result.exit_code == 1 and lines[0] == "### ghost-ops verify: 2 of 3 within the bound"
    assert r"output 0 \| of it |" in lines[4]
    assert "| squeeze-and-excite: mine | native | 50%: bfloat16, NCHW, frozen |" in lines
    assert "| a block |  | not compared: a.Block has no examples |" in lines
    assert any(line.startswith("| backend native | ") for line in lines)
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in tables} == {10, 4, 3}


def test_blocks_of_ones_own_are_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "verify", lambda count, on_step: [GOOD])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_blocks.py").write_text("open('imported', 'w').close()")
    assert invoke("verify", "--import", "own_blocks").exit_code == 0 and (tmp_path / "imported").exists()
    message = error_of("verify", "--import", "no_such_blocks")
    assert message.startswith("--import: expected a module that can be imported, got 'no_such_blocks': No module named")


def test_a_report_is_not_json():
    assert error_of("verify", "--report", "--json", code=2) == "--report and --json: expected one of them, got both"
