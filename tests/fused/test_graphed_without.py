"""Calls of a block that no CUDA graph can hold run without one: on emulated graphs, beside a twin without."""

import re

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ghost_ops import fuse
from ghost_ops.fused import graph, graphed_step
from ghost_ops.fused.behaviour import block_of
from ghost_ops.fused.errors import NotNow
from ghost_ops.fused.graph import Capturable
from ghost_ops.fused.graphed_block import WARM_UPS
from ghost_ops.nn import SyncBatchNorm

from ..helpers import make_map
from .graphed import assert_equal, graphs_of, images, pair, replays, step, warm, why

# Python that must run


HOOKS = {
    "forward hook": lambda m, seen: m.register_forward_hook(lambda *args: seen.append(1)),
    "pre-hook": lambda m, seen: m.register_forward_pre_hook(lambda *args: seen.append(1)),
    "backward hook": lambda m, seen: m.register_full_backward_hook(lambda *args: seen.append(1)),
}


@pytest.mark.parametrize("place", ["", "ghost1", "ghost1.primary_conv.0", "conv_dw"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_modules_run(name, place, device):
    ours, twin = pair()
    warm(ours, twin)
    seen, expected = [], []
    handles = [HOOKS[name](m.get_submodule(place), s) for m, s in ((ours, seen), (twin, expected))]
    for i in range(WARM_UPS + 2):
        x, y = images(i, grad=True), images(i, grad=True)
        count = replays(device, lambda x=x, i=i: step(ours, x, i))
        step(twin, y, i)
        assert seen == expected and len(seen) == i + 1
        assert (count > 0) == (not place)
        assert torch.equal(x.grad, y.grad)
        assert_equal(ours, twin)
    if place:
        assert "carries hooks" in why(ours, images(grad=True))
    for handle in handles:
        handle.remove()
    assert replays(device, lambda: step(ours, images(grad=True))) == 2


def test_hooks_of_parameters_run_and_once(device):
    ours, twin = pair()
    calls = []
    for m in (ours, twin):
        weights = [*m.parameters()]
        weights[0].register_hook(lambda grad: calls.append("before") or grad * 2)
        weights[1].register_post_accumulate_grad_hook(lambda p: calls.append("after"))
    for i in range(WARM_UPS + 3):
        for m in (ours, twin):
            calls.clear()
            step(m, images(i, grad=True), i)
            assert sorted(calls) == ["after", "before"]
        assert_equal(ours, twin)
    assert len(device.replays) == 6


def test_parametrised_children_run(device):
    ours, twin = pair()
    warm(ours, twin)

    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for m in (ours, twin):
        nn.utils.parametrize.register_parametrization(m.ghost1.primary_conv[0], "weight", Double())
    for i in range(WARM_UPS + 2):
        assert replays(device, lambda i=i: step(ours, images(i, grad=True), i)) == 0
        step(twin, images(i, grad=True), i)
        assert_equal(ours, twin)
    assert "is parametrised" in why(ours, images(grad=True))


def test_functional_call(device):
    ours, twin = pair()
    warm(ours, twin)
    found = []
    for m in (ours, twin):
        values = {name: (2 * p).detach().requires_grad_() for name, p in m.named_parameters()}
        scaled = {name: p * 1 for name, p in values.items()}
        for i in range(WARM_UPS + 2):
            torch.func.functional_call(m, scaled, images(i, grad=True)).square().sum().backward(retain_graph=True)
        found.append([p.grad for p in values.values()])
        assert all(p.grad is None for p in m.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert_equal(ours, twin)


def test_function_transforms(device):
    ours, twin = pair()
    warm(ours, twin)
    before = len(device.replays)
    found = []
    for m in (ours, twin):
        m.eval()
        parameters = dict(m.named_parameters())
        loss = lambda p, x, m=m: torch.func.functional_call(m, p, x).square().sum()
        found.append(torch.func.grad(loss)(parameters, images(1)))
    assert len(device.replays) == before
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant, device):
    ours, twin = pair()
    warm(ours, twin)
    for i in range(WARM_UPS + 3):
        for m in (ours, twin):
            checkpoint(m, images(i, grad=True), use_reentrant=use_reentrant).square().sum().backward()
        assert_equal(ours, twin)


def test_modes_that_see_operations_see_them(device):
    from torch.utils.flop_counter import FlopCounterMode

    ours, twin = pair()
    warm(ours, twin)
    counts = []
    for m in (ours, twin):
        with FlopCounterMode(display=False) as mode:
            step(m, images(grad=True))
        counts.append(mode.get_total_flops())
    assert counts[0] == counts[1] > 0
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert replays(device, lambda: step(ours, images(grad=True))) == 0
    with torch.device("cpu"):
        assert replays(device, lambda: step(ours, images(grad=True))) == 2


def test_within_a_capture_of_the_callers(device):
    ours, twin = pair()
    device.in_capture = True
    warm(ours, twin)
    assert not device.captures and "a graph around it is being captured" in why(ours, images(grad=True))
    device.in_capture = False
    warm(ours, twin)
    assert device.captures == 2
    device.in_capture = True
    assert replays(device, lambda: step(ours, images(grad=True))) == 0


@pytest.mark.parametrize("training", [True, False])
def test_compile_and_export_trace_what_is_inside(training, device):
    ours, twin = pair()
    warm(ours, twin)
    if not training:
        ours.eval(), twin.eval()
        program = torch.export.export(ours, (images(1),))
        torch.testing.assert_close(program.module()(images(1)), twin(images(1)))
    before = len(device.replays)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for i in range(WARM_UPS + 2):
        step(compiled, images(i, grad=True), i)
        step(twin, images(i, grad=True), i)
    assert len(device.replays) == before
    for p, q in zip(ours.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad)


# What no graph can hold


def test_memory_low(device):
    ours, twin = pair()
    for m in (ours, twin):
        fuse(m, memory="low")
    warm(ours, twin, calls=6)
    assert not device.captures and "it recomputes in the backward" in why(ours, images(grad=True))
    fuse(ours, memory="balanced")
    warm(ours)
    assert device.captures == 2
    fuse(ours, memory="low")
    assert replays(device, lambda: step(ours, images(grad=True))) == 0


def test_synchronised_batch_norm(device):
    ours = SyncBatchNorm.convert_sync_batchnorm(pair()[0])
    warm(ours, calls=6)
    assert not device.captures and "the statistics of all processes" in why(ours, images(grad=True))


@pytest.mark.parametrize("kind", ["random", "value", "size", "device", "tuple", "none", "error"])
def test_what_a_block_does_that_no_graph_can_hold(kind, device, monkeypatch):
    """The rehearsal or the capture finds it, and the calls go on without a graph."""
    ours, twin = pair()

    def run(module, x):
        out = block_of(module).run(module, x)
        if kind == "random":
            return out * torch.rand_like(out).gt(-1)
        if kind == "value":
            return out * (1 if out.sum().item() == out.sum().item() else 2)
        if kind == "size":
            return out * (1 if len(out.nonzero()) else 2)
        if kind == "device":
            return out * (1 + 0 * len(torch.empty(3, device="meta")))
        if kind == "tuple" and graph.capturing.locked():
            return out, out
        if kind == "none":
            return out.detach() + 0 * module.ghost1.primary_conv[0].weight.sum()
        if kind == "error" and device.is_capturing():
            raise RuntimeError("out of memory\nand more")
        return out

    monkeypatch.setattr(graphed_step._Eager, "run", lambda self, x: run(self.module, x))
    x = images(grad=True)
    warm(ours, twin)
    assert not device.replays and not len(graphs_of(ours)[0])
    said = {
        "random": r"it draws random numbers \(aten::rand",
        "value": r"what it does depends on values \(aten::_local_scalar_dense\)",
        "size": r"what it does depends on values \(aten::nonzero\)",
        "device": r"it makes a tensor on meta \(aten::empty",
        "tuple": "it returns a tuple, not a tensor",
        "none": "one of its parameters, or its input, gets no gradient",
        "error": r"its capture failed: RuntimeError: out of memory$",
    }
    assert re.search(said[kind], why(ours, x)), why(ours, x)
    captures = device.captures
    warm(ours, twin)
    assert device.captures == captures  # it is not tried again and again
    assert_equal(ours, twin)


def test_inputs_that_no_graph_can_hold(device):
    ours, twin = pair()
    for x in (images(batch=1).expand(3, -1, -1, -1), images()[:, :, ::2]):
        for m in (ours, twin):
            for _ in range(WARM_UPS + 2):
                m(x).square().sum().backward()
        assert_equal(ours, twin)
    assert "elements of its input share their memory" in why(ours, images(batch=1).expand(3, -1, -1, -1))
    with pytest.raises(Exception, match="channels"):
        ours(make_map((2, 5, 7, 7)))
    with pytest.raises((TypeError, AttributeError)):
        ours("x")


def test_a_tensor_beside_parameters_and_buffers(device):
    ours, twin = pair()
    warm(ours, twin)
    ours.ghost1.extra = torch.ones(1)
    warm(ours, twin)
    assert "neither a parameter nor a buffer" in why(ours, images(grad=True))
    assert_equal(ours, twin)


def test_attributes_that_go_or_cannot_be_compared(device):
    ours, twin = pair()
    ours.ghost1.note = (1, 2)
    warm(ours, twin)
    del ours.ghost1.note
    ours.ghost1.other = 4  # as many as before
    warm(ours, twin, calls=WARM_UPS + 2)
    assert replays(device, lambda: step(ours, images(grad=True))) == 2
    ours.ghost1.other = (1, [])
    assert replays(device, lambda: step(ours, images(grad=True))) == 0
    assert "an attribute of one of its modules cannot be compared" in why(ours, images(grad=True))
    step(twin, images(grad=True))
    step(twin, images(grad=True))
    assert_equal(ours, twin)


def test_what_capturable_refuses():
    for make in (lambda: torch.rand(2), lambda: torch.ones(1).item(), lambda: torch.ones(2).nonzero()):
        with pytest.raises(NotNow), Capturable(torch.device("cpu")):
            make()
    with Capturable(torch.device("cpu")):
        torch.ones(2).add_(1)
    x = torch.ones(2, device="meta")
    with Capturable(x.device):
        torch.where(x > 0, x, 0.5) * torch.scalar_tensor(2.0)
        with pytest.raises(NotNow, match=r"it makes a tensor on cpu \(aten::"):
            torch.empty_like(x[0], device="cpu")
        with pytest.raises(NotNow, match=r"it makes a tensor on cpu \(aten::ones"):
            torch.ones(2)
