"""The environment variables: what is allowed, and what else is one error when the package is imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ghost_ops
from ghost_ops.backends import environment, native

PACKAGE = Path(ghost_ops.__file__).parent
needs_library = pytest.mark.skipif(not native.available(), reason="no compiled library")
NUMBER = f"expected a number of MiB from 0 to {2**43 - 1}, in digits, got"
NAMES = "expected 'amx', 'avx512bf16', 'avx512', 'avx2' or 'baseline', got"


def run(code: str, package: Path = PACKAGE, given: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, with these variables and no others of the library."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GHOST_OPS_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, "PYTHONPATH": str(package.parent), **variables},
        capture_output=True, text=True, cwd="/", input=given,
    )  # fmt: skip


def refusal(package: Path = PACKAGE, **variables: str) -> str:
    """The error that importing the package ends with."""
    done = run("import ghost_ops", package, **variables)
    assert done.returncode == 1, done  # an exception; a signal would be negative
    assert done.stderr.count("Traceback") == 1 and "During handling" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def pure_python(tmp_path_factory) -> Path:
    """The package without its libraries."""
    to = tmp_path_factory.mktemp("pure") / "ghost_ops"
    shutil.copytree(PACKAGE, to, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return to


WRONG = [
        ("GHOST_OPS_BACKEND", "abc", "expected 'native' or 'reference', got 'abc'"),
        ("GHOST_OPS_BACKEND", "Native", "expected 'native' or 'reference', got 'Native'"),
        ("GHOST_OPS_GPU", "vulkan", "expected 'cuda' or 'triton', got 'vulkan'"),
        ("GHOST_OPS_LAUNCHES", "c++", "expected 'python', got 'c++'"),
        ("GHOST_OPS_ISA", "sse9", f"{NAMES} 'sse9'"),
        ("GHOST_OPS_ISA", "avx2,baseline", f"{NAMES} 'avx2,baseline'"),
        *(("GHOST_OPS_KEEP_MB", value, f"{NUMBER} '{value}'")
          for value in ("abc", "-1", "1e3", "1.5", " 1", "+1", "0x10", "²", "8796093022208", "9" * 30, "9" * 5000)),
]  # fmt: skip
ATTEMPTS = """
import json, os, sys
found = []
for variable, value in json.loads(sys.stdin.read()):
    os.environ[variable] = value
    try:
        import ghost_ops
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}" + ("" if error.__cause__ is error.__context__ is None else "!"))
    else:
        found.append("none")
    del os.environ[variable]
    for name in [name for name in sys.modules if name.split(".")[0] == "ghost_ops"]:
        del sys.modules[name]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refusals() -> list[str]:
    """What importing the package raises with each wrong value, in one process."""
    done = run(ATTEMPTS, given=json.dumps([row[:2] for row in WRONG]))
    assert done.returncode == 0, done
    return json.loads(done.stdout)


@pytest.mark.parametrize("row", range(len(WRONG)), ids=[f"{name}={value[:20]}" for name, value, _ in WRONG])
def test_a_wrong_value_is_one_error(row, refusals):
    variable, _, message = WRONG[row]
    assert refusals[row] == f"ValueError: {variable}: {message}"


def test_a_wrong_value_ends_a_process_with_one_traceback():
    assert refusal(GHOST_OPS_BACKEND="abc") == f"ValueError: GHOST_OPS_BACKEND: {WRONG[0][2]}"


def test_a_wrong_value_is_an_error_of_a_pure_python_install(pure_python):
    assert refusal(pure_python, GHOST_OPS_ISA="sse9") == f"ValueError: GHOST_OPS_ISA: {NAMES} 'sse9'"
    assert refusal(pure_python, GHOST_OPS_KEEP_MB="x") == f"ValueError: GHOST_OPS_KEEP_MB: {NUMBER} 'x'"
    assert run("import ghost_ops", pure_python, GHOST_OPS_ISA="amx").returncode == 0


def test_a_wrong_value_is_an_error_where_the_library_is_not_loaded():
    found = refusal(GHOST_OPS_BACKEND="reference", GHOST_OPS_ISA="sse9")
    assert found == f"ValueError: GHOST_OPS_ISA: {NAMES} 'sse9'"
    found = refusal(GHOST_OPS_BACKEND="reference", GHOST_OPS_KEEP_MB="x")
    assert found == f"ValueError: GHOST_OPS_KEEP_MB: {NUMBER} 'x'"


