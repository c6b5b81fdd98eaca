"""Builds the library's sources with a sanitizer in every part: for the programs of this folder, and for Python."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import sysconfig
from itertools import chain
from pathlib import Path

from ninja import ninja_syntax

ROOT = Path(__file__).parents[2]
COMMON = "-O1 -std=c++17 -fPIC -g1 -fno-omit-frame-pointer -fno-math-errno -ffp-contract=fast -pthread -Wall -Wextra"
INCLUDES = "-Icsrc -Ighost_ops -Ighost_ops/ops -Itests/sanitize"
KERNEL = "-fno-exceptions -fno-rtti -fno-threadsafe-statics"
SANITIZERS = {
    "address": "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all",
    "thread": "-fsanitize=thread",
    "none": "",
}
AVX512 = "-march=x86-64-v4 -mprefer-vector-width=512"
LEVELS = {"baseline": "-march=x86-64-v2", "avx2": "-march=x86-64-v3", "avx512": AVX512}
PAIRS = {"avx512bf16": f"{AVX512} -mavx512bf16",  # take every kernel of AVX-512 but the products of bfloat16
         "amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16"}  # fmt: skip
WIDE = f"{LEVELS['avx2']} -Wno-psabi -DGHOST_SIXTEEN_LANES"  # what AVX-512 runs, compiled for AVX2
EMULATED = {"wide": WIDE, "tiles": f"{WIDE} -DGHOST_EMULATED_TILES"}
FLAGS = LEVELS | PAIRS | EMULATED


def compilers() -> dict[str, str]:
    """The machine's clang++ and g++, as far as it has them."""
    names = {"clang": ["clang++", *(f"clang++-{n}" for n in range(23, 13, -1))],
             "gcc": ["g++", *(f"g++-{n}" for n in range(16, 10, -1))]}  # fmt: skip
    found = {kind: next(filter(shutil.which, candidates), None) for kind, candidates in names.items()}
    return {kind: name for kind, name in found.items() if name}


class Build:
    """A build.ninja in the making, for one sanitizer and compiler."""

    def __init__(self, sanitizer: str, compiler: str) -> None:
        self.compiler, self.folder = compiler, Path("build/sanitize") / f"{sanitizer}-{compiler}"
        self.text = io.StringIO()
        self.writer = ninja_syntax.Writer(self.text, width=10_000)
        cxx, checked = compilers()[compiler], SANITIZERS[sanitizer]
        compiles = f"{cxx} {COMMON} {checked} {INCLUDES} $flags -MMD -MF $out.d -c $in -o $out"
        self.writer.variable("builddir", str(self.folder))
        self.writer.rule("compile", compiles, description="compile $out", depfile="$out.d", deps="gcc")
        self.writer.rule("link", f"{cxx} $in {checked} -pthread $flags -o $out", description="link $out")

    def compile(self, source: Path | str, flags: str, variant: str = "") -> str:
        out = self.folder / f"{Path(source).with_suffix('')}{variant}.o"
        self.writer.build(str(out), "compile", str(source), variables={"flags": flags})
        return str(out)

    def link(self, name: str, objects: list[str], flags: str = "") -> str:
        self.writer.build(str(self.folder / name), "link", objects, variables={"flags": flags})
        return str(self.folder / name)

    def run(self) -> Path:
        (ROOT / self.folder).mkdir(parents=True, exist_ok=True)
        (ROOT / self.folder / "build.ninja").write_text(self.text.getvalue())
        command = [sys.executable, "-m", "ninja", "--quiet", "-f", self.folder / "build.ninja", "-j2"]
        subprocess.run(command, cwd=ROOT, check=True)
        return ROOT / self.folder


def sources(pattern: str) -> list[Path]:
    return [path.relative_to(ROOT) for path in sorted(ROOT.glob(pattern))]


def build(sanitizer: str, compiler: str, isas: list[str], programs: list[str]) -> Path:
    """Makes ``programs``, of replay, fuzz and python, with these instruction sets. Returns the folder they are in."""
    ninja = Build(sanitizer, compiler)
    traces = {"clang": "-fsanitize=fuzzer-no-link", "gcc": "-fsanitize-coverage=trace-pc"}[compiler]
    kernels = {
        isa: [
            ninja.compile(source, f"{KERNEL} {FLAGS[isa]} -DGHOST_ISA={isa}", f".{isa}")
            for source in sources("csrc/cpu/kernels/*.cpp")
            if source.stem == "gemm_bf16" or not (isa in PAIRS or isa == "tiles")
        ]
        for isa in dict.fromkeys(["baseline", *isas])
    }
    has = {isa: f"-DGHOST_HAS_{isa.upper()}" for isa in kernels if isa not in ("baseline", "tiles")}
    host = f"{FLAGS['baseline']} -DGHOST_APART"
    decoder = sources("csrc/cpu/program/**/*.cpp")  # only its places tell the fuzzer that an input is new
    operators = [ninja.compile(source, f"{host} {traces if 'fuzz' in programs else ''}") for source in decoder]
    operators += [
        ninja.compile(source, host)
        for source in sources("csrc/*.cpp") + sources("csrc/cpu/*.cpp")
        if source.stem != "isa"
    ]
    isa = ninja.compile("csrc/cpu/isa.cpp", f"{host} {' '.join(has.values())}", ".every")
    own = lambda *names: [ninja.compile(f"tests/sanitize/{name}.cpp", host) for name in names]
    whole = [*operators, isa, *chain(*kernels.values())]
    if {"replay", "fuzz"} & set(programs):
        whole += own("torch")
    if "fuzz" in programs and compiler == "clang":
        ninja.link("fuzz", whole + own("fuzz_program"), "-fsanitize=fuzzer")
    elif "fuzz" in programs:
        ninja.link("fuzz", whole + own("fuzz_program", "fuzz_driver"))
    if "replay" in programs:
        ninja.link("replay", whole + own("replay"))
    if "python" in programs:
        _describe_python(ninja, operators, kernels, host, has)
    return ninja.run()


def _describe_python(ninja: Build, operators: list[str], kernels: dict[str, list[str]], host: str, has: dict) -> None:
    """``_cpu.so`` and ``_kernels``, as setup.py makes them, in a copy of the package."""
    import pybind11

    shared, package = "-shared -Wl,--no-as-needed -Wl,--version-script=csrc/exports.map", "package/ghost_ops"
    launch = [ninja.compile(source, host) for source in sources("csrc/launch/*.cpp")]
    real = [isa for isa in kernels if isa not in EMULATED]
    isa = ninja.compile("csrc/cpu/isa.cpp", f"{host} {' '.join(has[i] for i in real if i in has)}", ".library")
    stub = ninja.link("libtorch_cpu.so", [], "-shared -nostdlib -Wl,-soname,libtorch_cpu.so -x c /dev/null")
    library = [*operators, *launch, isa, *chain(*(kernels[i] for i in real)), stub]
    ninja.link(f"{package}/_cpu.so", library, shared)
    headers = " ".join(f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"]))
    dev = ninja.compile("csrc/dev/kernels.cpp", f"{host} {' '.join(has.values())} {headers}")
    every = f"{ninja.folder}/csrc/cpu/isa.every.o"
    ninja.link(
        f"{package}/_kernels{sysconfig.get_config_var('EXT_SUFFIX')}", [dev, every, *chain(*kernels.values())], shared
    )
    leaves_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "ghost_ops", ROOT / ninja.folder / package, ignore=leaves_out, dirs_exist_ok=True)
