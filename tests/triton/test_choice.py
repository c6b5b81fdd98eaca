"""Which backend runs on a device, without one: the predicate, the registration, what importing costs, and refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ghost_ops
from ghost_ops import dispatch
from ghost_ops.backends import triton
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.dispatch import select, use_backend
from ghost_ops.fused import GraphedNet
from ghost_ops.ops import _library
from tests.helpers import on

ROOT = Path(__file__).resolve().parents[2]
# and their backwards
WITHOUT = ("program_pack", "program_eval", "branched_module_train", "batch_norm_act_train")
OPERATORS = [name for name in SCHEMAS if name.removesuffix("_backward") not in WITHOUT]


def load(monkeypatch, function):
    """Let ``function`` load the implementations."""
    monkeypatch.setitem(dispatch.BACKENDS, "triton", replace(triton.BACKEND, load=function))


def test_the_operators_that_it_has():
    assert list(filter(triton.has, SCHEMAS)) == OPERATORS


@pytest.fixture
def device(monkeypatch):
    """As on a machine with an H100."""
    found = {"capability": (9, 0)}
    monkeypatch.setattr(triton, "_missing", None)
    monkeypatch.setattr(triton, "_capability", lambda index: found["capability"])
    dispatch._select.cache_clear()
    yield found
    dispatch._select.cache_clear()


def on_cuda(dtype: torch.dtype = torch.float16) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(2, 8, 4, 4, dtype=dtype, device="cuda")


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_device_runs_triton(device, op, dtype):
    assert select(op, on_cuda(dtype), 3) == on("triton", op)


def test_refusals_say_why(device):
    for op, dtype, kernel, why in (
        ("ghost_module", torch.float64, 3, "float32, float16 and bfloat16, the input is float64"),
        ("ghost_module", torch.float16, 9, "size 1, 3, 5 or 7, this one is 9"),
        ("program_eval", torch.float16, None, "it has no program_eval"),
        ("branched_module_train", torch.float16, 3, "it has no branched_module_train, since made of its other kernels"),
    ):
        found = select(op, on_cuda(dtype), kernel)
        assert found.backend == "reference" and "not triton, since " in str(found) and why in str(found)
    device["capability"] = (7, 5)
    dispatch._select.cache_clear()
    assert "compute capability 8.0 or more, this device has 7.5" in str(select("ghost_module", on_cuda(), 3))
    with use_backend("reference"):
        assert "not triton, since the reference backend was asked for" in str(select("ghost_module", on_cuda(), 3))


def test_without_triton(monkeypatch, device):
    monkeypatch.setattr(triton, "_missing", "Triton is not installed: pip install triton")
    assert (
        str(select("ghost_module", on_cuda(), 3))
        == "ghost_module on reference: not triton, since Triton is not installed: pip install triton"
    )
    assert dispatch.BACKENDS["triton"].state() == "missing: Triton is not installed: pip install triton"


def test_the_cpu_is_nothing_to_it(device):
    assert select("ghost_module", torch.empty(2, 8, 4, 4), 3).backend in ("native", "reference")
    assert "triton" not in str(select("ghost_module", torch.empty(2, 8, 4, 4, dtype=torch.float64), 3))
    assert triton.refuse_device(torch.device("cpu")) == "its kernels run on CUDA devices, the input is on cpu"


def test_direct_calls_go_to_the_kernels_or_to_the_reference(monkeypatch):
    """What is registered for devices, called by hand on CPU tensors."""
    asked, ran = [], []

    def answer(op, x, kernel=None):
        asked.append((op, kernel))
        return on("reference" if x.dtype is torch.float64 else "triton", op)

    monkeypatch.setattr(_library, "select", answer)
    load(monkeypatch, lambda name: lambda *args: ran.append(name))
    x, w1, w2 = torch.randn(2, 4, 5, 5), torch.randn(3, 4, 1, 1), torch.randn(3, 1, 5, 5)
    args = (x, w1, None, w2, None, None, None, None, None, 6, 1, 1, 0.0, 0.0, False)
    call = _library._by_decision("ghost_module")
    call(*args)
    assert asked == [("ghost_module", 5)] and ran == ["ghost_module"]
    out, _ = call(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    assert out.shape == (2, 6, 5, 5) and out.dtype is torch.float64 and ran == ["ghost_module"]
    backward = _library._by_decision("ghost_module_backward")
    grads = backward(*(t.double() for t in (out, x, w1)), None, w2.double(), *[None] * 4, 6, 1, 1, 0.0, 0.0)
    assert grads[0].shape == x.shape and asked[-1] == ("ghost_module_backward", 5)


def arguments_of(name):
    return SCHEMAS[name].split("(", 1)[1].split(")")[0].split(", ")


DEPTHWISE = [
    name for name in OPERATORS
    if {"Tensor cheap_weight", "Tensor? cheap_weight", "Tensor weight"} & set(arguments_of(name))
]  # fmt: skip


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("sides", [(3, 3), (7, 7), (9, 9), (2, 2), (4, 4), (3, 5), (5, 3), (), (3,)])
def test_direct_calls_of_kernels_that_are_not_compiled(device, monkeypatch, name, sides):
    """Of every operator that has a depthwise weight, whatever that argument's name."""
    ran = []
    load(monkeypatch, lambda op: lambda *args: ran.append("triton"))
    twin = types.SimpleNamespace(default=lambda *args: ran.append("reference"))
    monkeypatch.setattr(torch.ops.ghost_ops, f"{name}_reference", twin)
    args = []
    for argument in arguments_of(name):
        kind, what = argument.split()
        args.append(None if kind == "Tensor?" else on_cuda() if kind == "Tensor" else 1)
        if what in ("cheap_weight", "weight"):
            with FakeTensorMode():
                args[-1] = torch.empty(8, 1, *sides, device="cuda") if sides else torch.empty((), device="cuda")
    _library._by_decision(name)(*args)
    assert ran == ["triton" if sides in ((3, 3), (7, 7)) else "reference"]


