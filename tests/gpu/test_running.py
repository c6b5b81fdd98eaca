"""How operators and nets run on the device: compile, graphs, streams, autocast, frozen nets."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch

import ghost_ops
from ghost_ops import functional as F
from ghost_ops.backends.triton.program import _folded as weights
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_state import STATE
from tests.helpers import assert_as_accurate, randomise
from tests.ops.test_registration import Both

DEVICE = "cuda"


def net_and_images(side: int = 64, batch: int = 3, dtype: torch.dtype = torch.float32):
    net = randomise(ghost_ops.models.ghostnet_050()).eval().to(DEVICE, dtype)
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    return net, x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic):
    net = Both().to(DEVICE)
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic)
    for shape in [(2, 6, 5, 7), (3, 6, 8, 4)] if dynamic else [(2, 6, 5, 7)]:
        grads = []
        for f in (net, compiled):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
            net.zero_grad()
            out = f(x)
            out.square().sum().backward()
            grads.append([out, x.grad, *(p.grad for p in net.parameters())])
        for a, b in zip(*grads, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


def test_compiled_modules_keep_their_operators():
    net, x = net_and_images()
    fused = ghost_ops.fuse(net).train()
    fused(x)
    compiled = torch.compile(fused, fullgraph=True)
    compiled(x).square().mean().backward()
    assert all(p.grad is not None for p in fused.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_and_frozen_nets(dtype):
    net, x = net_and_images(dtype=dtype)
    with torch.no_grad():
        plain, exact = net(x), randomise(ghost_ops.models.ghostnet_050()).eval().to(DEVICE).double()
        exact.load_state_dict(net.state_dict())
        exact = exact.double()(x.double())
        frozen = ghost_ops.freeze(net)
        assert any(isinstance(m, FrozenProgram) for m in frozen.modules())
        assert_as_accurate(frozen(x), plain, exact, ulps=16)
        fused = ghost_ops.fuse(net)
        assert_as_accurate(fused(x), plain, exact, ulps=16)
    assert "triton" in str(ghost_ops.explain(fused, x)) and "triton" in str(ghost_ops.explain(frozen, x))


def test_graphs_are_kept_per_shape_and_bounded():
    net, _ = net_and_images()
    frozen, graphed = ghost_ops.freeze(net), ghost_ops.freeze(net, cuda_graph=True)
    assert isinstance(graphed, type(net))
    kept = []
    for batch in (*range(1, 12), 1, 11):
        x = torch.randn(batch, 3, 64, 64, device=DEVICE)
        with torch.no_grad():
            kept.append((graphed(x), frozen(x)))
        graphs = graphed.__dict__[STATE].graphs
        assert 0 < len(graphs) <= graphs.most
    for ours, expected in kept:  # later replays have changed no earlier result
        torch.testing.assert_close(ours, expected)
    with pytest.raises(ValueError, match="CUDA device"):
        graphed(torch.zeros(1, 3, 64, 64))


def test_capture_by_hand():
    """No host synchronisation, no allocation outside of the pool, inference and a training step."""
    net = Both().to(DEVICE)
    x = torch.randn(2, 6, 9, 7, device=DEVICE)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            net.zero_grad(set_to_none=True)
            net(x).square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    expected = [p.grad.clone() for p in net.parameters()]
    graph = torch.cuda.CUDAGraph()
    net.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        net(x).square().sum().backward()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(p.grad, e) for p, e in zip(net.parameters(), expected, strict=True))


def test_no_host_synchronisation():
    net = Both().to(DEVICE)
    x = torch.randn(2, 6, 9, 7, device=DEVICE)
    net(x).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_callers_stream():
    """Work goes to the current stream: behind what keeps that busy, and not before."""
    w1, w2 = torch.randn(32, 32, 1, 1, device=DEVICE), torch.randn(32, 1, 3, 3, device=DEVICE)
    x = torch.zeros(4, 32, 28, 28, device=DEVICE)
    value = torch.randn(4, 32, 28, 28, device=DEVICE)
    expected = F.ghost_module(value, w1, None, w2, None)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(value)
        out = F.ghost_module(x, w1, None, w2, None)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, expected)


def assert_threads_agree(frozen, inputs: list[torch.Tensor]) -> None:
    """Threads with a stream each, all at once over one frozen net, get what one alone gets."""
    with torch.no_grad():
        expected = [frozen(v) for v in inputs]
    torch.cuda.synchronize()
    found: list = [None] * len(inputs)

    def work(i: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            for _ in range(20):
                found[i] = frozen(inputs[i])
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_streams_and_threads_at_once():
    net, x = net_and_images()
    assert_threads_agree(ghost_ops.freeze(net), [x, x.flip(0), x * 0.5, -x])


def anew(frozen: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a copy, of which no weights are kept yet, makes of x."""
    return copy.deepcopy(frozen)(x)


