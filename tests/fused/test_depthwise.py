"""The depthwise convolutions between a bottleneck's parts: by their operator where it serves, and only there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ghost_ops import fuse, use_backend
from ghost_ops.backends import native
from ghost_ops.fused import FusedGhostBottleneck
from ghost_ops.ops import depthwise

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .twins import assert_agree, plain_twin, run, why

BLOCKS = {
    "stride 2": {"in_chs": 6, "mid_chs": 12, "out_chs": 10, "stride": 2},
    "stride 2, k 5, SE": {
        "in_chs": 8, "mid_chs": 16, "out_chs": 9, "dw_kernel_size": 5, "stride": 2, "se_ratio": 0.25,
    },
    "stride 3, k 7": {"in_chs": 6, "mid_chs": 12, "out_chs": 10, "dw_kernel_size": 7, "stride": 3},
}  # fmt: skip
NAME = "stride 2, k 5, SE"
BY, PLAIN = ", depthwise on native", "its depthwise convolutions are plain PyTorch: "


def block(name=NAME, **options):
    return randomise(FusedGhostBottleneck(**BLOCKS[name], **options)).train()


def map_for(module, height=9, width=7, **options):
    return make_map((2, module.ghost1.primary_conv[0].in_channels, height, width), **options)


@pytest.fixture
def calls(monkeypatch):
    """The strides that the operator was called with, where a kernel ran it."""
    seen, run = [], depthwise.call_depthwise

    def recorded(decision, x, weight, bias, stride):
        if not decision.is_reference:
            seen.append(stride)
        return run(decision, x, weight, bias, stride)

    monkeypatch.setattr(depthwise, "call_depthwise", recorded)
    return seen


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_runs_and_agrees(name, memory, layout, calls):
    module = block(name, memory=memory)
    # what is left of a smaller map are so few values that each rounding shows in the statistics, PyTorch's too
    x, stride = map_for(module, 17, 14, layout=layout), BLOCKS[name]["stride"]
    assert BY in why(module, x)
    module(x.clone().requires_grad_()).sum().backward()
    assert calls == [stride] * (2 if memory == "balanced" else 4)  # twice in the forward, and again in the backward
    assert_agree(module, x, calls=2)
    with torch.no_grad():
        module(x)
        assert len(calls) >= 4
    assert_agree(module.eval(), x)  # gradients through running statistics
    assert BY in why(module, x)
    calls.clear()
    module(x)
    assert calls == [stride] * 2
    if native.available():
        assert_agree(module, x, backward=False)
        with torch.no_grad():
            assert why(module, x).startswith("as one block")


@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.ArticleBottleneck(8, 24, 12, 3, 2, True),
        lambda: zoo.HuaweiBottleneck(8, 20, 12, 5, 2, True),
        lambda: zoo.HuaweiBottleneck(8, 20, 12),
        lambda: zoo.YoloGhostBottleneck(8, 12, 3, 2),
    ],
)
def test_foreign_blocks(make, calls):
    module = fuse(randomise(make()).train())
    x = make_map((2, 8, 9, 7))
    assert_agree(module, x, calls=2)
    assert BY in why(module, x) and calls


def test_input_stays_as_it_is(calls):
    module = block()
    x = map_for(module)
    before = x.clone()
    module(x).sum().backward()
    assert torch.equal(x, before) and calls


CHANGES = {
    "hook": lambda m, path: m.get_submodule(path).register_forward_hook(lambda m, i, out: out * 2),
    "pre-hook": lambda m, path: m.get_submodule(path).register_forward_pre_hook(lambda m, i: (i[0] + 1,)),
    "parametrisation": lambda m, path: parametrize.register_parametrization(
        m.get_submodule(path), "weight", nn.Softplus()
    ),
    "pruned": lambda m, path: prune.l1_unstructured(m.get_submodule(path), "weight", 0.5),
    "dilation": lambda m, path: vars(m.get_submodule(path)).update(dilation=(2, 2), padding=(4, 4)),
    "padding mode": lambda m, path: vars(m.get_submodule(path)).update(
        padding_mode="reflect", _reversed_padding_repeated_twice=[2, 2, 2, 2]
    ),
    "stride of one axis": lambda m, path: vars(m.get_submodule(path)).update(stride=(2, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_acts_when_the_convolutions_are_called(change, calls):
    """Noticed on the next call, also after fused ones."""
    module = block()
    x = map_for(module)
    module(x)
    calls.clear()
    plain = plain_twin(module)
    for m in (module, plain):
        for path in ("conv_dw", "shortcut.0"):
            CHANGES[change](m, path)
    ours, eager = (run(m, x, True) for m in (module, plain))
    assert not calls and BY not in why(module, x)
    for what in ours:
        torch.testing.assert_close(ours[what], eager[what], rtol=1e-3, atol=1e-4, msg=what)


def test_geometry_that_changes_is_noticed(calls):
    module = block("stride 2")
    x = map_for(module)
    module(x)
    for path in ("conv_dw", "shortcut.0"):
        module.get_submodule(path).stride = (3, 3)
    plain = plain_twin(module)
    ours, eager = (run(m, x, True) for m in (module, plain))
    assert ours["output"].shape[2:] == (3, 3) and calls == [2, 2, 3, 3]
    for what in ours:
        torch.testing.assert_close(ours[what], eager[what], rtol=1e-3, atol=1e-4, msg=what)


def test_a_global_hook_is_called(calls):
    module = block()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, out: seen.append(m))
    try:
        module(map_for(module))
    finally:
        handle.remove()
    assert not calls and module.conv_dw in seen and module.shortcut[0] in seen


def test_biases(calls):
    module = block()
    for path, owner in (("conv_dw", module), ("0", module.shortcut)):
        old = owner.get_submodule(path)
        conv = nn.Conv2d(old.in_channels, old.in_channels, 5, 2, 2, groups=old.in_channels)
        owner._modules[path] = randomise(conv, 3)
    for module.memory in ("balanced", "low"):
        assert_agree(module, make_map((3, 8, 17, 14)), calls=2)
    assert len(calls) >= 8


def test_kernels_that_no_kernel_takes(calls):
    module = randomise(FusedGhostBottleneck(6, 12, 10, dw_kernel_size=9, stride=2)).train()
    x = map_for(module)
    assert_agree(module, x)
    assert not calls and why(module, x).startswith("its parts in turn: it is in training mode; " + PLAIN)
    assert "this one is 9" in why(module, x)


def test_other_dtypes_and_backends(calls):
    module = block()
    x = map_for(module)
    assert_agree(module.double(), x.double())
    assert "float64" in why(module, x.double()).split(PLAIN)[1]
    with use_backend("reference"):
        module.float()(x)
        if native.available():
            assert "the reference backend was asked for" in why(module, x)
    if native.available():
        assert not calls
    assert_agree(module.bfloat16(), x.bfloat16())
    assert calls


def test_dtypes_that_do_not_fit_are_pytorchs_errors():
    module = block()
    module.conv_dw.double()
    with pytest.raises(RuntimeError, match="type"):
        module(map_for(module))
    module = block()
    module.conv_dw.weight.data = module.conv_dw.weight.data[:-1]
    with pytest.raises(RuntimeError):
        module(map_for(module))


@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_autocast(memory, calls):
    """In the dtype of ``F.conv2d``; a block whose input has another runs plainly, as before."""
    module = block(memory=memory)
    plain, x = plain_twin(module), map_for(module)
    for seen, served in ((x.bfloat16(), True), (x, False)):
        calls.clear()
        with torch.autocast("cpu", torch.bfloat16):
            ours, eager = module(seen), plain(seen)
            assert (BY in why(module, seen)) == served == bool(calls)
        assert_as_accurate(ours, eager, plain_twin(module).double()(seen.double()))
        ours.float().square().sum().backward()
        assert module.conv_dw.weight.grad.dtype is torch.float32
        module.zero_grad()


def test_parameters_without_gradients(calls):
    module = block()
    x = map_for(module)
    whole = run(copy.deepcopy(module), x, True)
    module.conv_dw.weight.requires_grad_(False)
    module.shortcut[0].weight.requires_grad_(False)
    alone = run(module, x, True)
    assert module.conv_dw.weight.grad is None and calls
    for what, result in alone.items():
        assert torch.equal(result, whole[what]), what


def test_function_transforms_and_double_backward(calls):
    module = block().eval()  # whose statistics no transform would let it update
    x = map_for(module)
    buffers = dict(module.named_buffers())
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters, m):
        return torch.func.functional_call(m, (parameters, buffers), (x,)).square().sum()

    grads, expected = (torch.func.grad(loss)(parameters, m) for m in (module, plain_twin(module)))
    assert not calls
    for name in grads:
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-3, atol=1e-3)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_with_the_operator(dynamic):
    torch._dynamo.reset()
    module, targets = block(), []

    def backend(graph, inputs):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    x = map_for(module)
    out = torch.compile(module, fullgraph=True, backend=backend, dynamic=dynamic)(x)
    torch.testing.assert_close(out, plain_twin(module)(x), rtol=1e-4, atol=1e-4)
    assert sum("ghost_ops.depthwise" in t for t in targets) == 2


def test_empty_batches_pass(calls):
    module = block().eval()
    x = map_for(module)[:0].requires_grad_()
    assert module(x).shape == (0, 9, 5, 4)
