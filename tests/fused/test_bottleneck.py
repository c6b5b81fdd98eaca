"""Ghost bottlenecks: plain, fused, and wrapped around the article's and timm's structure."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ghost_ops import fused as gfused
from ghost_ops.fused import BottleneckParts, FusedGhostBottleneck, FusedGhostModule
from ghost_ops.nn import GhostBottleneck
from ghost_ops.surgery import revert

from ..helpers import assert_as_accurate, make_map, randomise
from ..zoo import ArticleBottleneck
from .twins import assert_agree, plain_twin, why

BLOCKS = {
    "identity shortcut": {"in_chs": 8, "mid_chs": 20, "out_chs": 8},
    "channels change": {"in_chs": 6, "mid_chs": 12, "out_chs": 10, "dw_kernel_size": 5},
    "SE": {"in_chs": 8, "mid_chs": 20, "out_chs": 8, "se_ratio": 0.25},
    "stride 2": {"in_chs": 6, "mid_chs": 12, "out_chs": 10, "stride": 2},
    "stride 2, SE": {"in_chs": 6, "mid_chs": 14, "out_chs": 9, "dw_kernel_size": 5, "stride": 2, "se_ratio": 0.25},
}
ALL = pytest.mark.parametrize("name", BLOCKS)
X = (2, 8, 7, 9)


def block(name, training=False):
    return randomise(FusedGhostBottleneck(**BLOCKS[name])).train(training)


def map_for(name, **options):
    return make_map((2, BLOCKS[name]["in_chs"], 7, 9), **options)


@ALL
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_agrees(name, training, layout):
    module, x = block(name, training), map_for(name, layout=layout)
    assert_agree(module, x)
    assert_agree(module, x, backward=False)
    with torch.no_grad():
        if training:
            by = "" if name in ("identity shortcut", "SE") else ", depthwise on native"
            assert why(module, x) == f"its parts in turn{by}: it is in training mode"
        else:
            assert why(module, x) == "as one block, by program_eval on native"
    if not training:
        assert "gradients are wanted" in why(module, x)


@ALL
def test_keys_are_those_of_timm(name):
    ghostnet = pytest.importorskip("timm.models.ghostnet")
    theirs = randomise(ghostnet.GhostBottleneck(**BLOCKS[name]), seed=4).eval()
    for kind in (GhostBottleneck, FusedGhostBottleneck):
        ours = kind(**BLOCKS[name]).eval()
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict(), strict=True)
        x = map_for(name)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(name, dtype):
    module = block(name).to(dtype)
    assert_agree(module, map_for(name, dtype=dtype), backward=False)


@ALL
def test_autocast_gives_the_plain_dtype(name):
    module, x = block(name), map_for(name)
    plain = plain_twin(module)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for v in (x, x.bfloat16()):
            ours, eager = module(v), plain(v)
            with torch.autocast("cpu", enabled=False):
                exact = plain_twin(module).double()(v.double())
            assert_as_accurate(ours, eager, exact)


PATHS = ["ghost1", "ghost2", "se", "conv_dw", "bn_dw", "shortcut.0", "shortcut.3", "ghost1.primary_conv.0",
         "ghost2.cheap_operation", "se.conv_reduce"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_hooks_between_the_parts_run(path):
    module, x = block("stride 2, SE"), map_for("stride 2, SE")
    plain = plain_twin(module)
    with torch.no_grad():
        module(x)
        for m in (module, plain):
            m.get_submodule(path).register_forward_hook(lambda m, i, out: out * 2 + 1)
        torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-4)


def test_frozen_and_training_parts():
    module, x = block("stride 2, SE"), map_for("stride 2, SE")
    with torch.no_grad():
        for path in ("ghost1", "bn_dw", "shortcut", "ghost2"):
            module.eval().get_submodule(path).train()
            assert_agree(module, x, backward=False, calls=2)
    module.train()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    assert_agree(module, x)


def test_parameters_that_need_no_gradient_run_as_one_block():
    module, x = block("SE"), map_for("SE")
    assert why(module, x).startswith("its parts")
    module.requires_grad_(False)
    assert why(module, x).startswith("as one block")
    assert_agree(module, x, backward=False)
    v = x.clone().requires_grad_()
    assert why(module, v).startswith("its parts")


@pytest.mark.parametrize("use_se", [True, False])
@pytest.mark.parametrize("inp, stride", [(8, 1), (6, 1), (8, 2)])
def test_wraps_the_articles_structure(inp, stride, use_se):
    source = randomise(ArticleBottleneck(inp, 12, 8, 3, stride, use_se))
    keys = list(source.state_dict())
    for i in (0, 3):
        parts = dataclasses.replace(gfused.FusedGhostModule(1, 2).parts(), out_channels=source.conv[i].oup)
        FusedGhostModule.wrap(source.conv[i], parts)
    if use_se:
        gfused.FusedSELayer.wrap(source.conv[2], gfused.FusedSELayer(4).parts())
    parts = BottleneckParts("conv.0", "conv.3", ("conv.1",), "conv.2" if use_se else None, ("shortcut",))
    module = FusedGhostBottleneck.wrap(source, parts)
    assert list(module.state_dict()) == keys
    x = make_map((2, inp, 7, 9))
    for training in (True, False):
        assert_agree(module.train(training), x)
        assert_agree(module, x, backward=False)
    with torch.no_grad():
        assert why(module, x).startswith("as one block"), why(module, x)
        module.conv.append(nn.Softplus())
        assert why(module, x).startswith("its parts")
        assert_agree(module, x, backward=False)
    twin = copy.deepcopy(module)
    assert revert(twin).conv is twin.conv and twin.conv is not module.conv
    assert type(twin) is ArticleBottleneck and type(module) is not ArticleBottleneck


def test_parts_that_are_not_fused_run_in_turn():
    source = randomise(GhostBottleneck(**BLOCKS["SE"])).eval()
    plain, x = copy.deepcopy(source), map_for("SE")
    module = FusedGhostBottleneck.wrap(source, FusedGhostBottleneck.parts(source))
    with torch.no_grad():
        assert "expected FusedGhostModule children, found a GhostModule" in why(module, x)
        assert torch.equal(module(x), plain(x))
    source = plain
    with pytest.raises(ValueError, match="got 'ghost3'"):
        FusedGhostBottleneck.wrap(source, BottleneckParts("ghost1", "ghost3"))
    with pytest.raises(TypeError, match="expected BottleneckParts"):
        FusedGhostBottleneck.wrap(source, None)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training, layout):
    torch._dynamo.reset()
    name = "stride 2, SE"
    module = block(name, training)
    plain = plain_twin(module)
    with torch.set_grad_enabled(training):
        ours = torch.compile(module, fullgraph=True, backend="aot_eager")(map_for(name, layout=layout))
        torch.testing.assert_close(ours, plain(map_for(name, layout=layout)), rtol=1e-4, atol=1e-4)


def test_input_is_not_altered_and_empty_batches_pass():
    module, x = block("SE"), map_for("SE")
    before = x.clone()
    with torch.no_grad():
        module(x)
        assert torch.equal(x, before)
        assert module(x[:0]).shape == (0, 8, 7, 9)
