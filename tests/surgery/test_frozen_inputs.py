"""What a frozen net makes of wrong inputs and of autocast; CUDA graphs; files from before it kept its class."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ghost_ops import explain, freeze
from ghost_ops.fused import FrozenProgram
from ghost_ops.fused.frozen_state import STATE
from ghost_ops.fused.graphed import Graphs

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import Untraceable, _as_with_kernels, whole_program  # noqa: F401  (a fixture)
from .test_frozen_class import Careful, make_vision, saved


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


WRONG = {
    "float64": (lambda x: x.double(), TypeError, r"got torch.float64 of shape \(2, 3, 33, 31\)"),
    "float16": (lambda x: x.half(), TypeError, r"got torch.float16"),
    "bfloat16": (lambda x: x.bfloat16(), TypeError, r"got torch.bfloat16"),
    "uint8": (lambda x: x.to(torch.uint8), TypeError, r"got torch.uint8"),
    "int64": (lambda x: x.long(), TypeError, r"got torch.int64"),
    "bool": (lambda x: x > 0, TypeError, r"got torch.bool"),
    "complex": (lambda x: x.to(torch.complex64), TypeError, r"got torch.complex64"),
    "None": (lambda x: None, TypeError, "got NoneType"),
    "a list": (lambda x: [x], TypeError, "got list"),
    "an array": (lambda x: x.numpy(), TypeError, "got ndarray"),
    "three dimensions": (lambda x: x[0], ValueError, r"got torch.float32 of shape \(3, 33, 31\)"),
    "five dimensions": (lambda x: x[None], ValueError, r"got torch.float32 of shape \(1, 2, 3, 33, 31\)"),
    "channels": (lambda x: x[:, :2], ValueError, r"got torch.float32 of shape \(2, 2, 33, 31\)"),
    "NHWC": (lambda x: x.permute(0, 2, 3, 1), ValueError, r"got torch.float32 of shape \(2, 33, 31, 3\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs(name, x):
    change, error, message = WRONG[name]
    frozen = freeze(make_vision())
    expected = r"Vision \(frozen\): pixel_values: expected a torch.float32 tensor N x 3 x H x W, "
    for call in (frozen, lambda v: frozen(pixel_values=v), frozen.forward):
        with pytest.raises(error, match=expected + message) as raised:
            call(change(x))
        assert "\n" not in str(raised.value)
    with pytest.raises(error, match=message):
        whole_program(frozen)(change(x))
    program = FrozenProgram(whole_program(frozen).packed, whole_program(frozen).steps)
    with pytest.raises(error, match=r"FrozenProgram: x: expected a torch.float32 tensor N x 3 x H x W, " + message):
        program(change(x))


@pytest.mark.parametrize("name", ["float64", "uint8", "None", "three dimensions", "channels"])
def test_wrong_inputs_of_parts(name, x):
    change, error, message = WRONG[name]
    frozen = freeze(randomise(nn.Sequential(zoo.ArticleGhostModule(3, 8), nn.Tanh())).eval())
    with pytest.raises(
        error, match=r"Sequential \(frozen\): input: expected a torch.float32 tensor N x 3 x H x W, " + message
    ):
        frozen(change(x))


def test_inputs_after_a_move(x):
    frozen = freeze(make_vision())
    double = copy.deepcopy(frozen).double()
    assert double(x.double()).dtype == torch.float64
    with pytest.raises(
        TypeError, match=r"pixel_values: expected a torch.float64 tensor N x 3 x H x W, got torch.float32"
    ):
        double(x)
    half = freeze(make_vision(), torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        assert half(x.to(dtype)).dtype == dtype
    with pytest.raises(
        TypeError, match=r"pixel_values: expected a floating-point tensor N x 3 x H x W, got torch.int64"
    ):
        half(x.long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [make_vision, lambda: randomise(Careful()).eval()], ids=["whole", "parted"])
def test_autocast(make, dtype, x):
    net = make()
    frozen = freeze(net)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        ours, plain = frozen(x), net(x)
        assert ours.dtype == plain.dtype == dtype
        with torch.autocast("cpu", enabled=False):
            exact = copy.deepcopy(net).double()(x.double())
        assert_as_accurate(ours, plain, exact)
        assert frozen(x.to(dtype)).dtype == dtype
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            whole_program(freeze(make_vision()))(x.long())
        with torch.autocast("cpu", enabled=False):
            assert frozen(x).dtype == torch.float32


# CUDA graphs, as far as they go without a device


class Replays(Graphs):
    """Runs instead of replaying."""

    def __call__(self, run, x, name, look):
        self.names = [*getattr(self, "names", ()), name]
        return run(x)


@pytest.mark.parametrize(
    "make", [make_vision, lambda: randomise(Untraceable("called")).eval()], ids=["whole", "parted"]
)
def test_graphs(make):
    net = make()
    frozen = freeze(net)
    channels = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
    x, state = make_map((2, channels, 9, 7)), frozen.__dict__[STATE]
    with torch.no_grad():
        want = frozen(x)
        state.graphs = Replays()
        state.attach(frozen)
        assert torch.equal(frozen(x), want) and len(state.graphs.names) == 1
        if make is make_vision:
            assert torch.equal(frozen(pixel_values=x), want)
            assert state.graphs.names == ["Vision (frozen): pixel_values"] * 2
        explain(frozen, x)
        twin = copy.deepcopy(frozen)
        assert type(twin.__dict__[STATE].graphs) is Replays and torch.equal(twin(x), want)
        state.graphs = Graphs()
        state.attach(frozen)
        with pytest.raises(ValueError, match=r"\(frozen\): .*: expected a tensor on a CUDA device, got one on cpu"):
            frozen(x)
        with pytest.raises(TypeError, match="expected a tensor, got int"):
            frozen(3)
        assert len(pickle.loads(pickle.dumps(frozen)).__dict__[STATE].graphs) == 0


# Old files


def test_programs_saved_before_they_knew_their_dtype(x):
    program = whole_program(freeze(make_vision()))
    state = {k: v for k, v in program.__dict__.items() if k not in ("dtype", "_dtypes", "_channels", "input_name")}
    old = FrozenProgram.__new__(FrozenProgram)
    old.__setstate__(copy.deepcopy(state))
    with torch.no_grad():
        assert torch.equal(old(x), program(x)) and torch.equal(pickle.loads(pickle.dumps(old))(x), program(x))
        assert old.double()(x.double()).dtype == torch.float64
        graph = torch.fx.GraphModule({"program_0": old.float()}, one_call("program_0"))
        assert torch.equal(saved(graph)(x), program(x)) and torch.equal(freeze(saved(graph).eval())(x), program(x))
    with pytest.raises(ValueError, match="FrozenProgram: x: expected a floating-point tensor N x 3 x H x W"):
        old(x[0])


def one_call(name):
    graph = torch.fx.Graph()
    graph.output(graph.call_module(name, (graph.placeholder("x"),)))
    return graph
