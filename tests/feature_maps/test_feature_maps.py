"""Similarities against NumPy's correlation, what the cheap operation makes, pairs, and the picture."""

import numpy as np
import pytest
import torch
from torch import nn

from ghost_ops.bench.cases import randomise
from ghost_ops.feature_maps import feature_maps, ghosts_of, similarities
from ghost_ops.nn import GhostModule, GhostModuleV2, GhostModuleV3, RepGhostModule


@pytest.mark.parametrize("seed", range(4))
def test_similarity_is_the_absolute_correlation(seed):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(2, 9, 3))
    maps = (generator.normal(size=shape) + generator.normal()) * 10.0 ** generator.integers(-8, 8, (shape[0], 1, 1))
    expected = np.abs(np.corrcoef(maps.reshape(shape[0], -1)))
    found = similarities(torch.from_numpy(maps))
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_a_batch_norm_and_a_sign_change_nothing_and_a_constant_map_is_like_no_map():
    maps = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([2.0, -3.0, 0.1, -1.0, 5.0, 1.0])[:, None, None]
    torch.testing.assert_close(similarities(maps), similarities(maps * scale + 0.5), rtol=0, atol=1e-5)
    maps[2], maps[4] = 0, 7.1
    found = similarities(maps)
    assert not found[[2, 4]].any() and not found[:, [2, 4]].any() and found.diagonal().sum() == 4


@pytest.mark.parametrize("oup, ratio", [(16, 2), (13, 2), (12, 4), (11, 3)])
def test_each_cheap_map_is_of_the_map_that_it_names(oup, ratio):
    """Where a primary map alone is changed, just those maps change that are made from it, and itself."""
    net = randomise(nn.Sequential(GhostModule(3, oup, ratio=ratio, relu=False))).eval()
    x = torch.randn(1, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    found = feature_maps(net, x)
    assert found.layer == "0" and found.count == oup
    torch.testing.assert_close(found.maps, net(x)[0].double(), rtol=0, atol=0)
    for channel in range(found.ghosts.primary):
        changed = randomise(nn.Sequential(GhostModule(3, oup, ratio=ratio, relu=False))).eval()
        with torch.no_grad():
            changed[0].primary_conv[0].weight[channel] += 1
        differs = (changed(x)[0] != net(x)[0]).flatten(1).any(1).nonzero().flatten().tolist()
        assert differs == [channel, *(link.second for link in found.links() if link.first == channel)]


def test_which_modules_have_ghosts():
    made, _ = ghosts_of(GhostModuleV2(8, 16).eval())
    assert (made.primary, made.each, made.kept) == (8, 1, 16)
    assert ghosts_of(GhostModuleV3(8, 16).eval())[0] == made
    assert ghosts_of(RepGhostModule(8, 16).eval())[0] is None  # it adds its halves
    assert ghosts_of(GhostModule(8, 16, ratio=1).eval())[0] is None
    assert ghosts_of(nn.Conv2d(3, 4, 1)) == (None, "")


def test_pairs_are_the_most_similar_and_share_no_map():
    net = randomise(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU())).eval()
    with torch.no_grad():
        net[0].weight[7], net[0].bias[7] = -2 * net[0].weight[3], 1.0
    found = feature_maps(net, torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    assert found.layer == "0" and found.links() == [] and found.ghosts is None
    pairs = found.pairs(4)
    assert (pairs[0].first, pairs[0].second) == (3, 7) and pairs[0].similarity > 0.999 and found.alike >= 2
    assert len({channel for pair in pairs for channel in (pair.first, pair.second)}) == 8
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)
    assert len(found.pairs(100)) == 4 and found.pairs(0) == []


def test_what_is_refused():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1), nn.Flatten()).eval(), torch.ones(1, 3, 4, 4)
    for layer, words in (("3", "expected the name of a module"), ("1", "a single map"), ("2", "returns no map")):
        with pytest.raises(ValueError, match=words):
            feature_maps(net, x, layer)
    with pytest.raises(ValueError, match="x: expected one image"):
        feature_maps(net, torch.ones(2, 3, 4, 4))
    with pytest.raises(ValueError, match="expected a convolution"):
        feature_maps(nn.Identity(), x)
    with pytest.raises(TypeError, match="net: expected"):
        feature_maps(len, x)
    with pytest.raises(TypeError, match="x: expected a tensor"):
        feature_maps(net, None)
    with pytest.raises(ValueError, match="C x H x W"):
        similarities(x)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("module", [GhostModule(3, 20, ratio=3), nn.Conv2d(3, 40, 1)], ids=["ghost", "plain"])
def test_the_picture_has_the_maps_of_the_pairs(module, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from ghost_ops.feature_maps.plot import _groups, plot

    x = torch.randn(1, 3, 10, 14, generator=torch.Generator().manual_seed(0))
    found = feature_maps(randomise(nn.Sequential(module)).eval(), x)
    wanted = [channel for pair in found.pairs(5) for channel in (pair.first, pair.second)]
    drawn = [channel for group in _groups(found, wanted, 6) for channel in group]
    assert set(wanted) <= set(drawn) and len(set(drawn)) == len(drawn)
    image = torch.rand(10, 14, 3)
    for name in ("maps.png", "maps.svg"):
        count = plot(found, tmp_path / name, image=image, title="a net", pairs=5, most=6)
        assert count == len(drawn)
    picture = Image.open(tmp_path / "maps.png").convert("RGB")
    assert min(picture.size) > 300 and len(picture.getcolors(2**24)) > 50
    assert "<svg" in (tmp_path / "maps.svg").read_text()[:500]
    with pytest.raises(ValueError, match="pairs: expected 0 to 8, got 9"):
        plot(found, tmp_path / "x.png", image=image, title="", pairs=9)
