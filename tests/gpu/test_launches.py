"""Launches on a device: a full run, a replay in Python and a replay in C++ give the same bits."""

from __future__ import annotations

import threading

import pytest
import torch

import ghost_ops
from ghost_ops import functional as F
from tests.helpers import randomise

pytest.importorskip("triton")
from ghost_ops.backends.triton import launch_cache, launch_native

DEVICE = "cuda"
WAYS = ("full", "python", "c++")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for table in ("_launches", "_kinds"):
        monkeypatch.setattr(launch_cache, table, {})
    monkeypatch.setattr(launch_native, "_refusals", {})


def by(way, call, monkeypatch, times=3):
    """The results of the last of several calls."""
    with monkeypatch.context() as patch:
        patch.setattr(launch_cache, "_launches", launches := {})
        patch.setattr(launch_cache, "_kinds", {})
        if way == "full":
            patch.setattr(launch_cache, "_switched_off", lambda: True)
        if way == "python":
            patch.setattr(launch_native, "_state", lambda: "the test asks for it")
        for _ in range(times):
            results = call()
        kinds = {type(entry) is launch_native.Native for entry in launches.values() if entry is not None}
        assert kinds == {"full": set(), "python": {False}, "c++": {True}}[way], launch_native.reason()
    return results


def same(call, monkeypatch):
    full, *others = [by(way, call, monkeypatch) for way in WAYS]
    for found in others:
        assert len(found) == len(full)
        assert all(torch.equal(a, b) for a, b in zip(found, full, strict=True))


def test_c_starts_the_kernels_here():
    x, w1, w2 = (torch.randn(s, device=DEVICE) for s in ((2, 6, 5, 7), (5, 6, 1, 1), (5, 1, 3, 3)))
    for _ in range(2):
        F.ghost_module(x, w1, None, w2, None)
    assert launch_native.reason() is None and launch_native.count() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 16, 24, 24), (3, 23, 17, 9), (1, 80, 7, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_module_in_training(monkeypatch, dtype, shape, layout):
    """Forward and backward under autocast, running statistics included."""
    module = randomise(ghost_ops.FusedGhostModule(shape[1], 2 * shape[1] + 1)).to(DEVICE).train()
    state = {name: t.clone() for name, t in module.state_dict().items()}
    x = torch.randn(shape, device=DEVICE).to(memory_format=layout)

    def call():
        module.load_state_dict(state)
        module.zero_grad(set_to_none=True)
        given = x.clone().requires_grad_()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not torch.float32):
            out = module(given)
        out.float().square().sum().backward()
        return [out, given.grad, *(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]

    same(call, monkeypatch)


def test_a_net_in_training_and_frozen(monkeypatch):
    net = randomise(ghost_ops.models.ghostnet_050()).to(DEVICE).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 64, 64, device=DEVICE).to(memory_format=torch.channels_last)
    frozen = ghost_ops.freeze(net.eval())
    with torch.no_grad():
        same(lambda: [frozen(x)], monkeypatch)
    fused = ghost_ops.fuse(net).train()
    state = {name: t.clone() for name, t in fused.state_dict().items()}

    def step():
        fused.load_state_dict(state)
        fused.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        out = fused(x)
        out.square().mean().backward()
        return [out, *(p.grad for p in fused.parameters())]

    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    try:
        same(step, monkeypatch)
    finally:
        torch.backends.cudnn.deterministic = before


def inputs():
    return [torch.randn(s, device=DEVICE) for s in ((4, 32, 28, 28), (32, 32, 1, 1), (32, 1, 3, 3))]


def test_a_graph_captures_a_replay():
    x, w1, w2 = inputs()
    call = lambda: F.ghost_module(x, w1, None, w2, None)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, call())


def test_a_new_thread_has_no_context_yet():
    """Where CUDA's runtime has not been called in a thread, the driver has no device there."""
    x, w1, w2 = inputs()
    expected = F.ghost_module(x, w1, None, w2, None)
    found = []
    threads = [threading.Thread(target=lambda: found.append(F.ghost_module(x, w1, None, w2, None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert len(found) == 2 and all(torch.equal(out, expected) for out in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_replay_on_another_device_than_the_current_one():
    x, w1, w2 = (t.to("cuda:1") for t in inputs())
    results = [F.ghost_module(x, w1, None, w2, None) for _ in range(3)]
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(out, results[0]) for out in results) and results[0].device == x.device
    assert launch_native.reason() is None