@torch.no_grad()
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_frozen_weights_follow_what_is_packed(cuda_graph):
    """In place, from another stream that is still at it, loaded, and on another device and back."""
    net, x = net_and_images(dtype=torch.float16)
    frozen, plain = ghost_ops.freeze(net, cuda_graph=cuda_graph), ghost_ops.freeze(net)
    (program,), (twin,) = frozen.frozen_programs, plain.frozen_programs
    for _ in range(2):
        assert torch.equal(frozen(x), plain(x))
    program.packed.mul_(0.75), twin.packed.mul_(0.75)
    assert torch.equal(frozen(x), anew(plain, x))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        program.packed.mul_(0.75), twin.packed.mul_(0.75)
        out = frozen(x)
    torch.cuda.current_stream().wait_stream(stream)
    expected = anew(plain, x)
    assert torch.equal(out, expected) and torch.equal(frozen(x), expected)
    state = {name: t * 1.25 if name.endswith("packed") else t for name, t in frozen.state_dict().items()}
    frozen.load_state_dict(state), plain.load_state_dict(state)
    assert torch.equal(frozen(x), anew(plain, x))
    frozen.cpu().to(DEVICE)
    assert torch.equal(frozen(x), anew(plain, x))


@torch.no_grad()
def test_a_capture_by_hand_reads_what_is_packed():
    net, x = net_and_images(dtype=torch.float16)
    frozen = ghost_ops.freeze(net)
    (program,) = frozen.frozen_programs
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        frozen(x), frozen(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = frozen(x)
    program.packed.mul_(0.75)
    graph.replay()
    assert torch.equal(out, anew(frozen, x))


@torch.no_grad()
def test_kept_weights_go_with_the_net_and_no_pool_has_them():
    """Nor do they lie in the memory of the graphs that the compiler prepares in a warm-up."""
    net, x = net_and_images(dtype=torch.float16)
    frozen = ghost_ops.freeze(net)
    expected = frozen(x)
    compiled = torch.compile(copy.deepcopy(frozen), mode="reduce-overhead")
    for _ in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        assert torch.equal(compiled(x), expected)
    gc.collect()
    before = len(weights)
    del compiled, frozen, net
    torch.compiler.reset()
    gc.collect()
    assert len(weights) <= before - 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current_one():
    x, w1, w2 = (torch.randn(s, device="cuda:1") for s in ((2, 6, 5, 7), (5, 6, 1, 1), (5, 1, 3, 3)))
    out = F.ghost_module(x, w1, None, w2, None)
    with ghost_ops.use_backend("reference"):
        torch.testing.assert_close(out, F.ghost_module(x, w1, None, w2, None), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_training_on_another_device_than_the_current_one():
    """Launches that are recorded on one device are not replayed on another."""
    net = randomise(Both(), 0).train()
    found = [one_step(copy.deepcopy(net).to(device), device) for device in ("cuda:0", "cuda:1") * 2]
    for grads in found[1:]:
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(grads, found[0], strict=True))


def one_step(net: torch.nn.Module, device: str = DEVICE, scale: float = 1.0) -> list[torch.Tensor]:
    """Gradients of a training step on drawn maps, twice, since the second step replays launches."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for _ in range(2):
        net.load_state_dict(state)
        net.zero_grad(set_to_none=True)
        x = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(0)).to(device) * scale
        net(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_training_in_threads_on_streams_of_their_own():
    """Each thread trains a net of its own; the backward runs in autograd's thread, on the forward's stream."""
    nets = [randomise(Both(), seed).to(DEVICE).train() for seed in range(4)]
    scales = [1.0, 0.5, 2.0, 1.5]
    expected = [one_step(copy.deepcopy(net), scale=scale) for net, scale in zip(nets, scales)]
    torch.cuda.synchronize()
    found: list = [None] * len(nets)

    def work(i: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(10):
                found[i] = one_step(nets[i], scale=scales[i])
        stream.synchronize()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(nets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grads, right in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(grads, right, strict=True))


def test_a_training_step_behind_a_busy_stream():
    """Forward and backward wait for what is before them on the caller's stream."""
    net = randomise(Both(), 0).to(DEVICE).train()
    expected = one_step(copy.deepcopy(net))
    side = torch.cuda.Stream()
    late, value = (torch.zeros(2, 6, 9, 7, device=DEVICE) for _ in range(2))
    value.copy_(torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(0)))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(value)
        net(late).square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    assert all(torch.equal(p.grad, right) for p, right in zip(net.parameters(), expected, strict=True))


def test_a_first_call_within_a_capture():
    """Kernels for a new shape are compiled, loaded and recorded while a stream is captured. That works, or it is an
    error that says so, and the next call is right."""
    w1, w2 = torch.randn(11, 13, 1, 1, device=DEVICE), torch.randn(11, 1, 5, 5, device=DEVICE)
    x = torch.randn(3, 13, 19, 23, device=DEVICE)  # no other test has this shape
    with ghost_ops.use_backend("reference"):
        expected = F.ghost_module(x, w1, None, w2, None)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = F.ghost_module(x, w1, None, w2, None)
    except RuntimeError as error:
        assert "captur" in str(error), error
        torch.cuda.synchronize()
    else:
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
    for _ in range(2):
        torch.testing.assert_close(F.ghost_module(x, w1, None, w2, None), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_under_autocast(dtype):
    """A few steps of a fused net follow those of the plain one."""
    losses = {}
    for fused in (False, True):
        net = randomise(ghost_ops.models.ghostnet_050(), seed=0).to(DEVICE).train()
        net = ghost_ops.fuse(net) if fused else net
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
        x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        x, y = x.to(memory_format=torch.channels_last), torch.arange(8, device=DEVICE)
        losses[fused] = []
        for _ in range(4):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype):
                loss = torch.nn.functional.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[fused].append(float(loss))
    torch.testing.assert_close(torch.tensor(losses[True]), torch.tensor(losses[False]), rtol=3e-2, atol=3e-2)
