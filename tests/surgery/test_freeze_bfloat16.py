"""Nets frozen in bfloat16: their products' weights are bfloat16, and stay so whatever becomes of the net."""

import copy
import io
import shutil
from itertools import chain

import pytest
import torch
from torch import nn

from ghost_ops import explain, freeze
from ghost_ops.backends import native
from ghost_ops.fused import FrozenProgram
from ghost_ops.program import BFLOAT16, FLOAT32, decode, precision_of, weight_format
from ghost_ops.program.packing import unpack

from ..helpers import assert_as_accurate, make_map
from .test_freeze import _as_with_kernels, programs, whole_program  # noqa: F401  (a fixture)
from .test_freeze_life import BOTH, COPIES, LOADS, NETS, Larger, assert_twin_apart, in_another_process, make_net

BF16 = torch.bfloat16


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31), BF16)


def precisions(net):
    return {(precision_of(p.steps), p.packed.dtype) for p in programs(net)}


@BOTH
def test_which_nets_have_such_weights(name):
    net = NETS[name]()
    half = copy.deepcopy(net).bfloat16()
    for frozen in (freeze(net, BF16), freeze(half), freeze(half, BF16)):
        assert precisions(frozen) == {(BFLOAT16, torch.int32)}
    for frozen in (freeze(net), freeze(net, torch.float32), freeze(half, torch.float32)):
        assert precisions(frozen) == {(FLOAT32, torch.float32)}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@BOTH
def test_values(name, layout, threads, one_thread):
    """Nearer than PyTorch in bfloat16 to the net in float64, whose parameters were rounded as PyTorch's are."""
    torch.set_num_threads(threads)
    net = NETS[name]().bfloat16()
    frozen, exact = freeze(net), copy.deepcopy(net).double()
    for shape in ((1, 3, 33, 31), (3, 3, 64, 65), (9, 3, 20, 20), (1, 3, 8, 8)):
        v = make_map(shape, BF16, layout)
        with torch.no_grad():
            assert_as_accurate(frozen(v), net(v), exact(v.double()), 1.0, what=str(shape))
            assert torch.equal(frozen(v), frozen(v))
    with torch.no_grad():
        assert frozen(v[:0]).shape == net(v)[:0].shape


@BOTH
def test_rounded_once(name):
    """What is packed is the folded weight to the nearest bfloat16, and biases are float32."""
    net = NETS[name]().bfloat16().float()  # parameters that bfloat16 has
    for wide, narrow in zip(programs(freeze(net)), programs(freeze(net, BF16)), strict=True):
        steps = decode(wide.steps)
        a, b = (
            unpack(weights.numbers(program.packed), steps, weights)
            for weights, program in ((weight_format(FLOAT32), wide), (weight_format(BFLOAT16), narrow))
        )
        for one, other in zip(chain(*a), chain(*b), strict=True):
            depthwise = one.weight.shape[1] == 1 and one.weight.shape[2] > 1
            want = one.weight if depthwise else one.weight.bfloat16().float()
            assert torch.equal(other.weight, want) and torch.equal(one.bias, other.bias)


@pytest.mark.parametrize("to", ["bfloat16", "half", "float", "double"])
@BOTH
def test_moved_to_other_dtypes(name, to):
    """No conversion touches what is packed, and inputs of every dtype are taken."""
    frozen = freeze(NETS[name](), BF16)
    moved = getattr(copy.deepcopy(frozen), to)()
    for a, b in zip(programs(frozen), programs(moved), strict=True):
        assert torch.equal(a.packed, b.packed) and b.packed.dtype == torch.int32
    dtype = torch.float16 if to == "half" else getattr(torch, to)
    v = make_map((2, 3, 33, 31), dtype)
    with torch.no_grad():
        assert moved(v).dtype == dtype
        torch.testing.assert_close(moved(v).float(), frozen.float()(v.float()), rtol=0.05, atol=0.05)


