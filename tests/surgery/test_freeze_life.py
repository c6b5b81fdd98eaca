"""What becomes of a frozen net: copies, files, other processes, exports, compilers, threads; what freeze refuses."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from ghost_ops import explain, freeze, fuse
from ghost_ops.backends import native
from ghost_ops.fused import FrozenProgram

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import Classifier, _as_with_kernels, huawei, programs, whole_program  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]


def make_net():
    return randomise(Classifier(*huawei())).eval()


def make_parted():
    """Two programs with something else between them, the first one's features not flat."""
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), nn.Softplus(), zoo.YoloGhostConv(8, 12), nn.AdaptiveAvgPool2d(1)
    return randomise(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *blocks, nn.Softplus())).eval()


NETS = {"one program": make_net, "parted": make_parted}
BOTH = pytest.mark.parametrize("name", NETS)


@pytest.fixture
def x():
    return make_map((2, 3, 33, 31))


# The copy and its source


@BOTH
def test_the_source_stays_as_it_is(name, x):
    net = NETS[name]()
    modules, types = list(net.modules()), [type(m) for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    wants = [p.requires_grad for p in net.parameters()]
    with torch.no_grad():
        before = net(x)
        frozen = freeze(net)
        want = frozen(x)
        assert torch.equal(net(x), before)
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert [type(m) for m in net.modules()] == types and not net.training
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == wants
    with torch.no_grad():
        for t in (*net.parameters(), *net.buffers()):
            t.zero_()
        assert torch.equal(frozen(x), want)


def test_a_fused_net_is_frozen_too(x):
    net = make_net()
    fused = fuse(copy.deepcopy(net))
    frozen = freeze(fused)
    assert isinstance(whole_program(frozen), FrozenProgram)
    with torch.no_grad():
        assert torch.equal(frozen(x), freeze(net)(x))


@BOTH
def test_it_is_in_eval_mode_and_may_be_frozen_again(name, x):
    frozen = freeze(NETS[name]())
    assert not any(m.training for m in frozen.modules())
    again = freeze(frozen)
    with torch.no_grad():
        assert torch.equal(again(x), frozen(x))
    assert len(programs(again)) == len(programs(frozen))


@BOTH
def test_grad_modes(name, x):
    frozen = freeze(NETS[name]())
    assert not any(p.requires_grad for p in frozen.parameters())
    want = frozen(x)
    assert not want.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(frozen(x), want)
            assert torch.equal(frozen(x.clone()), want)
    out = frozen(x.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match="it has no gradients"):
        out.sum().backward()


# bfloat16


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@BOTH
def test_bfloat16(name, layout):
    net, x = NETS[name](), make_map((3, 3, 33, 31), torch.bfloat16, layout)
    frozen = freeze(net, torch.bfloat16)
    eager = copy.deepcopy(net).bfloat16()
    with torch.no_grad():
        ours = frozen(x)
        assert ours.dtype == torch.bfloat16
        assert_as_accurate(ours, eager(x), copy.deepcopy(eager).double()(x.double()))
        assert torch.equal(freeze(eager)(x), ours)
        assert freeze(eager, torch.float32)(x.float()).dtype == torch.float32
    assert next(net.parameters()).dtype == torch.float32


def test_moved_to_other_dtypes(x):
    frozen = freeze(make_net())
    with torch.no_grad():
        want = frozen(x)
        double = copy.deepcopy(frozen).double()(x.double())
        torch.testing.assert_close(double, want.double(), rtol=1e-4, atol=1e-4)
        half, v = copy.deepcopy(frozen).bfloat16(), x.bfloat16()
        assert_as_accurate(half(v), make_net().bfloat16()(v), make_net().double()(v.double()))


# What is refused


def test_refused():
    net = make_net()
    with pytest.raises(TypeError, match=r"freeze: net: expected a torch\.nn\.Module, got Tensor"):
        freeze(torch.ones(1))
    with pytest.raises(ValueError, match=r"freeze: net: expected a net in eval mode \(net.eval\(\)\)"):
        freeze(net.train())
    for dtype in (torch.float16, torch.float64, torch.int8):
        with pytest.raises(ValueError, match=rf"freeze: dtype: expected .* got {dtype}"):
            freeze(net.eval(), dtype)


NOTHING = {
    "no convolution": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU()),
    "an SE layer": lambda: zoo.HuaweiSqueezeExcite(3, 2),
    "a leaf": nn.ReLU,
    "float64": lambda: zoo.ArticleGhostModule(3, 8).double(),
    "float64 within": lambda: nn.Sequential(zoo.ArticleGhostModule(3, 8).double(), nn.ReLU()),
    "float16": lambda: nn.Sequential(zoo.ArticleGhostModule(3, 8).half(), nn.ReLU()),
    "meta": lambda: nn.Sequential(zoo.ArticleGhostModule(3, 8).to("meta"), nn.ReLU()),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_to_freeze_warns(name):
    net = NOTHING[name]().eval()
    with pytest.warns(UserWarning, match=rf"nothing of this {type(net).__name__} was frozen: "):
        frozen = freeze(net)
    assert frozen is not net and not programs(frozen)
    first = next(net.parameters(), torch.zeros(1))
    x = make_map((2, 3, 5, 6), first.dtype).to(first.device)
    with torch.no_grad():
        if first.is_meta:
            assert frozen(x).shape == net(x).shape
        else:
            torch.testing.assert_close(frozen(x), net(x), rtol=1e-3, atol=1e-3)


def test_no_warning_where_something_is_frozen():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze(make_net())


# What people see


def test_explain(x):
    frozen = freeze(make_net())
    (row,) = explain(frozen, x).rows
    program = whole_program(frozen)
    assert (row.name, row.module, row.input, row.fused) == ("", "Classifier", "2 x 3 x 33 x 31 float32", True)
    assert row.runs.startswith("program on ")
    assert row.runs.endswith("MiB of scratch a thread") and f"{len(program.parts)} modules in one call" in row.runs
    assert row.why == ""
    assert {"stem.0", "blocks.0", "blocks.1", "classifier.4"} <= set(program.parts)
    assert float(row.runs.split(", ")[2].split(" MiB")[0]) == round(program.scratch_bytes(x) / 2**20, 1)
    if native.isa() != "none":
        assert program.scratch_bytes(x) > 0 and row.runs.startswith("program on native, ")
        assert program.scratch_bytes(make_map((1, 3, 330, 310))) > program.scratch_bytes(x)


def test_explain_and_repr_of_parts(x):
    frozen = freeze(make_parted())
    rows = [row for row in explain(frozen, x).rows if row.module == "FrozenProgram"]
    assert [row.input for row in rows] == ["2 x 3 x 33 x 31 float32", "2 x 8 x 17 x 16 float32"]
    text = repr(programs(frozen)[1])
    assert "1 load, 1 ghost, 1 pool" in text and "packed parameters" in text


def test_state(x):
    frozen, other = freeze(make_net()), freeze(randomise(make_net(), seed=5))
    assert list(frozen.state_dict()) == [*make_net().state_dict(), "frozen_programs.0.packed"]
    other.load_state_dict(frozen.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), frozen(x))


