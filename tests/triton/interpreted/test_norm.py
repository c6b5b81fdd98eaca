"""Joins of partial sums against float64, and running statistics against ``torch.nn.BatchNorm2d``."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.activations import PRELU, RELU
from ghost_ops.backends.triton import norm
from ghost_ops.backends.triton.epilogue import Epilogue
from ghost_ops.backends.triton.joins import Joins
from ghost_ops.backends.triton.map_statistics import map_statistics
from ghost_ops.backends.triton.norm import BatchNorm
from tests.helpers import assert_as_accurate
from tests.ops.cases import in_layout

from .drawn import few_tiles, many_tiles


def moments(values: list[torch.Tensor]) -> torch.Tensor:
    """The partial rows of groups of values, [count, channels] each: counts, means, sums of squared deviations."""
    rows = []
    for v in values:
        mean = v.double().mean(0)
        rows.append(torch.stack([torch.full_like(mean, len(v)), mean, (v.double() - mean).square().sum(0)]))
    return torch.stack(rows).float()


def draw(groups: int, channels: int, mean: float, seed: int = 0) -> list[torch.Tensor]:
    """Groups of different sizes, whose means differ from each other by less than the mean of all."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 9, (groups,), generator=generator).tolist()
    return [mean + torch.randn(size + 1, channels, generator=generator) for size in sizes]


