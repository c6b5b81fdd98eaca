import pytest

from ghost_ops.bench.timing import torch_threads

from ..bench.short_net import short_net  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread():
    with torch_threads(1):
        yield
