import pytest

from ghost_ops.backends import native

from .ranks import Ranks


@pytest.fixture(scope="package")
def ranks():
    """Two processes; a test that would compare plain PyTorch with itself is skipped."""
    if not native.available():
        pytest.skip(f"no compiled library: {native.reason()}")
    pair = Ranks(2)
    yield pair
    pair.close()
