from pathlib import Path

from ghost_ops.bench import machine

from .command import found_by, invoke


def test_info():
    found = found_by("info", "--json")
    assert found["backends"]["reference"] == "ready" and found["versions"]["torch"] and found["cores"] >= 1
    assert not any(str(Path.home()) in str(value) for value in found.values())
    table = invoke("info")
    assert table.exit_code == 0 and found["versions"]["torch"] in table.stdout and found["cpu"] in table.stdout


def test_info_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setattr(machine, "version_of", lambda name: None)
    assert 'not installed: pip install "ghost-ops[bench]"' in invoke("info").stdout
