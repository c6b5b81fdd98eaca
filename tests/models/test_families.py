"""GhostNetV2, GhostNetV3 and RepGhostNet: keys, counts and results of timm's nets; fused and frozen as these."""

import copy
import hashlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ghost_ops
from ghost_ops.models import MODELS, ghostnetv2, ghostnetv3, repghostnet
from ghost_ops.surgery import tally

from ..helpers import assert_as_accurate, make_map, randomise, relative_difference

NAMES = [name for name in MODELS if name.startswith(("ghostnetv2", "ghostnetv3", "repghostnet"))]

# Millions of parameters, and of multiply-adds at 224 x 224, of the articles and their repositories; 0 where they have
# none. The articles cut digits off: 7.36 M is 7.3 M there.
COUNTS = {
    "ghostnet_050": (2.6, 42),
    "ghostnet_100": (5.2, 141),
    "ghostnet_130": (7.3, 226),
    "ghostnetv2_100": (6.1, 167),
    "ghostnetv2_130": (8.9, 269),
    "ghostnetv2_160": (12.3, 399),
    "repghostnet_050": (2.3, 43),
    "repghostnet_058": (2.5, 60),
    "repghostnet_080": (3.3, 96),
    "repghostnet_100": (4.1, 142),
    "repghostnet_111": (4.5, 170),
    "repghostnet_130": (5.5, 231),
    "repghostnet_150": (6.6, 301),
    "repghostnet_200": (9.8, 516),
}

# The first half of the SHA-256 of the sorted "key shape" lines of timm 1.0's state_dicts, with branches and merged.
KEYS = {
    "ghostnetv2_100": ("c50e4bd1c58b8c88a1f6dcd9a9e90abe", None),
    "ghostnetv3_100": (
        "cf1150e62adbedca0de344f78bd396c8",
        "2b3f9042afcec5a3ef6c7aec770db5eb",
    ),
    "repghostnet_100": (
        "23a4cd6f14b2599bb0a908ab48842646",
        "2ca09fad09de18508f5cd67f480b3d86",
    ),
}


KINDS = {
    "ghostnetv2": (ghostnetv2, ghostnetv2.GhostNetV2),
    "ghostnetv3": (ghostnetv3, ghostnetv3.GhostNetV3),
    "repghostnet": (repghostnet, repghostnet.RepGhostNet),
}


def shapes(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def merged(net):
    net = copy.deepcopy(net)
    net.reparameterize()
    return net


def small(name):
    """A narrow net of ours and timm's, with the same weights, and the statistics of a batch."""
    pytest.importorskip("timm")
    from timm.models import ghostnet, repghost

    module, kind = KINDS[name]
    cfgs = [list(map(list, stage)) for stage in module.STAGES]
    if name == "repghostnet":
        theirs = repghost.RepGhostNet(cfgs, 5, 0.25, drop_rate=0.0)
    else:
        theirs = ghostnet.GhostNet(cfgs, 5, 0.25, drop_rate=0.0, version=name.removeprefix("ghostnet"))
    ours = kind(0.25, 5, dropout=0.0)
    norms = [m for m in randomise(theirs).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:  # over drawn statistics sums of branches grow until no digit is left
        norm.momentum = 1.0
    with torch.no_grad():
        theirs.train()(make_map((8, 3, 64, 64), seed=1))
    for norm in norms:
        norm.momentum = 0.1
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.fixture
def short(monkeypatch):
    """Nets of five bottlenecks: with stride and without, with squeeze-and-excite, and in V2 and V3 with attention."""
    for module, _ in KINDS.values():
        monkeypatch.setattr(module, "STAGES", module.STAGES[:5])


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_timms(name):
    timm = pytest.importorskip("timm")
    net = MODELS[name](device="meta")
    assert shapes(net) == shapes(timm.create_model(name, device="meta"))


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_timm_where_it_is_not_installed(name):
    def digest(net):
        text = "\n".join(sorted(f"{key} {shape}" for key, shape in shapes(net).items()))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    net, (with_branches, without) = MODELS[name](device="meta"), KEYS[name]
    assert digest(net) == with_branches
    if without is not None:
        net.reparameterize()
        assert digest(net) == without


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_articles(name):
    net, (parameters, multiply_adds) = MODELS[name](device="meta").eval(), COUNTS[name]
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 224, 224, device="meta"))
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
    assert counter.get_total_flops() / 2e6 == pytest.approx(multiply_adds, abs=1.1)


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_timms(name):
    ours, theirs = small(name)
    x = make_map((2, 3, 96, 64))
    with torch.no_grad():
        wanted = theirs.eval()(x)
        assert relative_difference(ours.eval()(x), wanted) < 1e-5
        fresh = type(ours)(0.25, 5).eval()
        assert relative_difference(fresh(x), wanted) > 0.1
        assert ours.forward_features(x).shape == theirs.forward_features(x).shape


