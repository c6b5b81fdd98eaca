import json

from ghost_ops import use_backend
from ghost_ops import verify as checks

from .command import invoke


def test_verify_exits_with_1_exactly_where_something_failed():
    result = invoke("verify", "--quick", "--json")
    found = json.loads(result.stdout)
    assert len(found["outcomes"]) == 80
    assert found["ok"] == all(o["ok"] for o in found["outcomes"])
    assert result.exit_code == (0 if found["ok"] else 1)


def test_verify_passes_on_the_reference_and_fails_on_what_is_wrong(monkeypatch):
    with use_backend("reference"):
        result = invoke("verify", "--quick")
    assert result.exit_code == 0 and "FAILED" not in result.stdout
    bad = checks.Outcome("ghost_module", "float32", "NCHW", "forward", "native", 2, 1e-3, 1e-7, 9.0, "output 0 of it")
    monkeypatch.setattr(checks, "verify", lambda count, on_step: [bad])
    result = invoke("verify", "--quick")
    assert result.exit_code == 1 and "FAILED" in result.stdout and "output 0 of it" in result.stdout
