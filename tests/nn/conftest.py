import pytest
import torch

from ghost_ops.backends import Choice, native
from ghost_ops.nn import _depthwise, _programmed, fused_bottleneck, fused_ghost_module, fused_squeeze_excite


@pytest.fixture(autouse=True)
def fused_routes(monkeypatch):
    """Where the kernels are not built the modules still take their fused routes, over the reference operators."""
    if not native.available():

        def choose(op, x, cheap_kernel=None):
            known = cheap_kernel in (None, 1, 3, 5, 7) and x.dtype in (torch.float32, torch.bfloat16)
            return Choice("native" if known and x.device.type == "cpu" else "reference")

        for module in (_depthwise, _programmed, fused_bottleneck, fused_ghost_module, fused_squeeze_excite):
            monkeypatch.setattr(module, "choose", choose)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """These maps are tiny: a second thread only waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
