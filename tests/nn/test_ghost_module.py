"""The plain modules: shapes, keys, and what their constructors refuse."""

import math

import pytest
import torch
from torch import nn

from ghost_ops import fused as gfused
from ghost_ops import nn as gnn

MODULES = [gnn.GhostModule, gfused.FusedGhostModule]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("kernel_size, stride", [(1, 1), (3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("oup", [1, 7, 12])
def test_shape_and_channels(kind, kernel_size, stride, ratio, oup):
    module = kind(5, oup, kernel_size, ratio, 3, stride)
    assert module(torch.randn(2, 5, 9, 8)).shape == (2, oup, math.ceil(9 / stride), math.ceil(8 / stride))
    assert module.primary_conv[0].weight.shape == (math.ceil(oup / ratio), 5, kernel_size, kernel_size)
    assert (ratio == 1) == (len(module.cheap_operation) == 0)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("relu", [True, False])
def test_keys_are_those_of_the_published_nets(kind, relu):
    conv = ["0.weight"]
    norm = [f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    expected = [f"{half}.{key}" for half in ("primary_conv", "cheap_operation") for key in conv + norm]
    assert list(kind(4, 6, relu=relu).state_dict()) == expected


def test_equals_the_definition():
    module = gnn.GhostModule(4, 7, ratio=3, dw_size=5).double().eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    y1 = torch.relu(torch.einsum("oc,nchw->nohw", module.primary_conv[0].weight[:, :, 0, 0], x) / math.sqrt(1 + 1e-5))
    padded = nn.functional.pad(y1, (2, 2, 2, 2))
    weight = module.cheap_operation[0].weight
    channels = [
        sum(padded[:, j // 2, a : a + 6, b : b + 6] * weight[j, 0, a, b] for a in range(5) for b in range(5))
        for j in range(4)
    ]
    y2 = torch.relu(torch.stack(channels, 1) / math.sqrt(1 + 1e-5))
    torch.testing.assert_close(module(x), torch.cat([y1, y2], 1))


BAD_GHOST = [
    ({"inp": 0}, ValueError, "inp: expected a positive int, got 0"),
    ({"oup": -3}, ValueError, "oup: expected a positive int, got -3"),
    ({"inp": 2.5}, TypeError, "inp: expected a positive int, got 2.5"),
    ({"oup": True}, TypeError, "oup: expected a positive int, got True"),
    ({"ratio": 0}, ValueError, "ratio: expected a positive int, got 0"),
    ({"ratio": 2.0}, TypeError, "ratio: expected a positive int, got 2.0"),
    ({"dw_size": 4}, ValueError, "dw_size: expected an odd positive int, got 4"),
    ({"dw_size": 0}, ValueError, "dw_size: expected an odd positive int, got 0"),
    ({"dw_size": (3, 3)}, TypeError, r"dw_size: expected an odd positive int, got \(3, 3\)"),
    ({"kernel_size": 2}, ValueError, "kernel_size: expected an odd positive int, got 2"),
    ({"kernel_size": -1}, ValueError, "kernel_size: expected an odd positive int, got -1"),
    ({"stride": 0}, ValueError, "stride: expected a positive int, got 0"),
    ({"stride": "1"}, TypeError, "stride: expected a positive int, got '1'"),
]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("arguments, error, message", BAD_GHOST)
def test_bad_ghost_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=f"{kind.__name__}: {message}"):
        kind(**{"inp": 4, "oup": 8} | arguments)


BAD_OTHERS = [
    (gnn.SELayer, {"channel": 0}, ValueError, "channel: expected a positive int, got 0"),
    (gnn.SELayer, {"channel": 8, "reduction": 0}, ValueError, "reduction: expected a positive int, got 0"),
    (gfused.FusedSELayer, {"channel": 3}, ValueError, "reduction: expected at most the 3 channels, got 4"),
    (gnn.SqueezeExcite, {"channels": -1}, ValueError, "channels: expected a positive int, got -1"),
    (gfused.FusedSqueezeExcite, {"channels": 4, "ratio": 0}, ValueError, "ratio: expected a positive number, got 0"),
    (gnn.GhostBottleneck, {"in_chs": 0}, ValueError, "in_chs: expected a positive int, got 0"),
    (gnn.GhostBottleneck, {"mid_chs": 1.5}, TypeError, "mid_chs: expected a positive int, got 1.5"),
    (gfused.FusedGhostBottleneck, {"dw_kernel_size": 4}, ValueError, "dw_kernel_size: expected an odd positive int"),
    (gfused.FusedGhostBottleneck, {"stride": 0}, ValueError, "stride: expected a positive int, got 0"),
    (gnn.GhostBottleneck, {"se_ratio": -0.5}, ValueError, "se_ratio: expected None or a number of at least 0"),
]


@pytest.mark.parametrize("kind, arguments, error, message", BAD_OTHERS)
def test_bad_arguments_of_the_others(kind, arguments, error, message):
    if "ottleneck" in kind.__name__:
        arguments = {"in_chs": 4, "mid_chs": 8, "out_chs": 4} | arguments
    with pytest.raises(error, match=f"{kind.__name__}: {message}"):
        kind(**arguments)