def test_state(x):
    frozen, wide = freeze(make_net(), BF16), freeze(make_net())
    other = freeze(make_net().bfloat16())
    with torch.no_grad():
        for buffer in other.buffers():
            buffer.zero_()
        other.load_state_dict(frozen.state_dict())
        assert torch.equal(other(x), frozen(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(wide.state_dict())
    assert "weights in bfloat16" in repr(frozen) and "weights in bfloat16" not in repr(wide)


def test_frozen_again(x):
    frozen = freeze(make_net(), BF16)
    again = freeze(frozen)
    assert precisions(again) == {(BFLOAT16, torch.int32)}
    with torch.no_grad():
        assert torch.equal(again(x), frozen(x))


def test_explain_and_scratch(x):
    frozen = freeze(make_net(), BF16)
    (row,) = explain(frozen, x).rows
    assert row.input == "2 x 3 x 33 x 31 bfloat16" and row.runs.startswith("program on ")
    if native.isa() != "none":
        assert 0 < whole_program(frozen).scratch_bytes(x) <= whole_program(freeze(make_net())).scratch_bytes(x)


@pytest.mark.parametrize("how", COPIES)
@BOTH
def test_copies(name, how, x):
    frozen = freeze(NETS[name](), BF16)
    twin = COPIES[how](frozen)
    assert precisions(twin) == {(BFLOAT16, torch.int32)}
    assert_twin_apart(twin, frozen, x)


@BOTH
def test_exported_through_a_file(name, x):
    frozen = freeze(NETS[name](), BF16)
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    file = io.BytesIO()
    torch.export.save(torch.export.export(frozen, (x,), dynamic_shapes=(dims,)), file)
    file.seek(0)
    exported = torch.export.load(file)
    for shape in ((2, 3, 33, 31), (5, 3, 64, 40)):
        v = make_map(shape, BF16)
        with torch.no_grad():
            assert torch.equal(exported.module()(v), frozen(v))


@BOTH
def test_compiled_within_a_larger_net(name, x):
    torch._dynamo.reset()
    net = Larger(freeze(NETS[name](), BF16)).bfloat16()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for v in (x, x.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(compiled(v), net(v))


@pytest.mark.slow
def test_aot_inductor_package(tmp_path, x):
    if shutil.which("g++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    net = Larger(freeze(make_net(), BF16)).bfloat16()
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "net.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    with torch.no_grad():
        for v in (x, make_map((5, 3, 33, 31), BF16)):
            torch.testing.assert_close(loaded(v), net(v))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Frozen nets and their results in files, and the code that loads them and compares."""
    path, v = tmp_path_factory.mktemp("frozen"), make_map((2, 3, 33, 31))
    frozen = [freeze(make(), BF16) for make in NETS.values()]
    frozen = [net.float() for net in frozen]  # what is no program; results in float32 show more
    with torch.no_grad():
        torch.save((v, [net(v) for net in frozen]), path / "values")
    torch.save(frozen, path / "nets")
    return LOADS.format(values=str(path / "values"), nets=str(path / "nets"))


ENVIRONMENTS = [{}, *({"GHOST_OPS_ISA": isa} for isa in native.isas()), {"GHOST_OPS_BACKEND": "reference"}]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_loaded_in_another_process(environment, saved):
    """The same file on every instruction set. Sets that widen agree as in float32, one that rounds its maps less."""
    lines = in_another_process(saved, **environment).split("\n")[:-1]
    assert len(lines) == len(NETS)
    for line in lines:
        isa, equal, error = line.split()
        rounds = not native.ROUNDING.isdisjoint((isa, native.isa()))
        assert (environment and float(error) < (0.02 if rounds else 1e-5)) or equal == "True"
        assert isa == environment.get("GHOST_OPS_ISA", isa)


def test_a_net_without_programs_is_converted_as_before():
    with pytest.warns(UserWarning, match="was frozen"):
        frozen = freeze(nn.Sequential(nn.Linear(3, 8), nn.ReLU()).eval(), BF16)
    assert not any(isinstance(m, FrozenProgram) for m in frozen.modules())
