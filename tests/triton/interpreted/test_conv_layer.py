"""Convolution layers in training as programs: outputs, gradients and running statistics against their plain twins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import conv_layer
from ghost_ops.fused.behaviour import is_fused
from ghost_ops.ops.program_train import MEMORY
from tests.fused.twins import assert_agree, plain_twin, run, why
from tests.helpers import make_map, randomise

from .drawn import few_tiles

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _few_tiles(monkeypatch):
    """Small maps in float32 go to the kernels too."""
    monkeypatch.setattr(conv_layer, "slower", lambda layer, x: None)
    with few_tiles():
        yield


class Conv(nn.Module):
    """As YOLO has it."""

    def __init__(self, *args, act=nn.SiLU, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)
        self.bn = nn.BatchNorm2d(self.conv.out_channels)
        self.act = act()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


def a_layer(*args, act=nn.ReLU, memory="balanced", **kwargs):
    conv = nn.Conv2d(*args, **kwargs)
    layer = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), *[] if act is None else [act()])
    ghost_ops.fuse(layer, memory=memory)
    assert is_fused(layer)
    return randomise(layer).train()


FIRST = [
    ((3, 5, 3, 2, 1), {}, (2, 3, 7, 6)),
    ((1, 6, 3, 1, 1), {"act": nn.Hardswish}, (2, 1, 4, 5)),
    ((2, 4, 5, 4, 2), {"act": None, "bias": True}, (1, 2, 13, 12)),
    ((4, 17, 2, 2, 0), {"act": nn.PReLU}, (2, 4, 6, 4)),
]


@pytest.mark.parametrize("layouts", [("nchw", None), ("channels_last", LAST), ("nchw", LAST)])
@pytest.mark.parametrize(("args", "kwargs", "shape"), FIRST)
def test_first_convolutions(args, kwargs, shape, layouts):
    layout, of_net = layouts
    layer, x = a_layer(*args, **kwargs), make_map(shape, torch.float32, layout)
    layer = layer if of_net is None else layer.to(memory_format=of_net)
    assert "program_train" in why(layer, x)
    assert_agree(layer, x, of_input=False)
    ours, theirs = layer(x), plain_twin(layer)(x)
    assert ours.stride() == theirs.stride() or x.shape[1] == 1  # PyTorch sees no layout in one channel
    assert layer[0].weight.grad.stride() == layer[0].weight.stride()


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_pointwise(layout):
    layer, x = a_layer(6, 11, 1, act=nn.SiLU), make_map((2, 6, 5, 4), torch.float32, layout)
    assert "program_train" in why(layer, x)
    assert_agree(layer, x, calls=2 if layout == "nchw" else 1)


def test_what_is_saved_does_not_change_what_is_computed():
    """Bit for bit, of a first convolution and of a 1x1 one."""
    for args, shape in (((3, 5, 3, 2, 1), (2, 3, 6, 6)), ((5, 7, 1), (2, 5, 3, 4))):
        x, found = make_map(shape, torch.float32, "channels_last"), []
        for memory in MEMORY:
            torch.manual_seed(0)
            layer = a_layer(*args, memory=memory)
            found.append(run(layer, x, True, of_input=False))
        for name, result in found[0].items():
            assert all(torch.equal(result, other[name]) for other in found[1:]), name


def test_a_class_of_its_own_whose_activation_is_read():
    layer = randomise(ghost_ops.fuse(Conv(3, 6, 3, 2, 1, bias=False))).train()
    x = make_map((2, 3, 6, 8), torch.float32, "channels_last")
    assert isinstance(layer, Conv) and "program_train" in why(layer, x)
    assert_agree(layer, x, of_input=False)
    layer.act = nn.LeakyReLU(0.3)
    assert "program_train" in why(layer, x)
    assert_agree(layer, x, of_input=False)


def test_timm_has_the_activation_in_the_norm():
    timm = pytest.importorskip("timm")
    from timm.models.ghostnet import ConvBnAct

    assert timm
    layer = randomise(ghost_ops.fuse(ConvBnAct(5, 12, 1, act_layer=nn.SiLU))).train()
    x = make_map((2, 5, 4, 3), torch.float32, "channels_last")
    assert "program_train" in why(layer, x)
    assert_agree(layer, x, calls=2)
    layer.bn1.momentum = 0.4
    assert_agree(layer, x)
    layer.eval()
    torch.testing.assert_close(layer(x), plain_twin(layer)(x))


def test_autocast_casts_images_as_the_convolution_does():
    layer, x = a_layer(3, 6, 3, 2, 1, bias=False), make_map((2, 3, 8, 8), torch.float32, "channels_last")
    plain = plain_twin(layer)
    with torch.autocast("cpu", torch.float16):
        assert "program_train" in why(layer, x)
        ours, theirs = (run(net, x, True, of_input=False) for net in (layer, plain))
    for name, result in ours.items():
        assert result.dtype == theirs[name].dtype, name
        torch.testing.assert_close(result, theirs[name], rtol=2e-2, atol=2e-2, msg=name)


def test_frozen_parameters():
    layer, x = a_layer(3, 6, 3, 2, 1, act=nn.PReLU), make_map((2, 3, 6, 6), torch.float32, "channels_last")
    layer[0].weight.requires_grad_(False)
    layer[1].bias.requires_grad_(False)
    assert_agree(layer, x, of_input=False)
    assert layer[0].weight.grad is None and layer[1].bias.grad is None and layer[1].weight.grad is not None


def input_gradient(layer, x):
    return x.requires_grad_()


def hooked(layer, x):
    layer[1].register_forward_hook(lambda *_: None)
    return x


def in_eval(layer, x):
    layer[1].eval()
    return x


def grown(layer, x):
    layer.append(nn.Sigmoid())
    return x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (input_gradient, "its input needs a gradient"),
        (hooked, "hook"),
        (in_eval, "running statistics"),
        (grown, "other modules"),
    ],
)
def test_what_runs_as_plain_pytorch(change, reason):
    layer, x = a_layer(3, 6, 3, 2, 1), make_map((2, 3, 6, 6), torch.float32, "channels_last")
    assert "program_train" in why(layer, x)
    x = change(layer, x)
    assert "program_train" not in why(layer, x) and reason in why(layer, x)
    assert_agree(layer, x, of_input=change is input_gradient)


def test_without_gradients_an_image_that_has_one_is_taken():
    layer, x = a_layer(3, 6, 3, 2, 1), make_map((2, 3, 6, 6), torch.float32, "channels_last").requires_grad_()
    with torch.no_grad():
        assert "program_train" in why(layer, x)
        torch.testing.assert_close(layer(x), plain_twin(layer)(x), rtol=1e-4, atol=1e-5)


def test_errors_are_pytorchs():
    layer = a_layer(3, 6, 3, 2, 0)
    for shape in ((2, 4, 6, 6), (2, 3, 2, 2), (1, 3, 4, 4)):
        x = torch.randn(shape)
        with pytest.raises(Exception) as theirs:
            plain_twin(layer)(x)
        with pytest.raises(type(theirs.value)) as ours:
            layer(x)
        assert str(ours.value) == str(theirs.value)
