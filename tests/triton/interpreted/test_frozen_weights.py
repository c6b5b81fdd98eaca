"""The weights of a program: gathered once, again when what is packed changes, also under a CUDA graph."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from ghost_ops.backends import reference
from ghost_ops.backends.triton import program as backend
from ghost_ops.fused import GraphedNet, graph
from ghost_ops.fused.frozen import FrozenProgram
from ghost_ops.ops.program import program_pack
from ghost_ops.program import BFLOAT16, BIAS, Ghost, Layer, Store, with_precision
from tests.fused.emulated_graph import EmulatedGraphs
from tests.helpers import make_map
from tests.program.cases import conv, make_program

from .drawn import few_tiles


@pytest.fixture
def gathers(monkeypatch):
    """How often packed weights were gathered."""
    found = []
    make = backend._folded._make
    monkeypatch.setattr(backend._folded, "_make", lambda *args: found.append(args[0]) or make(*args))
    with few_tiles():
        yield found


def frozen(half: bool = False) -> FrozenProgram:
    """Half: with weights in bfloat16, which takes inputs of every dtype."""
    relu = Layer(BIAS, 0.0, 1)
    module = Ghost(0, 1, -1, False, False, 5, 8, 8, 16, 3, relu, relu)
    p = make_program(conv(-1, 0, 3, 5, 3, 2, 1, relu), module, Store(1))
    code = with_precision(p.code, BFLOAT16) if half else p.code
    return FrozenProgram(program_pack([t.float() for t in p.parameters], code), code, (), torch.float32).eval()


def images(seed: int = 0) -> torch.Tensor:
    return make_map((1, 3, 4, 4), layout="channels_last", seed=seed)


def anew(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a copy, of which nothing is kept yet, makes of x."""
    return copy.deepcopy(net)(x)


def _data(program):
    program.packed.data = program.packed * 0.5


def _assign(program):
    program.load_state_dict({"packed": program.packed * 0.5}, assign=True)


CHANGES = {
    "in place": lambda program: program.packed.mul_(0.5),
    "loaded": lambda program: program.load_state_dict({"packed": program.packed * 0.5}),
    "assigned": _assign,
    "other data": _data,
    "another tensor": lambda program: setattr(program, "packed", program.packed * 0.5),
}


@pytest.mark.parametrize("graphed", [False, True])
@torch.no_grad()
def test_weights_are_gathered_once_and_never_stale(graphed, gathers, monkeypatch):
    device = EmulatedGraphs()
    monkeypatch.setattr(graph, "device_graphs", device)
    program, x = frozen(), images()
    run = GraphedNet(program) if graphed else program
    out = run(x)
    expected = reference.program(x.double(), program.packed.double(), program.steps)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(run(x), out) and len(gathers) == 1
    for name, change in CHANGES.items():
        change(program)
        captures, gathers[:] = device.captures, []
        changed = run(x)
        assert not torch.equal(changed, out) and len(gathers) == 1, name
        assert torch.equal(changed, anew(program, x)), name
        assert torch.equal(run(images(1)), anew(program, images(1))), name
        if graphed:  # the same memory: the graph is still right
            assert device.captures == captures + (name not in ("in place", "loaded")), name
        out = changed


@torch.no_grad()
def test_each_dtype_has_its_weights_and_they_go_with_the_program(gathers):
    program, x = frozen(half=True), images()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        assert program(x.to(dtype)).dtype == dtype
    assert len(gathers) == 3
    weight = weakref.ref(backend._folded(program.packed, tuple(program.steps), torch.float16)[0][0].weight)
    assert weight().dtype == torch.float16
    del program
    gathers.clear()
    gc.collect()
    assert weight() is None


@torch.no_grad()
def test_a_capture_of_the_callers_reads_what_is_packed(gathers):
    """Between its replays nothing of ours runs."""
    device, program, x = EmulatedGraphs(), frozen(), images()
    program(x)
    with device.aside(x.device), graph.without_autocast_cache():
        captured = device.capture(lambda: program(x), device.new_pool())
    program.packed.mul_(0.5)
    captured.replay()
    assert torch.equal(captured.result, anew(program, x))


def test_weights_are_aligned():
    """So that kernels read several numbers at once, whatever comes before."""
    program = frozen()
    for dtype in (torch.float32, torch.bfloat16):
        for layers in backend._folded(program.packed, tuple(program.steps), dtype):
            assert all(t.data_ptr() % 32 == 0 for layer in layers for t in layer if t is not None)
