"""A mode that sees PyTorch's functions, as quantisers set it, sees those of the plain net."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import ghost_ops

from .nets import assert_same, every_net, image, made


class Counted(TorchFunctionMode):
    """Counts convolutions, and doubles what they return."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.count, self.factor = 0, factor

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.conv2d or getattr(function, "__name__", "") == "conv2d":
            self.count += 1
            return result * self.factor
        return result


@pytest.mark.parametrize(("way", "training"), [("fused", False), ("fused", True), ("frozen", False)])
@every_net
def test_convolutions_are_seen_and_changed(name, way, training):
    net, plain = made(name, way)
    for each in (net, plain):
        each.train(training)
        for dropout in (m for m in each.modules() if isinstance(m, nn.Dropout)):
            dropout.eval()
    for factor in (1.0, 1.5):
        with Counted(factor) as ours:
            found = net(image())
        with Counted(factor) as theirs:
            wanted = plain(image())
        assert ours.count == theirs.count == sum(isinstance(m, nn.Conv2d) for m in plain.modules())
        assert_same(found, wanted)


def test_a_default_device_is_no_such_mode():
    net, plain = made("one program", "fused")
    with torch.device("cpu"):
        assert "program_eval" in str(ghost_ops.explain(net, image()))
        assert_same(net(image()), plain(image()))
    with Counted():
        assert "a TorchFunctionMode is active" in str(ghost_ops.explain(net, image()))
