"""Launches in C++: what the driver gets is what Triton's own launcher would give it; what cannot be is told."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from ghost_ops.backends import native
from ghost_ops.backends.triton import launch, launch_cache, launch_native, launch_recording, launch_replay
from tests.triton import calls, stub_driver
from tests.triton.stub_driver import STREAM, needs_native, under_triton
from tests.triton.stub_driver.kernel import Kernel

pytestmark = needs_native
ROOT = Path(__file__).resolve().parents[2]
OUT_OF_RESOURCES = 701


@pytest.fixture(scope="module")
def driver():
    return stub_driver.load()


@pytest.fixture(autouse=True)
def clean(monkeypatch, driver):
    """The cache of this test alone, for tensors of the CPU, over a driver that notes what it gets."""
    driver.library.stub_reset()
    driver.open()
    monkeypatch.setattr(launch_cache, "on_device", lambda t: True)
    monkeypatch.setattr(launch_native, "_state", lambda: None)
    monkeypatch.setattr(launch_native, "_refusals", {})
    for table in ("_launches", "_kinds"):
        monkeypatch.setattr(launch_cache, table, {})
    yield
    driver.library.stub_reset()


@pytest.fixture
def count():
    """Tells how many recordings of this test C++ has."""
    gc.collect()
    before = launch_native.count()
    return lambda: launch_native.count() - before


@pytest.fixture
def kernel(monkeypatch, driver):
    """A kernel of the arguments x and out, in a Triton whose only device has the number 0."""
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: STREAM)
    for file in (launch_recording, launch_replay):
        monkeypatch.setattr(file, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(Kernel, "driver", driver)
    return Kernel("x", "out")


def copy_with(kernel):
    @launch_cache.cached_launches
    def copy(x, n=1):
        out = launch.new_map(x, x.shape[1])
        launch.start_kernel(kernel, (n,), {"x": x, "out": out}, 4, 2)
        return out

    return copy


# ---- Every operator, through Triton's own launcher


def collected(monkeypatch, call):
    """The operators that a call runs, each with its arguments."""
    found = []
    for file in (value for value in vars(calls).values() if getattr(value, "cached_launches", None)):
        for name, function in vars(file).items():
            if callable(function) and hasattr(function, "__wrapped__"):

                def note(*args, _function=function):
                    found.append((_function, args))
                    return _function(*args)

                monkeypatch.setattr(file, name, note)
    call()
    monkeypatch.undo()
    return found


class Keeping(TorchDispatchMode):
    """Keeps all allocations, so that no two have the same address."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.kept.append(func(*args, **(kwargs or {})))
        return self.kept[-1]


def storages(tensors):
    return [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]


def flat(args):
    found = []
    for a in args:
        found += flat(a) if isinstance(a, (list, tuple)) else [a] if isinstance(a, torch.Tensor) else []
    return found


def started(driver, function, args):
    """What the function starts: with each address as the argument, the result or the scratch memory that it is in."""
    driver.library.stub_reset()
    results = function(*args)
    places = [(kind, i, *found) for kind, tensors in (("argument", flat(args)), ("result", flat([results])))
              for i, found in enumerate(storages(tensors))]  # fmt: skip
    rows, scratch = [], []
    for one in driver.launches():
        kernel, types = driver.functions[one.function]
        row = [kernel.__name__, *one.grid, *one.block, one.shared, one.stream, one.attribute_count]
        for kind, value in zip([*types, "scratch", "scratch"], one.parameters(), strict=True):
            if kind.startswith("*"):
                place = next(
                    ((k, i, value - start) for k, i, start, size in places if start <= value < start + size), None
                )
                if place is None:
                    scratch.append(value)
                row.append(("scratch", value) if place is None else place)
            else:
                row.append(value)
        rows.append(row)
    base = min(scratch, default=0)
    rows = [[("scratch", v[1] - base) if isinstance(v, tuple) and v[0] == "scratch" else v for v in r] for r in rows]
    return rows, [(t.shape, t.stride(), t.dtype, t.storage_offset()) for t in flat([results])]