# Copies, files, exports


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": through_a_file,
}


def assert_twin_apart(twin, frozen, x):
    """The twin computes the same, from weights of its own, which are zero afterwards."""
    with torch.no_grad():
        want = frozen(x)
        assert torch.equal(twin(x), want)
        for buffer in twin.buffers():
            buffer.zero_()
        assert torch.equal(frozen(x), want)


@pytest.mark.parametrize("how", COPIES)
@BOTH
def test_copies(name, how, x):
    frozen = freeze(NETS[name]())
    twin = COPIES[how](frozen)
    assert_twin_apart(twin, frozen, x)
    assert [p.parts for p in programs(twin)] == [p.parts for p in programs(frozen)]


@BOTH
def test_exported_through_a_file(name, x):
    frozen = freeze(NETS[name]())
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    file = io.BytesIO()
    torch.export.save(torch.export.export(frozen, (x,), dynamic_shapes=(dims,)), file)
    file.seek(0)
    exported = torch.export.load(file)
    called = [n for n in exported.graph.nodes if "ghost_ops.program.default" in str(n.target)]
    assert len(called) == len(programs(frozen))
    for shape in ((2, 3, 33, 31), (5, 3, 64, 40)):
        v = make_map(shape)
        assert torch.equal(exported.module()(v), frozen(v))