@needs_library
def test_an_instruction_set_that_does_not_run_here():
    missing = [isa for isa in environment.ISAS if isa not in native.isas()]
    if not missing:
        pytest.skip("this machine runs them all")
    names = environment.one_of(native.isas())
    for isa in missing:
        expected = f"ValueError: GHOST_OPS_ISA: expected {names}, which this machine runs, got '{isa}'"
        assert refusal(GHOST_OPS_ISA=isa) == expected


@needs_library
def test_an_instruction_set_that_the_library_refuses(monkeypatch):
    """On a machine that runs them all, too."""
    monkeypatch.setattr(environment, "read", lambda: environment.Environment(isa="sse9"))
    expected = f"GHOST_OPS_ISA: expected {environment.one_of(native.isas())}, which this machine runs, got 'sse9'"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        native._set_up()


CAUGHT = """
import os
try:
    import ghost_ops
except ValueError:
    pass
else:
    raise SystemExit("no error")
del os.environ["GHOST_OPS_ISA"]
import torch, ghost_ops
from ghost_ops.backends import native
print(native.available(), ghost_ops.functional.depthwise(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)).sum().item())
"""


@needs_library
def test_the_import_works_once_the_value_is_mended():
    missing = [isa for isa in environment.ISAS if isa not in native.isas()]
    for isa in (*missing[:1], "sse9"):
        assert run(CAUGHT, GHOST_OPS_ISA=isa).stdout.split() == ["True", "4.0"]


USED = """
import torch, ghost_ops
from ghost_ops.backends import cuda, native
print(native.isa(), cuda.WISH, native.available(), native.kept_bytes(), native.reason())
ghost_ops.empty_cache()
"""


@pytest.mark.parametrize(
    "variables", [{"GHOST_OPS_ISA": isa} for isa in native.isas()] + [{}, {"GHOST_OPS_ISA": ""}], ids=str
)
@needs_library
def test_an_instruction_set(variables):
    done = run(USED, **variables)
    assert done.stdout.split()[0] == (variables.get("GHOST_OPS_ISA") or native.isas()[0]), done.stderr


@pytest.mark.parametrize("value", ["", "0", "007", "1024", "8796093022207"])
def test_megabytes(value):
    assert run(USED, GHOST_OPS_KEEP_MB=value).returncode == 0


@pytest.mark.parametrize("value, wish", [("", "None"), ("cuda", "cuda"), ("triton", "triton")])
def test_the_kernels_of_a_gpu(value, wish):
    assert run(USED, GHOST_OPS_GPU=value).stdout.split()[1] == wish


def test_the_reference_backend():
    done = run(USED, GHOST_OPS_BACKEND="reference")
    assert done.stdout.split(maxsplit=4)[2:] == ["False", "0", "GHOST_OPS_BACKEND=reference is set\n"]
    assert not done.stderr


def test_the_native_backend_is_there_or_an_error(pure_python):
    message = refusal(pure_python, GHOST_OPS_BACKEND="native")
    assert message.startswith("RuntimeError: GHOST_OPS_BACKEND=native: the compiled kernels are not loaded: ")
    assert ("_cpu.so is missing" in message) or sys.platform != "linux"
    if native.available():
        assert run(USED, GHOST_OPS_BACKEND="native").stdout.split()[2] == "True"


def test_a_library_that_does_not_load(pure_python, tmp_path):
    package = tmp_path / "ghost_ops"
    shutil.copytree(pure_python, package)
    (package / "_cpu.so").write_bytes(b"nothing")
    found = refusal(package, GHOST_OPS_BACKEND="native")
    assert "RuntimeError: GHOST_OPS_BACKEND=native: the compiled kernels are not loaded: _cpu.so does not load" in found
    assert "runs on its reference backend" in run("import ghost_ops", package).stderr


def test_every_known_instruction_set_has_a_name():
    assert set(native.isas()) <= set(environment.ISAS)


def test_nobody_else_reads_these_variables():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "environment.py":
            text = path.read_text()
            assert not any(
                f'"GHOST_OPS_{name}"' in text and "environ" in text for name in ("BACKEND", "GPU", "KEEP_MB")
            )
