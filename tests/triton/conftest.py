"""Triton reads TRITON_INTERPRET when it is imported: interpreted kernels and compiled ones need a process each.

Without it the tests here compile kernels, and ``test_interpreter.py`` runs those of ``interpreted/`` in processes of
their own; ``TRITON_INTERPRET=1 pytest tests/triton/interpreted`` runs these alone.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from types import SimpleNamespace

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
collect_ignore = [] if INTERPRETED else ["interpreted"]
if INTERPRETED or not HAS_TRITON:
    collect_ignore += ["test_compiled.py", "test_static_speed.py"]


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it gets, which C++ has, and an empty cache of launches for tensors of the CPU."""
    from ghost_ops.backends.triton import launch_cache, launch_native
    from tests.triton import stub_driver

    driver = stub_driver.load()
    driver.library.stub_reset()
    driver.open()
    monkeypatch.setattr(launch_cache, "on_device", lambda t: True)
    monkeypatch.setattr(launch_native, "_state", lambda: None)
    monkeypatch.setattr(launch_native, "_refusals", {})
    for table in ("_launches", "_kinds"):
        monkeypatch.setattr(launch_cache, table, {})
    yield driver
    driver.library.stub_reset()


@pytest.fixture
def count():
    """Tells how many recordings of this test C++ has."""
    from ghost_ops.backends.triton import launch_native

    gc.collect()
    before = launch_native.count()
    return lambda: launch_native.count() - before


@pytest.fixture
def kernel(monkeypatch, driver):
    """A kernel of the arguments x and out, in a Triton whose only device has the number 0."""
    from ghost_ops.backends.triton import launch_recording, launch_replay
    from tests.triton.stub_driver import STREAM
    from tests.triton.stub_driver.kernel import Kernel

    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: STREAM)
    for file in (launch_recording, launch_replay):
        monkeypatch.setattr(file, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(Kernel, "driver", driver)
    return Kernel("x", "out")
