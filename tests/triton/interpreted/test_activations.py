"""Every activation by interpreted kernels, forward and backward."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.functional import cheap_concat
from tests.ops.activation_cases import MODULES, check
from tests.triton.interpreted.drawn import few_tiles


@pytest.mark.parametrize(("half", "dtype"), [("primary", torch.float32), ("cheap", torch.float16)], ids=str)
@pytest.mark.parametrize("act", MODULES)
def test_values(act, half, dtype):
    with few_tiles():
        check(cheap_concat, act, dtype, half)
