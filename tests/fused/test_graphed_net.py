"""Inference as a graph (``GraphedNet``, ``freeze(net, cuda_graph=True)``) on emulated graphs."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

from ghost_ops import freeze, fuse, use_backend
from ghost_ops.fused import GraphedNet
from ghost_ops.fused.frozen_state import STATE
from ghost_ops.fused.graphed import Graphs

from ..helpers import make_map
from .graphed import make_net


@pytest.fixture
def net():
    return fuse(make_net()).eval()


def images(seed: int = 0, size: int = 2) -> torch.Tensor:
    return make_map((size, 3, 17, 17), seed=seed)


def captures(device, call) -> int:
    before = device.captures
    call()
    return device.captures - before


@torch.no_grad()
def test_results_are_those_of_the_net_and_stay(net, device):
    graphed = GraphedNet(net)
    kept = [(graphed(images(i)), net(images(i))) for i in range(4)]
    assert all(torch.equal(a, b) for a, b in kept) and device.captures == 1 and len(device.replays) == 4
    assert captures(device, lambda: graphed(images(0, 3))) == 1


def _data(net):
    for p in net.parameters():
        p.data = 2 * p.data


CHANGES = {
    "parameters elsewhere": _data,
    "assigned": lambda net: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}, assign=True),
    "a replaced parameter": lambda net: setattr(net.head, "weight", nn.Parameter(2 * net.head.weight)),
    "a replaced module": lambda net: net.blocks.__setitem__(2, nn.Identity()),
    "a module in training mode": lambda net: net.blocks[0].train(),
    "an attribute": lambda net: setattr(net.blocks[0].ghost1.primary_conv[1], "eps", 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(name, net, device):
    graphed = GraphedNet(net)
    graphed(images())
    CHANGES[name](net)
    twin = copy.deepcopy(net)
    assert captures(device, lambda: graphed(images())) == 1
    if name != "a module in training mode":
        assert torch.equal(graphed(images(1)), twin(images(1)))
    assert len(graphed._graphs) == (1 if name in list(CHANGES)[:4] else 2)


@torch.no_grad()
def test_attributes_that_go_or_cannot_be_compared(net, device):
    net.note, net.head.note = (1, 2), 3
    graphed = GraphedNet(net)
    graphed(images())
    del net.head.note
    net.head.other = 4  # as many as before
    for expected in (0, 1, 0):
        assert captures(device, lambda: graphed(images())) == expected
    net.note = ([], 2)
    assert captures(device, lambda: graphed(images())) == 0
    assert torch.equal(graphed(images(1)), net(images(1)))


@torch.no_grad()
def test_values_that_change_in_place_are_read(net, device):
    graphed = GraphedNet(net)
    graphed(images())
    net.head.weight.mul_(2)
    assert captures(device, lambda: graphed(images())) == 0
    assert torch.equal(graphed(images(1)), net(images(1)))


@pytest.mark.parametrize("name", ["autocast", "backend", "TF32", "inference"])
def test_a_setting_is_seen(name, net, device):
    graphed = GraphedNet(net)
    graphed(images())
    before = torch.backends.cudnn.allow_tf32
    try:
        if name == "TF32":
            torch.backends.cudnn.allow_tf32 = not before
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"),
            use_backend("reference" if name == "backend" else None),
            torch.inference_mode() if name == "inference" else torch.no_grad(),
        ):
            assert captures(device, lambda: graphed(images())) == 1
            out = graphed(images(1))
            assert torch.equal(out, net(images(1)))
            assert out.is_inference() == (name == "inference")
    finally:
        torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def test_a_graph_whose_replay_may_still_run_is_kept(net, device):
    graphed = GraphedNet(net, most=1)
    device.device_is_idle = False
    graphed(images())
    old = weakref.ref(next(iter(graphed._graphs._graphs.values())).input)
    graphed(images(0, 3))
    gc.collect()
    assert len(graphed._graphs) == 1 and old() is not None
    device.events[0].done = True
    device.replays.clear()
    graphed(images(0, 3))
    gc.collect()
    assert old() is None
    graphed.to(torch.float64)
    assert len(graphed._graphs) == 0
    assert torch.equal(graphed(images().double()), net(images().double()))


@torch.no_grad()
def test_streams_captures_and_copies(net, device):
    graphed = GraphedNet(net)
    graphed(images())
    device.current = "other"
    graphed(images())
    assert device.waits == [("other", "main")]
    device.in_capture = True
    count = len(device.replays)
    assert torch.equal(graphed(images(1)), net(images(1))) and len(device.replays) == count
    device.in_capture = False
    for twin in (copy.deepcopy(graphed), pickle.loads(pickle.dumps(graphed))):
        assert len(twin._graphs) == 0 and torch.equal(twin(images(1)), net(images(1)))
    with pytest.raises(TypeError, match="must return a tensor, got a tuple"):
        GraphedNet(Two().eval())(images())


class Two(nn.Module):
    def forward(self, x):
        return x, x


@torch.no_grad()
def test_frozen(device):
    net = make_net().eval()
    frozen, expected = freeze(net), freeze(net)
    state = frozen.__dict__[STATE]
    state.graphs = Graphs()
    state.attach(frozen)
    for i in range(3):
        assert torch.equal(frozen(images(i)), expected(images(i)))
    assert device.captures == 1 and len(device.replays) == 3
    frozen.float()
    assert len(state.graphs) == 0
    assert torch.equal(frozen(images(5)), expected(images(5)))
    with torch.autocast("cpu", torch.bfloat16):
        assert captures(device, lambda: frozen(images(6))) == 1
