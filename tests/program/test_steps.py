"""Steps that have no kernel: their meaning, their packed form, and how devices run them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ghost_ops.activations import ACTIVATIONS, PRELU, RELU
from ghost_ops.backends import reference
from ghost_ops.program import (
    BFLOAT16,
    FLOAT32,
    NORM,
    SLOPES,
    Activation,
    Depthwise,
    Ghost,
    Layer,
    Load,
    MaxPool,
    Pool,
    Store,
    encode,
    output_shape,
)
from tests.helpers import make_map

LEAKY_RELU = ACTIVATIONS.index("leaky_relu")
PLAIN = Layer()
GHOST = Ghost(0, 1, -1, False, False, 5, 7, 7, 13, 3, PLAIN, PLAIN)


def run(steps, x, parameters=()):
    """The result with parameters as they are; that with packed ones is the same but for rounding."""
    code = encode(steps, 4)
    out = reference.program_eval(x, parameters, code)
    assert out.shape == output_shape(steps, len(x), *x.shape[2:])
    for precision in (FLOAT32, BFLOAT16):
        code = encode(steps, 4, precision)
        packed = reference.program_pack(parameters, code)
        torch.testing.assert_close(reference.program(x, packed, code), out, rtol=0.02, atol=0.02, equal_nan=True)
    return out


@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (1, 2, 0)])
def test_max_pooling(kernel, stride, padding):
    x = make_map((2, 5, 12, 9))
    x[0, 1] = -torch.inf
    x[1, 2, 3, 4], x[1, 0, 0, 0] = torch.nan, torch.inf
    out = run([Load(0, 5, False), MaxPool(0, 1, 5, kernel, stride, padding), Store(1)], x)
    want = F.max_pool2d(x, kernel, stride, padding)
    torch.testing.assert_close(out, want, rtol=0, atol=0, equal_nan=True)


ACTS = {
    "relu": (Layer(act=RELU), None), "leaky": (Layer(act=LEAKY_RELU, slope=0.3), None),
    "prelu": (Layer(SLOPES, act=PRELU), 13), "prelu of one slope": (Layer(SLOPES, act=PRELU), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTS)
def test_activations(name):
    """They follow a Ghost module, whose channels lie in two halves."""
    (layer, count), x = ACTS[name], make_map((2, 5, 6, 7))
    weights = torch.randn(7, 5, 1, 1) / 2, torch.randn(7, 1, 3, 3) / 3
    slopes = () if count is None else (torch.rand(count),)
    made = run([Load(0, 5, False), GHOST, Store(1)], x, weights)
    want = F.prelu(made, *slopes) if slopes else F.leaky_relu(made, layer.slope)
    parameters = (*weights, *slopes)
    out = run([Load(0, 5, False), GHOST, Activation(1, 2, False, 13, layer), Store(2)], x, parameters)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    means = run([Load(0, 5, False), GHOST, Activation(1, 2, True, 13, layer), Pool(13)], x, parameters)
    torch.testing.assert_close(means, want.mean((2, 3)))


def test_slopes_lie_in_the_lanes_of_the_map():
    """7 channels and then 6, each half padded to 8."""
    slopes, weights = torch.arange(1.0, 14), (torch.zeros(7, 5, 1, 1), torch.zeros(7, 1, 3, 3))
    code = encode([Load(0, 5, False), GHOST, Activation(1, 2, False, 13, Layer(SLOPES, act=PRELU)), Store(2)], 3)
    lanes = reference.program_pack((*weights, slopes), code)[-16:]
    assert torch.equal(lanes[:7], slopes[:7]) and torch.equal(lanes[8:14], slopes[7:]) and not lanes[[7, 14, 15]].any()


def test_depthwise_steps_follow_them():
    x, weight = make_map((1, 5, 9, 9)), torch.randn(13, 1, 3, 3)
    weights = torch.randn(7, 5, 1, 1) / 2, torch.randn(7, 1, 3, 3) / 3
    made = run([Load(0, 5, False), GHOST, Store(1)], x, weights)
    steps = [
        Load(0, 5, False), GHOST, MaxPool(1, 2, 13, 2, 2, 0), Activation(2, 3, False, 13, Layer(act=RELU)),
        Depthwise(3, 0, False, 13, 3, 1, Layer(NORM, 1e-5)), Store(0),
    ]  # fmt: skip
    out = run(steps, x, (*weights, weight, torch.zeros(13), torch.ones(13)))
    want = F.conv2d(F.relu(F.max_pool2d(made, 2)), weight, padding=1, groups=13)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
