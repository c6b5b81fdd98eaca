import pytest

from ghost_ops.bench.timing import torch_threads

from .short_net import short_net  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread():
    """The maps are tiny: threads would only wait for each other."""
    with torch_threads(1):
        yield
