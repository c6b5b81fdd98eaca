"""A whole net through what differs between versions of torch and Python; one of the short tests (environments.py)."""

import copy
import io
import pickle

import pytest
import torch

import ghost_ops
from ghost_ops.backends import native

from ..helpers import randomise, relative_difference


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return randomise(ghost_ops.models.ghostnet_050(num_classes=5, dropout=0.0)).eval()


@pytest.fixture(scope="module")
def frozen(plain):
    if not native.available():
        pytest.skip("without kernels nothing is frozen")
    return ghost_ops.freeze(plain)


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64)


def same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert relative_difference(ours, expected) < 1e-4


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies(plain, frozen, x, again):
    with torch.no_grad():
        for net in (ghost_ops.fuse(copy.deepcopy(plain)), frozen):
            same(again(net)(x), plain(x))


def test_a_training_step(plain, x):
    """In float32, against plain PyTorch in float64."""
    ours, exact = ghost_ops.fuse(copy.deepcopy(plain)).train(), copy.deepcopy(plain).double().train()
    for net in (ours, exact):
        torch.nn.functional.cross_entropy(net(x.to(net.classifier.weight.dtype)), torch.tensor([1, 3])).backward()
    gradients = [torch.cat([p.grad.double().flatten() for p in net.parameters()]) for net in (ours, exact)]
    assert (gradients[0] - gradients[1]).norm() < 1e-2 * gradients[1].norm()
    for (name, mine), other in zip(ours.named_buffers(), exact.buffers()):
        torch.testing.assert_close(mine.double(), other.double(), msg=name, rtol=1e-3, atol=1e-4)


def test_compiled(plain, frozen, x):
    torch._dynamo.reset()  # what other tests compiled counts against its limits
    stages, y = plain.blocks[:2], torch.relu(plain.bn1(plain.conv_stem(x)))
    with torch.no_grad():
        for net, given, expected in ((ghost_ops.fuse(copy.deepcopy(stages)), y, stages(y)), (frozen, x, plain(x))):
            same(torch.compile(net, fullgraph=True, backend="aot_eager")(given), expected)


def test_exported_and_loaded(plain, frozen, x):
    file = io.BytesIO()
    with pytest.warns(UserWarning, match="thaw"):
        exported = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},))
    assert any("ghost_ops.program" in str(node.target) for node in exported.graph.nodes)
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        same(loaded(x), plain(x))
        same(loaded(x[:1]), plain(x[:1]))


def test_traced_and_scripted(plain, x):
    fused = ghost_ops.fuse(copy.deepcopy(plain))
    with torch.no_grad():
        same(torch.jit.trace(fused, x)(x), plain(x))
        module, y = fused.blocks[0][0].ghost1, torch.relu(fused.bn1(fused.conv_stem(x)))
        same(torch.jit.script(module)(y), module(y))


def test_thawed_and_reverted(plain, frozen, x):
    with torch.no_grad():
        same(ghost_ops.thaw(frozen)(x), plain(x))
        same(ghost_ops.thaw(frozen, fold=True)(x), plain(x))
        same(ghost_ops.revert(ghost_ops.fuse(copy.deepcopy(plain)))(x), plain(x))


def test_bfloat16_stays_close(plain, frozen, x):
    with torch.no_grad():
        assert relative_difference(ghost_ops.freeze(plain, torch.bfloat16)(x.bfloat16()).float(), plain(x)) < 0.1
