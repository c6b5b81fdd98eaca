"""Calls ``ghost-ops`` in this process."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from ghost_ops.cli import main


def invoke(*args: object) -> Result:
    """What a command does: its exit code and what it prints."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def found_by(*args: object) -> dict:
    """The JSON that a command prints, which must succeed."""
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def error_of(*args: object, code: int = 1) -> str:
    """The one line of a command's error; in a usage error the last."""
    result = invoke(*args)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), "a trace-back"
    assert not result.stdout
    lines = result.stderr.strip().splitlines()
    assert code == 2 or len(lines) == 1, result.stderr
    return lines[-1].removeprefix("Error: ")
