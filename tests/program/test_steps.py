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
    Add,
    AvgPool,
    BilinearUpsample,
    Concat,
    Depthwise,
    Flatten,
    Ghost,
    Layer,
    Load,
    MaxPool,
    Multiply,
    Pool,
    ScaleFeatures,
    Shuffle,
    Slice,
    Store,
    Upsample,
    encode,
    output_shape,
)
from ghost_ops.program.packed_layer import Channels
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
        Depthwise.same(3, 0, False, 13, 3, 1, Layer(NORM, 1e-5)), Store(0),
    ]  # fmt: skip
    out = run(steps, x, (*weights, weight, torch.zeros(13), torch.ones(13)))
    want = F.conv2d(F.relu(F.max_pool2d(made, 2)), weight, padding=1, groups=13)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


def test_shuffle_slice_concat_add_and_multiply():
    """A unit such as ShuffleNet's: half of the channels go on as they are, and all are gated and added."""
    x = make_map((2, 5, 6, 7))
    weights = torch.randn(7, 5, 1, 1) / 2, torch.randn(7, 1, 3, 3) / 3
    made = run([Load(0, 5, False), GHOST, Store(1)], x, weights)
    steps = [
        Load(0, 5, False), GHOST, Slice(1, 2, 3, 11), Shuffle(2, 3, 8, 4), Concat(0, False, (3, 2, 3)),
        AvgPool(0, 1, 24, (2, 2), (2, 2), (0, 0), True), Multiply(0, 1, 2, False, 24),
        Add(2, 0, 3, False, 24), Store(3),
    ]  # fmt: skip
    out = run(steps, x, weights)
    half = made[:, 3:11]
    shuffled = F.channel_shuffle(half, 4)
    both = torch.cat([shuffled, half, shuffled], 1)
    want = both * F.interpolate(F.avg_pool2d(both, 2), both.shape[2:]) + both
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("size, scale", [((0, 0), (2.0, 1.5)), ((5, 13), (0.0, 0.0)), (None, (0.0, 0.0))])
def test_nearest_upsampling(size, scale):
    x = make_map((2, 5, 6, 7))
    pool = MaxPool(0, 1, 5, 3, 2, 1)
    last = Upsample(1, 2, 5, 0 if size is None else -1, size or (0, 0), *scale)
    out = run([Load(0, 5, False), pool, last, Store(2)], x)
    small = F.max_pool2d(x, 3, 2, 1)
    if size == (0, 0):
        want = F.interpolate(small, scale_factor=scale)
    else:
        want = F.interpolate(small, size or x.shape[2:])
    torch.testing.assert_close(out, want, rtol=0, atol=0)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size, scale", [((0, 0), (2.0, 1.3)), ((1, 13), (0.0, 0.0)), (None, (0.0, 0.0))])
def test_bilinear_upsampling(size, scale, corners):
    x = make_map((2, 5, 6, 7))
    pool = MaxPool(0, 1, 5, 3, 2, 1)
    last = BilinearUpsample(1, 2, 5, 0 if size is None else -1, size or (0, 0), *scale, corners)
    out = run([Load(0, 5, False), pool, last, Store(2)], x)
    options = {"scale_factor": scale} if size == (0, 0) else {"size": size or x.shape[2:]}
    want = F.interpolate(F.max_pool2d(x, 3, 2, 1), **options, mode="bilinear", align_corners=corners)
    torch.testing.assert_close(out, want, rtol=0, atol=0)


def test_flattened_and_normalised():
    """Of a Ghost module, whose channels lie in two pieces."""
    x, weights = make_map((2, 5, 3, 2)), (torch.randn(7, 5, 1, 1) / 2, torch.randn(7, 1, 3, 3) / 3)
    made = run([Load(0, 5, False), GHOST, Store(1)], x, weights)
    steps = [Load(0, 5, False), GHOST, Flatten(1, 13, 78)]
    assert torch.equal(run(steps, x, weights), made.flatten(1))
    scale, (mean, var), slopes = torch.randn(78, 1, 1, 1), (torch.randn(78), torch.rand(78) + 0.5), torch.rand(78)
    out = run(
        [*steps, ScaleFeatures(78, Layer(NORM | SLOPES, 1e-3, PRELU))], x, (*weights, scale, mean, var, slopes)
    )  # fmt: skip
    want = F.prelu(F.batch_norm(made.flatten(1) * scale.flatten(), mean, var, eps=1e-3), slopes)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected a size of which 78 features come, got one of which come 104"):
        run(steps, make_map((2, 5, 2, 4)), weights)


@pytest.mark.parametrize("counted", [True, False])
def test_average_pooling(counted):
    x = make_map((2, 5, 12, 9))
    out = run([Load(0, 5, False), AvgPool(0, 1, 5, (3, 2), (2, 1), (1, 0), counted), Store(1)], x)
    torch.testing.assert_close(out, F.avg_pool2d(x, (3, 2), (2, 1), (1, 0), count_include_pad=counted))


def test_depthwise_convolutions_of_any_kernel():
    x, weight = make_map((2, 5, 12, 9)), torch.randn(5, 1, 1, 5)
    sizes = (1, 5), (2, 1), (0, 4), (1, 2)
    out = run([Load(0, 5, True), Depthwise(0, 1, False, 5, *sizes, PLAIN), Store(1)], x, (weight,))
    torch.testing.assert_close(out, F.conv2d(x, weight, None, (2, 1), (0, 4), (1, 2), 5))


def test_pieces_of_channels():
    """Those of a slice begin in the lane of its first channel; those of a concatenation in multiples of 8."""
    ghost = Channels.of(7, 6)
    assert ghost.pieces == ((0, 7), (8, 6)) and ghost.width == 16 and ghost.count == 13
    part = ghost.sliced(3, 11)
    assert part.pieces == ((0, 4), (5, 4)) and part.width == 16 and part.lanes().tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    both = part.concatenated(ghost, Channels.of(3))
    assert both.pieces == ((0, 4), (5, 4), (16, 7), (24, 6), (32, 3)) and both.width == 40
