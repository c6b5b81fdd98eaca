"""The command line as a whole."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

import ghost_ops
from ghost_ops.cli import main
from ghost_ops.cli.console import console

from .command import error_of, found_by, invoke

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "info", "verify", "bench", "profile", "explain", "ghosts", "freeze", "export", "convert", "demo", "completion",
)  # fmt: skip


def test_version():
    assert invoke("--version").output.strip().endswith(f"version {ghost_ops.__version__}")


def test_every_command_has_help_with_examples():
    assert tuple(main.commands) == COMMANDS
    for name in COMMANDS:
        result = invoke(name, "--help")
        assert result.exit_code == 0 and f"ghost-ops {name} " in result.stdout.partition("Examples:")[2]
        assert "{MODEL}" not in result.stdout


def test_a_command_is_imported_without_what_it_runs():
    """So that --help, which imports all of them, is fast."""
    heavy = "timm", "matplotlib", "ghost_ops.bench.run", "ghost_ops.profiling.run", "torch.utils.flop_counter"
    code = f"import sys, ghost_ops.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_missing_packages_are_named_before_work_begins(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for args, extra in ((("bench", "--plot", "x.png"), "bench"), (("demo",), "demo")):
        result = invoke(*args)
        assert result.exit_code == 1 and f'pip install "ghost-ops[{extra}]"' in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    result = invoke("completion", shell)
    assert result.exit_code == 0 and f"_GHOST_OPS_COMPLETE={shell}_complete" in result.stdout
    assert found_by("completion", shell, "--json") == {"shell": shell, "script": result.stdout.removesuffix("\n")}


def test_what_a_shell_offers():
    complete = lambda *args: [
        item.value for item in ShellComplete(main, {}, "ghost-ops", "X").get_completions(list(args[:-1]), args[-1])
    ]
    assert complete("gh") == ["ghosts"] and "--layer" in complete("ghosts", "--la")
    assert complete("explain", "ghostnet_0") == ["ghostnet_050"]
    (item,) = ShellComplete(main, {}, "ghost-ops", "X").get_completions(["explain"], "weights.p")
    assert item.type == "file"


def test_colours_heed_the_environment(monkeypatch, capsys):
    for variables, colours in (
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ):
        for name in ("FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TERM", "xterm")
        console().print("[green]ok[/]")
        assert ("\x1b[32m" in capsys.readouterr().out) is colours


def test_what_cannot_be_written_or_drawn_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "none" / "x.json"
    assert "does not exist" in error_of("bench", "--quick", "--json", path)
    assert error_of("explain", "ghostnet_050", "--batch", 2 * 10**9).startswith("2000000000 images of ")

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    pytest.importorskip("sklearn")
    monkeypatch.setattr("ghost_ops.demo.run_demo", refuse)
    assert "x.png cannot be written: PermissionError" in error_of("demo", "--output", "x.png")


def test_python_m_is_the_same():
    command = [sys.executable, "-m", "ghost_ops", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
