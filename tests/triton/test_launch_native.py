"""Launches in C++: arguments and results of every kind, what is left to Python, errors, and the life of recordings."""

from __future__ import annotations

import ctypes
import gc
import threading

import pytest
import torch

pytest.importorskip("triton")
import triton

from ghost_ops.backends import native
from ghost_ops.backends.triton import launch, launch_cache, launch_native
from tests.triton.stub_driver import needs_native
from tests.triton.stub_driver.kernel import Kernel, copy_with

pytestmark = [needs_native, pytest.mark.usefixtures("driver")]
OUT_OF_RESOURCES = 701


# ---- Arguments and results of every kind


def many_launches(kernels):
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
    block, x = many_launches(kernels), torch.randn(2, 4, 3, 3)
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


def test_threads_do_not_mix(kernel, count, monkeypatch):
    """Threads replay the same recordings at once, while these are dropped and made again all the time."""
    monkeypatch.setattr(launch_cache, "LIMIT", 2)
    copy, calls_, kept = copy_with(kernel), [], []

    def work(number):
        for i in range(200):
            n = 1 + (i // 8 + number % 2) % 3
            x = torch.randn(n, 2, 3, 3)
            out = copy(x, n)
            kept.append((x, out))  # so that no two have the same address
            calls_.append((n, x.data_ptr(), out.data_ptr()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    address = lambda value: value.data_ptr() if isinstance(value, torch.Tensor) else value
    started_ = [(grid[0], address(found["x"]), address(found["out"])) for grid, found in kernel.started]
    assert sorted(started_) == sorted(calls_) and len(calls_) == 800
    assert 3 <= kernel.full < 800 and count() <= 2


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
