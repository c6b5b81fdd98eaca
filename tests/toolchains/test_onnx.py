"""ONNX: plain operators, of which ONNX Runtime makes the plain net's result."""

import warnings

import pytest
import torch

import ghost_ops

from ..helpers import make_map
from .nets import EVERY, assert_same, few_pairs, image, made, make, need, ours

onnx, onnxruntime = need("onnx"), need("onnxruntime")
need("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
AXES = {0: "n", 2: "h", 3: "w"}


def export(net, path, dynamo, x):
    """What torch.onnx.export is told and prints; a file."""
    options = {"dynamic_shapes": ({at: torch.export.Dim(name, min=2) for at, name in AXES.items()},)}
    if not dynamo:
        options = {"dynamic_axes": {"x": AXES}, "input_names": ["x"]}
    torch.onnx.export(net, (x,), path, dynamo=dynamo, verbose=False, **options)


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def assert_plain(path):
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert {f.domain for f in model.functions} <= {"pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common"}
    assert sum(node.op_type == "Conv" for node in model.graph.node) > 0


def check(name, way, dynamo, path):
    net, plain = made(name, way)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        export(net, path, dynamo, image())
    assert not [w for w in told if "frozen net" in str(w.message)]  # nothing else is to be called
    assert_plain(path)
    for x in (image(1), make_map((3, 3, 40, 27))):
        assert_same(run(path, x), plain(x))


@few_pairs
def test_plain_operators(name, way, tmp_path):
    check(name, way, True, tmp_path / "net.onnx")


@few_pairs
def test_plain_operators_by_torchscript(name, way, tmp_path):
    check(name, way, False, tmp_path / "net.onnx")


@pytest.mark.parametrize("strict", [True, False] if EVERY else [True], ids=lambda strict: "strict" if strict else "not")
def test_an_exported_program(strict, tmp_path):
    """It holds our operators already, which the exporter names; decomposed, they are plain."""
    net, plain = made("parted", "frozen")
    dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    with pytest.warns(UserWarning, match=r"ghost_ops\.thaw"):
        exported = torch.export.export(net, (image(),), dynamic_shapes=(dims,), strict=strict)
    assert ours(exported.graph)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="ghost_ops") as raised:
        torch.onnx.export(exported, (), tmp_path / "net.onnx", dynamo=True, verbose=False)
    assert "program" in str(raised.value)
    exported = exported.run_decompositions({**torch.export.default_decompositions(), **ghost_ops.decompositions()})
    torch.onnx.export(exported, (), tmp_path / "net.onnx", dynamo=True, verbose=False)
    assert_plain(tmp_path / "net.onnx")
    for x in (image(1), make_map((3, 3, 40, 27))):
        assert_same(run(tmp_path / "net.onnx", x), plain(x))


def test_a_net_of_another_dtype(tmp_path):
    """Frozen in bfloat16 it is exported in bfloat16, which few runtimes take; thawed it is turned back."""
    net = ghost_ops.freeze(make("one program"), torch.bfloat16)
    export(net, tmp_path / "net.onnx", True, image().bfloat16())
    types = {t.data_type for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in types
    back = ghost_ops.thaw(net).float()
    export(back, tmp_path / "back.onnx", False, image())
    assert_same(run(tmp_path / "back.onnx", image(1)), back(image(1)))
