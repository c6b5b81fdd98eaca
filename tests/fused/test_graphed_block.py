"""What a block that is replayed as CUDA graphs must not get wrong: rules on emulated graphs, beside a twin without."""

import copy
import gc
import pickle
import re
import weakref
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ghost_ops import explain, freeze, fuse, revert, use_backend
from ghost_ops.fused import graph, graphed_block, graphed_step
from ghost_ops.fused.behaviour import block_of
from ghost_ops.fused.errors import NotNow
from ghost_ops.fused.graph import Capturable
from ghost_ops.fused.graphed_block import MOST_GRAPHS, WARM_UPS
from ghost_ops.nn import SyncBatchNorm

from .. import zoo
from ..helpers import make_map, randomise
from .emulated_graph import EmulatedGraphs
from .graphed import assert_equal, graphs_of, images, make_block, make_net, pair, step, warm


@pytest.fixture
def device(monkeypatch):
    """Graphs of the CPU."""
    emulated = EmulatedGraphs()
    monkeypatch.setattr(graph, "device_graphs", emulated)
    return emulated


def why(module, x, name="") -> str:
    """What ``explain`` says of the module, in its mode."""
    row = next(row for row in explain(module, x).rows if row.name == name)
    return f"{row.runs}: {row.why}"


def replays(device, call) -> int:
    before = len(device.replays)
    call()
    return len(device.replays) - before


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


# What a graph depends on


def _point_elsewhere(module):
    for p in module.parameters():
        p.data = p.data.clone()


def _assign(module):
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)


def _replace(module):
    conv = module.ghost1.primary_conv[0]
    conv.weight = nn.Parameter(conv.weight.detach().clone())


def _new_buffer(module):
    norm = module.ghost1.primary_conv[1]
    norm.running_mean = norm.running_mean.clone()


CHANGES = {
    "parameters elsewhere": _point_elsewhere,
    "assigned": _assign,
    "a replaced parameter": _replace,
    "a replaced buffer": _new_buffer,
    "to and fro": lambda module: module.double().float(),
    "eval": lambda module: module.eval(),
    "one BatchNorm in eval": lambda module: module.ghost1.primary_conv[1].eval(),
    "momentum": lambda module: setattr(module.ghost1.primary_conv[1], "momentum", 0.5),
    "eps": lambda module: setattr(module.ghost1.primary_conv[1], "eps", 0.1),
    "a frozen parameter": lambda module: module.ghost1.primary_conv[0].weight.requires_grad_(False),
    "another activation": lambda module: module.ghost1.primary_conv.__setitem__(2, nn.Hardswish()),
    "double": lambda module: module.double(),
}


MOVED = ("parameters elsewhere", "assigned", "a replaced parameter", "a replaced buffer", "to and fro", "double")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name, device):
    ours, twin = pair()
    warm(ours, twin)
    for m in (ours, twin):
        CHANGES[name](m)
    x = images(9, grad=True)
    x = x.detach().double().requires_grad_() if name == "double" else x
    for i in range(WARM_UPS + 2):
        count = replays(device, lambda i=i: step(ours, x, i))
        step(twin, x, i)
        assert (count > 0) == (i >= WARM_UPS), graphs_of(ours)[0]._refused
        assert_equal(ours, twin)
    assert len(graphs_of(ours)[0]) == (1 if name in MOVED else 2)  # graphs over memory that is gone are dropped


@pytest.mark.parametrize("name", ["batch", "stride", "dtype", "input without gradient", "no gradients", "inference"])
def test_another_kind_of_call_is_seen(name, device):
    ours, twin = pair()
    warm(ours, twin)
    x = images(9, grad=True)
    if name == "batch":
        x = images(9, 4, grad=True)
    elif name == "stride":
        x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    elif name == "dtype":
        x = x.detach().bfloat16().requires_grad_()
        ours.bfloat16(), twin.bfloat16()
    elif name == "input without gradient":
        x = x.detach()
    mode = {"no gradients": torch.no_grad, "inference": torch.inference_mode}.get(name)
    for i in range(WARM_UPS + 2):
        if mode is None:
            count = replays(device, lambda i=i: step(ours, x, i))
            step(twin, x, i)
        else:
            with mode():
                before = len(device.replays)
                out, expected = ours(x), twin(x)
                count = len(device.replays) - before
            assert torch.equal(out, expected) and not out.requires_grad
            assert out.is_inference() == expected.is_inference()
        assert (count > 0) == (i >= WARM_UPS), graphs_of(ours)[0]._refused
        assert_equal(ours, twin)


