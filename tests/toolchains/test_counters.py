"""Counters and profilers on fused and frozen nets: parameters, FLOPs, what ran."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ghost_ops.backends.registry import SCHEMAS

from .nets import every_net, image, made


@pytest.mark.parametrize("way", ["fused", "frozen"])
@every_net
def test_parameters(name, way):
    net, plain = made(name, way)
    count = lambda m: {n: p.numel() for n, p in m.named_parameters()}
    assert count(net) == count(plain)


@pytest.mark.parametrize("way", ["fused", "frozen"])
@every_net
def test_flops(name, way):
    net, plain = made(name, way)

    def flops(m):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            m(image())
        return counter.get_total_flops()

    assert flops(net) == flops(plain) > 0


def test_every_operator_has_a_formula():
    missing = [name for name in SCHEMAS if getattr(torch.ops.ghost_ops, name) not in flop_registry]
    assert not missing


@pytest.mark.parametrize("way", ["fused", "frozen"])
def test_profiler(way):
    """It shows our operators by name, with shapes, times and memory."""
    net, _ = made("parted", way)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True) as found:
        net(image())
    events = [event for event in found.key_averages(group_by_input_shape=True) if event.key.startswith("ghost_ops::")]
    assert events and all(event.cpu_time_total > 0 for event in events)
    assert any(list(image().shape) in event.input_shapes for event in events) or way == "fused"