def test_every_operator_with_a_depthwise_weight_is_tried():
    assert {"depthwise", "depthwise_backward", "ghost_module", "cheap_concat_backward"} <= set(DEPTHWISE)


def test_importing_costs_nothing():
    """Neither Triton nor the compiler, which is seconds of import."""
    code = "import sys, ghost_ops; print([m for m in ('triton', 'torch._dynamo') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_frozen_graph_needs_a_device():
    net = ghost_ops.models.ghostnet_050().eval()
    with pytest.raises(ValueError, match="cuda_graph: expected a net on one CUDA device, got one on cpu"):
        ghost_ops.freeze(net, cuda_graph=True)
    with pytest.raises(ValueError, match=r"dtype: expected None, torch.float32 or torch.bfloat16, got torch.float16"):
        ghost_ops.freeze(net, dtype=torch.float16)


def test_graphed_net_refuses():
    net = torch.nn.Linear(2, 2).eval()
    with pytest.raises(ValueError, match="eval mode"):
        GraphedNet(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="most: expected at least 1, got 0"):
        GraphedNet(net, 0)
    graphed = pickle.loads(pickle.dumps(GraphedNet(net)))
    with pytest.raises(ValueError, match="expected a tensor on a CUDA device, got one on cpu"):
        graphed(torch.zeros(1, 2))
    with pytest.raises(TypeError, match="expected a tensor, got int"):
        graphed(3)
    with pytest.raises(ValueError, match="eval mode"):
        graphed.train()


@pytest.mark.parametrize("script", ["tune_triton.py", "gpu.py"])
def test_scripts_refuse_without_a_device(script):
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    run = lambda *args: subprocess.run(
        [sys.executable, f"benchmarks/{script}", *args], cwd=ROOT, capture_output=True, text=True
    )
    assert run("--help").returncode == 0
    refused = run()
    assert refused.returncode == 1 and "device" in refused.stderr and "Traceback" not in refused.stderr
