"""How C++ finds the CUDA driver, and that its own declarations are the driver's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton

from ghost_ops.backends import native
from ghost_ops.backends.triton import launch_native
from tests.triton.stub_driver import needs_native
from tests.triton.stub_driver.kernel import copy_with

pytestmark = [needs_native, pytest.mark.usefixtures("driver")]
ROOT = Path(__file__).resolve().parents[2]


def library(folder, source, name="libother.so"):
    path = folder / name
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-x", "c", "-", "-o", path, f"-Wl,-soname,{name}"]
    subprocess.run(command, input=source, text=True, check=True)
    return str(path)


def test_a_wrong_library(driver, tmp_path):
    path = str(driver.path)
    assert "nowhere.so.1" in launch_native.open_driver("nowhere.so.1", path)
    assert launch_native.open_driver("nowhere.so.1", path).startswith("the CUDA driver does not load: ")
    empty = library(tmp_path, "int nothing;")
    assert launch_native.open_driver(empty, path) == f"{empty} has no cuLaunchKernelEx"
    assert launch_native.open_driver(path, "libtorch_none.so") == "libtorch_none.so is not loaded in this process"
    ctypes.CDLL(empty)
    assert launch_native.open_driver(path, empty) == f"{empty} has no aoti_torch_get_current_cuda_stream"
    assert launch_native.open_driver(path, path) is None


OLD_DRIVER = """
int cuLaunchKernelEx(const void *c, void *f, void **p, void **e) { return c && f && p && !e ? 0 : 1; }
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuCtxPushCurrent_v2(void) { return 1; }
int cuCtxPopCurrent_v2(void) { return 1; }
int cuDeviceGet(void) { return 1; }
int cuDevicePrimaryCtxRetain(void) { return 1; }
int cuGetErrorName(void) { return 1; }
int cuGetErrorString(void) { return 1; }
"""


def test_a_driver_that_does_not_tell_parameters(driver, kernel, count, tmp_path):
    """Before CUDA 12.4: what Triton's launcher passes is trusted."""
    assert launch_native.open_driver(library(tmp_path, OLD_DRIVER), str(driver.path)) is None
    copy, x = copy_with(kernel), torch.randn(1, 2, 3, 3)
    for _ in range(3):
        copy(x)
    assert kernel.full == 1 and count() == 1 and launch_native.reason() is None


SCRIPT = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
from ghost_ops.backends.triton import launch_native
print(launch_native.reason())
"""


def reason_of_a_process(torch_library, **variables):
    command = [sys.executable, "-c", SCRIPT, torch_library]
    environment = {"PYTHONPATH": str(ROOT), **os.environ, **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device's driver would be found")
def test_the_libraries_are_found_by_their_names(driver, tmp_path):
    stands_for_torch = tmp_path / "libtorch_cuda.so"
    source = driver.path.parent / "torch.c"
    source.write_text("int aoti_torch_get_current_cuda_stream(int d, void **s) { return *s = 0, d; }")
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{stands_for_torch.name}", source, "-o", stands_for_torch]
    subprocess.run([os.environ.get("CC", "cc"), *flags], check=True)
    assert reason_of_a_process(stands_for_torch, LD_LIBRARY_PATH=str(driver.path.parent)) == "None"
    assert reason_of_a_process(driver.path, GHOST_OPS_LAUNCHES="python") == "GHOST_OPS_LAUNCHES=python is set"


CHECK = """
#include "cuda.h"
#include <cstddef>
#include "launch/driver.h"
namespace ours = ghost::launch;
#define SAME(a, b, field, other) \\
  static_assert(offsetof(a, field) == offsetof(b, other) && sizeof(a::field) == sizeof(b::other), #field)
static_assert(sizeof(ours::Config) == sizeof(CUlaunchConfig));
SAME(ours::Config, CUlaunchConfig, grid_x, gridDimX);
SAME(ours::Config, CUlaunchConfig, grid_y, gridDimY);
SAME(ours::Config, CUlaunchConfig, grid_z, gridDimZ);
SAME(ours::Config, CUlaunchConfig, threads_x, blockDimX);
SAME(ours::Config, CUlaunchConfig, threads_y, blockDimY);
SAME(ours::Config, CUlaunchConfig, threads_z, blockDimZ);
SAME(ours::Config, CUlaunchConfig, shared_bytes, sharedMemBytes);
SAME(ours::Config, CUlaunchConfig, stream, hStream);
SAME(ours::Config, CUlaunchConfig, attributes, attrs);
SAME(ours::Config, CUlaunchConfig, attribute_count, numAttrs);
static_assert(sizeof(ours::Attribute) == sizeof(CUlaunchAttribute));
SAME(ours::Attribute, CUlaunchAttribute, id, id);
SAME(ours::Attribute, CUlaunchAttribute, value, value);
static_assert(ours::Attribute::kProgrammaticStreamSerialization ==
              CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
static_assert(ours::kInvalidValue == CUDA_ERROR_INVALID_VALUE);
"""


def test_our_types_are_the_drivers(tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "layout.cpp"
    source.write_text(CHECK)
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'csrc'}", f"-isystem{include}", source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_no_driver():
    found = subprocess.run(["ldd", str(native.LIBRARY)], capture_output=True, text=True).stdout
    assert "libcuda" not in found
