"""The memory that large maps lie in: used again, never too early, hardly more than was once needed."""

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ghost_ops
from ghost_ops.backends import native
from tests.helpers import poisoned_memory, randomise

pytestmark = pytest.mark.skipif(
    not native.available() or torch.__version__ < "2.11", reason="the kernels, on torch 2.11 or newer, keep memory"
)
SIDE = 64
BYTES = 4 * 16 * SIDE * SIDE


@pytest.fixture
def module():
    gc.collect()
    ghost_ops.empty_cache()
    with torch.inference_mode():
        yield randomise(ghost_ops.FusedGhostModule(8, 16).eval())
    gc.collect()
    ghost_ops.empty_cache()


def some_input(side=SIDE, seed=0, images=1):
    return torch.randn(images, 8, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_next_map_lies_where_the_last_one_lay(module):
    x = some_input()
    first = module(x)
    place, expected = first.data_ptr(), first.clone()
    del first
    assert native.kept_bytes() == BYTES
    again = module(x)
    assert again.data_ptr() == place and native.kept_bytes() == 0
    assert torch.equal(again, expected) and again.is_inference()


def test_memory_in_use_stays_as_it_is(module):
    first, second = some_input(seed=1), some_input(seed=2)
    kept = module(first)
    expected, view = kept.clone(), kept[0, 3]
    other = module(second)
    assert other.data_ptr() != kept.data_ptr() and torch.equal(kept, expected)
    del kept
    module(second)
    assert torch.equal(view, expected[0, 3]), "a view keeps the memory"


def test_nothing_of_the_last_map_is_left(module):
    x = some_input()
    expected = module(x).clone()
    with poisoned_memory():
        assert torch.equal(module(x), expected)
        assert native.kept_bytes() == BYTES


def test_never_more_than_was_once_in_use(module):
    for side in (96, 64, 80, 72, 88, 56, 92):
        module(some_input(side))
        assert native.kept_bytes() <= 4 * 16 * 96 * 96


def test_a_much_larger_block_is_not_taken(module):
    module(some_input(128))
    small = module(some_input(64))
    assert small.untyped_storage().nbytes() == BYTES
    assert native.kept_bytes() >= 4 * 16 * 128 * 128 - BYTES or native.kept_bytes() == 0


def test_empty_cache(module):
    module(some_input())
    assert native.kept_bytes() > 0
    ghost_ops.empty_cache()
    assert native.kept_bytes() == 0


def test_small_and_empty_maps_are_pytorchs(module):
    module(some_input(4))
    assert module(some_input(SIDE, images=0)).shape == (0, 16, SIDE, SIDE)
    assert native.kept_bytes() == 0


def test_threads(module):
    inputs = [some_input(32 + 8 * i, seed=i) for i in range(6)]
    expected = [module(x).clone() for x in inputs]

    def work(i):
        with torch.inference_mode():
            return all(torch.equal(module(inputs[(i + j) % 6]), expected[(i + j) % 6]) for j in range(60))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_the_memory_of_many_maps_serves_for_a_large_one(module):
    maps = [module(some_input()) for _ in range(5)]
    del maps[0]
    places = {m.data_ptr() for m in maps}
    assert max(places) - min(places) == 3 * BYTES, "they follow each other"
    maps.clear()
    assert native.kept_bytes() == 5 * BYTES
    large = module(some_input(2 * SIDE))
    assert large.data_ptr() <= min(places) and native.kept_bytes() == BYTES


ANY_ORDER = """
import random, torch, ghost_ops
from ghost_ops.backends import native
torch.set_grad_enabled(False)
module = ghost_ops.FusedGhostModule(8, 16).eval()
draw, held, peak = random.Random(0), [], 0
for value in range(300):
    if held and draw.random() < 0.5:
        kept, expected = held.pop(draw.randrange(len(held)))
        assert (kept == expected).all()
        del kept
    else:
        side = draw.randrange(30, 200)
        held.append((module(torch.randn(1, 8, side, side)).fill_(value), value))
    in_use = sum(-(-m.untyped_storage().nbytes() // 65536) * 65536 for m, _ in held)
    peak = max(peak, in_use)
    assert in_use + native.kept_bytes() <= peak * 9 / 8, (value, in_use, native.kept_bytes(), peak)
assert native.kept_bytes() > 0
"""


def test_maps_of_any_order_and_size():
    """In a process of its own: what other tests hold counts as used."""
    done = subprocess.run([sys.executable, "-c", ANY_ORDER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_gives_its_maps_back():
    module = ghost_ops.FusedGhostModule(8, 16).train()
    gc.collect()
    ghost_ops.empty_cache()
    x = some_input().requires_grad_()
    for _ in range(2):
        gradient, *_ = torch.autograd.grad(module(x).square().sum(), (x, *module.parameters()))
        place, kept = gradient.data_ptr(), native.kept_bytes()
        del gradient
        assert native.kept_bytes() == kept + 4 * 8 * SIDE * SIDE
    assert torch.autograd.grad(module(x).sum(), x)[0].data_ptr() - place in range(-2 * BYTES, 2 * BYTES)
    ghost_ops.empty_cache()


FORKED = """
import os, threading, torch, ghost_ops
torch.set_num_threads(1)
torch.set_grad_enabled(False)
module = ghost_ops.FusedGhostModule(8, 16).eval()
x, done = torch.randn(1, 8, 64, 64), False
expected = module(x).clone()
def work():
    while not done: module(x)
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        torch.set_grad_enabled(False)
        os._exit(0 if torch.equal(module(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
done = True
for t in threads: t.join()
"""


def test_a_process_that_forks():
    assert subprocess.run([sys.executable, "-c", FORKED], timeout=120).returncode == 0


LIMITED = """
import resource, torch, ghost_ops
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
from ghost_ops.backends import native
with torch.inference_mode():
    module = ghost_ops.FusedGhostModule(8, 16).eval()
    x = torch.randn(1, 8, 256, 256)
    print(torch.equal(module(x), module(x)), native.kept_bytes())
"""


def test_a_limit_on_addresses():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "0"], done.stderr


CHILD = """
import torch, ghost_ops
from ghost_ops.backends import native
with torch.inference_mode():
    module = ghost_ops.FusedGhostModule(8, 16).eval()
    for _ in range(3): module(torch.zeros(1, 8, 256, 256))
print(native.kept_bytes())
"""


@pytest.mark.parametrize("megabytes, kept", [("0", 0), ("1", 0), ("4", 4 << 20), ("", 4 << 20)])
def test_how_much_is_kept(megabytes, kept):
    env = os.environ | {"GHOST_OPS_KEEP_MB": megabytes}
    assert int(subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True).stdout) == kept
