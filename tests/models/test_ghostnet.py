import hashlib

import pytest
import torch

from ghost_ops import models
from ghost_ops.fused import FusedGhostBottleneck
from ghost_ops.nn import GhostBottleneck

from ..helpers import assert_as_accurate, make_map, randomise

NAMES = ("ghostnet_050", "ghostnet_100", "ghostnet_130")

# SHA-256 of "key shape" of every entry of timm 1.0's state_dicts, line by line: of use where timm is not installed.
KEYS = {
    "ghostnet_050": "97e6d989bd7216e8ade2a0a616c463417b25722c5ecaf40837996e75f1bddb95",
    "ghostnet_100": "da8e52c4749dc56e49a857bdb42ffa79fef3b844101ca02f3a1fbd3320bcce1a",
    "ghostnet_130": "c0b0a1ea2567db284ff596d3728c2d279a04785f0ad160480610696bddb695c0",
}


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [False, True])
def test_keys_and_shapes_are_timms(name, fused):
    state = getattr(models, name)(fused=fused, device="meta").state_dict()
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(text.encode()).hexdigest() == KEYS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [False, True])
def test_timm_state_dicts_load_both_ways(name, fused):
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model(name, num_classes=7, in_chans=4)).eval()
    ours = getattr(models, name)(num_classes=7, in_chans=4, fused=fused).eval()
    x = make_map((2, 4, 64, 64))
    with torch.no_grad():
        wanted = theirs(x)
        assert relative(ours(x), wanted) > 0.1
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert relative(ours(x), wanted) < 1e-5
        fresh = randomise(timm.create_model(name, num_classes=7, in_chans=4), seed=1).eval()
        fresh.load_state_dict(ours.state_dict(), strict=True)
        assert relative(fresh(x), wanted) < 1e-5


def test_training_is_timms():
    """In float64: what differs is rounding, which small batches and many BatchNorms magnify; some gradients are 0."""
    timm = pytest.importorskip("timm")
    theirs = randomise(timm.create_model("ghostnet_050", num_classes=3, drop_rate=0.0)).train().double()
    ours = models.ghostnet_050(num_classes=3, dropout=0.0, dtype=torch.float64).train()
    ours.load_state_dict(theirs.state_dict())
    x = make_map((4, 3, 64, 64), torch.float64)
    results = []
    for net in (ours, theirs):
        net(x).square().sum().backward()
        results.append({name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        other = results[1][key]
        assert torch.equal(value, other) or (value - other).norm() <= 1e-6 * other.norm() + 1e-12, key


@pytest.mark.parametrize("shortcut_relu", [False, True])
def test_fused_net_is_as_accurate_as_the_plain_one(shortcut_relu):
    plain = randomise(models.ghostnet_050(num_classes=5, shortcut_relu=shortcut_relu)).eval()
    fused = models.ghostnet_050(num_classes=5, fused=True, shortcut_relu=shortcut_relu).eval()
    fused.load_state_dict(plain.state_dict())
    x = make_map((2, 3, 64, 64))
    with torch.no_grad():
        wanted = plain(x)
        ours = fused(x)
        exact = plain.double()(x.double())
    assert_as_accurate(ours, wanted, exact)


def test_structure():
    net = models.ghostnet_100(fused=True, device="meta")
    assert sum(isinstance(m, FusedGhostBottleneck) for m in net.modules()) == 16
    assert sum(isinstance(m, GhostBottleneck) for m in models.ghostnet_100(device="meta").modules()) == 16
    assert 5.1e6 < sum(p.numel() for p in net.parameters()) < 5.3e6  # 5.2 M, table 7 of the paper


def test_any_image_size_and_no_classifier():
    net = models.ghostnet_050(num_classes=0).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 37, 50)).shape == (1, 1280)
        assert net.forward_features(torch.randn(1, 3, 65, 33)).shape == (1, 480, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width: expected a positive number, got 0"),
        ({"num_classes": -1}, "num_classes: expected at least 0, got -1"),
        ({"in_chans": 0}, "in_chans: expected at least 1, got 0"),
        ({"dropout": 1.5}, "dropout: expected a probability, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.GhostNet(**arguments)


def test_pickles_find_the_last_stage_where_it_was():
    from ghost_ops.models import _staged, ghostnet

    with pytest.warns(DeprecationWarning, match=r"ghost_ops\.models\._staged\._ConvBnAct now"):
        assert ghostnet._ConvBnAct is _staged._ConvBnAct
