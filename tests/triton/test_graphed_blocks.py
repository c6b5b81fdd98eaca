"""The Triton route of a block holds nothing that a CUDA graph cannot: found without a device, by a dry run."""

from contextlib import nullcontext

import pytest
import torch

import ghost_ops
from ghost_ops.ahead.dry_run import dry_run
from ghost_ops.fused.graph import Capturable
from ghost_ops.fused.graph_key import ModuleState
from ghost_ops.fused.graphed_step import _Eager

pytest.importorskip("triton")

BLOCKS = {
    "stride 1": (16, 24, 16),
    "stride 2": (16, 24, 20, 5, 2),
    "squeeze-and-excite": (16, 24, 20, 3, 2, 0.25),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_step_can_be_captured(name, training, dtype):
    block = ghost_ops.FusedGhostBottleneck(*BLOCKS[name]).train(training)
    x = torch.zeros(2, 16, 9, 7, dtype=dtype).to(memory_format=torch.channels_last)
    launches = []
    for mode in (nullcontext(), Capturable(x.device)):
        eager = _Eager(block, ModuleState(block).read(), training)
        with (
            dry_run("sm_90") as found,
            mode,
            torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
            torch.set_grad_enabled(training),
        ):
            out = eager.forward(x, training)
            assert found.kernels
            if training:
                grads = eager.backward(torch.zeros_like(out))
                assert len(grads) == 1 + len(list(block.parameters()))
        launches.append([str(launch) for launch in found.kernels])
    assert launches[0] == launches[1]  # the rehearsal runs what the capture will
