"""What backends keep for a packed program goes with it."""

from __future__ import annotations

import copy
import gc
import importlib.util
import threading
import weakref

import pytest
import torch

import ghost_ops
from ghost_ops.backends.cuda.program import describe, fitting
from ghost_ops.backends.tensor_cache import TensorCache
from ghost_ops.models import GhostNet


class Result:
    pass


def counted(size=None):
    made = []

    def make(tensor, *key):
        made.append(key)
        return Result()

    return TensorCache(make, size), made


def test_a_result_lives_as_long_as_its_tensor():
    cache, made = counted()
    a = torch.zeros(3)
    result = cache(a, 1)
    assert cache(a, 1) is result and cache(a, 2) is not result and made == [(1,), (2,)] and len(cache) == 2
    gone = weakref.ref(result)
    del result
    assert gone() is not None
    del a
    assert gone() is None and len(cache) == 0 and not cache._of_tensor


def test_tensors_count_by_identity_and_share():
    """Equal values are not one tensor; the same key is one result, until the last tensor is gone."""
    cache, made = counted()
    a, b = torch.zeros(3), torch.zeros(3)
    result = weakref.ref(cache(a, 1))
    assert cache(b, 1) is result() and made == [(1,)]
    del a
    assert cache(b, 1) is result() and len(cache._of_tensor) == 1
    del b
    assert result() is None
    cache(torch.zeros(3), 1)
    assert made == [(1,), (1,)] and len(cache) == 0


def test_the_least_recent_result_goes():
    cache, made = counted(size=2)
    a = torch.zeros(3)
    for key in (1, 2, 1, 3, 1, 2):
        cache(a, key)
    assert made == [(1,), (2,), (3,), (2,)] and len(cache) == 2
    cache.cache_clear()
    assert len(cache) == 0
    cache(a, 1)
    assert made[-1] == (1,)


def test_none_is_a_result():
    made = []
    cache = TensorCache(lambda tensor, key: made.append(key))
    a = torch.zeros(3)
    assert cache(a, 1) is None and cache(a, 1) is None and made == [1]


def test_an_error_is_not_kept():
    cache = TensorCache(lambda tensor, key: 1 / key)
    a = torch.zeros(3)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cache(a, 0)
    assert len(cache) == 0


def test_many_threads_make_one():
    started, made = threading.Barrier(8), []

    def make(tensor, key):
        made.append(key)
        return Result()

    cache, a, found = TensorCache(make), torch.zeros(3), []

    def call():
        started.wait()
        for key in range(50):
            found.append((key, cache(a, key)))
            cache(torch.zeros(2), key)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(50)) and len(set(found)) == 50
    assert len(cache._of_tensor) == 1


@pytest.fixture
def frozen():
    (program,) = ghost_ops.freeze(GhostNet(0.5, num_classes=10).eval()).frozen_programs
    return program


def index_of(frozen, backend):
    """The plan that a backend has of a frozen net: made on the CPU, where no kernel runs."""
    x = torch.randn(1, 3, 64, 64)
    steps, packed = tuple(frozen.steps), frozen.packed
    if backend == "cuda":
        return fitting(packed, steps, packed.numel(), tuple(x.shape), x.dtype, x.device, some_plan).calls
    from ghost_ops.backends.triton.program import _plan

    return _plan(packed, steps, packed.numel(), packed.device)


def some_plan(numbers, dtype, images, device):
    return "a plan"


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_the_index_of_a_frozen_net_goes_with_it(backend, frozen):
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    index = weakref.ref(index_of(frozen, backend).index)
    assert index_of(frozen, backend).index is index()
    twin = copy.deepcopy(frozen)
    assert index_of(twin, backend).index is index(), "nets with the same steps share one index"
    if backend == "cuda":
        described = describe(torch.randn(1, 3, 64, 64), frozen.packed, frozen.steps, some_plan)
        assert described and all(plan == "a plan" for _, plan in described)
    del frozen.packed
    gc.collect()
    assert index() is not None
    del twin
    gc.collect()
    assert index() is None


def test_another_packed_form_has_its_own(frozen):
    """As after ``.to(device)``, which replaces the buffer: what belonged to the old one goes."""
    plan = weakref.ref(index_of(frozen, "cuda"))
    frozen.packed = frozen.packed.clone()
    gc.collect()
    assert plan() is None and index_of(frozen, "cuda") is not None


def test_a_program_reaches_its_backend_with_the_very_tensor(frozen):
    """What the identity of the packed form rests on: eager, compiled and exported calls hand the same object over."""
    seen = []
    library = torch.library.Library("ghost_ops_identity", "FRAGMENT")
    library.define("call(Tensor x, Tensor packed) -> Tensor")
    library.impl("call", lambda x, packed: seen.append(packed) or x + 1, "CPU")
    torch.library.register_fake("ghost_ops_identity::call", lambda x, packed: torch.empty_like(x), lib=library)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("packed", frozen.packed)

        def forward(self, x):
            return torch.ops.ghost_ops_identity.call(x, self.packed) * 2

    net, x = Net(), torch.randn(3)
    exported = torch.export.export(net, (x,)).module()
    with torch.no_grad():
        for call, packed in ((net, net.packed), (torch.compile(net), net.packed), (exported, exported.packed)):
            seen.clear()
            call(x)
            call(x)
            assert seen and all(tensor is packed for tensor in seen)


def test_a_dry_run_keeps_nothing_that_was_not_computed(frozen):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    from ghost_ops.ahead.dry_run import dry_run
    from ghost_ops.backends.triton.program import _folded, _plan

    x = torch.randn(1, 3, 64, 64)
    with dry_run("sm_90"), torch.no_grad():
        frozen(x)
    found = index_of(frozen, "triton").index.clone()
    _plan.cache_clear()
    assert torch.equal(found, index_of(frozen, "triton").index) and found.max() > frozen.packed.numel() // 2
    assert len(_folded) == 0
