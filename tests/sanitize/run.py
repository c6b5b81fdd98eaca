"""The kernels under sanitizers, and the decoder of programs with input that nobody checked (CONTRIBUTING.md).

The short form is a few drawn calls of every operator under AddressSanitizer and UndefinedBehaviorSanitizer, as they are
and spoilt, and some seconds of the decoder. ``--every``: every instruction set that runs here, ThreadSanitizer, guard
pages around all that torch allocates, the tests of kernels and operators, and drawn nets.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from tests.ops import guard_pages

from .build import EMULATED, FLAGS, ROOT, build, compilers

CALLS, CORPUS = ROOT / "build/sanitize/calls", ROOT / "tests/sanitize/corpus"
ASAN = "allocator_may_return_null=1:max_allocation_size_mb=1024"
CHECKED = {"ASAN_OPTIONS": ASAN, "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
# Python and torch leave much behind at the end. The sanitizer sees Python's own memory where malloc has it.
UNDER_PYTHON = CHECKED | {"ASAN_OPTIONS": f"{ASAN}:detect_leaks=0", "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "2"}


class Session:
    """Runs commands, says of each what it was and how long it took, and remembers failures."""

    def __init__(self, log: Path | None) -> None:
        self.log, self.failed = log.open("w") if log else None, []

    def say(self, text: str) -> None:
        click.echo(text)
        if self.log:
            print(text, file=self.log, flush=True)

    def run(self, what: str, *command: object, lines: int = 1, keeps: str = "", **environment: str) -> str:
        """A command; the last ``lines`` of what it prints that hold ``keeps`` are logged, all of it where it fails."""
        start = time.monotonic()
        ran = subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ | environment, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")  # fmt: skip
        printed = [line for line in ran.stdout.splitlines() if line.strip()]
        if ran.returncode:
            self.failed.append(what)
            self.say("\n".join(printed[-200:]))
        found = [line for line in printed if keeps in line][-lines:]
        state = f"FAILED with {ran.returncode}" if ran.returncode else f"{time.monotonic() - start:.0f} s"
        self.say(f"{what}: {state}" + "".join(f"\n    {line}" for line in found))
        return ran.stdout

    def build(self, sanitizer: str, compiler: str, isas: list[str], programs: list[str]) -> Path:
        start = time.monotonic()
        folder = build(sanitizer, compiler, isas, programs)
        self.say(f"built {', '.join(programs)} for {sanitizer} with {compiler}: {time.monotonic() - start:.0f} s")
        return folder


def runs_here() -> list[str]:
    """The instruction sets that this machine runs, besides the baseline."""
    from ghost_ops.backends import native

    return [isa for isa in native.isas() if isa != "baseline"]


def fuzz(session: Session, folder: Path, compiler: str, seconds: int) -> None:
    inputs = [path for path in (folder / "corpus", CORPUS, CALLS / "seeds") if path.exists()]
    (folder / "corpus").mkdir(exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-seed={int(time.time()) if seconds > 60 else 1}"]
    if compiler == "clang":
        options += ["-max_len=4096", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1", "-verbosity=1"]
    limited = CHECKED | {"ASAN_OPTIONS": f"{ASAN}:max_allocation_size_mb=64"}
    folders = dict.fromkeys([folder / "corpus", *inputs])
    session.run(f"the decoder's fuzzer, {seconds} s", folder / "fuzz", *options, *folders, lines=8,
                keeps="stat::" if compiler == "clang" else "", **limited)  # fmt: skip


def short(session: Session, seconds: int, each: int) -> None:
    compiler = next(name for name in ("gcc", "clang") if name in compilers())
    session.run("calls written", sys.executable, "-m", "tests.sanitize.record", CALLS, each)
    folder = session.build("address", compiler, runs_here()[:1], ["replay", "fuzz"])
    session.run("every operator", folder / "replay", CALLS / "calls.txt", lines=9, **CHECKED)
    session.run("every operator, spoilt", folder / "replay", CALLS / "calls.txt", "hostile=4", lines=9, **CHECKED)
    fuzz(session, folder, compiler, seconds)


def every(session: Session, seconds: int, each: int) -> None:
    compiler = next(name for name in ("gcc", "clang") if name in compilers())
    fuzzer = next(name for name in ("clang", "gcc") if name in compilers())
    here, calls = runs_here(), CALLS / "calls.txt"
    session.run("calls written", sys.executable, "-m", "tests.sanitize.record", CALLS, each)
    sets = [*here, *(EMULATED if "avx2" in here else [])]
    others = ", ".join(isa for isa in FLAGS if isa not in ("baseline", *sets))
    session.say(f"instruction sets: {', '.join(['baseline', *sets])}; not run: {others or 'none'}")
    folder = session.build("address", compiler, sets, ["replay", "python"])
    session.run("every operator", folder / "replay", calls, lines=9, **CHECKED)
    session.run("every operator, spoilt", folder / "replay", calls, "hostile=100", lines=9, **CHECKED)
    threads = session.build("thread", fuzzer, here[:1], ["replay"])  # what threads share is not the kernels'
    session.run("threads of a call", threads / "replay", calls, "threads=3", lines=9, **CHECKED)
    session.run("calls at once", threads / "replay", calls, "callers=4", "threads=2", lines=9, **CHECKED)
    under_python(session, folder, compiler, here, seconds)
    apart = session.build("none", compiler, here, ["python"])
    preloaded = guard_pages.preloaded(apart)
    for isa in ["baseline", *here]:
        for case in guard_pages.CASES:
            session.run(f"guard pages on {isa}: {case}", sys.executable, "-m", "tests.ops.guard_pages", case, lines=0,
                        GHOST_OPS_ISA=isa, **preloaded, **with_package(apart))  # fmt: skip
    fuzz(session, session.build("address", fuzzer, here[:1], ["fuzz"]), fuzzer, seconds)


def with_package(folder: Path) -> dict[str, str]:
    """The environment in which Python imports the package of this build, whatever folder it is started in."""
    return {"PYTHONPATH": f"{folder / 'package'}:{ROOT}", "PYTHONSAFEPATH": "1"}


def under_python(session: Session, folder: Path, compiler: str, isas: list[str], seconds: int) -> None:
    """The bare kernels and the operators by their tests, and drawn nets, with the sanitizer in front of torch."""
    name = {"gcc": "libasan.so", "clang": "libclang_rt.asan-x86_64.so"}[compiler]
    found = subprocess.run([compilers()[compiler], f"-print-file-name={name}"], capture_output=True, text=True)
    environment = UNDER_PYTHON | {"LD_PRELOAD": found.stdout.strip()} | with_package(folder)
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    pytest += ["--import-mode=append"]
    session.run("the bare kernels' tests", *pytest, "tests/kernels", **environment)
    for isa in ["baseline", *isas]:
        session.run(f"the operators' tests on {isa}", *pytest, "tests/ops", "tests/program",
                    "-k", "not compile and not export", GHOST_OPS_ISA=isa, **environment)  # fmt: skip
    fuzzer = [sys.executable, "-m", "tests.fuzz.run", "--seconds", seconds]
    session.run(f"drawn nets and calls, {seconds} s", *fuzzer, lines=2, **environment)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--every", "is_long", is_flag=True, help="The long form.")
@click.option("--seconds", default=20, help="Of each fuzzer.")
@click.option("--each", default=3, help="Calls that are drawn of each operator.")
@click.option("--log", type=click.Path(path_type=Path))
def main(is_long: bool, seconds: int, each: int, log: Path | None) -> None:
    session = Session(log)
    commit = subprocess.run(["git", "log", "-1", "--format=%h"], cwd=ROOT, capture_output=True, text=True)
    session.say(f"commit {commit.stdout.strip()}")
    (every if is_long else short)(session, seconds, each)
    session.say(f"failed: {', '.join(session.failed)}" if session.failed else "nothing was found")
    raise SystemExit(bool(session.failed))


if __name__ == "__main__":
    main()