@pytest.mark.parametrize("name", KINDS)
def test_training_is_timms(name):
    """In float64: what differs is rounding, which small batches and many BatchNorms magnify; some gradients are 0."""
    ours, theirs = small(name)
    x, results = make_map((4, 3, 64, 64), torch.float64), []
    for net in (ours.double().train(), theirs.double().train()):
        net(x).square().sum().backward()
        results.append({name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        other = results[1][key]
        assert (value - other).double().norm() <= 1e-6 * other.double().norm() + 1e-12, key


@pytest.mark.parametrize("name", ["ghostnetv3", "repghostnet"])
def test_merged_nets_are_timms(name):
    from timm.models import reparameterize_model

    ours, theirs = small(name)
    ours.eval()
    x = make_map((2, 3, 64, 64))
    deployed, of_timm = merged(ours), reparameterize_model(theirs.eval())
    assert shapes(deployed) == shapes(of_timm) == shapes(reparameterize_model(ours))
    assert sum(p.numel() for p in deployed.parameters()) < sum(p.numel() for p in ours.parameters())
    assert not any(m.training for m in deployed.modules())
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(x.double())
        assert relative_difference(deployed(x), exact.float()) < 1e-5
        assert_as_accurate(deployed(x), of_timm(x), exact)
        deployed.load_state_dict(of_timm.state_dict(), strict=True)
        assert relative_difference(deployed(x), of_timm(x)) < 1e-5
    again = merged(deployed)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), deployed.state_dict().values()))


@pytest.mark.parametrize("name", KINDS)
def test_fuse_takes_what_it_takes_of_timms(name, short):
    ours, theirs = (ghost_ops.fuse(net.eval()) for net in small(name))
    assert tally(ours) == tally(theirs) and not tally(ours).left
    built = KINDS[name][1](0.25, 5, fused=True)
    assert tally(built) == tally(ours)
    x = make_map((2, 3, 64, 64))
    with torch.no_grad():
        plain, _ = small(name)
        exact = copy.deepcopy(plain).eval().double()(x.double())
        assert_as_accurate(ours(x), plain.eval()(x), exact)


@pytest.mark.parametrize("name", KINDS)
def test_freeze_makes_one_program(name, short):
    net, _ = small(name)
    frozen = ghost_ops.freeze(net.eval())
    assert sum(isinstance(m, ghost_ops.fused.FrozenProgram) for m in frozen.modules()) == 1
    x = make_map((2, 3, 64, 96))
    with torch.no_grad():
        assert_as_accurate(frozen(x), net(x), copy.deepcopy(net).double()(x.double()))


@pytest.mark.parametrize("name", ["ghostnetv3", "repghostnet"])
def test_merging_a_fused_net(name, short):
    net, _ = small(name)
    x = make_map((2, 3, 64, 64))
    with torch.no_grad():
        wanted = net.eval()(x)
        ghost_ops.fuse(net)
        net(x)
        net.reparameterize()
        assert relative_difference(net(x), wanted) < 1e-5
