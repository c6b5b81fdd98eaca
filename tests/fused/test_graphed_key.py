"""What the CUDA graphs of a block depend on, and how they live: on emulated graphs, beside a twin without."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from ghost_ops import freeze, fuse, revert, use_backend
from ghost_ops.fused.behaviour import block_of
from ghost_ops.fused.graphed_block import WARM_UPS

from .. import zoo
from ..helpers import make_map, randomise
from .graphed import assert_equal, graphs_of, images, make_block, make_net, pair, replays, step, warm, why

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


def test_fused_again_nothing_changes():
    """Layers inside of a block that is fused already are the block's."""
    net = fuse(make_net())
    kinds = [type(module) for module in net.modules()]
    assert [type(module) for module in fuse(net).modules()] == kinds


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
        for m in (other, twin):
            step(m, images(i), i)
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
