"""Kernels are compiled before the first call, and found by it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ghost_ops
from ghost_ops.ahead import kernels as ahead
from ghost_ops.ahead.dry_run import dry_run

triton = pytest.importorskip("triton")
WARM_UP = sys.modules["ghost_ops.ahead.warm_up"]


@pytest.fixture
def module():
    return ghost_ops.FusedGhostModule(8, 16)


def test_what_it_compiled_is_found(module, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module.eval()
    x = torch.randn(2, 8, 8, 8, dtype=torch.float16)
    module.half()
    done = ghost_ops.warm_up(module, x, jobs=1, progress=False, architecture="sm_90")
    assert done.kernels == len(list(tmp_path.glob("*/*.cubin"))) > 0 and done.launches >= done.kernels
    assert str(done).startswith(f"{done.kernels} kernels for {done.launches} launches are ready")
    hits = []
    listen = lambda *, cache_hit, **_: hits.append(cache_hit)
    with torch.no_grad(), dry_run("sm_90") as found:
        module(x)
    monkeypatch.setattr(triton.knobs.compilation, "listener", listen)
    with ahead._driver("sm_90"):
        for one in found.kernels:
            for cache in one.kernel.device_caches.values():
                cache[0].clear()
            one.kernel.warmup(**one.arguments, num_warps=one.warps, num_stages=one.stages, grid=one.grid)
    assert hits and all(hits)


KEYS = """
import sys
import torch
from ghost_ops.backends.triton import cheap, launch, products
kernels = {"cheap": cheap.cheap_kernel, "product": products.product_kernel}
launch.instead = lambda *_: None
for name in sys.argv[1:]:
    launch.start_kernel(kernels[name], (1,), {}, 4, 1)
    kernels[name].cache_key
print({name: kernel.cache_key for name, kernel in kernels.items()})
"""


def test_kernels_are_found_whichever_comes_first():
    """Triton's keys of kernels depend on the order in which they are made."""
    found = set()
    for order in (["cheap", "product"], ["product", "cheap"]):
        done = subprocess.run([sys.executable, "-c", KEYS, *order], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_training_has_the_backward_too_and_leaves_no_gradients(module, monkeypatch):
    seen = []
    monkeypatch.setattr(WARM_UP, "compile_all", lambda kernels, *_: seen.extend(kernels) or {})
    module.train()
    ghost_ops.warm_up(module, torch.randn(2, 8, 8, 8), progress=False, architecture="sm_80")
    assert "input_bwd_kernel" in {kernel.name for kernel in seen}
    assert all(p.grad is None for p in module.parameters())
    assert all('"arch": 80' in kernel.data for kernel in seen)
    assert int(module.primary_conv[1].num_batches_tracked) == 0


def test_a_plain_net_needs_nothing():
    done = ghost_ops.warm_up(torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), progress=False, architecture="sm_90")
    assert (done.kernels, done.launches) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"example": torch.randn(1, 8, 4, 4)}, ValueError, "expected a tensor on a CUDA device, or architecture"),
        ({"example": 3, "architecture": "sm_90"}, ValueError, "example: expected a tensor"),
        ({"architecture": "hopper"}, ValueError, "expected a name such as 'sm_90', got 'hopper'"),
        ({"architecture": "sm_90", "jobs": 0}, ValueError, "jobs: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(module, arguments, error, message):
    example = arguments.pop("example", torch.randn(1, 8, 4, 4))
    with pytest.raises(error, match=message):
        ghost_ops.warm_up(module, example, **arguments)


def test_a_kernel_that_does_not_compile_is_told(module, monkeypatch):
    monkeypatch.setattr(WARM_UP, "compile_all", lambda *_: {"cheap_kernel": "OutOfResources: shared"})
    with pytest.raises(RuntimeError, match="1 kernels did not compile; the first, cheap_kernel: OutOfResources"):
        ghost_ops.warm_up(module.eval(), torch.randn(1, 8, 4, 4), progress=False, architecture="sm_90")