def without_scratch(rows):
    return [["scratch" if isinstance(v, tuple) and v[0] == "scratch" else v for v in row] for row in rows]


def compare(driver, monkeypatch, function, args):
    """Python and C++ start the same, which is what a full run starts. Returns how many kernels."""
    with monkeypatch.context() as patch, Keeping():
        patch.setattr(launch_cache, "_switched_off", lambda: True)
        full, forms = started(driver, function, args)
    found = {}
    for name, why in (("python", "the test asks for it"), ("c++", None)):
        with monkeypatch.context() as patch:
            patch.setattr(launch_native, "_state", lambda why=why: why)
            patch.setattr(launch_cache, "_launches", launches := {})
            patch.setattr(launch_cache, "_kinds", {})
            for _ in range(2):
                found[name] = started(driver, function, args)
            (entry,) = launches.values()
            if entry is None:  # computes in torch between its launches
                return 0
            assert (type(entry) is launch_native.Native) == (name == "c++"), launch_native._refusals
    assert found["python"] == found["c++"]
    assert without_scratch(full) == without_scratch(found["c++"][0]) and forms == found["c++"][1]
    return len(full)


def drawn(seed):
    """A call of drawn shapes."""
    draw = random.Random(seed)
    c, m, side, n = draw.randint(1, 70), draw.randint(1, 70), draw.randint(1, 40), draw.randint(1, 5)
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
    layout = draw.choice([torch.channels_last, torch.contiguous_format])
    rest = {"layout": layout, "n": n, "d": draw.choice([1, 3, 5, 7]), "act": draw.randint(0, 5)}
    return draw.choice(
        [
            lambda: calls.training(c, m, side, dtype, multiplier=draw.randint(1, 3), **rest),
            lambda: calls.inference(c, m, side, dtype, more=draw.random() < 0.5, **rest),
            lambda: calls.folded(c, m, side, dtype, cheap=draw.random() < 0.7, **rest),
            lambda: calls.excitation(4 * c, side, dtype, layout=layout),
            lambda: calls.concatenation(m, side, dtype, d=rest["d"], layout=layout),
        ]
    )


def depthwise():
    x, weight = torch.empty(2, 48, 20, 20, dtype=torch.float16), torch.empty(48, 1, 5, 5)
    calls.depthwise.depthwise(x.to(memory_format=torch.channels_last), weight, None, 2)


NAMED = dict(calls.core(torch.float16) + calls.odd(torch.bfloat16)) | {"depthwise": depthwise}


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has the driver of the device: tests/gpu compares there")
@pytest.mark.parametrize("case", [*NAMED, *range(12)])
def test_c_starts_what_tritons_launcher_starts(driver, monkeypatch, case):
    with under_triton(driver):
        operators = collected(pytest.MonkeyPatch(), NAMED[case] if case in NAMED else drawn(case))
        assert operators
        assert sum(compare(driver, monkeypatch, function, args) for function, args in operators) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has the driver of the device")
def test_every_operator_is_among_them(driver):
    with under_triton(driver):
        found = {f.__name__ for call in NAMED.values() for f, _ in collected(pytest.MonkeyPatch(), call)}
    folder = Path(launch_cache.__file__).parent
    cached = {n for f in folder.glob("*.py") for n in re.findall(r"@cached_launches\ndef (\w+)", f.read_text())}
    assert cached == found and len(found) >= 12


# ---- Arguments and results of every kind


def block_of(kernels):
    """As a whole block has them: lists of optional tensors, arguments that kernels write to, many results."""

    @launch_cache.cached_launches
    def block(x, parameters, running, options):
        out, results = launch.new_map(x, 4), []
        for kernel, p in zip(kernels, [*parameters, *running]):
            y = launch.empty((2, 6), torch.float32, x.device)
            launch.start_kernel(kernel, (2,), {"x": x, "out": out, "p": p, "y": y[1:], "n": options[0]}, 4, 2)
            results += [y, y[1]]
        return (out, *results)

    return block


