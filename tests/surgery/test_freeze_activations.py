"""Activations in frozen nets: as modules, as functions and as methods of tensors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops import FusedGhostModule, freeze
from tests import zoo
from tests.helpers import make_map, randomise
from tests.ops.activation_cases import MODULES

FUNCTIONS = {
    "relu": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "method relu": lambda x: x.relu(),
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu by name": lambda x: F.leaky_relu(x, negative_slope=0.2, inplace=True),
    "silu": F.silu,
    "hard_swish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "elu": lambda x: F.elu(x, 0.7),
    "hard_sigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "F.sigmoid": F.sigmoid,
    "method sigmoid": lambda x: x.sigmoid(),
    "tanh": torch.tanh,
    "method tanh": lambda x: x.tanh(),
}
OTHERS = {"softplus": F.softplus, "of itself": lambda x: torch.maximum(x, x), "selu": lambda x: F.selu(x)}


class Net(nn.Module):
    """A Ghost module, a 1x1 convolution, and a function of its result."""

    def __init__(self, function) -> None:
        super().__init__()
        self.ghost = zoo.ArticleGhostModule(6, 12)
        self.conv, self.norm, self.function = nn.Conv2d(12, 9, 1, bias=False), nn.BatchNorm2d(9), function

    def forward(self, x):
        return self.function(self.norm(self.conv(self.ghost(x))))


def assert_frozen(net, parts):
    net, x = randomise(net).eval(), make_map((2, 6, 5, 7))
    frozen = freeze(net)
    programs = [m for m in frozen.modules() if type(m).__name__ == "FrozenProgram"]
    assert [m.parts for m in programs] == [parts]
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    assert_frozen(Net(copy.deepcopy(MODULES[name])), ("ghost", "conv", "norm", "function"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    assert_frozen(Net(FUNCTIONS[name]), ("ghost", "conv", "norm"))


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_stay_pytorchs(name):
    assert_frozen(Net(OTHERS[name]), ("ghost", "conv", "norm"))


def test_an_attribute_that_says_which_activation_is_watched():
    module, x = randomise(FusedGhostModule(6, 12)), make_map((2, 6, 5, 7))
    module.primary_conv[2] = nn.GELU()
    outer = module.eval()(x)
    module.primary_conv[2].approximate = "tanh"
    plain = copy.deepcopy(module)
    changed = module(x)
    torch.testing.assert_close(changed, plain(x))
    assert not torch.equal(outer, changed)
