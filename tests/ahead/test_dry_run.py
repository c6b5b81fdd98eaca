"""What a call would launch, without computing."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import ghost_ops
from ghost_ops.ahead.dry_run import TensorArgument, dry_run
from ghost_ops.ahead.kernels import specialisations
from ghost_ops.dispatch import select

pytest.importorskip("triton")


def a_step(net: torch.nn.Module, batch: int, side: int = 224):
    """What a training step under autocast launches, at a size that no CPU would compute."""
    x = torch.empty_strided((batch, 3, side, side), (3 * side * side, 1, 3 * side, 3))
    with dry_run("sm_90") as found:
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(net(x), torch.zeros(batch, dtype=torch.long))
        loss.backward()
    return found


@pytest.fixture(scope="module")
def net():
    return ghost_ops.fuse(ghost_ops.models.ghostnet_100(dropout=0.0)).train().to(memory_format=torch.channels_last)


def test_nothing_is_computed_and_nothing_changes(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    a_step(net, 256)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    net.zero_grad(set_to_none=True)


def test_every_ghost_module_is_launched_forward_and_backward(net):
    found = a_step(net, 4)
    kernels = [launch.kernel.__name__ for launch in found.kernels]
    products = "product_bwd_kernel", "primary_weight_bwd_kernel"  # of 32 Ghost modules and five shortcuts
    assert sum(map(kernels.count, products)) == 37
    assert all(launch.arguments["x_c"] == 1 for launch in found.kernels if launch.kernel.__name__ in products)
    assert all(launch.programs > 0 for launch in found.kernels)
    arguments = [v for launch in found.kernels for v in launch.arguments.values()]
    assert not any(isinstance(v, torch.Tensor) for v in arguments)  # which would keep a step's memory
    assert {TensorArgument} <= {type(v) for v in arguments}
    assert "convolution" in found.operators and "empty" not in found.operators
    net.zero_grad(set_to_none=True)


def test_the_process_is_as_before():
    x = torch.randn(1, 8, 4, 4)
    before = str(select("ghost_module", x))
    with pytest.raises(ZeroDivisionError), dry_run("sm_90"):
        assert select("ghost_module", x).backend == "triton"
        raise ZeroDivisionError
    assert str(select("ghost_module", x)) == before
    module = ghost_ops.FusedGhostModule(8, 8).eval()
    with torch.no_grad():
        assert torch.equal(module(x), module(x))


def test_a_frozen_net_has_the_launches_of_its_program():
    net = ghost_ops.models.ghostnet_050().eval()
    frozen = ghost_ops.freeze(copy.deepcopy(net))
    x = torch.empty(2, 3, 64, 64)
    with torch.no_grad(), dry_run("sm_90") as found:
        out = frozen(x)
    assert out.shape == (2, 1000)
    assert found.kernels and {launch.operator for launch in found.kernels} <= {
        "program", "ghost_module", "excite", "depthwise", None,
    }  # fmt: skip


def test_each_kernel_is_compiled_once(net):
    found = a_step(net, 256)
    kernels = specialisations(found.kernels, "sm_90")
    assert len(kernels) == len(set(kernels)) < len(found.kernels)
    assert specialisations(found.kernels, "sm_90") == kernels
    assert {kernel.name for kernel in kernels} == {launch.kernel.__name__ for launch in found.kernels}
    net.zero_grad(set_to_none=True)
