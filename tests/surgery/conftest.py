import pytest

from ..fused.conftest import fused_routes  # noqa: F401  (autouse: fused routes even where the kernels are not built)


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """What is tested here is which piece goes where, on small maps."""
