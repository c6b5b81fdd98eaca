from dataclasses import replace

import pytest
import torch

from ghost_ops import dispatch
from ghost_ops.backends import native
from ghost_ops.fused import graph

from .emulated_graph import EmulatedGraphs


@pytest.fixture(autouse=True)
def fused_routes(monkeypatch):
    """Where the kernels are not built the modules still take their fused routes, over the reference operators."""
    if not native.available():
        refuse_device = lambda device: None if device.type == "cpu" else "there is no such kernel"
        assumed = replace(native.BACKEND, refuse_device=refuse_device, has=lambda operator: True)
        monkeypatch.setitem(dispatch.BACKENDS, "native", assumed)
        dispatch._select.cache_clear()
    torch.manual_seed(0)
    yield
    if not native.available():
        dispatch._select.cache_clear()


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """These maps are tiny: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def device(monkeypatch):
    """Emulated CUDA graphs of the CPU."""
    emulated = EmulatedGraphs()
    monkeypatch.setattr(graph, "device_graphs", emulated)
    return emulated
