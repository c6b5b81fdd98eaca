"""Whole nets trained with emulated graphs: to the bit as without, and as unfused nets to rounding."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from ghost_ops import explain, fuse, revert
from ghost_ops.fused.graphed_block import WARM_UPS

from ..helpers import make_map
from .graphed import assert_equal, graphs_of, images, make_block, make_net, pair, step, warm

STEPS = WARM_UPS + 4


def batch(seed: int, size: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return make_map((size, 3, 17, 17), seed=seed), (torch.arange(size) + seed) % 5


def train(net, steps=STEPS, accumulate=1, last=3, autocast=None, after=lambda net, step: None) -> torch.Tensor:
    """SGD with momentum; ``after`` is called after each step. Returns the losses."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for i in range(steps):
        for k in range(accumulate):
            x, labels = batch(accumulate * i + k, last if i % 3 == 2 else 3)
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                loss = F.cross_entropy(net(x), labels)
            (loss.float() / accumulate).backward()
            losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
        after(net, i)
    return torch.stack(losses)


def assert_trains_alike(device, **options) -> None:
    net = make_net()
    ours, twin = fuse(copy.deepcopy(net), cuda_graph=True), fuse(copy.deepcopy(net))
    assert torch.equal(train(ours, **options), train(twin, **options))
    assert_equal(ours, twin)
    assert device.replays


def test_as_an_unfused_net(device):
    ours = fuse(make_net(), cuda_graph=True)
    plain = revert(copy.deepcopy(ours))
    assert not graphs_of(plain)
    torch.testing.assert_close(train(ours), train(plain), rtol=2e-3, atol=2e-3)
    for (name, p), q in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-2, atol=2e-2, msg=name)
    assert len(device.replays) == 2 * 3 * (STEPS - WARM_UPS)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps(accumulate, device):
    assert_trains_alike(device, accumulate=accumulate)


def test_a_smaller_last_batch(device):
    assert_trains_alike(device, last=2, steps=12)
    assert len(device.replays) < 12 * 6


def test_autocast(device):
    assert_trains_alike(device, autocast=torch.bfloat16)


def test_eval_between_epochs(device):
    """Evaluation has graphs of its own, which see what training has changed."""
    outputs = []

    def evaluate(net, i):
        net.eval()
        with torch.no_grad():
            outputs.append([net(batch(40 + k)[0]) for k in range(3)])
        net.train()

    assert_trains_alike(device, steps=8, after=evaluate)
    half = len(outputs) // 2
    for ours, theirs in zip(outputs[:half], outputs[half:]):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(device.replays) > 8 * 6  # some of them in eval


@pytest.mark.parametrize("swap", ["copy", "data"])
def test_moving_average(swap, device):
    """An average of the weights, evaluated as a net of its own and swapped into the net that trains."""
    averages, outputs = [], []

    def average(net, i):
        if i == 0:
            averages.append(AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True))
        averages[-1].update_parameters(net)
        averages[-1].eval()
        with torch.no_grad():
            outputs.append(averages[-1](batch(50)[0]))
        if i % 4 == 3:
            kept = [p.detach().clone() for p in net.parameters()]
            pointers = [p.data for p in net.parameters()]
            with torch.no_grad():
                for p, q in zip(net.parameters(), averages[-1].module.parameters()):
                    if swap == "copy":
                        p.copy_(q)
                    else:
                        p.data = q.data
                outputs.append(net.eval()(batch(51)[0]))
                for p, value, data in zip(net.parameters(), kept, pointers):
                    if swap == "copy":
                        p.copy_(value)
                    else:
                        p.data = data
            net.train()

    assert_trains_alike(device, steps=9, after=average)
    half = len(outputs) // 2
    assert all(torch.equal(a, b) for a, b in zip(outputs[:half], outputs[half:], strict=True))


def test_update_bn(device):
    net = make_net()
    ours, twin = fuse(copy.deepcopy(net), cuda_graph=True), fuse(copy.deepcopy(net))
    for m in (ours, twin):
        train(m)
        update_bn([batch(i)[0] for i in range(6)], m)
    assert_equal(ours, twin)


def test_explain_tells_from_when_on_blocks_run_as_graphs(device):
    net = fuse(make_net(), cuda_graph=True)
    x = batch(0)[0]
    rows = lambda: {row.name: f"{row.runs}: {row.why}" for row in explain(net, x).rows}
    assert "its graph is captured after 3 calls like this one, of which 0 were made" in rows()["blocks.0"]
    train(net, steps=2)
    assert "of which 2 were made" in rows()["blocks.1"]
    train(net, steps=3)
    found = rows()
    assert all("as a CUDA graph" in found[f"blocks.{i}"] for i in range(3))
    assert not any("CUDA graph" in found[name] for name in ("blocks.0.ghost1", "blocks.0.se", "blocks.1.conv.3"))
    before = {name: b.clone() for name, b in net.named_buffers()}
    rows()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


@pytest.mark.parametrize("threads", [4])
def test_threads_that_call_one_net(threads, device):
    """Each gets the output that it would get alone, and gradients of all add up."""
    ours, twin = pair(lambda: make_block().eval().double())
    x = [make_map((2, 8, 5, 7), torch.float64, seed=i) for i in range(threads)]
    expected = [twin(v).detach() for v in x]
    for _ in range(10):
        for v in x:
            twin(v).square().sum().backward()
    wrong = []

    def work(i):
        for _ in range(10):
            out = ours(x[i])
            if not torch.allclose(out, expected[i], rtol=1e-12, atol=1e-12):
                wrong.append(i)
            out.square().sum().backward()

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and device.captures
    for p, q in zip(ours.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-9)


def test_graphs_of_two_blocks_whose_steps_interleave(device):
    """The backward of one overwrites nothing that the other keeps for its own, in any order."""
    (a, other_a), (b, other_b) = pair(), pair()
    for m in (a, b):
        fuse(m, cuda_graph=False)
    together = torch.nn.ModuleList([a, b])
    fuse(together, cuda_graph=True)
    assert len({id(g.pool) for g in graphs_of(together)}) == 1
    warm(a, b, other_a, other_b)
    for m, n in ((a, b), (other_a, other_b)):
        first, second = m(images(1, grad=True)), n(images(2, grad=True))
        first.square().sum().backward()
        step(m, images(3, grad=True))
        with torch.no_grad():
            m(images(4))
        second.square().sum().backward()
    assert_equal(a, other_a)
    assert_equal(b, other_b)