SETTINGS = {
    "cudnn.benchmark": (torch.backends.cudnn, "benchmark"),
    "cudnn.deterministic": (torch.backends.cudnn, "deterministic"),
    "cudnn.enabled": (torch.backends.cudnn, "enabled"),
    "TF32 of products": (torch.backends.cuda.matmul, "allow_tf32"),
    "TF32 of convolutions": (torch.backends.cudnn, "allow_tf32"),
    "float16 sums": (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    "bfloat16 sums": (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_chooses_kernels_is_seen(name, device):
    ours, _ = pair()
    owner, attribute = SETTINGS[name]
    before = getattr(owner, attribute)
    setattr(owner, attribute, before)  # what was never set reads otherwise
    warm(ours)
    setattr(owner, attribute, not before)
    try:
        assert replays(device, lambda: step(ours, images(grad=True))) == 0
    finally:
        setattr(owner, attribute, before)
    assert replays(device, lambda: step(ours, images(grad=True))) == 2


def test_a_backend_that_is_asked_for_is_seen(device):
    ours, _ = pair()
    warm(ours)
    with use_backend("reference"):
        assert replays(device, lambda: step(ours, images(grad=True))) == 0
    torch.use_deterministic_algorithms(True)
    try:
        assert replays(device, lambda: step(ours, images(grad=True))) == 0
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_is_seen_and_its_cache_is_not_part_of_a_graph(device):
    ours, twin = pair()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, twin)]
    warm(ours, twin)
    for i in range(WARM_UPS + 3):
        with torch.autocast("cpu", torch.bfloat16):
            before, outs = len(device.replays), []
            for m in (ours, twin):
                m(images(i, 2))  # fills the cache with casts of the parameters, which the capture must not take
                outs.append(m(images(i, grad=True)))
            assert torch.equal(*outs) and outs[0].dtype == torch.bfloat16
        for out, optimizer in zip(outs, optimizers):
            out.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (len(device.replays) > before) == (i >= WARM_UPS)
        assert_equal(ours, twin)


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
    _point_elsewhere(ours)
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


# Life of a net


def test_without_a_device_nets_train_and_explain_says_why():
    ours, twin = pair()
    warm(ours, twin, calls=6)
    for m in (ours, twin):
        step(m, images(grad=True))
    assert_equal(ours, twin)
    assert "not as a CUDA graph, since its input is on cpu, and a CUDA graph needs a CUDA device" in why(ours, images())


@pytest.mark.parametrize("value", ["yes", 1, 0.0, [True]])
def test_bad_values(value):
    with pytest.raises(TypeError, match=r"fuse: cuda_graph: expected True, False or None, got "):
        fuse(make_block(), cuda_graph=value)


def test_fuse_again_and_revert(device):
    ours, twin = pair()
    warm(ours, twin)
    fuse(ours)
    fuse(ours, cuda_graph=True)
    assert len(graphs_of(ours)[0]) == 1
    assert replays(device, lambda: step(ours, images(grad=True))) == 2
    gone = weakref.ref(next(iter(graphs_of(ours)[0]._graphs.values())))
    fuse(ours, cuda_graph=False)
    gc.collect()
    assert gone() is None and not graphs_of(ours)
    assert replays(device, lambda: step(ours, images(grad=True))) == 0
    fuse(ours, cuda_graph=True)
    warm(ours)
    revert(ours)
    assert replays(device, lambda: step(ours, images(grad=True))) == 0
    assert type(ours) is zoo.HuaweiBottleneck


def test_only_the_outermost_blocks_have_graphs_and_share_a_pool(device):
    net = fuse(make_net(), cuda_graph=True)
    graphs = graphs_of(net)
    assert len(graphs) == 3 and len({id(g.pool) for g in graphs}) == 1
    assert block_of(net.blocks[0]).graphs is graphs[0] and block_of(net.blocks[0].ghost1).graphs is None


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_have_graphs_of_their_own(way, device):
    net = fuse(make_net(), cuda_graph=True)
    images = lambda seed: make_map((2, 3, 17, 17), seed=seed)
    for i in range(WARM_UPS + 1):
        net(images(i)).sum().backward()
    net.zero_grad()
    other = copy.deepcopy(net) if way == "deepcopy" else pickle.loads(pickle.dumps(net))
    twin = fuse(copy.deepcopy(net), cuda_graph=False)
    assert [len(g) for g in graphs_of(net)] == [1, 1, 1] and [len(g) for g in graphs_of(other)] == [0, 0, 0]
    assert len({id(g.pool) for g in (*graphs_of(other), *graphs_of(net))}) == 2
    for i in range(WARM_UPS + 1):
        other(images(i)).sum().backward()
        twin(images(i)).sum().backward()
    assert [len(g) for g in graphs_of(other)] == [1, 1, 1]
    assert_equal(other, twin)
    assert net.state_dict().keys() == twin.state_dict().keys()


def test_a_move_frees_graphs(device):
    ours, _ = pair()
    warm(ours)
    ours.to(torch.float32)
    assert len(graphs_of(ours)[0]) == 0


def test_a_block_that_is_called_twice_in_a_net(device):
    block = randomise(zoo.HuaweiBottleneck(8, 16, 8))
    net, twin = (nn.Sequential(b, nn.ReLU(), b) for b in (copy.deepcopy(block), copy.deepcopy(block)))
    fuse(net, cuda_graph=True), fuse(twin)
    for i in range(8):
        step(net, images(i, grad=True), i)
        step(twin, images(i, grad=True), i)
        assert_equal(net, twin)
    assert device.replays


def test_frozen_copies_have_none(device):
    net = fuse(make_net(), cuda_graph=True).eval()
    frozen = freeze(net)
    assert not graphs_of(frozen) and graphs_of(net)


def test_data_parallel_replicas_run_without(device):
    ours, twin = pair()
    warm(ours, twin)
    before = len(device.replays)
    for m in (ours, twin):
        replica = m._replicate_for_data_parallel()
        children = {id(m): replica}
        for name, child in m.named_modules():
            if name:
                parent = m.get_submodule(name.rpartition(".")[0])
                children[id(child)] = copied = child._replicate_for_data_parallel()
                copied._parameters = dict(child._parameters)
                children[id(parent)]._modules[name.rpartition(".")[2]] = copied
        for i in range(3):
            step(replica, images(i, grad=True), i)
    assert len(device.replays) == before
    assert_equal(ours, twin)
