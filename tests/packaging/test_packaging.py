"""What is built and shipped: the header over torch's C interface, the objects, the wheel and the sdist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.so", "lib*", "bdist*", "temp*")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The standard output of a command that must succeed, in an environment without this run's own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GHOST_OPS_")}
    done = subprocess.run(command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} returned {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if sys.platform != "linux" or not found:
        pytest.skip("the kernels are built on Linux with a C++ compiler, and one of them is missing")
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the repository with the objects that its last build left, so that building there takes seconds."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, copy)
    for name in ("csrc", "ghost_ops", "build"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, copy / name, ignore=NOT_COPIED)
    return copy


def build_wheel(checkout: Path, to: Path, **environment: str) -> Path:
    run(sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", to, cwd=checkout, **environment)
    (wheel,) = to.glob("*.whl")
    return wheel


def unpack(wheel: Path) -> Path:
    """The folder that PYTHONPATH has to name for what the wheel holds to be imported."""
    folder = wheel.parent / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(compiler, checkout, tmp_path_factory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"), GHOST_OPS_NATIVE="1")


@pytest.fixture(scope="module")
def pure_wheel(checkout, tmp_path_factory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("pure"), GHOST_OPS_NATIVE="0")


NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")  # where setup.py looks
OUR_HEADERS = ["abi.h", "abi_lists.h", "abi_threads.h", "cuda/abi_cuda.h"]


def test_our_header_agrees_with_torchs(compiler, tmp_path):
    official = Path(torch.__file__).parent / "include"
    headers = ["torch/csrc/inductor/aoti_torch/c/shim.h", "torch/csrc/stable/c/shim.h", *OUR_HEADERS[1:]]
    for order in (headers, headers[::-1]):
        source = tmp_path / "both.cpp"
        source.write_text("".join(f"#include <{header}>\n" for header in order))
        flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-DUSE_CUDA", f"-I{ROOT / 'csrc'}"]
        run(compiler, *flags, f"-isystem{official}", source, cwd=tmp_path)


def test_torch_2_10_has_every_function(compiler, tmp_path):
    text = "".join((ROOT / "csrc" / name).read_text() for name in OUR_HEADERS)
    declared = re.findall(r"^\w+ (\w*torch_\w+)\(", text, re.MULTILINE)
    assert len(declared) > 20
    source = tmp_path / "functions.cpp"
    uses = "".join(f"auto use_{name} = &{name};\n" for name in declared)
    source.write_text(f"#include <torch/csrc/stable/c/shim.h>\n{uses}")
    flags = ["-std=c++17", "-fsyntax-only", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    run(compiler, *flags, f"-isystem{Path(torch.__file__).parent / 'include'}", source, cwd=tmp_path)


def test_a_wrong_prototype_would_be_seen(compiler, tmp_path):
    official = Path(torch.__file__).parent / "include"
    source = tmp_path / "wrong.cpp"
    header = (ROOT / "csrc" / "abi.h").read_text()
    right = "AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim);"
    assert right in header
    wrong = header.replace(right, right.replace("int64_t* dim", "int32_t* dim"))
    source.write_text(f"#include <torch/csrc/stable/c/shim.h>\n{wrong}")
    with pytest.raises(AssertionError, match="aoti_torch_get_dim"):
        run(compiler, "-std=c++17", "-fsyntax-only", f"-isystem{official}", source, cwd=tmp_path)


def test_sdist_holds_what_a_build_needs(checkout, tmp_path):
    run(
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path),
        *("sdist", "--dist-dir", tmp_path / "dist"),
        cwd=checkout,
    )
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {p.relative_to(checkout).as_posix() for p in (checkout / "csrc").rglob("*") if p.is_file()}
    assert (
        sources | {"ghost_ops/activations.inc", "ghost_ops/ops/schemas.inc", "setup.py", "pyproject.toml", "LICENSE"}
        <= names
    )
    assert not any(name.endswith((".so", ".o")) for name in names)


def test_wheel_is_for_every_python(wheel):
    assert wheel.name.split("-", 2)[2].startswith("py3-none-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    files = "_cpu.so", "py.typed", "activations.inc", "ops/schemas.inc"
    assert {f"ghost_ops/{file}" for file in files} <= set(names)
    assert all(name.startswith(("ghost_ops/", "ghost_ops-")) for name in names)


def test_wheel_benchmarks_pytorch_only(wheel, tmp_path):
    script = "from ghost_ops import bench; print(bench.extend())"
    assert run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(unpack(wheel))).strip() == "False"


def test_library_exports_nothing_but_its_questions(wheel):
    library = unpack(wheel) / "ghost_ops" / "_cpu.so"
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library, cwd=ROOT).splitlines()}
    questions = {"isa", "isas", "program_scratch", "advise_huge_pages", "empty_cache", "kept_bytes", "poison_maps"}
    questions |= {"use_reference", "use_isa", "keep_most"}
    launches = {f"ghost_ops_launch_{name}" for name in ("open", "count", "remove")}
    assert exported == {f"ghost_ops_cpu_{name}" for name in questions} | launches


def test_cuda_library_brings_its_runtime_and_shows_nothing_else(wheel):
    """It is in the wheel where nvcc is found, and asks the loader for torch's libraries, not for CUDA's."""
    library = unpack(wheel) / "ghost_ops" / "_cuda.so"
    if NVCC is None:
        assert not library.exists()
        pytest.skip("nvcc was not found: NO CUDA LIBRARY WAS BUILT")
    needed = re.findall(r"NEEDED.*\[(.+)\]", run("readelf", "-d", library, cwd=ROOT))
    assert {"libtorch_cpu.so", "libtorch_cuda.so"} <= set(needed)
    assert not any("cudart" in name or "libcuda.so" in name for name in needed), needed
    exported = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library, cwd=ROOT).splitlines()}
    assert exported == {f"ghost_ops_cuda_{name}" for name in ("numbers", "plan", "refuses")}
    assert library.stat().st_size <= 2.5e6, "larger than it was made to be"


def test_the_build_says_what_it_makes_for_cuda(checkout, compiler, tmp_path):
    """Without running a compiler: what setup.py decides, and what it refuses."""
    script = """if True:
        import sys
        sys.argv = ["setup.py", "--version"]
        exec(open("setup.py").read())
        print(why_not_cuda() or " ".join(architectures()))
    """
    decide = lambda **wish: run(sys.executable, "-c", script, cwd=checkout, **wish).splitlines()[-1]
    assert decide(GHOST_OPS_CUDA="0") == "GHOST_OPS_CUDA=0"
    assert decide(CUDA_HOME="/nowhere") == "there is no nvcc in CUDA_HOME=/nowhere"
    with pytest.raises(
        AssertionError, match="GHOST_OPS_CUDA=1, and the CUDA kernels cannot be built: there is no nvcc"
    ):
        decide(CUDA_HOME="/nowhere", GHOST_OPS_CUDA="1")
    with pytest.raises(AssertionError, match="GHOST_OPS_CUDA=1, and all compiled kernels are left out"):
        decide(GHOST_OPS_NATIVE="0", GHOST_OPS_CUDA="1")
    old = tmp_path / "bin" / "nvcc"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    old.chmod(0o755)
    assert decide(CUDA_HOME=str(tmp_path)) == f"{old} is of CUDA 11.8, and the kernels need 12.1 or newer"
    if NVCC is None:
        pytest.skip("nvcc was not found")
    assert decide(TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX") == "sm_80 sm_90 compute_90"
    assert decide(TORCH_CUDA_ARCH_LIST="9.0a") == "sm_90a"
    assert "expected numbers such as" in decide(TORCH_CUDA_ARCH_LIST="Hopper")
    assert decide(TORCH_CUDA_ARCH_LIST="7.5 8.0 8.0+PTX") == "sm_80 compute_80"
    assert "need 8.0 or newer, and 7.0 7.5 has none" in decide(TORCH_CUDA_ARCH_LIST="7.0;7.5")
    assert decide(TORCH_CUDA_ARCH_LIST="8.0;99.0").endswith("does not know 99.0")
    names = decide().split()
    assert names[-1].startswith("compute_") and set(names) >= {"sm_80", "sm_90"}


def test_objects_of_an_instruction_set_hold_no_shared_code(wheel, checkout):
    """The linker keeps one copy of a weak symbol, and might keep AVX-512's for every machine."""
    sets: dict[str, set[str]] = {}
    for source in (checkout / "csrc/cpu/kernels").glob("*.cpp"):
        for compiled in checkout.glob(f"build/native-*/cpu/kernels/{source.stem}.*.o"):
            symbols = [line.split()[-2:] for line in run("nm", "--defined-only", compiled, cwd=checkout).splitlines()]
            weak = [name for kind, name in symbols if kind in "VWu"]
            assert not weak, f"{compiled.name} defines {weak}: make them static, or put them in an unnamed namespace"
            sets.setdefault(compiled.suffixes[0], set()).add(source.stem)
    for isa in (".avx512bf16", ".amx", ".tiles"):
        assert sets.pop(isa, {"gemm_bf16"}) == {"gemm_bf16"}  # their other kernels are another set's
    assert sets and len({frozenset(sources) for sources in sets.values()}) == 1, f"sources of each set: {sets}"


