"""Ghost modules on drawn configurations: outputs and gradients against PyTorch in the same dtype and float64."""

from __future__ import annotations

import pytest

from ghost_ops import functional
from ghost_ops.dispatch import select
from tests.ops.cases import Errors, check

from .drawn import CASES, draw, few_tiles, many_tiles, one_launch


@pytest.mark.parametrize("kind", ["ghost_module", "cheap_concat", "ghost_module_train"])
def test_ghost_modules(kind):
    errors = Errors()
    for seed in range(CASES):
        case = draw(kind, seed)
        x = next(iter(case.tensors.values()))
        assert select(kind, x).backend != "reference"
        with many_tiles() if seed % 4 == 3 else few_tiles(), one_launch(seed % 3 == 0):
            check(getattr(functional, kind), case, 2 if case.options.get("return_squeeze") else 1, errors)
    errors.assert_over_draws()
