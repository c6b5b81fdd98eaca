"""What trains beside Ghost modules of 1x1 convolutions, on drawn configurations, as in ``test_drawn``."""

from __future__ import annotations

import pytest

from ghost_ops import functional
from ghost_ops.dispatch import select
from tests.ops.cases import Errors, check

from .drawn import draw, few_tiles, many_tiles

KINDS = ("cheap_concat_train",)
PARTS = 8  # of each operator, of which `make test` runs some
CASES = 3  # of a part


def with_deviations(operator):
    """The operator, each mean that it returns with a deviation, whose rounding is in it and which may be far larger."""

    def call(*args, **kwargs):
        out, *statistics = operator(*args, **kwargs)
        return out, *(t if i % 2 else t + statistics[i + 1].sqrt() for i, t in enumerate(statistics))

    return call


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_training(kind, part):
    errors = Errors()
    for seed in range(part * CASES, (part + 1) * CASES):
        case = draw(kind, seed)
        assert select(kind, next(iter(case.tensors.values()))).backend != "reference"
        with many_tiles() if seed % 4 == 3 else few_tiles():
            check(with_deviations(getattr(functional, kind)), case, 1, errors)
    errors.assert_within(2.0, single=(4.0, 2.0))
