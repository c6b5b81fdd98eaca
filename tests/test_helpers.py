"""The comparison itself: it must be able to fail."""

import pytest
import torch

from .fused.twins import assert_over_draws
from .helpers import assert_as_accurate, draw_shapes, make_map, poisoned_memory, surrounded_by_nan
from .ops.cases import Errors

EXACT = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 4, 4, 4)
PLAIN = EXACT.float()


def wrong(index_error=0.0, all_error=0.0, dtype=torch.float32):
    result = EXACT + all_error * (-1) ** torch.arange(64).reshape(EXACT.shape)
    result.view(-1)[3] += index_error
    return result.to(dtype)


def test_accurate_results_pass():
    assert_as_accurate(PLAIN, PLAIN, EXACT)
    assert_as_accurate(wrong(1.5e-7), PLAIN, EXACT)
    assert_as_accurate(wrong(1.9), wrong(1.0), EXACT)
    assert_as_accurate(EXACT.new_empty(0).float(), EXACT.new_empty(0).float(), EXACT.new_empty(0))


@pytest.mark.parametrize(
    "ours, plain",
    [
        (wrong(1e-6), PLAIN),
        (wrong(all_error=2e-7), PLAIN),
        (wrong(2.1), wrong(1.0)),
        (PLAIN.double(), PLAIN),
        (PLAIN[:, :3], PLAIN),
        (wrong(torch.nan), PLAIN),
        (wrong(torch.inf), PLAIN),
        (wrong(1e-1, dtype=torch.bfloat16), EXACT.bfloat16()),
    ],
)
def test_inaccurate_results_fail(ours, plain):
    with pytest.raises(AssertionError):
        assert_as_accurate(ours, plain, EXACT)


def test_over_draws():
    """Of several results one may be off by luck; all may not."""
    draws = [(wrong(all_error=error), wrong(all_error=3e-7), EXACT) for error in (1e-6, 3e-7, 1e-7, 2e-7)]
    assert_over_draws("result", draws, 0.0)
    for ours in (7e-7, 1e-5):
        with pytest.raises(AssertionError):
            assert_over_draws("result", [(wrong(all_error=ours), plain, exact) for _, plain, exact in draws], 0.0)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_must_match(special):
    exact = EXACT.clone()
    exact[0, 0, 0, 0] = special
    assert_as_accurate(exact.float(), exact.float(), exact)
    for other in {0.0, 1.0}:
        with pytest.raises(AssertionError):
            ours = exact.float()
            ours[0, 0, 0, 0] = other
            assert_as_accurate(ours, exact.float(), exact)
    if special == torch.inf:
        with pytest.raises(AssertionError):
            assert_as_accurate(-exact.float().abs(), exact.float(), exact)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_surroundings_are_nan_and_layout_stays(layout):
    x = make_map((2, 3, 4, 5), layout=layout)
    copy = surrounded_by_nan(x)
    assert torch.equal(copy, x) and copy.stride() == x.stride()
    around = copy.as_strided((x.numel() + 2,), (1,), copy.storage_offset() - 1)
    assert around[0].isnan() and around[-1].isnan() and not around[1:-1].isnan().any()


def test_poisoned_memory_is_nan():
    with poisoned_memory(64):
        assert torch.empty(16).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_drawn_shapes_are_deterministic_and_varied():
    shapes = draw_shapes(50, seed=3)
    assert shapes == draw_shapes(50, seed=3) and len(set(shapes)) > 40
    assert all(min(s) >= 1 for s in shapes)


@pytest.mark.parametrize("near_error", [0.0, 1e-3])
def test_errors_over_nearby_arguments_can_fail(near_error):
    """Of one case ours is off by ten times PyTorch's error; over nearby ones it is off as much, or not at all."""
    exact, errors = torch.ones(1, dtype=torch.float64), Errors()
    errors.add("output", exact + 1e-3, exact + 1e-4, exact)
    errors.nearby += [lambda to: to.add("output", exact + near_error, exact + 6e-4, exact)] * 4
    if near_error == 0:
        errors.assert_over_draws()
    else:
        errors.nearby *= 2
        errors.nearby += [lambda to: to.add("output", exact + 1e-3, exact + 1e-4, exact)] * 30
        with pytest.raises(AssertionError, match="39 cases"):
            errors.assert_over_draws()