def join_in_torch(partials: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean, variance, scale and shift in the dtype of the rows."""
    count, means, squares = partials.unbind(1)
    center = (count * means).sum(0) / count.sum(0)
    var = (squares + count * (means - center).square()).sum(0) / count.sum(0)
    return center, var, gamma.to(var.dtype) / (var + 1e-3).sqrt(), beta.to(var.dtype)


@pytest.mark.parametrize(("groups", "channels"), [(1, 5), (2, 1), (37, 12), (1000, 3)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_statistics(groups, channels, mean):
    values = draw(groups, channels, mean)
    everything = torch.cat(values).double()
    gamma, beta = torch.randn(channels), torch.randn(channels)
    partials = moments(values)
    found = norm.join_statistics(partials, len(everything), BatchNorm(gamma, beta, 1e-3))
    exact, plain = (join_in_torch(partials.to(dtype), gamma, beta) for dtype in (torch.float64, torch.float32))
    eps = torch.finfo(torch.float32).eps
    off = (found.mean - exact[0]).abs()  # beside the mean or the deviation of values, whichever is larger
    assert (off <= 4 * eps * torch.maximum(exact[0].abs(), exact[1].sqrt())).all()
    for name, *three in list(zip(found._fields, found, plain, exact, strict=True))[1:]:
        assert_as_accurate(*three, what=name)
    torch.testing.assert_close(found.var.double(), everything.var(0, correction=0), rtol=1e-3, atol=0)
    assert torch.equal(found.shift, beta)


@pytest.mark.parametrize("sides", [few_tiles, many_tiles])
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    [
        ((2, 12, 9, 17), "channels_last", torch.float16),  # a flat tile
        ((2, 5, 7, 6), "channels_last", torch.float32),
        ((3, 17, 3, 11), "nchw", torch.float16),
        ((1, 20, 1, 9), "strided", torch.float32),
    ],
)
def test_statistics_of_a_map(shape, layout, dtype, sides):
    mean = 1000.0 if dtype == torch.float32 else 8.0
    z = in_layout((mean + torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype), layout)
    gamma = torch.randn(shape[1])
    with sides():
        found = map_statistics(z, BatchNorm(gamma, None, 1e-3), Joins(z.device))
    var, center = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(found.mean.double(), center, rtol=3e-7, atol=0)
    torch.testing.assert_close(found.var.double(), var, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.scale.double(), gamma / (var + 1e-3).sqrt(), rtol=1e-4, atol=0)
    assert not found.shift.any()


def test_statistics_without_affine_parameters():
    values = draw(3, 4, 0.5)
    found = norm.join_statistics(moments(values), sum(map(len, values)), BatchNorm(eps=1e-5))
    assert torch.equal(found.shift, torch.zeros(4))
    torch.testing.assert_close(found.scale, 1 / (found.var + 1e-5).sqrt())


def test_nan_reaches_the_statistics_of_its_channel_only():
    values = draw(5, 3, 0.0)
    values[3][1, 1] = torch.nan
    for vector in norm.join_statistics(moments(values), sum(map(len, values)), BatchNorm(eps=1e-5))[:3]:
        assert vector.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize(
    ("dtype", "with_bias"), [(torch.float32, False), (torch.float32, True), (torch.float16, False)]
)
def test_running_statistics(momentum, dtype, with_bias):
    """Over several steps as PyTorch's, the counter included."""
    channels, side = 7, (2, 3)
    bias = torch.randn(channels) if with_bias else None
    plain = torch.nn.BatchNorm2d(channels, momentum=momentum).to(dtype)
    exact = torch.nn.BatchNorm2d(channels, momentum=momentum).double()
    ours = torch.nn.BatchNorm2d(channels, momentum=momentum).to(dtype)
    for step in range(4):
        x = torch.randn(3, channels, *side, generator=torch.Generator().manual_seed(step)) + 3
        seen = x if bias is None else x + bias[:, None, None]
        plain(seen.to(dtype))
        exact(seen.double())
        values = list(x.permute(0, 2, 3, 1).reshape(3, -1, channels))
        given = BatchNorm(
            ours.weight.detach(), ours.bias.detach(), ours.eps, ours.running_mean, ours.running_var,
            ours.num_batches_tracked, momentum, bias,
        )  # fmt: skip
        norm.join_statistics(moments(values), 18, given)
        for name in ("running_mean", "running_var"):
            assert_as_accurate(*(getattr(m, name) for m in (ours, plain, exact)), what=f"{name} after step {step}")
        assert ours.num_batches_tracked.dtype == torch.int64
        assert ours.num_batches_tracked == plain.num_batches_tracked == step + 1


def test_an_average_of_all_batches_needs_their_number():
    """As PyTorch, which leaves the running statistics alone then."""
    mean, var = torch.zeros(3), torch.ones(3)
    values = draw(2, 3, 1.0)
    norm.join_statistics(moments(values), 10, BatchNorm(None, None, 1e-5, mean, var, None, None))
    assert torch.equal(mean, torch.zeros(3)) and torch.equal(var, torch.ones(3))


def test_running_statistics_between_other_memory_are_refused():
    running = torch.zeros(6)[::2]
    with pytest.raises(ValueError, match="running_mean: expected contiguous memory"):
        norm.join_statistics(moments(draw(2, 3, 1.0)), 10, BatchNorm(None, None, 1e-5, running, running, None, 0.1))


@pytest.mark.parametrize("groups", [1, 6, 700])
@pytest.mark.parametrize("slopes", [0, 1, 5])
@pytest.mark.parametrize("batch", [False, True])
def test_gradients(groups, slopes, batch):
    """``slopes``: of a PReLU, 0 where there is none."""
    channels, generator = 5, torch.Generator().manual_seed(0)
    numbers = lambda *shape: torch.randn(shape, generator=generator)
    partials, mean, var = numbers(groups, 3, channels), numbers(channels), numbers(channels).square()
    weight = numbers(slopes).half() if slopes else None
    gamma, beta, bias = numbers(channels), numbers(channels).half(), None if batch else numbers(channels)
    epilogue = Epilogue(bias, PRELU if slopes else RELU, 0.0, weight, gamma, beta, mean, var, 1e-3)
    count = 1234 if batch else None
    coefficients, found = norm.join_gradients(partials, epilogue, count)

    first, second, third = partials.double().sum(0)
    r = (var.double() + 1e-3).rsqrt()
    expected = {"beta": first, "gamma": second * r}
    if slopes:
        expected["slopes"] = third.sum().reshape(1) if slopes == 1 else third
    if bias is not None:
        expected["bias"] = first
    for name, v in expected.items():
        ours = getattr(found, name)
        assert_as_accurate(ours, v.to(ours.dtype), v, what=name, ulps=groups + 4)
    assert [g.dtype for g in (found.beta, found.gamma)] == [torch.float16, torch.float32]
    assert found.slopes.numel() == slopes and found.bias.numel() == (0 if bias is None else channels)
    factor, constant, linear, center = coefficients.double()
    assert torch.equal(center.float(), mean)
    if batch:
        torch.testing.assert_close(factor, gamma.double() * r, rtol=1e-5, atol=0)
        for ours, v in ((constant, first / 1234), (linear, r * r * second / 1234)):
            torch.testing.assert_close(ours, v, rtol=1e-4, atol=1e-6)
    else:
        assert torch.equal(coefficients[:3], torch.tensor([1.0, 0.0, 0.0])[:, None].expand(3, channels))


def test_gradients_of_given_vectors():
    """The coefficients follow from the vectors, not from what the epilogue has."""
    partials, count = torch.randn(3, 3, 4), 50
    mean, var = torch.randn(4), torch.rand(4) + 0.1
    vectors = norm.NormVectors(mean, var, torch.full((4,), torch.nan), torch.full((4,), torch.nan))
    plain = norm.join_gradients(partials, Epilogue(gamma=torch.ones(4), mean=mean, var=var, eps=1e-5), count)
    given = norm.join_gradients(partials, Epilogue(gamma=torch.ones(4), eps=1e-5), count, vectors)
    assert torch.equal(plain[0], given[0]) and torch.equal(plain[1].gamma, given[1].gamma)