def test_lists_of_optional_tensors_and_many_results(kernel):
    kernels = [Kernel("x", "out", "p", "y", "n") for _ in range(5)]
    block, x = block_of(kernels), torch.randn(2, 4, 3, 3)
    parameters = lambda: [torch.nn.Parameter(torch.randn(4)), None, torch.randn(4)]
    block(x, parameters(), [torch.zeros(4), None], (3, "sum", None))
    for _ in range(3):
        given, running = parameters(), [torch.zeros(4), None]
        out, *rest = block(x, given, running, (3, "sum", None))
        assert len(rest) == 10 and all(k.full == 1 for k in kernels)
        for i, (one, p) in enumerate(zip(kernels, [*given, *running], strict=True)):
            ((_, found),) = one.started[-1:]
            assert found["p"] == (None if p is None else p.data_ptr()) and found["n"] == 3
            assert found["x"] == x.data_ptr() and found["out"] == out.data_ptr()
            whole, part = rest[2 * i : 2 * i + 2]
            assert found["y"] == part.data_ptr() == whole.data_ptr() + 24
            assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            assert (part.shape, part.stride(), part.storage_offset()) == ((6,), (1,), 6) and not part._is_view()
        assert len({t.data_ptr() for t in (out, *rest)}) == 11
    for other in (
        (x, [*parameters()[:2], None], [torch.zeros(4), None], (3, "sum", None)),
        (x, parameters(), [None, torch.zeros(4)], (3, "sum", None)),
        (x, parameters(), (torch.zeros(4), None), (3, "sum", None)),
        (x, parameters(), [torch.zeros(4), None], (4, "sum", None)),
        (x, parameters(), [torch.zeros(4), None], (3, "mean", None)),
    ):
        before = [k.full for k in kernels]
        block(*other)
        assert [k.full for k in kernels] == [n + 1 for n in before]
    assert len(launch_cache._launches) == 6 and launch_native.reason() is None


def test_no_results_and_no_scratch_memory(kernel):
    @launch_cache.cached_launches
    def write(x, to):
        launch.start_kernel(kernel, (1,), {"x": x, "out": to[1:]}, 4, 2)
        return ()

    write(torch.randn(4), torch.randn(8, 4))
    for _ in range(3):
        x, to = torch.randn(4), torch.randn(8, 4)
        assert write(x, to) == ()
        assert kernel.started[-1][1] == {"x": x.data_ptr(), "out": to.data_ptr() + 16}
    assert kernel.full == 1 and len(kernel.started) == 4


def test_a_function_that_returns_a_tensor_or_a_tuple(kernel):
    @launch_cache.cached_launches
    def call(x):
        out = launch.new_map(x, 2)
        launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
        return out if x.shape[0] == 1 else (out,)

    for _ in range(3):
        assert type(call(torch.randn(1, 2, 3, 3))) is torch.Tensor
        assert type(call(torch.randn(2, 2, 3, 3))) is tuple
    assert kernel.full == 2


@pytest.mark.parametrize("value", [0, 1, -1, 2**31, -(2**40), 2**63 + 5, 0.1, -0.0, float("inf"), 1e300, True, False])
def test_numbers_keep_their_bits(driver, kernel, value):
    kernel = Kernel("x", "out", "n")

    @launch_cache.cached_launches
    def call(x, n):
        out = launch.new_map(x, 2)
        launch.start_kernel(kernel, (1,), {"x": x, "out": out, "n": n}, 4, 2)
        return out

    for _ in range(2):
        call(torch.randn(1, 2, 3, 3), value)
    found = kernel.started[-1][1]["n"]
    expected = value - 2**64 if value == 2**63 + 5 else value  # as the same bits with a sign
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("kind", "value", "bits"),
    [
        ("fp32", 0.1, 0x3DCCCCCD),
        ("fp32", 1e300, 0x7F800000),
        ("f32", 3, 0x40400000),
        ("fp64", 3, 0x4008000000000000),
        ("i32", -2, 2**64 - 2),
        ("u64", 2**64 - 1, 2**64 - 1),
        ("i1", True, 1),
    ],
)
def test_parameters_as_triton_packs_them(kind, value, bits):
    _, base, word = launch_native._parameter("k", value, kind)
    assert (base, word % 2**64) == (-1, bits)


