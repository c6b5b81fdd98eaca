"""Blocks in training, as one program of Triton kernels, replayed as emulated CUDA graphs: to the bit as without."""

from __future__ import annotations

import copy

import torch

import ghost_ops
from ghost_ops import FusedGhostBottleneck
from ghost_ops.fused import graph, graphed_block
from tests.fused.emulated_graph import EmulatedGraphs
from tests.fused.graphed import assert_equal, graphs_of, step
from tests.fused.twins import why
from tests.helpers import make_map, randomise

from .drawn import few_tiles


def test_steps(monkeypatch):
    device = EmulatedGraphs()
    monkeypatch.setattr(graph, "device_graphs", device)
    monkeypatch.setattr(graphed_block, "WARM_UPS", 1)
    twin = randomise(FusedGhostBottleneck(6, 10, 8)).train()
    ours = ghost_ops.fuse(copy.deepcopy(twin), cuda_graph=True)
    x = [make_map((2, 6, 5, 4), layout="channels_last", seed=i) for i in range(3)]
    assert "program_train" in why(twin, x[0])
    with few_tiles():
        for i, value in enumerate(x):
            found = []
            for m in (ours, twin):
                v = value.detach().clone().requires_grad_()
                found.append((step(m, v, i), v.grad))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
            assert_equal(ours, twin)
    assert len(graphs_of(ours)[0]) == 1, graphs_of(ours)[0]._refused
    assert len(device.replays) == 2 * 2
