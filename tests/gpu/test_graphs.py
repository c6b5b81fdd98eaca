"""``fuse(net, cuda_graph=True)`` on the device: what tests/fused/test_graphed_*.py have, with real graphs."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ghost_ops
from ghost_ops.fused import graphed_step
from ghost_ops.fused.graphed_block import WARM_UPS
from tests.fused.graphed import graphs_of
from tests.helpers import randomise

DEVICE = "cuda"


def pair(fused=ghost_ops.FusedGhostBottleneck, *args: object, **options: object) -> tuple[nn.Module, nn.Module]:
    """A block with graphs and without."""
    block = randomise(fused(*(args or (16, 48, 24)), **(options or {"stride": 2, "se_ratio": 0.25}))).to(DEVICE)
    block = block.to(memory_format=torch.channels_last).train()
    return ghost_ops.fuse(copy.deepcopy(block), cuda_graph=True), block


def images(seed: int = 0, batch: int = 4, channels: int = 16, side: int = 18) -> torch.Tensor:
    x = torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    return x.to(memory_format=torch.channels_last).requires_grad_()


def step(module: nn.Module, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    out = module(x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, out.dtype)
    out.backward(torch.empty_like(out).copy_(grad))
    return out


def warm(*modules: nn.Module) -> None:
    for i in range(WARM_UPS + 1):
        for module in modules:
            step(module, images(i), i)
    for module in modules:
        module.zero_grad()


def assert_close(ours: torch.Tensor, twin: torch.Tensor, what: str) -> None:
    """As near as two runs of kernels that may sum in another order."""
    assert (ours - twin).float().norm() <= 1e-4 * twin.float().norm() + 1e-6, what


def assert_alike(ours: nn.Module, twin: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert_close(p, q, name)
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert_close(p.grad, q.grad, f"gradient of {name}")
    for (name, b), c in zip(ours.named_buffers(), twin.buffers(), strict=True):
        assert_close(b.float(), c.float(), name)


def test_a_block_follows_its_twin():
    ours, twin = pair()
    kept = []
    for i in range(WARM_UPS + 4):
        x, y = images(i), images(i)
        out, expected = step(ours, x, i), step(twin, y, i)
        assert_close(out, expected, "output")
        assert_close(x.grad, y.grad, "gradient of x")
        assert_alike(ours, twin)  # gradients add up
        assert {b.item() for name, b in ours.named_buffers() if "batches" in name} == {i + 1}
        kept += [(out.detach(), out.detach().clone()), (x.grad, x.grad.clone())]
    torch.cuda.synchronize()
    assert all(torch.equal(t, then) for t, then in kept)
    (graphs,) = graphs_of(ours)
    assert len(graphs) == 1
    assert "as a CUDA graph" in str(ghost_ops.explain(ours, images()).rows[0].runs)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_net_trains_as_without(dtype):
    net = randomise(ghost_ops.models.ghostnet_050()).to(DEVICE).to(memory_format=torch.channels_last).train()
    nets = {True: ghost_ops.fuse(copy.deepcopy(net), cuda_graph=True), False: ghost_ops.fuse(net)}
    losses = {}
    for graphed, fused in nets.items():
        optimizer = torch.optim.SGD(fused.parameters(), lr=1e-3, momentum=0.9)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
        losses[graphed] = []
        torch.manual_seed(0)  # for the dropout before the classifier
        for i in range(WARM_UPS + 4):
            for k in range(2):
                x = images(2 * i + k, 8, 3, 64).detach()
                with torch.autocast("cuda", dtype, enabled=dtype is not None):
                    loss = F.cross_entropy(fused(x), torch.arange(8, device=DEVICE))
                scaler.scale(loss / 2).backward()
                losses[graphed].append(loss.detach())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    ours, twin = torch.stack(losses[True]), torch.stack(losses[False])
    torch.testing.assert_close(ours, twin, rtol=3e-2 if dtype else 2e-3, atol=3e-2 if dtype else 2e-3)
    assert all(len(graphs) == 1 for graphs in graphs_of(nets[True]))


def test_forwards_before_backwards_and_backward_twice():
    ours, twin = pair()
    warm(ours, twin)
    for m in (ours, twin):
        first, second = m(images(1)), m(images(2))
        second.square().mean().backward()
        first.square().mean().backward()
        out = m(images(3))
        out.square().mean().backward(retain_graph=True)
        m(images(4)).square().mean().backward()
        out.pow(3).mean().backward()
    assert_alike(ours, twin)


def test_eval_without_gradients():
    ours, twin = pair()
    warm(ours, twin)
    for i in range(WARM_UPS + 3):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert_close(ours.eval()(images(i).detach()), twin.eval()(images(i).detach()), "output")
        step(ours.train(), images(i), i), step(twin.train(), images(i), i)
        assert_alike(ours, twin)
    assert len(graphs_of(ours)[0]) == 3


def test_streams():
    ours, twin = pair()
    warm(ours, twin)
    x = images(5)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for i in range(6):
        with torch.cuda.stream(streams[i % 3]):
            streams[i % 3].wait_stream(streams[(i - 1) % 3])  # gradients add up
            torch.cuda._sleep(1_000_000)
            step(ours, x, i)
        torch.cuda.current_stream().wait_stream(streams[i % 3])
    torch.cuda.synchronize()
    y = images(5)
    for i in range(6):
        step(twin, y, i)
    assert_alike(ours, twin)
    assert_close(x.grad, y.grad, "gradient of x")


def test_threads_with_streams_of_their_own():
    ours, twin = pair()
    ours.eval(), twin.eval()
    inputs = [images(i).detach() for i in range(4)]
    expected = [twin(x).detach() for x in inputs]
    torch.cuda.synchronize()
    wrong = []

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                out = ours(inputs[i])
                if not torch.allclose(out, expected[i], rtol=1e-3, atol=1e-3):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_capture_that_fails_leaves_the_device_as_it_was(monkeypatch):
    """Waiting for the device ends a capture; the rehearsal cannot see this one."""
    ours, twin = pair()
    run = graphed_step._Eager.run

    def waits(self: object, x: torch.Tensor) -> torch.Tensor:
        out = run(self, x)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()
        return out

    monkeypatch.setattr(graphed_step._Eager, "run", waits)
    warm(ours, twin)
    stream = torch.cuda.current_stream()
    assert "its capture failed" in ghost_ops.explain(ours, images()).rows[0].why
    for i in range(3):
        step(ours, images(i), i), step(twin, images(i), i)
    assert_alike(ours, twin)
    assert torch.cuda.current_stream() == stream
    monkeypatch.undo()
    other, third = pair()
    warm(other, third)
    assert len(graphs_of(other)[0]) == 1


def test_within_a_capture_of_the_users():
    ours, twin = pair()
    warm(ours, twin)
    x = images(7)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        ours(x)
    torch.cuda.current_stream().wait_stream(side)
    twin(x)
    with torch.cuda.graph(graph, stream=side), torch.no_grad():
        out = ours(x)
    graph.replay()
    assert_close(out, twin(x).detach(), "output")


def test_memory_is_given_back():
    ours, _ = pair(ghost_ops.FusedGhostBottleneck, 64, 256, 64)
    x = lambda: images(0, 32, 64, 56)
    for _ in range(WARM_UPS):
        step(ours, x())
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        step(ours, x())
    assert torch.cuda.memory_reserved() > before
    ghost_ops.fuse(ours, cuda_graph=False)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**21


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current_one():
    ours, twin = pair()
    ours.to("cuda:1"), twin.to("cuda:1")
    for i in range(WARM_UPS + 2):
        for m in (ours, twin):
            out = m(images(i).detach().to("cuda:1"))
            out.square().mean().backward()
    assert_alike(ours, twin)
    assert len(graphs_of(ours)[0]) == 1 and torch.cuda.current_device() == 0


@torch.no_grad()
def test_a_graphed_net_sees_settings_and_parameters():
    net = ghost_ops.fuse(randomise(ghost_ops.models.ghostnet_050()).eval().to(DEVICE))
    graphed = ghost_ops.fused.GraphedNet(net)
    x = images(0, 2, 3, 64).detach()
    assert_close(graphed(x), net(x), "output")
    with torch.autocast("cuda", torch.float16):
        out = graphed(x)
        assert out.dtype == torch.float16
        torch.testing.assert_close(out, net(x), rtol=2e-2, atol=2e-2)
    for p in net.parameters():
        p.data = p.data * 1.1
    assert_close(graphed(x), net(x), "output after other parameters")
    assert len(graphed._graphs) == 1