# ---- What C++ leaves to Python


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"num_ctas": 2}, "the blocks of the kernel some_kernel are started together"),
        ({"launch_cooperative_grid": True}, "the blocks of the kernel some_kernel are started together"),
        ({"global_scratch_size": 8}, "the kernel some_kernel asks Triton for scratch memory"),
        ({"profile_scratch_size": 8}, "the kernel some_kernel asks Triton for scratch memory"),
    ],
)
def test_kernels_that_c_does_not_start(driver, kernel, metadata, why):
    kernel = Kernel("x", "out", **metadata)
    copy, x = copy_with(kernel), torch.randn(1, 2, 3, 3)
    for _ in range(3):
        copy(x)
    assert kernel.full == 1 and len(kernel.started) == 3 and driver.launches() == []
    assert launch_native.reason() == why


def test_other_launchers_types_and_parameters_are_left_to_python(driver, kernel, count, monkeypatch):
    x = torch.randn(1, 2, 3, 3)

    def refused(kernel):
        copy = copy_with(kernel)
        for count in range(1, 4):
            copy(x)
            assert kernel.full == 1 and len(kernel.started) == count
        return [*launch_native._refusals][-1]

    class Other(Kernel):
        def compile(self, arguments):
            found = super().compile(arguments)
            return self.change(found) or found

    def type_of(found):
        found.src.signature["x"] = "tensordesc<fp16[16]>"

    def launcher(found):
        found.run = found.run.__call__

    def more(found):
        found.src.signature["z"] = "i32"

    def unlike(found):
        del found.metadata.num_ctas

    def sizes(found):
        found.src.signature = {"x": "*fp32", "out": "constexpr"}

    for change, why in (
        (type_of, "the kernel some_kernel takes a Address as tensordesc"),
        (launcher, "the kernel some_kernel is not started by Triton's launcher for CUDA"),
        (more, "the kernel some_kernel has other arguments than were recorded"),
        (unlike, "what Triton compiled does not say how it is started"),
        (sizes, "ghost_ops: the parameters of the kernel some_kernel are not those that Triton's launcher passes"),
    ):
        monkeypatch.setattr(Other, "change", staticmethod(change), raising=False)
        assert why in refused(Other("x", "out"))
    assert driver.launches() == [] and count() == 0


def test_a_kernel_may_overlap_the_one_before(kernel):
    """Programmatic dependent launch, an attribute that Triton passes too."""
    kernel = Kernel("x", "out", launch_pdl=True)
    copy = copy_with(kernel)
    for _ in range(2):
        copy(torch.randn(1, 2, 3, 3))
    assert len(kernel.started) == 2 and kernel.attributes == (1, 6, 1)


def test_without_a_known_triton_or_the_library(monkeypatch):
    monkeypatch.undo()
    reason = launch_native._state.__wrapped__
    monkeypatch.setattr(triton, "__version__", "9.9.0")
    assert reason() == "the launchers of Triton 3.6 and 3.7 are known, this is Triton 9.9.0"
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_reason", "of a reason")
    assert reason() == "of a reason" and launch_native.count() == 0


# ---- Devices, streams, errors


def test_the_callers_stream(driver, kernel):
    copy, x = copy_with(kernel), torch.randn(1, 2, 3, 3)
    copy(x)
    driver.library.stub_stream(123456789 << 20)
    copy(x)
    (found,) = driver.launches()
    assert found.stream == 123456789 << 20


