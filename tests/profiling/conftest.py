import pytest

from ghost_ops.bench import roofline
from ghost_ops.bench.timing import torch_threads

LIMITS = roofline.Limits(1, 1e11, "made up", {"L2": 1e11, "L3": 5e10, "DRAM": 1e10}, {"L2": 1 << 20, "L3": 1 << 24})


@pytest.fixture(autouse=True, scope="module")
def _fast():
    """One thread, since the maps are tiny; a machine whose limits are known; short rounds."""
    with pytest.MonkeyPatch.context() as patch, torch_threads(1):
        patch.setattr(roofline, "measure", lambda threads, seconds, bfloat16: LIMITS)
        patch.setattr("ghost_ops.profiling.session.ROUND_SECONDS", 1e-3)
        yield
