"""When the CUDA C++ kernels run, as on a machine with a device: only where they were asked for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ghost_ops import dispatch, explain, freeze, nn
from ghost_ops.backends import cuda, triton
from ghost_ops.backends.cuda import plan
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.dispatch import select, use_backend
from ghost_ops.ops import _library
from tests.cuda import emulate
from tests.helpers import on

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = ("ghost_module", "program", "program_maps")


@pytest.fixture
def device(monkeypatch):
    """As on a machine with an H100, the library and Triton."""
    clear = dispatch._select.cache_clear
    for package in (cuda, triton):
        monkeypatch.setattr(package, "_missing", None)
        monkeypatch.setattr(package, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(cuda, "_load", lambda: (object(), None))
    monkeypatch.setattr(cuda, "_refusal", lambda index: None)
    clear()
    yield
    clear()


def on_cuda(dtype: torch.dtype = torch.float16) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 8, 4, 4, dtype=dtype, device="cuda")


def test_the_operators_that_it_has():
    assert tuple(filter(cuda.has, SCHEMAS)) == OPERATORS


def test_triton_is_the_default(device):
    assert not cuda.FASTER_ON, "a device was measured: this test, README and docs/architecture.md must know"
    for op in OPERATORS:
        assert select(op, on_cuda(), 3) == on("triton", op)


def test_asked_for(device, monkeypatch):
    with use_backend("cuda"):
        for op in OPERATORS:
            assert select(op, on_cuda(), 3) == on("cuda", op)
        assert select("squeeze_excite", on_cuda()) == on(
            "triton", "squeeze_excite", "not cuda, since it has no squeeze_excite"
        )
        found = str(select("ghost_module", on_cuda(torch.float64), 3))
        assert (
            found.startswith("ghost_module on reference: not cuda, since its kernels take float32")
            and "not triton" in found
        )
        assert select("program", torch.empty(1, 3, 4, 4)).backend in ("native", "reference")
    assert select("program", on_cuda()) == on("triton", "program")
    monkeypatch.setattr(cuda, "WISH", "cuda")
    dispatch._select.cache_clear()
    assert select("program", on_cuda()) == on("cuda", "program")
    with use_backend("triton"):
        assert select("program", on_cuda()) == on("triton", "program")
    with use_backend("reference"):
        assert select("program", on_cuda()).backend == "reference"


def test_a_device_that_the_library_was_not_built_for(device, monkeypatch):
    """Or whose driver is older than the runtime within: then the next backend runs, and is no error."""
    why = "its kernels do not run on this device: no kernel image is available for execution on the device"
    monkeypatch.setattr(cuda, "_refusal", lambda index: why)
    with use_backend("cuda"):
        assert select("program", on_cuda()) == on("triton", "program", f"not cuda, since {why}")


NO_CODE = "no kernel image is available for execution on the device"
OLD_DRIVER = "CUDA driver version is insufficient for CUDA runtime version"


@pytest.fixture
def here(monkeypatch):
    """The backend on the CPU, before all others, if a function says nothing against the device."""

    def stands(refuse_device):
        backend = replace(cuda.BACKEND, is_candidate=lambda device, forced: True, refuse_device=refuse_device)
        others = {name: other for name, other in dispatch.BACKENDS.items() if name != "cuda"}
        monkeypatch.setattr(dispatch, "BACKENDS", {"cuda": backend} | others)
        dispatch._select.cache_clear()

    yield stands
    monkeypatch.undo()
    dispatch._select.cache_clear()


@pytest.fixture(scope="module")
def frozen():
    return freeze(torch.nn.Sequential(nn.GhostBottleneck(8, 16, 8)).eval())


@pytest.mark.parametrize("why", [NO_CODE, OLD_DRIVER])
def test_explain_says_why_a_device_does_not_run_them(why, here, frozen, monkeypatch):
    """The library asks CUDA; what that says is what ``explain`` prints beside the next backend."""

    def refuses() -> bytes:
        return why.encode()

    library = type("Library", (), {"ghost_ops_cuda_refuses": staticmethod(refuses)})
    monkeypatch.setattr(cuda, "library", lambda: library)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    cuda._asked.cache_clear()
    here(lambda device: cuda._asked(-1))
    (row,) = explain(frozen, torch.randn(1, 8, 6, 6)).rows
    cuda._asked.cache_clear()
    assert row.runs.startswith(("program on native", "program on reference"))
    assert row.why.startswith(f"not cuda, since its kernels do not run on this device: {why}")


def test_explain_says_that_nothing_fits_a_device(here, frozen, monkeypatch):
    """A shape that no plan holds: so little shared memory that not even a Ghost module's fits."""
    here(lambda device: None)
    x = torch.randn(1, 8, 6, 6)
    with emulate.Emulator().running():
        (row,) = explain(frozen, x).rows
        assert row.runs.startswith("program on cuda, 1 bottlenecks and 0 other blocks in 1 launches")
        monkeypatch.setattr(plan, "limits", lambda device: (132, 1024))
        emulate.clear()
        (row,) = explain(frozen, x).rows
    nothing = "in fact on the next backend, since no part of a Ghost module fits the device"
    assert row.runs.startswith(f"program on cuda, {nothing}")


def test_where_it_was_measured_to_be_faster(device, monkeypatch):
    monkeypatch.setattr(cuda, "FASTER_ON", frozenset({(9, 0)}))
    assert select("program", on_cuda()) == on("cuda", "program")


def test_calls_go_where_the_choice_says(monkeypatch):
    ran = []
    monkeypatch.setattr(_library, "select", lambda op, x, kernel=None: on(ran[0], op))
    for name, package in (("cuda", cuda), ("triton", triton)):
        ran[:] = [name]
        load = lambda op, name=name: lambda *args: ran.append((name, op))
        monkeypatch.setitem(dispatch.BACKENDS, name, replace(package.BACKEND, load=load))
        _library._by_decision("program")(torch.empty(1), None, [])
        assert ran[1:] == [(name, "program")]


def test_info_says_why(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert dispatch.BACKENDS["cuda"].state() == "ready, off until GHOST_OPS_GPU=cuda"
    monkeypatch.setattr(cuda, "_load", lambda: (None, "no CUDA device is there"))
    assert dispatch.BACKENDS["cuda"].state() == "missing: no CUDA device is there"
    with (
        pytest.raises(ValueError, match="expected 'cuda', 'triton', 'reference' or None, got 'metal'"),
        use_backend("metal"),
    ):
        pass
