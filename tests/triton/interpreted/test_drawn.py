"""Every operator on drawn configurations: outputs and gradients against PyTorch in the same dtype and float64."""

from __future__ import annotations

import pytest

from ghost_ops import functional
from ghost_ops.backends import choose
from tests.ops.cases import Errors, check

from .drawn import draw, draw_squeeze_excite, few_tiles, many_tiles

CASES = 12


@pytest.mark.parametrize("kind", ["ghost_module", "cheap_concat", "ghost_module_train"])
def test_ghost_modules(kind):
    errors = Errors()
    for seed in range(CASES):
        case = draw(kind, seed)
        x = next(iter(case.tensors.values()))
        assert choose(kind, x).backend != "reference"
        with many_tiles() if seed % 4 == 3 else few_tiles():
            check(getattr(functional, kind), case, 2 if case.options.get("return_squeeze") else 1, errors)
    errors.assert_within(2.0)


def test_squeeze_excite():
    errors = Errors()
    for seed in range(CASES):
        with many_tiles() if seed % 4 == 3 else few_tiles():
            check(functional.squeeze_excite, draw_squeeze_excite(seed), 1, errors)
    errors.assert_within(2.0)
