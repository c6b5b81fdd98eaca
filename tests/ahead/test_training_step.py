"""What a training step of a GhostNet, and of other modules, launches on a GPU: counts, which only go down."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

import ghost_ops
from ghost_ops.ahead.dry_run import Launches, dry_run
from ghost_ops.ahead.kernels import specialisations
from ghost_ops.nn import GhostModule
from tests.fused.test_dfc_attention import HuaweiModule

pytest.importorskip("triton")
MOST_LAUNCHES = 450  # 1034 before blocks were programs
MOST_KERNELS = 90  # 215 before all maps had the same tile; some are the stem's, which was PyTorch's then


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
    assert len(found.operators) <= 42  # the last convolution, the classifier, the loss
    if sys.version_info >= (3, 11):  # the stem is ours: the last convolution and the head are not
        assert found.operators.count("convolution") == 2 and found.operators.count("native_batch_norm") == 1
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


@pytest.mark.parametrize(
    ("module", "kernels"),
    [(lambda: GhostModule(24, 72, kernel_size=3, stride=2), 10), (lambda: HuaweiModule(24, 72), 29)],
    ids=["strided", "DFC attention"],
)
def test_modules_beside_ghostnets(module, kernels):
    """Of the maps of a module with a k x k primary only the convolution's is PyTorch's, with DFC attention none is."""
    net = ghost_ops.fuse(torch.nn.Sequential(module())).train().to(memory_format=torch.channels_last)
    x = torch.empty_strided((4, 24, 28, 28), (24 * 784, 1, 24 * 28, 24)).requires_grad_()
    with dry_run("sm_90") as found:
        with torch.autocast("cpu", torch.float16):
            out = net(x)
        out.sum().backward()
    assert len(found.kernels) <= kernels
    computed = {"convolution", "convolution_backward", "native_batch_norm", "avg_pool2d", "upsample_nearest2d", "mul"}
    assert computed & set(found.operators) == ({"convolution", "convolution_backward"} if kernels == 10 else set())