class Larger(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part, self.scale = part, nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.part(x * self.scale).flatten(1).softmax(1)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@BOTH
def test_compiled_within_a_larger_net(name, backend, x):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    net = Larger(freeze(NETS[name]()))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    with torch.no_grad():
        for v in (x, x.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(compiled(v), net(v), rtol=1e-5, atol=1e-5)


# Threads and processes


@pytest.mark.parametrize("torch_threads", [1, 3])
@BOTH
def test_many_threads_at_once(name, torch_threads):
    frozen = freeze(NETS[name]())
    inputs = [make_map((1 + i % 4, 3, 20 + i, 64), seed=i) for i in range(24)]
    with torch.no_grad():
        exact = [copy.deepcopy(frozen).double()(v.double()).float() for v in inputs]

    def call(v):
        with torch.no_grad():
            return [frozen(v) for _ in range(4)]

    def pool(threads):
        return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(torch_threads,))

    with pool(1) as alone, pool(8) as many:
        serial, parallel = list(alone.map(call, inputs)), list(many.map(call, inputs))
    for want, got, truth in zip(serial, parallel, exact, strict=True):
        assert all(torch.equal(a, want[0]) for a in (*want, *got))
        torch.testing.assert_close(want[0], truth, rtol=1e-4, atol=1e-4)


def in_another_process(code, **environment):
    """What the code prints, in a process that starts at the root of the project."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


LOADS = """
import torch, ghost_ops
x, want = torch.load({values!r})
for net, w in zip(torch.load({nets!r}, weights_only=False), want):
    with torch.no_grad():
        out = net(x)
    print(ghost_ops.backends.native.isa(), torch.equal(out, w), float((out - w).abs().max() / w.abs().max()))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Frozen nets and their results in files, and the code that loads them and compares."""
    path, x = tmp_path_factory.mktemp("frozen"), make_map((2, 3, 33, 31))
    frozen = [freeze(make()) for make in NETS.values()]
    with torch.no_grad():
        torch.save((x, [net(x) for net in frozen]), path / "values")
    torch.save(frozen, path / "nets")
    return LOADS.format(values=str(path / "values"), nets=str(path / "nets"))


@pytest.mark.parametrize(
    "environment", [{}, {"GHOST_OPS_ISA": "baseline"}, {"GHOST_OPS_BACKEND": "reference"}], ids=str
)
def test_loaded_in_another_process(environment, saved):
    lines = in_another_process(saved, **environment).split("\n")[:-1]
    assert len(lines) == len(NETS)
    for line in lines:
        isa, equal, error = line.split()
        assert float(error) < 1e-5
        if native.available() and native.isa() != "none":
            assert isa == environment.get("GHOST_OPS_ISA", "none" if environment else native.isa())
            assert environment or equal == "True"


def test_without_the_library():
    code = """
import warnings, torch, ghost_ops
from tests.surgery.test_freeze_life import make_net, make_map
net, x = make_net(), make_map((2, 3, 33, 31))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    frozen = ghost_ops.freeze(net)
print([str(w.message) for w in caught])
with torch.no_grad():
    torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-4)
print(ghost_ops.explain(frozen, x))
"""
    text = in_another_process(code, GHOST_OPS_BACKEND="reference")
    assert (
        "nothing of this Classifier was frozen: its kernels are not there: GHOST_OPS_BACKEND=reference is set" in text
    )
