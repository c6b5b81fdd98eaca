import pytest
import torch

from ghost_ops import dispatch
from ghost_ops.backends import native


@pytest.fixture(autouse=True)
def fused_routes(monkeypatch):
    """Where the kernels are not built the modules still take their fused routes, over the reference operators."""
    if not native.available():

        def refuse(operator, device, dtype, kernel):
            known = kernel in (None, *dispatch.CHEAP_KERNELS) and dtype in (torch.float32, torch.bfloat16)
            return None if known and device.type == "cpu" else "there is no such kernel"

        monkeypatch.setitem(dispatch._REFUSALS, "native", refuse)
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
