"""When a block's CUDA graphs are captured and what they return: rules on emulated graphs, beside a twin without."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from ghost_ops.fused import graphed_block, graphed_step
from ghost_ops.fused.behaviour import block_of
from ghost_ops.fused.graphed_block import MOST_GRAPHS, WARM_UPS

from .graphed import assert_equal, graphs_of, images, pair, replays, step, warm, why

# When a graph is captured, and what the capture leaves alone


def test_steps_follow_the_twin_to_the_bit(device):
    ours, twin = pair()
    for i in range(WARM_UPS + 3):
        x, y = images(i, grad=True), images(i, grad=True)
        count = replays(device, lambda x=x, i=i: step(ours, x, i))
        out = step(twin, y, i)
        assert count == (0 if i < WARM_UPS else 2)
        assert torch.equal(x.grad, y.grad) and out.requires_grad
        assert_equal(ours, twin)  # gradients add up from step to step
    assert device.captures == 2 and len(graphs_of(ours)) == 1


def test_a_capture_moves_no_buffer_and_no_generator(device):
    ours, _ = pair()
    x = images(grad=True)
    warm(ours, calls=WARM_UPS)
    before = {name: b.clone() for name, b in ours.named_buffers()}
    state = torch.get_rng_state()
    (graphs,) = graphs_of(ours)
    call = graphs._look(block_of(ours), ours, x)
    graphed_step.capture_step(ours, x, call.state, True, graphs.pool)
    assert device.captures == 2 and not device.replays
    assert all(torch.equal(b, before[name]) for name, b in ours.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in ours.parameters())


def test_a_replay_tells_that_running_statistics_have_changed(device):
    """What remembers a value by its tensor's version would keep the old one."""
    ours, _ = pair()
    warm(ours)
    versions = {name: b._version for name, b in ours.named_buffers()}
    assert replays(device, lambda: step(ours, images(grad=True))) == 2
    assert all(b._version > versions[name] for name, b in ours.named_buffers())


def test_a_shape_that_is_rare_is_not_worth_a_graph(device):
    ours, twin = pair()
    for _ in range(WARM_UPS + 2):
        for i in range(graphed_block.WINDOW):
            for m in (ours, twin):
                step(m, images(i, 3 if i else 2, grad=True))
    assert len(graphs_of(ours)[0]) == 1
    assert_equal(ours, twin)
    for i in range(WARM_UPS + 1):
        step(ours, images(i, 2, grad=True))
    assert len(graphs_of(ours)[0]) == 2


def test_least_recently_used_graphs_are_dropped_when_the_device_is_done(device):
    ours, twin = pair()
    sizes = range(2, 2 + MOST_GRAPHS + 2)
    (graphs,) = graphs_of(ours)
    device.device_is_idle = False
    for batch in sizes:
        warm(ours, twin, batch=batch)
        assert len(graphs) <= MOST_GRAPHS
    dropped = [weakref.ref(old) for old, _ in graphs.pool._dropped]
    gc.collect()
    assert len(dropped) == 2 and all(old() is not None for old in dropped)
    for event in device.events:
        event.done = True
    step(ours, images(0, sizes[-1], grad=True))
    gc.collect()
    assert all(old() is None for old in dropped)
    assert replays(device, lambda: step(ours, images(0, sizes[0], grad=True))) == 0
    assert replays(device, lambda: step(ours, images(0, sizes[-1], grad=True))) == 2


# What is returned stays as it is


def test_results_are_not_written_by_later_replays(device):
    ours, _ = pair()
    warm(ours)
    kept = []
    for i in range(3):
        x = images(i, grad=True)
        before = len(device.replays)
        out = step(ours, x, i)
        assert len(device.replays) == before + 2  # although the output before, with its autograd node, is still held
        tensors = [out, x.grad, *(p.grad for p in ours.parameters())]
        kept += [(t, t.detach().clone()) for t in tensors]
        ours.zero_grad()
    assert all(torch.equal(t, then) for t, then in kept)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_and_zero_grad(set_to_none, device):
    ours, twin = pair()
    warm(ours, twin)
    for i in range(3):
        for m in (ours, twin):
            m.zero_grad(set_to_none=set_to_none)
            step(m, images(2 * i, grad=True), 2 * i)
            step(m, images(2 * i + 1, grad=True), 2 * i + 1)
        assert_equal(ours, twin)


