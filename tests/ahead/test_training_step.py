"""What a training step of a GhostNet launches on a GPU: counts, which only go down."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ghost_ops
from ghost_ops.ahead.dry_run import Launches, dry_run
from ghost_ops.ahead.kernels import specialisations

pytest.importorskip("triton")
MOST_LAUNCHES = 450  # 1034 before blocks were programs
MOST_KERNELS = 85  # 215 before all maps had the same tile


def a_step(batch: int, memory: str = "balanced") -> Launches:
    """Forward, loss and backward of GhostNet-100 under autocast."""
    net = ghost_ops.fuse(ghost_ops.models.ghostnet_100(dropout=0.0), memory=memory)
    net.train().to(memory_format=torch.channels_last)
    x = torch.empty_strided((batch, 3, 224, 224), (3 * 224 * 224, 1, 3 * 224, 3))
    with dry_run("sm_90") as found:
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(net(x), torch.zeros(batch, dtype=torch.long))
        loss.backward()
    return found


def test_launches():
    found = a_step(256)
    assert found.count <= MOST_LAUNCHES
    assert len(found.operators) <= 60  # the stem, the last convolution, the classifier, the loss
    assert "add" not in found.operators  # shortcuts and their gradients are added in the passes
    assert not {"_foreach_lerp_", "matmul", "where"} & set(found.operators)


def test_kernels_and_a_smaller_last_batch():
    """What must be compiled, and what an epoch's last batch compiles once more."""
    first = specialisations(a_step(256).kernels, "sm_90")
    assert len(first) <= MOST_KERNELS
    for batch in (250, 232):
        assert not set(specialisations(a_step(batch).kernels, "sm_90")) - set(first)


@pytest.mark.parametrize("memory", ["low", "fast"])
def test_other_memory(memory):
    assert a_step(256, memory).count <= MOST_LAUNCHES + {"low": 90, "fast": 0}[memory]