def test_pure_python_runs_and_warns_once(pure_wheel, tmp_path):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    script = """
        import warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import torch, ghost_ops
            from ghost_ops.backends import native
            x, w, cheap = torch.randn(1, 4, 5, 5), torch.randn(3, 4, 1, 1), torch.randn(3, 1, 3, 3)
            out = ghost_ops.functional.ghost_module(x, w, None, cheap, None)
        ours = [str(w.message) for w in caught if "ghost_ops" in str(w.message)]
        assert ghost_ops.__version__ == "VERSION"
        assert out.shape == (1, 6, 5, 5) and not native.available() and native.isas() == ()
        print(len(ours), native.reason())
    """
    script = script.replace("VERSION", pure_wheel.name.split("-")[1])
    site, script = str(unpack(pure_wheel)), "\n".join(line[8:] for line in script.splitlines())
    assert not list(Path(site).rglob("*.so"))
    warned = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=site)
    assert warned.startswith("1 _cpu.so is missing")
    silent = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=site, GHOST_OPS_BACKEND="reference")
    assert silent.startswith("0 GHOST_OPS_BACKEND=reference")


def test_an_unknown_platform_gets_pure_python(checkout, tmp_path):
    """Neither the build nor the package asks such a system for what Linux has."""
    unknown = """if True:
        import os, pathlib, platform, sys, sysconfig
        sysconfig.get_config_vars()  # of the machine that it is
        sys.platform, platform.system, platform.machine = "haiku", lambda: "Haiku", lambda: "mips"
"""
    build = f"{unknown}        sys.argv[1:] = ['-q', 'bdist_wheel', '--dist-dir', {str(tmp_path)!r}]\n"
    run(sys.executable, "-c", build + "        exec(open('setup.py').read())", cwd=checkout)
    (wheel,) = tmp_path.glob("*-py3-none-any.whl")
    use = """
        import torch, warnings  # which asks for the platform by itself
        warnings.simplefilter("error")
        del os.sched_getaffinity
        class Missing(type(pathlib.Path())):
            def __new__(cls, *parts):
                path = super().__new__(cls, *parts)
                return path if not str(path).startswith(("/proc", "/sys")) else super().__new__(cls, "/nowhere")
        import ghost_ops.bench.machine
        ghost_ops.bench.machine.Path = Missing
        assert ghost_ops.bench.machine.describe()["cores"] >= 1
        net, x = ghost_ops.models.ghostnet_050(num_classes=3).eval(), torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            plain = net(x)
            torch.testing.assert_close(ghost_ops.fuse(net)(x), plain)
        print(ghost_ops.backends.native.reason())
    """
    said = run(sys.executable, "-c", unknown + use, cwd=tmp_path, PYTHONPATH=str(unpack(wheel)))
    assert said.strip() == "its kernels are built on Linux only, this is haiku"


