"""What a release says of itself is one thing in every place, and its tools refuse what is not fit."""

from __future__ import annotations

import ast
import re
import zipfile
from pathlib import Path

import pytest
import yaml

from . import matrix
from .environments import ROOT, SHORT, Environment, Failed, counts, run
from .release import check_needs, release_of

PROJECT = (ROOT / "pyproject.toml").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_one_version():
    version = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]
    newest = re.search(r"^## (\d\S*)(?: - (\S+))?$", CHANGELOG, re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (version, newest[2]) == (citation["version"], citation["date-released"])
    assert newest[1] == version
    assert f"the newest minor version, {version.rpartition('.')[0]}, " in (ROOT / "docs" / "versions.md").read_text()


@pytest.mark.parametrize(
    ("changelog", "says"),
    [
        ("## Unreleased\n\n- More.\n\n## 1.2.3 - 2026-01-31\n", "expected nothing under Unreleased"),
        ("## Unreleased\n\n## 1.2.3\n", "expected a version and a date"),
        ("## Unreleased\n", "expected a version and a date"),
        ("## 1.2.3 - 2026-01-31\n", "expected a version and a date"),
    ],
)
def test_a_changelog_that_is_not_closed_is_refused(changelog, says):
    with pytest.raises(Failed, match=says):
        release_of(changelog)


def test_the_newest_closed_version():
    assert release_of("# Log\n\n## Unreleased\n\n## 1.2.3 - 2026-01-31\n\n- A.\n\n## 1.2.2 - 2026-01-01\n") == "1.2.3"


def test_a_library_that_needs_more_is_refused(tmp_path):
    import torch

    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/nothing.py", "")
    with pytest.raises(Failed, match="expected compiled kernels, found none"):
        check_needs(wheel, tmp_path / "none")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(Path(torch.__file__).parent / "lib" / "libtorch_python.so", "some/more.so")
    with pytest.raises(Failed, match=r"more.so: expected to need only torch and the C library, needs .*libtorch"):
        check_needs(wheel, tmp_path / "more")


def test_what_is_claimed_is_what_is_tried():
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert tuple(claimed) == matrix.PYTHONS
    assert re.search(r'requires-python = ">=(.+)"', PROJECT)[1] == claimed[0]
    assert re.search(r'"torch>=(.+?)"', PROJECT)[1] == matrix.TORCHES[0]
    tests = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    assert tuple(tests["jobs"]["versions"]["strategy"]["matrix"]["python"]) == matrix.PYTHONS


def test_the_table_in_the_documentation_is_that_of_the_last_run():
    log = (ROOT / "benchmarks" / "results" / "versions.log").read_text()
    table = log[log.index(matrix.HEAD[0]) :].strip()
    assert table in (ROOT / "docs" / "versions.md").read_text()
    cells = [line.split(" | ") for line in table.splitlines()[2:]]
    tried = {tuple(".".join(cell.strip("| ").split(".")[:2]) for cell in row[:2]) for row in cells}
    assert tried and tried <= {(python, torch) for python in matrix.PYTHONS for torch in matrix.TORCHES}
    assert all(re.fullmatch(r"\d+ passed(, \d+ skipped)?", last.strip("| ")) for *_, last in cells)


def test_short_tests_exist():
    assert [file for file in SHORT if not (ROOT / file.partition("::")[0]).is_file()] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_exists(workflow):
    steps = [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]
    commands = "\n".join(step.get("run", "") for step in steps)
    targets = set(re.findall(r"\bmake (\w+)", commands))
    modules = set(re.findall(r"python -m (tests[\w.]+)", commands))
    assert targets | modules
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


def test_an_environment_must_use_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(Environment, "__init__", lambda self, folder: setattr(self, "folder", folder))
    environment = Environment(tmp_path)
    environment.python = "echo"  # says the code that it is given, whose last word is a path
    with pytest.raises(Failed, match="expected the installed ghost_ops, got the one in"):
        environment.about()
    with pytest.raises(Failed, match=r"false returned 1"):
        run("false", cwd=tmp_path)


def test_a_python_that_is_not_here_fails(tmp_path):
    (found,) = matrix.rows(tmp_path / "some.whl", ["3.0"], ["2.10"], tmp_path)
    assert found == ("| 3.0 |  |  |  | this Python was not found |", False)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("..F\n==== 1 failed, 696 passed, 9 warnings in 333.26s (0:05:33) ====\n", "1 failed, 696 passed"),
        ("12 passed, 3 skipped in 1.00s\n", "12 passed, 3 skipped"),
        ("4 errors in 4.16s\n", "4 errors"),
        ("pip returned 1: no such version\n", "failed"),
        ("", "failed"),
    ],
)
def test_counts_of_results(said, found):
    assert counts(said) == found


def test_a_torch_that_cannot_be_had_is_a_row_that_fails(tmp_path):
    class Broken(Environment):
        def __init__(self, folder):
            self.folder = folder

        def install(self, *arguments):
            run("false", cwd=self.folder)

    assert matrix.tried(Broken(tmp_path), "9.9", "after 2.10", [["torch==9.9.*"]]) == (
        f"| {tmp_path.name} | 9.9 | after 2.10 |  | failed |",
        False,
    )


def test_loading_never_unpickles():
    """Every torch.load reads weights only, and nothing else unpickles but what was just written, to compare it."""
    found = set()
    for path in (p for folder in ("ghost_ops", "examples", "benchmarks") for p in (ROOT / folder).rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        found |= {f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(call)}" for call in calls if _unpickles(call)}
    assert found == {"ghost_ops/cli/formats.py: torch.load(path, weights_only=False)"}


def _unpickles(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name == "torch.load":
        return not any(k.arg == "weights_only" and getattr(k.value, "value", 0) is True for k in call.keywords)
    return name in {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.hub.load"} or (
        name in {"np.load", "numpy.load"} and any(k.arg == "allow_pickle" for k in call.keywords)
    )