@pytest.mark.parametrize("current", [-1, 3])
def test_a_thread_with_another_device_or_none(driver, kernel, current):
    """The recorded device is current while kernels start, and the one before afterwards."""
    copy, x = copy_with(kernel), torch.randn(1, 2, 3, 3)
    copy(x)
    driver.library.stub_context(current)
    for _ in range(3):
        copy(x)
        device = ctypes.c_int(-1)
        error = driver.library.cuCtxGetDevice(ctypes.byref(device))
        assert (error, device.value) == ((201, -1) if current < 0 else (0, current))
    assert driver.library.stub_retained() <= 1  # once for all calls
    found = driver.launches()
    assert len(found) == 3 and {one.context for one in found} == {1}  # of device 0


def test_a_launch_that_fails(driver, kernel):
    @launch_cache.cached_launches
    def twice(x):
        out = launch.new_map(x, 2)
        for _ in range(2):
            launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
        return out

    x = torch.randn(1, 2, 3, 3)
    twice(x)
    for after in (0, 1):
        driver.library.stub_fail(after, OUT_OF_RESOURCES)
        with pytest.raises(
            RuntimeError, match="the kernel some_kernel was not started: CUDA_ERROR_LAUNCH_OUT_OF_RES"
        ) as e:
            twice(x)
        assert "too many resources requested" in str(e.value)
        assert len(driver.launches()) == after
    driver.library.stub_fail(0, 999999)
    with pytest.raises(RuntimeError, match="was not started: CUDA error 999999"):
        twice(x)
    driver.library.stub_reset()
    twice(x)
    assert len(driver.launches()) == 2


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


# ---- Life of recordings


def test_recordings_go_with_their_entries(kernel, count, monkeypatch):
    monkeypatch.setattr(launch_cache, "LIMIT", 4)
    copy = copy_with(kernel)
    for n in range(1, 20):
        copy(torch.randn(n % 7 + 1, 2, 3, 3), n)
        assert count() == min(n, 4) == sum(k.recordings for k in launch_cache._kinds.values())
    assert len(launch_cache._kinds) <= 4
    launch_cache._launches.clear()
    gc.collect()
    assert count() == 0


def test_a_replay_outlives_its_entry(kernel, count, monkeypatch):
    """Threads replay while their entries are replaced all the time."""
    monkeypatch.setattr(launch_cache, "LIMIT", 2)
    copy, wrong = copy_with(kernel), []

    def work(number):
        for i in range(200):
            n = 1 + (i + number) % 5
            out = copy(torch.randn(n, 2, 3, 3), n)
            if out.shape[0] != n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(kernel.started) == 800
    assert count() <= 2


def test_kernels_live_as_long_as_their_recordings(kernel):
    copy = copy_with(kernel)
    copy(torch.randn(1, 2, 3, 3))
    (entry,) = launch_cache._launches.values()
    assert [one.function for one in entry.kernels] == [*kernel.compiled]


@pytest.mark.parametrize("words", [[], [0], [0, 0], [0, 0, 0, 7], [0, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0, 0]])
def test_a_malformed_sequence_is_an_error(words):
    x = torch.randn(2)
    with pytest.raises(RuntimeError, match="a sequence of launches"):
        launch_native._add([x], 10**9, 10**9, [x], [x], words)


def test_addresses_outside_of_the_bases_are_an_error():
    x, launch_ = torch.randn(2), lambda *parameter: [0, 0, 0, 1, 5, 1, 1, 1, 32, 0, 0, 0, 1, *parameter]
    for parameter in ((8, 3, 0), (8, -2, 0), (9, -1, 0), (0, -1, 0)):
        with pytest.raises(RuntimeError, match="out of range"):
            launch_native._add([x], 10**9, 10**9, [x], [x], launch_(*parameter))


# ---- The header


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
