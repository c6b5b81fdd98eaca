"""What all tests share: threads, seeds, and timm beside a torch without torchvision's operators."""

from __future__ import annotations

import os
import sys

# By AMX, PyTorch's convolutions in bfloat16 now and then give NaN, from memory beside their arguments.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
# As many processes as cores, each with threads that would wait for each other busily: two thirds of the time so.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

torch.set_num_threads(1)  # as many processes as cores: tests of threads say how many
LONG = ("test_interpreter.py", "test_compile_ahead.py", "test_bfloat16.py")  # a minute and more each


def _import_torchvision() -> torch.library.Library | None:
    """timm imports torchvision, whose compiled operators need not load beside this torch: their schemas will do.

    A library's definitions live as long as it does.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_TORCHVISION = _import_torchvision()


def pytest_collection_modifyitems(items):
    """The longest first: else one process ends with them while the others are done."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For tests of many small maps, where threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
