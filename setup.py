"""Builds the compiled kernels with ninja. Everything else about the package is in pyproject.toml.

The kernels need Linux and a C++17 compiler; without them the package installs as pure Python, and its reference
backend runs. torch is not needed to build: csrc/abi.h declares what the library calls.

Environment variables:
  GHOST_OPS_NATIVE  0 leaves the kernels out; 1 makes it an error that they cannot be built
  GHOST_OPS_CUDA    0 leaves the CUDA kernels out; 1 makes it an error that they cannot be built. They are built
                    where nvcc is found, for TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX") or all of ours that nvcc knows
  GHOST_OPS_DEV     1 also builds ghost_ops/_kernels, which hands the bare kernels to tests and microbenchmarks
  CXX, CC, CXXFLAGS, LDFLAGS, CUDA_HOME, MAX_JOBS  as usual
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE, CSRC = Path("ghost_ops"), Path("csrc")

COMMON = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -ffp-contract=fast".split()
COMMON += "-Wall -Wextra -Wno-unknown-pragmas -Icsrc -Ighost_ops -Ighost_ops/ops".split()
KERNEL = "-fno-exceptions -fno-rtti -fno-threadsafe-statics".split()

# The levels x86-64-v2, v3 and v4, spelled out for compilers older than these names.
X86_64_V2 = "-mcx16 -msahf -mpopcnt -msse3 -mssse3 -msse4.1 -msse4.2".split()
X86_64_V3 = [*X86_64_V2, *"-mavx -mavx2 -mbmi -mbmi2 -mf16c -mfma".split()]
X86_64_V4 = [*X86_64_V3, *"-mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512".split()]


CUDA_ARCHITECTURES = "8.0 9.0 10.0 12.0"  # code for 8.0 runs on 8.6 and 8.9 too, and so on
LEAST_CUDA = (12, 1)  # since then a kernel may have more than 4096 bytes of parameters
CUDA_DTYPES = "float32", "float16", "bfloat16"  # csrc/cuda/kernels.cu is compiled for each
CUDA = "-O3 -std=c++17 -Icsrc -Ighost_ops -Xcompiler -fPIC,-fvisibility=hidden,-Wall".split()


class Unable(Exception):
    """Says why the kernels cannot be built here."""


@cache
def compiler() -> list[str]:
    """The C++ compiler's command: CXX, else CC's twin, else what the machine has."""
    twin = re.sub(r"\b(gcc|clang)\b", lambda m: {"gcc": "g++"}.get(m[0], "clang++"), os.environ.get("CC", ""))
    wished = os.environ.get("CXX") or (twin if "++" in twin else None)
    for name in [wished] if wished else ["c++", "g++", "clang++"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return [*command, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    raise Unable(f"there is no C++ compiler {wished or ''}".strip())


@cache
def instruction_sets() -> dict[str, list[str]]:
    """Every set that the kernels are compiled for, with its flags; "baseline" is what all machines run."""
    probe = subprocess.run([*compiler(), "-dM", "-E", "-x", "c++", "/dev/null"], capture_output=True, text=True)
    if probe.returncode:
        raise Unable(f"the C++ compiler {shlex.join(compiler())} does not run: {probe.stderr.strip()}")
    if "__x86_64__" not in probe.stdout:
        return {"baseline": []}
    return {"baseline": X86_64_V2, "avx2": X86_64_V3, "avx512": X86_64_V4}


@cache
def sets_of_pairs() -> dict[str, list[str]]:
    """Sets that take every kernel of another one but the products of bfloat16, where the compiler knows them."""
    if "avx512" not in instruction_sets():
        return {}
    avx512bf16 = [*X86_64_V4, "-mavx512bf16"]
    flags = {"avx512bf16": avx512bf16, "amx": [*avx512bf16, "-mamx-tile", "-mamx-bf16"]}

    def known(isa: str, feature: str) -> bool:
        source = f'int main() {{ return __builtin_cpu_supports("{feature}"); }}'
        probe = [*compiler(), *flags[isa], "-fsyntax-only", "-x", "c++", "-"]
        return not subprocess.run(probe, input=source, capture_output=True, text=True).returncode

    features = ("avx512bf16", "avx512bf16"), ("amx", "amx-bf16")
    return {isa: flags[isa] for isa, feature in features if known(isa, feature)}


def why_not_native() -> str | None:
    """Why this build leaves the kernels out; None where it builds them."""
    wish = os.environ.get("GHOST_OPS_NATIVE")
    if wish == "0":
        return "GHOST_OPS_NATIVE=0"
    try:
        if sys.platform != "linux":
            raise Unable(f"they are built on Linux only, this is {sys.platform}")
        instruction_sets()
    except Unable as error:
        if wish == "1":
            sys.exit(f"ghost_ops: GHOST_OPS_NATIVE=1, and the kernels cannot be built: {error}")
        return str(error)
    return None


@cache
def nvcc() -> list[str]:
    """The CUDA compiler's command: CUDA_HOME's, else what the machine has; CXX compiles the host's side."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which(str(Path(home) / "bin" / "nvcc")) if home else shutil.which("nvcc")
    if found is None and not home:
        found = shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise Unable("there is no nvcc" + (f" in CUDA_HOME={home}" if home else ""))
    host = [f"-ccbin={compiler()[0]}"] if os.environ.get("CXX") else []
    probe = subprocess.run([found, *host, "-E", "-x", "cu", "/dev/null"], capture_output=True, text=True)
    if probe.returncode:
        said = (probe.stderr.strip() or "it does not run").splitlines()
        raise Unable(f"{found} does not work with the C++ compiler: {said[-1]}")
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release and tuple(map(int, release.groups())) < LEAST_CUDA:
        needed = ".".join(map(str, LEAST_CUDA))
        raise Unable(f"{found} is of CUDA {'.'.join(release.groups())}, and the kernels need {needed} or newer")
    return [found, *host]


