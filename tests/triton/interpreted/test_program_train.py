"""Blocks in training as one program: outputs, gradients and running statistics against their plain twins."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ghost_ops
from ghost_ops import FusedGhostBottleneck, FusedGhostModule
from ghost_ops.fused.behaviour import block_of
from ghost_ops.ops.program_train import MEMORY
from tests.fused.twins import assert_agree, plain_twin, run, why
from tests.helpers import make_map, randomise

from .drawn import few_tiles


@pytest.fixture(autouse=True)
def _few_tiles():
    with few_tiles():
        yield


def a_block(*args, memory="balanced", **kwargs):
    return randomise(FusedGhostBottleneck(*args, memory=memory, **kwargs)).train()


def input_of(n, c, h, w, dtype=torch.float32, layout="channels_last"):
    return make_map((n, c, h, w), dtype, layout)


HARDEST = (6, 12, 8), {"stride": 2, "dw_kernel_size": 5, "se_ratio": 0.25}, (2, 6, 6, 5)
BLOCKS = [
    ((6, 10, 6), {}, (2, 6, 5, 4)),
    ((6, 9, 7), {}, (2, 6, 4, 5)),
    ((6, 10, 8), {"stride": 2}, (2, 6, 5, 4)),
    ((8, 12, 8), {"se_ratio": 0.25}, (3, 8, 3, 4)),
    HARDEST,
]


@pytest.mark.parametrize(("args", "kwargs", "shape"), BLOCKS)
def test_bottlenecks(args, kwargs, shape):
    block, x = a_block(*args, **kwargs), input_of(*shape)
    assert "program_train" in why(block, x)
    assert_agree(block, x)


def test_what_is_saved_does_not_change_what_is_computed():
    """Bit for bit: what is computed again is computed as at first."""
    args, kwargs, shape = HARDEST
    x, found = input_of(*shape), []
    for memory in MEMORY:
        block = a_block(*args, memory=memory, **kwargs)
        assert "program_train" in why(block, x)
        found.append(run(block, x, True))
    for name, result in found[0].items():
        assert all(torch.equal(result, other[name]) for other in found[1:]), name


def test_half_precision_under_autocast():
    """Within twice PyTorch's error and a unit in the last place of a map."""
    block, x = a_block(6, 10, 8, stride=2, se_ratio=0.25), input_of(2, 6, 6, 6, torch.float16)
    plain = plain_twin(block)
    exact = copy.deepcopy(plain).double()
    with torch.autocast("cpu", torch.float16):
        assert "program_train" in why(block, x)
        ours, theirs, truth = run(block, x, True), run(plain, x, True), run(exact, x.double(), True)
    for name, result in ours.items():
        error, other = ((t[name].double() - truth[name]).abs().max() for t in (ours, theirs))
        assert result.dtype == theirs[name].dtype
        assert error <= 2 * other + torch.finfo(torch.float16).eps * truth[name].abs().max(), name


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_ghost_module_of_its_own(layout):
    module = randomise(FusedGhostModule(7, 13)).train()
    x = input_of(2, 7, 6, 5, layout=layout)
    assert "program_train" in why(module, x)
    assert_agree(module, x, calls=2 if layout == "nchw" else 1)


def test_two_forwards_before_their_backwards():
    """Running statistics move on in between; nothing that the first backward needs does."""
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    plain = plain_twin(block)
    for net in (block, plain):
        (net(x).square().sum() + net(2 * x).sum()).backward()
    for (name, ours), theirs in zip(block.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=2e-4, msg=name)


def test_without_gradients_statistics_still_move():
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    plain = plain_twin(block)
    versions = [b._version for b in block.buffers()]
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(block.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert all(b._version > before for b, before in zip(block.buffers(), versions))


def test_evaluation_after_a_step_is_of_the_new_statistics():
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    plain = plain_twin(block)
    for net in (block, plain):
        net.eval()
        with torch.no_grad():
            net(x)
        net.train()(x)
        net.eval()
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_momentum_is_read_on_every_call(momentum):
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    block(x)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    assert_agree(block, x, calls=2)


def test_frozen_parameters_and_input():
    block, x = a_block(6, 10, 8, stride=2), input_of(2, 6, 6, 6)
    block.ghost1.primary_conv[0].weight.requires_grad_(False)
    plain = plain_twin(block)
    for net in (block, plain):
        net(x).square().sum().backward()
    for (name, ours), theirs in zip(block.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-4, atol=2e-4, msg=name)


def test_biases_before_batch_norms_have_gradients_of_zero():
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    for conv in [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]:
        conv.bias = torch.nn.Parameter(torch.randn(conv.out_channels))
    assert "program_train" in why(block, x)
    assert_agree(block, x)
    block(x).sum().backward()
    assert all(not c.bias.grad.any() for c in block.modules() if isinstance(c, torch.nn.Conv2d) and c.bias is not None)


def test_saved_bytes_are_fewer_with_low_memory():
    x, saved = input_of(2, 8, 8, 8), {}
    for memory in MEMORY:
        block, seen = a_block(8, 24, 8, memory=memory), {}

        def pack(t, seen=seen):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        own = {p.untyped_storage().data_ptr() for p in block.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            block(x.requires_grad_())
        saved[memory] = sum(size for pointer, size in seen.items() if pointer not in own)
    assert saved["low"] < saved["balanced"] < saved["fast"]
    assert saved["low"] < 1.5 * x.numel() * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda block: block.ghost1.primary_conv[1].eval(), "running statistics"),
        (lambda block: block.ghost1.primary_conv[0].register_forward_hook(lambda *_: None), "hook"),
    ],
)
def test_what_no_program_takes_runs_by_its_parts(change, reason):
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    change(block)
    assert "program_train" not in why(block, x)
    assert_agree(block, x)


def test_a_mode_that_sees_operators_sees_them():
    block, x = a_block(6, 10, 6), input_of(2, 6, 4, 4)
    with FlopCounterMode(display=False) as counted:
        assert "program_train" not in why(block, x)
        block(x)
    assert counted.get_total_flops() > 0


def test_a_single_value_a_channel_is_refused_as_in_pytorch():
    block = a_block(6, 10, 6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(input_of(1, 6, 1, 1))


def test_a_copy_and_a_whole_net():
    net = ghost_ops.fuse(ghost_ops.models.ghostnet_050(num_classes=5, dropout=0.0)).train()
    blocks = [m for m in net.modules() if isinstance(m, FusedGhostBottleneck)]
    assert len(blocks) == 16
    first = blocks[1]
    copied = copy.deepcopy(first)
    x = input_of(1, first.ghost1.primary_conv[0].in_channels, 6, 6)
    assert "program_train" in why(first, x) and "program_train" in why(copied, x)
    assert block_of(copied)._training is not block_of(first)._training
    torch.testing.assert_close(copied(x), first(x))
