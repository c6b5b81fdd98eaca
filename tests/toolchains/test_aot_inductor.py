"""A frozen net in a program without Python: AOTInductor's package, our library, and libtorch."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils import cpp_extension

import ghost_ops
from ghost_ops.backends import native

from ..helpers import make_map
from .nets import image, made

EXAMPLE = Path(ghost_ops.__file__).resolve().parents[1] / "examples" / "aot_inductor"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler"),
    pytest.mark.skipif(not native.available(), reason=f"the kernels are not there: {native.reason()}"),
]


def call(*command, cwd=None):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """examples/aot_inductor/main.cpp, built by its CMakeLists.txt, or where there is no cmake by hand."""
    build = tmp_path_factory.mktemp("build")
    if shutil.which("cmake"):
        call("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}")
        call("cmake", "--build", build)
    else:
        folders = cpp_extension.library_paths()
        flags = ["-std=c++20", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        flags += [f"-I{path}" for path in cpp_extension.include_paths()]
        flags += [flag for path in folders for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
        libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
        call("g++", *flags, EXAMPLE / "main.cpp", "-o", build / "main", *libraries)
    return build / "main"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    net, plain = made("parted", "frozen")
    dims = {0: torch.export.Dim("n", max=64), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    path = str(tmp_path_factory.mktemp("package") / "net.pt2")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net, (image(),), dynamic_shapes=(dims,))
        torch._inductor.aoti_compile_and_package(exported, package_path=path)
    return net, plain, path


def run(program, library, package, x, folder):
    x.numpy().tofile(folder / "x")
    given = [program, library, package, *x.shape, folder / "x", folder / "y"]
    done = subprocess.run(
        list(map(str, given)), capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.from_numpy(np.fromfile(folder / "y", dtype=np.float32))


def test_the_same_numbers_as_in_python(program, package, tmp_path):
    net, _, path = package
    for shape in ((2, 3, 33, 31), (5, 3, 64, 40)):
        x = make_map(shape)
        with torch.no_grad():
            wanted = net(x)
        assert torch.equal(run(program, native.LIBRARY, path, x, tmp_path).view(wanted.shape), wanted)


def test_it_says_what_is_missing(program, package, tmp_path):
    image().numpy().tofile(tmp_path / "x")
    given = [*image().shape, tmp_path / "x", tmp_path / "y"]
    command = [program, "missing.so", package[2], *given]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cannot load the kernels: missing.so" in done.stderr
