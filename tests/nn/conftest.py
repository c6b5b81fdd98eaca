import pytest
import torch

from ghost_ops.backends import Choice, native
from ghost_ops.nn import fused_bottleneck, fused_ghost_module, fused_squeeze_excite


@pytest.fixture(autouse=True)
def fused_routes(monkeypatch):
    """Where the kernels are not built the modules still take their fused routes, over the reference operators."""
    if not native.available():
        for module in (fused_bottleneck, fused_ghost_module, fused_squeeze_excite):
            monkeypatch.setattr(module, "choose", lambda *_: Choice("native"))
    torch.manual_seed(0)
