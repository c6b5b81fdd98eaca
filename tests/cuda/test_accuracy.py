"""In half precision taps are rounded, as folded PyTorch rounds them; sums are in float32, and so is the bias."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.backends import reference
from tests.cuda import emulate
from tests.cuda.emulate import Emulator
from tests.cuda.programs import draw_block
from tests.cuda.test_emulated import ours
from tests.ops.cases import Errors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_do_not_exceed_those_of_folded_pytorch(dtype, one_thread):
    """Of drawn bottlenecks against float64, root of the mean square: PyTorch in the same dtype, BatchNorms folded."""
    emulate.library()
    errors = Errors()
    for seed in range(300, 360):
        p, x = draw_block(seed)
        x = x.to(dtype)
        packed = reference.program_pack([t.to(dtype).float() for t in p.parameters], p.code)
        plain, exact = (reference.program(v, packed.to(v.dtype), p.code) for v in (x, x.double()))
        errors.add("bottlenecks", ours(p, x, Emulator(0)), plain, exact)
    (pairs,) = errors.squares.values()
    print(dtype, *((sum(pair[i] for pair in pairs) / len(pairs)) ** 0.5 for i in (0, 1)))
    errors.assert_within(1.0, ulps=0.0)