@cache
def compression() -> list[str]:
    """As small as nvcc can make the code, a third of what it makes without being asked (CUDA 12.8 and later)."""
    said = subprocess.run([nvcc()[0], "--help"], capture_output=True, text=True).stdout
    return ["--compress-mode=size"] if "--compress-mode" in said else []


@cache
def architectures() -> list[str]:
    """nvcc's names: sm_90 and the like for machine code, compute_120 for PTX, which later devices compile."""
    listed = subprocess.run([nvcc()[0], "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    found = []
    for name in wish or CUDA_ARCHITECTURES.split():
        matched = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if not matched:
            raise Unable(f'TORCH_CUDA_ARCH_LIST: expected numbers such as "8.0;9.0+PTX", got {name!r}')
        number = "".join(matched.group(1, 2, 3))
        if int(matched[1]) < 8:  # the list is often meant for other packages too; on such devices other backends run
            continue
        if f"compute_{number.rstrip('af')}" in listed:
            found += [f"sm_{number}", *([f"compute_{number}"] if matched[4] else [])]
        elif wish:
            raise Unable(f"TORCH_CUDA_ARCH_LIST: {nvcc()[0]} does not know {name}")
    if not found and wish:
        raise Unable(f"TORCH_CUDA_ARCH_LIST: the kernels need 8.0 or newer, and {' '.join(wish)} has none")
    if not found:
        raise Unable(f"{nvcc()[0]} knows none of the architectures {CUDA_ARCHITECTURES}")
    found = list(dict.fromkeys(found))
    return found if wish else [*found, found[-1].replace("sm_", "compute_")]


def why_not_cuda() -> str | None:
    """Why this build leaves the CUDA kernels out; None where it builds them."""
    wish = os.environ.get("GHOST_OPS_CUDA")
    if wish == "0":
        return "GHOST_OPS_CUDA=0"
    try:
        architectures()
    except Unable as error:
        if wish == "1":
            sys.exit(f"ghost_ops: GHOST_OPS_CUDA=1, and the CUDA kernels cannot be built: {error}")
        return str(error)
    return None


class Ninja:
    """A build.ninja in the making. Paths are relative to the repository, where ninja runs."""

    def __init__(self, folder: Path):
        self.folder, self.text = folder, io.StringIO()
        self.writer = ninja_syntax().Writer(self.text, width=sys.maxsize)
        ldflags = shlex.split(os.environ.get("LDFLAGS", ""))
        variables = {
            "cxx": compiler(),
            "nvcc": [] if why_not_cuda() else nvcc(),
            "ldflags": ldflags,
            "ldflags_cuda": ["-Xcompiler=" + word.replace(",", r"\,") for word in ldflags],
        }
        self.writer.variable("builddir", str(folder))
        for name, words in variables.items():
            self.writer.variable(name, _quote(words))
        compiles = {"description": "compile $out", "depfile": "$out.d", "deps": "gcc"}
        self.writer.rule("compile", "$cxx $flags -MMD -MF $out.d -c $in -o $out", **compiles)
        self.writer.rule("nvcc", "$nvcc $flags -MD -MF $out.d -c $in -o $out", **compiles)
        link = "$cxx -shared $ldflags -Wl,--no-as-needed -o $out $in $flags"
        no_as_needed = r"'-Xcompiler=-Wl\,--no-as-needed'"
        link_cuda = f"$nvcc -shared -cudart static $ldflags_cuda {no_as_needed} -o $out $in $flags"
        self.writer.rule("link", link, "link $out")
        self.writer.rule("link_cuda", link_cuda, "link $out")

    def _build(self, output: str, rule: str, inputs: list[Path], flags: list[str]) -> Path:
        path = self.folder / output
        self.writer.build(str(path), rule, list(map(str, inputs)), variables={"flags": _quote(flags)})
        return path

    def compile(self, source: Path, flags: list[str], variant: str = "") -> Path:
        output = f"{source.relative_to(CSRC).with_suffix('')}{variant}.o"
        return self._build(output, "compile", [source], [*COMMON, *flags])

    def link(self, name: str, inputs: list[Path]) -> Path:
        return self._build(name, "link", inputs, [f"-Wl,--version-script={CSRC / 'exports.map'}"])

    def compile_cuda(self, source: Path, variant: str = "", flags: tuple[str, ...] = ()) -> Path:
        output = f"{source.relative_to(CSRC).with_suffix('')}{variant}.o"
        virtual = lambda name: name.replace("sm_", "compute_")
        codes = [f"-gencode=arch={virtual(name)},code={name}" for name in architectures()]
        return self._build(output, "nvcc", [source], [*CUDA, *codes, *compression(), *flags])

    def link_cuda(self, name: str, inputs: list[Path]) -> Path:
        return self._build(name, "link_cuda", inputs, ["-Xlinker", f"--version-script={CSRC / 'exports.map'}"])

    def stub(self, name: str) -> Path:
        """An empty library of that name: linking against it makes ours ask the loader for the real one."""
        return self._build(name, "link", [], ["-nostdlib", f"-Wl,-soname,{name}", "-x", "c", "/dev/null"])

    def run(self) -> None:
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        with open(self.folder / "lock", "w") as lock:  # two builds of one checkout take turns
            fcntl.flock(lock, fcntl.LOCK_EX)
            (self.folder / "build.ninja").write_text(self.text.getvalue())
            if subprocess.run([sys.executable, "-m", "ninja", "-f", self.folder / "build.ninja", *jobs]).returncode:
                sys.exit(
                    "ghost_ops: the kernels do not compile (GHOST_OPS_NATIVE=0 installs without them, GHOST_OPS_CUDA=0 "
                    "without those for CUDA)"
                )


def _quote(words: list) -> str:
    return ninja_syntax().escape(shlex.join(map(str, words)))


def ninja_syntax() -> ModuleType:
    """The writer of build files that comes with PyPI's ninja, which pyproject.toml asks for."""
    try:
        return import_module("ninja.ninja_syntax")
    except ImportError:
        sys.exit("ghost_ops: the Python package ninja is needed to build the kernels: pip install ninja")


def describe_build(ninja: Ninja) -> tuple[Path, ...]:
    """Writes down how every library is made. Returns the libraries, which go beside the package's modules."""
    sets = instruction_sets()
    kernels = [
        ninja.compile(source, [*KERNEL, *flags, f"-DGHOST_ISA={isa}"], variant=f".{isa}")
        for source in sorted(CSRC.glob("cpu/kernels/*.cpp"))
        for isa, flags in sets.items()
    ]
    pairs = CSRC / "cpu/kernels/gemm_bf16.cpp"
    kernels += [
        ninja.compile(pairs, [*KERNEL, *flags, f"-DGHOST_ISA={isa}"], variant=f".{isa}")
        for isa, flags in sets_of_pairs().items()
    ]
    has = [isa for isa in (*sets, *sets_of_pairs()) if isa != "baseline"]
    host = [*sets["baseline"], *(f"-DGHOST_HAS_{isa.upper()}" for isa in has)]
    folders = (".", "cpu", "cpu/program", "cpu/program/steps", "launch")
    sources = [source for folder in folders for source in CSRC.glob(f"{folder}/*.cpp")]
    operators = [ninja.compile(source, host) for source in sorted(sources)]
    torch_cpu = ninja.stub("libtorch_cpu.so")
    libraries = [ninja.link("_cpu.so", [*operators, *kernels, torch_cpu])]
    if why_not_cuda() is None:
        objects = [ninja.compile(source, host) for source in sorted(CSRC.glob("cuda/*.cpp"))]
        objects += [
            ninja.compile_cuda(CSRC / "cuda/kernels.cu", f".{dtype}", (f"-DGHOST_DTYPE={dtype}",))
            for dtype in CUDA_DTYPES
        ]
        objects.append(ninja.compile_cuda(CSRC / "cuda/device_info.cu"))
        libraries.append(ninja.link_cuda("_cuda.so", [*objects, torch_cpu, ninja.stub("libtorch_cuda.so")]))

    dev_sources = sorted(CSRC.glob("dev/*.cpp"))
    if os.environ.get("GHOST_OPS_DEV") == "1" and dev_sources:
        import pybind11

        headers = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]
        dev = [*host, "-DGHOST_HAS_WIDE"] if "avx2" in sets else host
        objects = [ninja.compile(source, [*dev, *headers]) for source in dev_sources]
        isa = [ninja.compile(CSRC / "cpu/isa.cpp", dev, variant=".dev")]
        if "avx2" in sets:  # what AVX-512 runs, sixteen lanes at a time, on machines that lack it
            wide = [*KERNEL, *sets["avx2"], "-Wno-psabi", "-DGHOST_SIXTEEN_LANES"]
            for source in sorted(CSRC.glob("cpu/kernels/*.cpp")):
                kernels.append(ninja.compile(source, [*wide, "-DGHOST_ISA=wide"], variant=".wide"))
            tiles = [*wide, "-DGHOST_ISA=tiles", "-DGHOST_EMULATED_TILES"]  # emulates AMX
            kernels.append(ninja.compile(pairs, tiles, variant=".tiles"))
        libraries.append(ninja.link(f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}", [*objects, *isa, *kernels]))
    return tuple(libraries)


class BuildNative(build_ext):
    """With ninja in place of distutils: incremental, and the same objects for every way to build."""

    built: tuple[Path, ...] = ()

    def run(self):
        if left_out:
            return
        base = self.get_finalized_command("build").build_base  # not build_temp, which an editable install moves
        ninja = Ninja(Path(base) / f"native-{sysconfig.get_platform()}")
        self.built = describe_build(ninja)
        why = why_not_cuda()
        cuda = (
            f"CUDA kernels left out: {why}" if why else f"CUDA kernels for {', '.join(architectures())} by {nvcc()[0]}"
        )
        names = ", ".join((*instruction_sets(), *sets_of_pairs()))
        print(f"ghost_ops: building kernels for {names}; {cuda}", file=sys.stderr)
        ninja.run()
        to = PACKAGE if self.inplace or self.editable_mode else Path(self.build_lib) / PACKAGE
        to.mkdir(parents=True, exist_ok=True)
        (to / "_cuda.so").unlink(missing_ok=True)  # left by a build that had it
        for library in self.built:  # replaced, not overwritten: a process that has loaded the old one keeps it
            os.replace(shutil.copy2(library, to / f"{library.name}.new"), to / library.name)

    def get_outputs(self):
        return [str(Path(self.build_lib) / PACKAGE / library.name) for library in self.built]

    def get_output_mapping(self):
        return {output: str(PACKAGE / Path(output).name) for output in self.get_outputs()}

    def get_source_files(self):
        return []  # MANIFEST.in lists them


class Wheel(bdist_wheel):
    """A wheel for every Python and every torch: the library uses neither Python's ABI nor torch's C++ one."""

    def run(self):
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)  # no modules of yesterday
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


left_out = why_not_native()
if left_out and not {"egg_info", "dist_info", "sdist"} & set(sys.argv):
    if os.environ.get("GHOST_OPS_CUDA") == "1":
        sys.exit(f"ghost_ops: GHOST_OPS_CUDA=1, and all compiled kernels are left out: {left_out}")
    print(f"ghost_ops: the compiled kernels are left out: {left_out}", file=sys.stderr)
setup(
    ext_modules=[] if left_out else [Extension("ghost_ops._cpu", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
