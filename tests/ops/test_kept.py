"""What is made of a tensor and kept: never stale, gone with the tensor, made once by many threads."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghost_ops.backends import kept
from ghost_ops.backends.kept import KeptOf


class Doubling(KeptOf):
    """2 * source + add, and how often that was computed."""

    def __init__(self):
        self.made = 0
        super().__init__(self.make_one, lambda source, made, add: (made.view(-1), add))

    def make_one(self, source, add):
        self.made += 1
        return 2 * source + add


@pytest.fixture
def doubling():
    return Doubling()


def expect(doubling, source, add=0.0):
    values, added = doubling(source, add)
    assert torch.equal(values, 2 * source.detach().flatten() + add) and added == add and not values.requires_grad
    return values


def test_a_source_that_is_as_it_was_makes_nothing(doubling):
    source = torch.randn(4)
    first = expect(doubling, source)
    assert expect(doubling, source) is first and doubling.made == 1
    assert expect(doubling, source, 1.0) is not first and doubling.made == 2  # another key
    expect(doubling, source.clone())
    assert doubling.made == 3 and len(doubling) == 1  # the clone is gone


def _load(module):
    module.load_state_dict({"t": torch.full((4,), 3.0)})


def _inference(module):
    with torch.inference_mode():
        module.t.mul_(3)


CHANGES = {
    "in place": lambda m: m.t.mul_(3),
    "a part of it": lambda m: m.t[1:].zero_(),
    "through detach": lambda m: m.t.detach().add_(1),
    "in inference mode": _inference,
    "loaded": _load,
    "loaded, assigned": lambda m: m.load_state_dict({"t": torch.full((4,), 3.0)}, assign=True),
    "other data": lambda m: setattr(m.t, "data", torch.full((4,), 3.0)),
    "set": lambda m: m.t.set_(torch.full((4,), 3.0)),
    "another tensor": lambda m: setattr(m, "t", nn.Parameter(torch.full((4,), 3.0))),
    "a foreach": lambda m: torch._foreach_add_([m.t], 1.0),
    "out of it": lambda m: torch.add(m.t, 1.0, out=m.t),
    "past the counter, and said so": lambda m: (m.t.data.add_(1), torch.autograd.graph.increment_version(m.t)),
}


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.arange(4.0))


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_is_seen(change, doubling):
    module = Holder()
    before = expect(doubling, module.t).clone()
    CHANGES[change](module)
    assert not torch.equal(expect(doubling, module.t), before)
    assert expect(doubling, module.t) is doubling(module.t, 0.0)[0] and doubling.made == 2


def test_data_at_an_address_that_others_had_is_other_data(doubling):
    """As a caching allocator gives it: the same address, no version moved."""
    source, place = torch.zeros(1), torch.zeros(64)
    source.data = place.new_empty(0).set_(place.untyped_storage())
    expect(doubling, source)
    again = torch.frombuffer(memoryview(place.numpy()), dtype=torch.float32)  # another storage at that address
    again.fill_(5)
    assert again.data_ptr() == source.data_ptr()
    version = source._version
    source.data = again
    assert source._version == version
    expect(doubling, source)
    assert doubling.made == 2


def test_copies_have_their_own(doubling):
    module = Holder()
    expect(doubling, module.t)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.t.add_(1)
    expect(doubling, twin.t), expect(doubling, module.t)
    assert doubling.made == 2


def test_it_goes_with_the_source(doubling):
    source = torch.randn(4)
    values = weakref.ref(doubling(source, 0.0)[0])
    del source
    gc.collect()
    assert len(doubling) == 0 and values() is None


def test_a_source_without_versions_is_never_kept(doubling):
    with torch.inference_mode():
        source = torch.randn(4)
        expect(doubling, source)
        source.add_(1)
        expect(doubling, source)
    assert doubling.made == 2 and len(doubling) == 0


def test_what_is_made_in_inference_mode_is_of_use_elsewhere(doubling):
    source = torch.randn(4)
    with torch.inference_mode():
        made = expect(doubling, source)
    assert not made.is_inference()
    with torch.no_grad():
        source.add_(1)
    expect(doubling, source)
    with torch.inference_mode():
        expect(doubling, source)


class Watching(TorchDispatchMode):
    """A mode that gives results without values, as a dry run does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return torch.full_like(out, float("nan")) if func is torch.ops.aten.add.Tensor else out


def test_nothing_of_a_watched_call_is_kept(doubling):
    source = torch.randn(4)
    with Watching():
        assert doubling(source, 0.0)[0].isnan().all()
    assert len(doubling) == 0
    kept_before = expect(doubling, source)
    with Watching():
        assert doubling(source, 0.0)[0].isnan().all()
    assert expect(doubling, source) is kept_before


def test_what_is_read_by_a_graph_is_told_and_prepared(doubling):
    source = torch.randn(4)
    with kept.reading() as found:
        doubling(source, 0.0)
        assert not found and len(doubling) == 0  # there was none: the graph makes its own
    values = expect(doubling, source)
    with kept.reading() as found:
        assert doubling(source, 0.0)[0] is values
    (one,) = found
    with torch.no_grad():
        source.add_(1)
    assert not torch.equal(values, 2 * source)
    one.prepare()
    assert torch.equal(values, 2 * source)
    held = weakref.ref(one)
    del source
    gc.collect()
    one.prepare()  # a graph may outlive the source, and what it reads stays
    assert len(doubling) == 0 and held() is not None


def test_many_threads_make_it_once(doubling):
    source, found, start = torch.randn(1000), [], threading.Barrier(8)

    def run():
        start.wait()
        found.append(doubling(source, 0.0)[0])

    threads = [threading.Thread(target=run) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert doubling.made == 1 and len(found) == 8 and all(t is found[0] for t in found)


def test_an_error_keeps_nothing():
    fails = KeptOf(lambda source, size: source.view(size), lambda source, made, size: made)
    source = torch.randn(4)
    with pytest.raises(RuntimeError, match="shape"):
        fails(source, 3)
    assert len(fails) == 0 and torch.equal(fails(source, 4), source)
