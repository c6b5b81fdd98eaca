"""Cached launches, on a launcher and a driver that note what they get: a replay must start what a full run starts,
whether Python or C++ replays."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ghost_ops import dispatch
from ghost_ops.backends import triton as triton_backend

pytest.importorskip("triton")
from ghost_ops.backends.triton import launch, launch_cache, launch_native, launch_recording, launch_replay, tiles
from tests.triton import stub_driver
from tests.triton.stub_driver import STREAM, needs_native
from tests.triton.stub_driver.kernel import Kernel

ON_DEVICE = launch_cache.on_device
KERNEL = ("x", "x_n", "w", "out", "n", "scale", "MODE")


@pytest.fixture(autouse=True, params=["python", pytest.param("c++", marks=needs_native)])
def cache(monkeypatch, request):
    """Entries of this test alone, for tensors of the CPU."""
    found = {}
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: STREAM)
    for file in (launch_recording, launch_replay):
        monkeypatch.setattr(file, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(launch_cache, "on_device", lambda t: True)
    monkeypatch.setattr(launch_cache, "_launches", found)
    monkeypatch.setattr(launch_cache, "_kinds", {})
    monkeypatch.setattr(launch_native, "_refusals", {})
    if request.param == "python":
        monkeypatch.setattr(launch_native, "_state", lambda: "the test asks for it")
        yield found
        return
    driver = stub_driver.load()
    driver.library.stub_reset()
    driver.open()
    monkeypatch.setattr(Kernel, "driver", driver)
    monkeypatch.setattr(launch_native, "_state", lambda: None)
    yield found
    assert not launch_native._refusals  # all that was replayed, C++ has replayed
    assert all(entry is None or type(entry) is launch_native.Native for entry in found.values())


def operator(kernel):
    """Two launches, one of them from and to scratch memory; results are a map, a view of another and nothing."""

    @launch_cache.cached_launches
    def call(x, w, scale, mode=0):
        out = launch.new_map(x, 2 * x.shape[1])
        middle, last = launch.scratch(x, 8), launch.empty((x.shape[0], 1, 6), x.dtype, x.device)
        shared = {"x_n": x.stride(0), "n": x.shape[0], "scale": scale, "MODE": mode}
        launch.start_kernel(kernel, (x.shape[0], 2), {"x": x, "w": w, "out": middle, **shared}, 4, 2)
        launch.start_kernel(kernel, (3,), {"x": middle[:, 4:], "w": last, "out": out, **shared}, 4, 2)
        launch.start_kernel(kernel, (x.shape[0] - 3,), {"x": x[:, 1:], "w": None, "out": out[:, 1:], **shared}, 4, 2)
        return out, last.view(x.shape[0], 6), x.new_empty(0)

    return call


def tensors(n=2, **kind):
    return torch.randn(n, 3, 4, 5, **kind), torch.nn.Parameter(torch.randn(7, **kind))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_a_replay_starts_what_a_full_run_starts(n, format):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors(n)
    x = x.to(memory_format=format)
    launches = 2 + (n > 3)
    first = call(x, w, 0.5)
    full = kernel.started.copy()
    assert len(full) == kernel.full == launches
    for _ in range(3):
        kernel.started.clear()
        x, w = torch.randn_like(x), torch.nn.Parameter(torch.randn(7))
        results = call(x, w, 0.5)
        assert kernel.full == launches and len(kernel.started) == launches
        for (grid, arguments), (again, found) in zip(full, kernel.started):
            assert again == (*grid, 1, 1)[:3]
            assert found.keys() == arguments.keys()
            for name, value in arguments.items():
                if not isinstance(value, torch.Tensor):
                    assert found[name] == value and type(found[name]) is type(value)
        first_launch, second = kernel.started[0][1], kernel.started[1][1]
        assert (first_launch["x"], first_launch["w"]) == (x.data_ptr(), w.data_ptr())
        assert second["x"] - first_launch["out"] == 16 and first_launch["out"] % 16 == 0
        assert (second["w"], second["out"]) == (results[1].data_ptr(), results[0].data_ptr())
        if n > 3:
            third = kernel.started[2][1]
            assert third["x"] - x.data_ptr() == third["out"] - results[0].data_ptr() == 4 * x.stride(1)
        for a, b in zip(first, results):
            assert (a.shape, a.stride(), a.dtype, a.storage_offset()) == (b.shape, b.stride(), b.dtype, 0)


def test_a_launch_over_nothing_is_left_out_of_both():
    kernel = Kernel(*KERNEL)
    call = operator(kernel)
    for _ in range(2):
        out, last, empty = call(torch.randn(0, 3, 4, 5), torch.randn(7), 0.5)
        assert (out.shape, last.shape, empty.shape) == ((0, 6, 4, 5), (0, 6), (0,))
    assert kernel.full == 1 and len(kernel.started) == 2


def test_every_kind_of_call_has_an_entry_of_its_own(cache):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape)
    calls = [
        (x, w, 0.5), (torch.randn(4, 3, 4, 5), w, 0.5), (x.to(memory_format=torch.channels_last), w, 0.5),
        (x.double(), w, 0.5), (shifted, w, 0.5), (x, w.detach()[1:], 0.5), (x, w, 1.0), (x, w, 1), (x, w, True),
        (x, None, 0.5), (x, w, 0.5, 3), (x, w, (1, 2)), (x, w, [1, 2]), (x, w, [1, 3]), (x, w, [1, 2.0]),
        (x, w, ([1], [2])), (x, w, ([1, 2], [])), (x, w, ([], [1, 2])), (x, w, ((1,), (2,))), (x, w, ([1], 2)),
        (x, w, [w, None]), (x, w, [None, w]), (x, w, [x, None]), (x, w, None), (x, w, ""), (x, w, "0"),
    ]  # fmt: skip
    for count, args in enumerate(calls, 1):
        before = kernel.full
        call(*args)
        assert kernel.full > before and len(cache) == count, args
    before = kernel.full
    for args in calls:
        call(*args)
    assert kernel.full == before and len(cache) == len(calls)


def test_tf32_and_the_table_are_part_of_the_kind(cache, monkeypatch):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    call(x, w, 0.5)
    for flags in (torch.backends.cudnn, torch.backends.cuda.matmul):
        before = flags.allow_tf32
        try:
            flags.allow_tf32 = not before
            call(x, w, 0.5)
        finally:
            flags.allow_tf32 = before
    call(x, w, 0.5)
    assert len(cache) == 3
    monkeypatch.setenv("GHOST_OPS_TILES", "other.json")
    call(x, w, 0.5)
    assert len(cache) == 4 and kernel.full == 8


def test_overridden_tiles_and_hooks_switch_the_cache_off(cache, monkeypatch):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    with tiles.override("stencil", pixels=16):
        call(x, w, 0.5)
    with tiles.assume("sm_90"):
        call(x, w, 0.5)
    assert not cache
    call(x, w, 0.5)
    with tiles.override("stencil", pixels=16):
        call(x, w, 0.5)
    monkeypatch.setattr(launch_cache, "_runtime", SimpleNamespace(launch_enter_hook=print, launch_exit_hook=None))
    call(x, w, 0.5)
    assert len(cache) == 1 and kernel.full == 10


def test_what_is_not_on_a_device_or_no_tensor_runs_in_full(cache, monkeypatch):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    call(x, w, scale=0.5)
    call(x, w, object())
    monkeypatch.setattr(launch_cache, "on_device", ON_DEVICE)
    call(x, w, 0.5)
    assert not cache and kernel.full == 6


def test_tensors_without_memory_run_in_full(cache):
    from torch._subclasses.fake_tensor import FakeTensorMode

    call = launch_cache.cached_launches(lambda x: x + 1)
    with FakeTensorMode() as mode:
        assert type(call(mode.from_tensor(torch.ones(3)))).__name__ == "FakeTensor"
    assert torch.equal(torch.func.vmap(call)(torch.ones(3, 2)), torch.full((3, 2), 2.0))
    assert not cache


def _sum(x, kernel):
    out = launch.new_map(x, 3)
    launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
    return out.sum(0)


def _copy(x, kernel):
    out = launch.new_map(x, 3)
    launch.start_kernel(kernel, (1,), {"x": x.double(), "out": out}, 4, 2)
    return out


def _in_place(x, kernel):
    out = launch.new_map(x, 3).zero_()
    launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
    return out


def _read(x, kernel):
    out = launch.new_map(x, 3)
    launch.start_kernel(kernel, (1 + int(x.isnan().any()),), {"x": x, "out": out}, 4, 2)
    return out


def _argument(x, kernel):
    launch.start_kernel(kernel, (1,), {"x": x, "out": x}, 4, 2)
    return x[1:]


def _list(x, kernel):
    out = launch.new_map(x, 3)
    launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
    return [out]


def _other_type(x, kernel):
    out = launch.new_map(x, 3)
    launch.start_kernel(kernel, (1,), {"x": x, "out": out}, 4, 2)
    return out.view(torch.int32)


@pytest.mark.parametrize("function", [_sum, _copy, _in_place, _read, _argument, _list, _other_type])
def test_torch_in_between_runs_in_full(cache, function):
    kernel = Kernel("x", "out")
    call = launch_cache.cached_launches(lambda x: function(x, kernel))
    for count in range(1, 4):
        call(torch.randn(2, 3, 4, 4))
        assert kernel.full == count and list(cache.values()) == [None]


@pytest.mark.filterwarnings("ignore:ghost_ops. results are right")
def test_a_kernel_unlike_tritons_runs_in_full(cache, monkeypatch):
    kernel = Kernel("x", "out", "given_by_a_default")
    call = launch_cache.cached_launches(lambda x: _other_type(x, kernel).view(x.dtype))
    call(torch.randn(2, 3, 4, 4))
    monkeypatch.setattr(launch_cache, "_launches_as_known", lambda: False)
    other, (x, w) = Kernel(*KERNEL), tensors()
    operator(other)(x, w, 0.5)
    assert list(cache.values()) == [None, None]


def test_a_triton_that_launches_in_another_way_is_told(cache, monkeypatch):
    """One warning, which says what to do; ``select``, which ``explain`` shows, and ``ghost-ops info`` say the same."""
    assert launch_cache.why_not_cached() is None and triton_backend.slowed() is None
    monkeypatch.setattr(launch_cache, "_launches_as_known", lambda: False)
    launch_cache._warn_of_slow_launches.cache_clear()
    call = operator(Kernel(*KERNEL))
    with pytest.warns(UserWarning, match=r"launches are not cached .*: install one of these"):
        call(*tensors(), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator(Kernel(*KERNEL))(*tensors(), 0.5)
    backend = replace(triton_backend.BACKEND, missing=lambda: None, refuse_device=lambda device: None)
    assert "ready" in backend.state() and "but slow, since Triton" not in backend.state()  # no Triton for CUDA here
    monkeypatch.setattr(triton_backend, "_missing", None)
    assert "ready, but slow, since Triton" in backend.state()
    monkeypatch.setitem(dispatch.BACKENDS, "triton", replace(backend, is_candidate=lambda device, forced: True))
    native = replace(dispatch.BACKENDS["native"], is_candidate=lambda device, forced: False)
    monkeypatch.setitem(dispatch.BACKENDS, "native", native)
    dispatch._select.cache_clear()
    try:
        found = dispatch.select("depthwise", torch.zeros(1), 3)
        assert found.backend == "triton" and found.why.startswith("slow on triton, since Triton")
    finally:
        dispatch._select.cache_clear()
        launch_cache._warn_of_slow_launches.cache_clear()


def test_the_installed_triton_is_known():
    assert launch_cache._launches_as_known()


def test_an_operator_within_is_part_of_the_outer_entry(cache):
    kernel = Kernel("x", "out")
    inner = launch_cache.cached_launches(lambda x: _list(x, kernel)[0])
    outer = launch_cache.cached_launches(lambda x: (inner(inner(x)).permute(1, 0, 2, 3),))
    x = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        assert outer(x)[0].stride() == (16, 48, 4, 1)
    assert kernel.full == 2 and len(kernel.started) == 4 and len(cache) == 1
    (_, one), (_, two) = kernel.started[2:]
    assert one["x"] == x.data_ptr() and one["out"] == two["x"]


def test_an_argument_given_twice_is_not_taken_for_two():
    kernel = Kernel("x", "out")

    @launch_cache.cached_launches
    def call(a, b):
        out = launch.new_map(a, 3)
        launch.start_kernel(kernel, (1,), {"x": a, "out": out}, 4, 2)
        launch.start_kernel(kernel, (1,), {"x": b[:, 1:], "out": out}, 4, 2)
        return out

    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    call(a, a)
    call(a, b)
    assert kernel.full == 2
    assert [found["x"] for _, found in kernel.started[2:]] == [a.data_ptr(), b.data_ptr() + 64]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch._C._AutoDispatchBelowAutograd])
def test_within_an_operator_and_in_inference_mode(cache, mode):
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    with mode():
        for _ in range(2):
            out, *_ = call(x, w, 0.5)
            assert out.is_inference() == torch.is_inference_mode_enabled()
    assert kernel.full == 2 and None not in cache.values()


def test_old_entries_go(cache, monkeypatch):
    monkeypatch.setattr(launch_cache, "LIMIT", 3)
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors()
    for scale in range(10):
        call(x, w, scale)
    assert len(cache) == 3
    for scale, more in ((9, 0), (7, 0), (0, 2), (8, 0), (7, 2)):
        before = kernel.full
        call(x, w, scale)
        assert kernel.full == before + more


def test_entries_hold_no_tensor():
    kernel = Kernel(*KERNEL)
    call, (x, w) = operator(kernel), tensors(4)
    held = [weakref.ref(t) for t in (x, w, *call(x, w, 0.5), *call(x, w, 0.5))]
    held += [weakref.ref(v) for kept in kernel.kept for v in kept.values() if isinstance(v, torch.Tensor)]
    kernel.kept.clear()
    kernel.started.clear()
    del x, w
    gc.collect()
    assert len(held) > 10 and not any(t() is not None for t in held)


def test_a_failed_recording_leaves_nothing(cache):
    def fail(x):
        raise ValueError("shape")

    call = launch_cache.cached_launches(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="shape"):
            call(torch.ones(3))
    assert not cache and launch.recorder.current is None


def test_threads():
    """Recordings and replays of several threads at once do not mix."""
    kernel = Kernel("x", "out", "n")
    ready, wrong = threading.Barrier(4), []

    @launch_cache.cached_launches
    def call(x, n):
        out = launch.new_map(x, n)
        launch.start_kernel(kernel, (n,), {"x": x, "out": out, "n": n}, 4, 2)
        return out

    def work(number):
        ready.wait()
        for i in range(300):
            x = torch.randn(2, 3, 1 + (i + number) % 7, 4)
            out = call(x, 1 + i % 5)
            if out.shape != (2, 1 + i % 5, *x.shape[2:]):
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(kernel.started) == 1200
    assert 35 <= kernel.full <= 4 * 35
    assert all(grid[0] == found["n"] for grid, found in kernel.started)
