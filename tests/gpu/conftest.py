"""What needs a CUDA device: run by ``make gpu-check``, which fails where there is none; in a run of all tests every one
here says why it is skipped."""

from __future__ import annotations

import pytest
import torch

from ghost_ops.backends import triton


def _reason() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device is there"
    if not triton.available():
        return triton.reason()
    return triton.refuse_device(torch.device("cuda", torch.cuda.current_device()))


REASON = _reason()


def pytest_collection_modifyitems(config, items):
    if config.getoption("markexpr") == "gpu" and REASON is not None:
        raise pytest.UsageError(f"-m gpu asks for tests of a device: {REASON}")
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.gpu)
            needs_triton = not item.nodeid.startswith("tests/gpu/test_cuda.py")
            if REASON is not None and (needs_triton or not torch.cuda.is_available()):
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(autouse=True)
def _as_pytorch_is_compared():
    """Products in full float32 on both sides: what TF32 costs is a test of its own."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
