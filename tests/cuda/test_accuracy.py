"""In half precision taps are rounded, as folded PyTorch rounds them; sums are in float32, and so is the bias."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.activations import NONE
from ghost_ops.backends import reference
from ghost_ops.backends.cuda.ghost_module import ghost_module
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


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_a_lane_that_is_infinite(dtype, one_thread):
    """In half precision it makes the other lanes of its eight NaN, in a depthwise convolution and in means, as
    docs/gpu-kernels.md says: the zeros of a diagonal multiply it. All else is PyTorch's, and in float32 everything."""
    generator = torch.Generator().manual_seed(0)
    x, first, cheap = (
        torch.randn(shape, generator=generator) for shape in ((1, 8, 6, 9), (16, 8, 1, 1), (16, 1, 3, 3))
    )
    x *= 0.01
    x[0, :, 2, 4] = 16
    first[3] = torch.finfo(dtype).max / 4  # the fourth primary channel overflows at one pixel
    x, first, cheap = (t.to(dtype) for t in (x.contiguous(memory_format=torch.channels_last), first, cheap))
    arguments = (x, first, None, cheap, *[None] * 5, 32, NONE, NONE, 0.0, 0.0, True)
    with Emulator().running():
        found, means = ghost_module(*arguments)
    plain, plain_means = reference.ghost_module(*arguments)
    lost = torch.zeros(found.shape, dtype=torch.bool)
    lost[0, 3, 2, 4] = True
    lost[0, 16 + 3, 1:4, 3:6] = True
    assert torch.equal(~plain.isfinite(), lost) and torch.equal(~plain_means.isfinite(), lost.any(3).any(2))
    lost_means = lost.any(3).any(2)
    if dtype != torch.float32:
        lost[0, 16 : 16 + 8, 1:4, 3:6] = True
        lost_means[0, :8] = lost_means[0, 16 : 16 + 8] = True
        assert found[0, [*range(16, 19), *range(20, 24)], 1:4, 3:6].isnan().all()
        assert means[0, [*range(3), *range(4, 8)]].isnan().all()
    assert torch.equal(~found.isfinite(), lost) and torch.equal(~means.isfinite(), lost_means)
    for one, theirs, where in ((found, plain, ~lost), (means, plain_means, ~lost_means)):
        torch.testing.assert_close(one[where], theirs[where], rtol=4 * torch.finfo(dtype).eps, atol=1e-2)
