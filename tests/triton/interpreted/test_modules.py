"""Modules, bottlenecks and programs over the interpreted kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import FusedGhostBottleneck, FusedGhostModule
from ghost_ops import nn as ghost_nn
from ghost_ops.activations import ACTIVATIONS
from ghost_ops.backends import reference, triton
from ghost_ops.backends.triton import forward, launch
from ghost_ops.fused import block, bottleneck
from ghost_ops.fused.frozen import FrozenProgram
from ghost_ops.program import (
    BFLOAT16,
    BIAS,
    FLOAT32,
    Depthwise,
    Ghost,
    Layer,
    Load,
    MaxPool,
    Store,
    encode,
    with_precision,
)
from tests.helpers import assert_as_accurate, on, randomise
from tests.ops.cases import Errors, in_layout
from tests.program.cases import make_program, program_of_other_steps
from tests.program.drawn import draw_call, draw_program, mismatch

from .drawn import few_tiles


@pytest.fixture(autouse=True)
def _few_tiles():
    with few_tiles():
        yield


@pytest.fixture
def calls(monkeypatch):
    """What rides on each single pass that runs; bottlenecks take the route of a device."""
    seen, run = [], forward.ghost_module_fwd

    def noting(*args, **kwargs):
        seen.append({name for name, value in kwargs.items() if value is not None and value is not False})
        return run(*args, **kwargs)

    monkeypatch.setattr(forward, "ghost_module_fwd", noting)
    on_device = lambda op, x, kernel=None: on("reference" if op == "program_eval" else "triton", op)
    for module in (block, bottleneck):
        monkeypatch.setattr(module, "select", on_device)
    return seen


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_module(train, dtype):
    fused = randomise(FusedGhostModule(7, 13)).to(dtype).train(train)
    plain, exact = ghost_nn.GhostModule(7, 13).to(dtype), ghost_nn.GhostModule(7, 13).double()
    for module in (plain, exact):
        module.load_state_dict(fused.state_dict())
        module.train(train)
    x = torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        results = fused(x), plain(x), exact(x.double())
    assert_as_accurate(*results)
    if train:
        for ours, other, third in zip(fused.buffers(), plain.buffers(), exact.buffers(), strict=True):
            if ours.is_floating_point():
                assert_as_accurate(ours, other, third)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_kept_product_is_not_computed_again(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    new = lambda *shape: torch.randn(shape, generator=generator)
    x, grad = new(2, 7, 6, 5).to(dtype), new(2, 12, 6, 5).to(dtype)
    w1, gamma1, beta1, w2, gamma2, beta2 = new(6, 7, 1, 1), new(6), new(6), new(6, 1, 3, 3), new(6), new(6)
    codes = 12, 1, 1, 0.0, 0.0, 1e-5, 1e-5
    out, *statistics, kept = triton.load("ghost_module_train")(
        x, w1, None, gamma1, beta1, w2, None, gamma2, beta2, None, None, *codes, True
    )
    assert kept.shape == (2, 6, 5, 6) and kept.dtype == torch.float32 and kept.is_contiguous()
    assert_as_accurate(
        kept.permute(0, 3, 1, 2), F.conv2d(x.float(), w1.to(dtype).float()), F.conv2d(x.double(), w1.to(dtype).double())
    )
    started, start_kernel = [], launch.start_kernel

    def noting(kernel, *args, **more):
        started.append(kernel.__name__)
        start_kernel(kernel, *args, **more)

    monkeypatch.setattr(launch, "start_kernel", noting)
    results = []
    for given in (None, kept, kept.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)):  # the last by channels
        results.append(triton.load("ghost_module_train_backward")(
            grad, x, w1, gamma1, beta1, w2, gamma2, beta2, None, None, *statistics, given, *codes
        ))  # fmt: skip
        assert started.count("product_kernel") == (given is None)
        started.clear()
    for recomputed, ours, other in zip(*results):
        assert torch.equal(ours, other)
        if dtype == torch.float32:
            assert torch.equal(ours, recomputed)
        elif recomputed.numel():
            torch.testing.assert_close(ours, recomputed, rtol=0.02, atol=0.02 * float(recomputed.abs().max()))


@pytest.mark.parametrize(("stride", "se"), [(1, 0.25), (2, 0.25), (1, 0.0)])
def test_what_rides_in_a_bottleneck(calls, stride, se):
    fused = randomise(FusedGhostBottleneck(6, 10, 8, stride=stride, se_ratio=se)).eval()
    plain = ghost_nn.GhostBottleneck(6, 10, 8, stride=stride, se_ratio=se).eval()
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 6, 8, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_as_accurate(fused(x), plain(x), plain.double()(x.double()))
        assert "in the passes of the Ghost modules" in fused.why(x)
    rides = {"squeeze"} if se and stride == 1 else set()
    assert calls == [rides, {"residual"} | ({"scale"} if se else set())]


def test_gradients_go_through_the_parts(calls):
    fused = randomise(FusedGhostBottleneck(6, 10, 8, se_ratio=0.25)).eval()
    x = torch.randn(1, 6, 4, 4, requires_grad=True)
    fused(x).sum().backward()
    assert x.grad is not None and not any("scale" in found for found in calls)


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_programs(precision):
    """Drawn programs, as ``freeze`` would write them, from packed parameters."""
    errors, taken = Errors(), 0
    for seed in range(40):
        drawn = draw_program(seed, most_channels=20, longest=5)
        call = draw_call(seed, torch.float32, 1)
        if call.program.steps != drawn.steps or call.x.numel() > 6000:
            side = 6
            generator = torch.Generator().manual_seed(seed)
            call.program = drawn
            call.x = torch.randn((2, drawn.channels, side, side + 1), generator=generator)
        code = with_precision(call.program.code, precision)
        packed = reference.program_pack([t.float() for t in call.program.parameters], code)
        ours = triton.load("program")(call.x, packed, code)
        if precision == FLOAT32:
            assert mismatch(call, ours, "program", errors) is None
        else:
            plain, exact = (reference.program(v, packed, code) for v in (call.x, call.x.double()))
            errors.add("program", ours, plain, exact)
            assert_as_accurate(ours, plain, exact, 4.0, what=f"{call}")
        taken += 1
        if taken == 12:
            break
    assert taken == 12
    errors.assert_within(2.0)


def test_programs_with_steps_without_kernels():
    p = program_of_other_steps()
    x = torch.randn(2, p.channels, 9, 7)
    packed = reference.program_pack(p.parameters, p.code)
    plain, exact = (reference.program(v, packed, p.code) for v in (x, x.double()))
    assert_as_accurate(triton.load("program")(x, packed, p.code), plain, exact, 4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_convolutions_along_an_axis(dtype, monkeypatch):
    """As the gate of DFC attention has them: a 1x1 convolution, one along rows, one along columns."""
    layer, gate = Layer(BIAS, 0.0, 0), Layer(BIAS, 0.0, ACTIVATIONS.index("sigmoid"))
    sizes = (1, 1), (1, 1)
    p = make_program(
        Load(0, 5, False), Ghost(0, 1, -1, False, False, 5, 12, 0, 12, 1, layer, None),
        Depthwise(1, 2, False, 12, (1, 5), sizes[0], (0, 2), sizes[1], layer),
        Depthwise(2, 3, True, 12, (7, 1), sizes[0], (3, 0), sizes[1], gate), Store(3),
    )  # fmt: skip
    started, start_kernel = [], launch.start_kernel

    def noting(kernel, *args, **more):
        started.append(kernel.__name__)
        start_kernel(kernel, *args, **more)

    monkeypatch.setattr(launch, "start_kernel", noting)
    packed = reference.program_pack([t.float() for t in p.parameters], p.code)
    for layout in ("channels_last", "nchw", "strided"):
        x = in_layout(torch.randn(2, 5, 6, 9, generator=torch.Generator().manual_seed(0)).to(dtype), layout)
        plain, exact = (reference.program(v, packed, p.code) for v in (x, x.double()))
        assert_as_accurate(triton.load("program")(x, packed, p.code), plain, exact, 4.0)
    assert started.count("line_kernel") == 2 * 3


def test_a_program_without_parameters():
    x, code = torch.randn(2, 3, 5, 6), encode([Load(0, 3, False), MaxPool(0, 1, 3, 2, 2, 0), Store(1)], 2)
    assert torch.equal(triton.load("program")(x, torch.zeros(0), code), F.max_pool2d(x, 2))


def test_frozen_bottleneck():
    block = randomise(FusedGhostBottleneck(6, 10, 8, se_ratio=0.25)).eval()
    frozen = FrozenProgram.of(block._ghost_ops._compiled(block))
    x = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, plain = frozen(x), reference.program(x, frozen.packed, frozen.steps)
        assert_as_accurate(ours, plain, block.unwrap().double()(x.double()))