def test_autograd_grad_and_retain_grad(device):
    ours, twin = pair()
    warm(ours, twin)
    found = []
    for m in (ours, twin):
        x = images(1, grad=True)
        inner = x * 1
        inner.retain_grad()
        out = m(inner)
        out.retain_grad()
        (of_x,) = torch.autograd.grad(out.pow(3).sum(), [x], retain_graph=True)
        of_weights = torch.autograd.grad(out.square().sum(), [*m.parameters()], retain_graph=True)
        out.square().mean().backward()
        found.append([of_x, *of_weights, inner.grad, out.grad, x.grad])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert_equal(ours, twin)


def test_gradients_of_parameters_share_memory_but_not_with_that_of_the_input(device):
    ours, _ = pair()
    warm(ours)
    x = images(grad=True)
    step(ours, x)
    storages = {p.grad.untyped_storage().data_ptr() for p in ours.parameters()}
    assert len(storages) == 1 and x.grad.untyped_storage().data_ptr() not in storages
    spans = sorted((p.grad.data_ptr(), p.grad.numel() * 4) for p in ours.parameters())
    assert all(start + size <= following for (start, size), (following, _) in pairwise(spans))
    assert all(start % 64 == spans[0][0] % 64 for start, _ in spans)


# Two forwards before a backward, and forwards without one


def test_a_second_forward_before_the_backward(device):
    ours, twin = pair()
    warm(ours, twin)
    for m in (ours, twin):
        first, second = m(images(1, grad=True)), m(images(2, grad=True))
        (first.square().mean() + second.pow(3).mean()).backward()
    assert_equal(ours, twin)
    assert replays(device, lambda: step(ours, images(grad=True))) == 2


@pytest.mark.parametrize("end", ["dropped", "an error", "detached"])
def test_a_forward_without_a_backward_blocks_no_later_one(end, device):
    ours, twin = pair()
    warm(ours, twin)
    for m in (ours, twin):
        if end == "an error":
            with pytest.raises(ZeroDivisionError):
                m(images(1, grad=True)).sum() / (1 // 0)
        else:
            out = m(images(1, grad=True))
            out = out.detach() if end == "detached" else None
    assert replays(device, lambda: step(ours, images(2, grad=True))) == 2
    step(twin, images(2, grad=True))
    assert_equal(ours, twin)


def test_explain_tells_of_a_forward_that_waits(device):
    ours, _ = pair()
    warm(ours)
    out = ours(images())
    out = ours(images(1, grad=True))
    assert "an earlier forward still waits for its backward" in why(ours, images(grad=True))
    del out
    assert "as a CUDA graph" in why(ours, images(grad=True))


def test_backward_twice(device):
    ours, twin = pair()
    warm(ours, twin)
    for m in (ours, twin):
        out = m(images(1, grad=True))
        out.square().sum().backward(retain_graph=True)
        m(images(2, grad=True)).square().sum().backward()  # the graph is another's now, so this one runs without
        out.square().mean().backward()
        with pytest.raises(RuntimeError, match="second time"):
            out.square().sum().backward()
    assert_equal(ours, twin)
    assert replays(device, lambda: step(ours, images(grad=True))) == 2


def test_double_backward_is_refused(device):
    ours, _ = pair()
    warm(ours)
    x = images(grad=True)
    (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_change_between_forward_and_backward_raises(device):
    ours, _ = pair()
    warm(ours)
    out = ours(images(grad=True))
    with torch.no_grad():
        ours.ghost1.primary_conv[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    del out
    out = ours(images(grad=True))
    for p in ours.parameters():
        p.data = p.data.clone()
    with pytest.raises(RuntimeError, match="got other memory between forward and backward"):
        out.sum().backward()
    step(ours, images(grad=True))
    norm = ours.ghost1.primary_conv[1]
    warm(ours.eval())
    out = ours(images(grad=True))
    norm.running_mean.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_streams_take_turns(device):
    ours, _ = pair()
    warm(ours)
    step(ours, images(grad=True))
    assert not device.waits
    device.current = "other"
    out = ours(images(grad=True))
    assert device.waits == [("other", "main")]
    device.current = "third"
    out.sum().backward()
    assert device.waits[1:] == [("third", "other")]
