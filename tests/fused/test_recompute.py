"""Bottlenecks with ``memory="low"``: the results of plain PyTorch, from what little they keep."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import FusedGhostBottleneck
from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery.saved import Saved

from .. import zoo
from ..helpers import make_map, randomise
from .test_bottleneck import ALL, BLOCKS, map_for
from .twins import assert_agree, plain_twin, run, why

AGAIN = "its parts in turn, computed again in the backward"


def low(name="stride 2, SE"):
    return randomise(FusedGhostBottleneck(**BLOCKS[name], memory="low")).train()


def frozen_norms(block):
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return block


def assert_low(block, x):
    by = ", depthwise on native" if block_of(block).current_plan(block).shortcut else ""
    assert why(block, x) == AGAIN + by, why(block, x)


@ALL
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_agrees(name, layout):
    block, x = low(name), map_for(name, layout=layout)
    assert_low(block, x)
    assert_agree(block, x, calls=3)  # running statistics move once a call
    assert_agree(frozen_norms(block), x)
    assert_low(block, x)
    assert_agree(block.eval(), x)
    assert_low(block, x)
    assert_agree(block, x, backward=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: zoo.ArticleBottleneck(8, 24, 12, 3, 2, True),
        lambda: zoo.HuaweiBottleneck(8, 20, 12, se=True),
        lambda: zoo.HuaweiBottleneck(8, 20, 12, 5, 2),
    ],
)
def test_foreign_blocks(make):
    block = ghost_ops.fuse(randomise(make()).train(), memory="low")
    x = make_map((2, 8, 9, 7))
    assert_low(block, x)
    assert_agree(block, x, calls=2)


@ALL
def test_keeps_its_input_and_vectors(name):
    x = make_map((4, BLOCKS[name]["in_chs"], 24, 24), requires_grad=True)
    kept = {}
    for memory in ("balanced", "low"):
        block = low(name)
        block.memory = memory
        saved = Saved(block)
        with saved.watching(), saved.span() as count:
            block(x)
        kept[memory] = count()
    vectors = 4 * 2 * (BLOCKS[name]["mid_chs"] + BLOCKS[name]["out_chs"])
    assert 4 * x.numel() <= kept["low"] <= 4 * x.numel() + vectors + 64
    assert kept["low"] < 0.6 * kept["balanced"]


def test_biases_and_absent_affines():
    block = low("SE")
    block.ghost1.primary_conv[0] = randomise(nn.Conv2d(8, 10, 1), 5)
    block.ghost2.cheap_operation[1] = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    block.ghost1.cheap_operation[2] = randomise(nn.PReLU(10))
    x = map_for("SE")
    assert_low(block, x)
    assert_agree(block, x, calls=2)


def test_only_some_gradients():
    block, x = low(), map_for("stride 2, SE")
    assert_low(block, x)
    whole = run(block, x, True)
    for p in block.parameters():
        p.requires_grad_(False)
    assert "no gradients are wanted" in why(block, x)
    block.ghost1.primary_conv[0].weight.requires_grad_()
    assert_low(block, x)
    alone = run(block, x, True)
    assert torch.equal(alone["gradient of the input"], whole["gradient of the input"])
    name = "gradient of ghost1.primary_conv.0.weight"
    assert torch.equal(alone[name], whole[name])
    out = block(x)  # an input without a gradient, as a net's first block has
    out.sum().backward()
    assert block.ghost1.primary_conv[0].weight.grad is not None


def test_modes_that_change_before_the_backward():
    block, x = low(), map_for("stride 2, SE")
    expected = run(copy.deepcopy(block), x, True)
    for before, after in ((True, False), (False, True)):
        first = copy.deepcopy(block) if before else frozen_norms(copy.deepcopy(block))
        if not before:
            expected = run(copy.deepcopy(first), x, True)
        generator = torch.Generator().manual_seed(7)
        seen = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = first(seen)
        running = [b.clone() for b in first.buffers()]
        first.train(after)
        out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
        assert torch.equal(seen.grad, expected["gradient of the input"])
        assert all(torch.equal(a, b) for a, b in zip(running, first.buffers(), strict=True))


def test_errors_are_those_of_pytorch():
    block, x = low(), map_for("stride 2, SE", requires_grad=True)
    assert_low(block, x)
    out = block(x)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        out.sum().backward()
    out = block(x)
    with torch.no_grad():
        block.ghost2.primary_conv[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
    (grad,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    with pytest.raises(ValueError, match="more than 1 value"):
        block(make_map((1, 6, 1, 1), requires_grad=True))


def test_what_it_cannot_compute_again_runs_as_it_did():
    x = map_for("SE")
    hooked = low("SE")
    hooked.ghost2.primary_conv[1].register_forward_hook(lambda m, i, out: out * 2)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(low("stride 2, SE"))
    for block, seen, cause in ((hooked, x, "hooks"), (synced, map_for("stride 2, SE"), "SyncBatchNorm")):
        by = ", depthwise on native" if block is synced else ""
        started = f"its parts in turn{by}: it is in training mode; it keeps what is inside for the backward, since"
        assert why(block, seen).startswith(started)
        assert cause in why(block, seen)
    assert_agree(hooked, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in why(low("SE"), x)


def test_autocast():
    block, plain = low("SE"), plain_twin(low("SE"))
    x = map_for("SE").bfloat16()
    grads = {}
    for name, module in (("low", block), ("plain", plain), ("exact", plain_twin(block).double())):
        seen = (x.double() if name == "exact" else x.clone()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            if name == "low":
                assert_low(module, seen)
            out = module(seen)
        assert name == "exact" or out.dtype is torch.bfloat16
        out.square().sum().backward()
        grads[name] = torch.cat(
            [seen.grad.flatten().double(), *(p.grad.flatten().double() for p in module.parameters())]
        )
    errors = {name: float((grads[name] - grads["exact"]).norm()) for name in ("low", "plain")}
    assert errors["low"] <= 2 * errors["plain"], errors


def test_checkpointed():
    block, x = low(), map_for("stride 2, SE")
    expected = run(copy.deepcopy(block), x, True)
    seen = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = torch.utils.checkpoint.checkpoint(block, seen, use_reentrant=False)
    generator = torch.Generator().manual_seed(7)
    out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
    assert torch.equal(seen.grad, expected["gradient of the input"])


def test_repeats_to_the_bit():
    first, second = (run(low(), map_for("stride 2, SE"), True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_is_chosen_and_kept():
    net = ghost_ops.models.ghostnet_050(num_classes=4)
    blocks = [m for m in ghost_ops.fuse(net, memory="low").modules() if isinstance(m, FusedGhostBottleneck)]
    assert len(blocks) == 16 and all(block_of(b).memory == "low" for b in blocks)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), ghost_ops.fuse(net)):
        assert {block_of(m).memory for m in again.modules() if isinstance(m, FusedGhostBottleneck)} == {"low"}
    ghost_ops.fuse(net, memory="balanced")
    assert all(block_of(b).memory == "balanced" for b in blocks)
    assert not any(hasattr(m, "memory") for m in ghost_ops.revert(net).modules())
    for call in (
        lambda: ghost_ops.fuse(net, memory="none"),
        lambda: setattr(low(), "memory", "high"),
        lambda: FusedGhostBottleneck(4, 8, 4, memory=""),
    ):
        with pytest.raises(ValueError, match=r"memory: expected .*balanced, low"):
            call()


@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_compiles(memory):
    block, x = low(), map_for("stride 2, SE")
    block.memory = memory
    expected = run(copy.deepcopy(block), x, True)
    compiled = run(torch.compile(block, backend="aot_eager"), x, True)
    for name in ("output", "gradient of the input"):
        torch.testing.assert_close(compiled[name], expected[name])
