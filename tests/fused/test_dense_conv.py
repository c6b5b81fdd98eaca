"""``Builder.dense_conv``: a convolution as it stands in a module, as a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.fused.builder import Builder
from ghost_ops.fused.errors import Unfusable
from ghost_ops.fused.layers import conv_bn_act
from ghost_ops.ops.program import program_eval
from tests.helpers import make_map, randomise


def run(builder: Builder, x: torch.Tensor) -> torch.Tensor:
    made = builder.finish()
    tensors = [t.detach() for source in builder.sources for t in source.tensors() if t is not None]
    return program_eval(x, tensors, list(made.code))


CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(6, 10, 3, padding=1), "strided": lambda: nn.Conv2d(6, 10, 3, 2, 1, bias=False),
    "oblong": lambda: nn.Conv2d(6, 10, (5, 2), (1, 3), (2, 0)), "in groups": lambda: nn.Conv2d(6, 10, 3, groups=2),
    "same": lambda: nn.Conv2d(6, 10, (3, 5), padding="same", dilation=(2, 1)),
    "valid": lambda: nn.Conv2d(6, 10, 4, 2, padding="valid"), "dilated": lambda: nn.Conv2d(6, 10, 3, 1, 3, 3),
    "same, even and dilated evenly": lambda: nn.Conv2d(6, 10, 2, padding="same", dilation=2),
    "1x1, strided": lambda: nn.Conv2d(6, 10, 1, 2),
}  # fmt: skip


@pytest.mark.parametrize("entry", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values(name, entry):
    conv, norm, act = CONVOLUTIONS[name](), nn.BatchNorm2d(10), nn.SiLU()
    net, x, builder = randomise(nn.Sequential(conv, norm, act)).eval(), make_map((2, 6, 17, 19)), Builder()
    source = -1 if entry else builder.load(6)
    builder.store(builder.dense_conv(conv_bn_act(conv, norm, act), source))
    torch.testing.assert_close(run(builder, x), net(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [True, False])
def test_residuals(first):
    """ResNet adds before the activation, YOLO after it."""
    conv, norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
    net, x, builder = randomise(nn.Sequential(conv, norm)).eval(), make_map((2, 6, 9, 8)), Builder()
    source = builder.load(6)
    layer = conv_bn_act(conv, norm, nn.ReLU())
    builder.store(builder.dense_conv(layer, source, residual=source, residual_first=first))
    made = net(x).detach()
    want = F.relu(made + x) if first else F.relu(made) + x
    torch.testing.assert_close(run(builder, x), want, rtol=1e-5, atol=1e-5)


REFUSED = {
    "ends that differ": (lambda: nn.Conv2d(4, 4, 2, padding="same"), "even size with padding"),
    "too many taps": (lambda: nn.Conv2d(4, 4, 9, dilation=2), "is 9x9, .*: too many taps"),
    "a large stride": (lambda: nn.Conv2d(4, 4, 3, 65), "above 64"),
    "a padding mode": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads with mode 'reflect'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    make, reason = REFUSED[name]
    builder = Builder()
    before = builder.mark()
    with pytest.raises(Unfusable, match=reason):
        builder.dense_conv(conv_bn_act(make(), None, None))
    assert builder.mark() == before