def test_flags_of_the_linker_reach_both_libraries(checkout, compiler):
    script = """if True:
        import sys
        sys.argv = ["setup.py", "--version"]
        exec(open("setup.py").read())
        print(Ninja(Path("nowhere")).text.getvalue())
    """
    said = run(sys.executable, "-c", script, cwd=checkout, LDFLAGS="-static-libstdc++ -Wl,-z,now")
    assert "\nldflags = -static-libstdc++ -Wl,-z,now\n" in said
    assert re.search(r"command = \$cxx -shared \$ldflags ", said)
    if NVCC is None:
        pytest.skip("nvcc was not found")
    assert r"ldflags_cuda = -Xcompiler=-static-libstdc++ '-Xcompiler=-Wl\,-z\,now'" in said
    assert re.search(r"command = \$nvcc -shared .*\$ldflags_cuda ", said)


def test_a_second_copy_does_not_end_the_process(wheel, tmp_path):
    site = unpack(wheel)
    shutil.copytree(site / "ghost_ops", tmp_path / "another")
    script = f"""if True:
        import importlib, pathlib, sys, types
        import ghost_ops
        from ghost_ops.backends import native
        assert native.available() and native.isa() == native.isas()[0], (native.reason(), native.isa())

        for name in ("another", "another.backends"):  # without what their own __init__ imports
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(pathlib.Path({str(tmp_path)!r}, *name.split(".")))]
        another = importlib.import_module("another.backends.native")
        assert not another.available() and another.LIBRARY != native.LIBRARY
        print(another.reason())

        importlib.reload(native)
        assert native.available() and native.reason() is None
    """
    out = run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(site))
    assert out.strip() == "another copy of ghost_ops has registered its operators in this process"


def test_least_instruction_set_can_be_asked_for(wheel, tmp_path):
    script = "import ghost_ops.backends.native as n; print(n.isa(), *n.isas())"
    isa, *isas = run(
        sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(unpack(wheel)), GHOST_OPS_ISA="baseline"
    ).split()
    assert isa == "baseline" == isas[-1]


def test_a_wish_for_kernels_without_a_compiler_is_an_error(checkout):
    missing = {"CXX": "/no/such/compiler"}
    with pytest.raises(AssertionError, match="GHOST_OPS_NATIVE=1, and the kernels cannot be built"):
        run(sys.executable, "setup.py", "build_ext", cwd=checkout, GHOST_OPS_NATIVE="1", **missing)
    run(sys.executable, "setup.py", "build_ext", cwd=checkout, **missing)
