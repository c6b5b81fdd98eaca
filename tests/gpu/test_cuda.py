"""The CUDA C++ kernels on a device: as Triton's tests, against the reference in the same dtype and float64."""

from __future__ import annotations

import pytest
import torch

import ghost_ops
from ghost_ops import functional, use_backend
from ghost_ops.backends import cuda, reference
from ghost_ops.backends.cuda.program import describe
from ghost_ops.dispatch import select
from ghost_ops.fused import FrozenProgram
from tests.cuda.programs import draw_block
from tests.gpu.test_running import DEVICE, assert_threads_agree, net_and_images
from tests.helpers import assert_as_accurate, make_map
from tests.ops.cases import Errors
from tests.program.drawn import draw_program

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _asked_for():
    if not cuda.available():
        pytest.skip(cuda.reason())
    with use_backend("cuda"):
        yield


def packed_of(p, dtype: torch.dtype) -> torch.Tensor:
    return reference.program_pack([t.to(dtype).float() for t in p.parameters], p.code).to(DEVICE)


@pytest.mark.parametrize("first", range(0, 100, 25))  # in parts, which processes share
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bottlenecks", "programs"])
def test_drawn(kind, dtype, first):
    errors = Errors()
    for seed in range(first, first + 25):
        p, x = draw_block(seed) if kind == "bottlenecks" else (draw_program(seed), None)
        x = make_map((2, p.channels, 17, 23), seed=seed) if x is None else x
        x, packed = x.to(DEVICE, dtype).contiguous(memory_format=LAST), packed_of(p, dtype)
        assert select("program", x).backend == "cuda"
        ours = torch.ops.ghost_ops.program(x, packed, p.code)
        plain, exact = (reference.program(v, packed.to(v.dtype), p.code) for v in (x, x.double()))
        if kind == "bottlenecks":
            errors.add(kind, ours, plain, exact)
        assert_as_accurate(ours, plain, exact, 4.0, what=f"{p.steps}", ulps=8)
        assert torch.equal(ours, torch.ops.ghost_ops.program(x, packed, p.code)), "another result the second time"
    errors.assert_within(2.0, single=(4.0, 4.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 16, 112, 112, 24), (8, 72, 28, 28, 20), (8, 960, 7, 7, 80), (3, 40, 33, 17, 36)])
def test_layer_shapes_of_ghostnet(shape, dtype):
    n, c, h, w, m = shape
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(n, c, h, w, generator=g) + 0.3).to(DEVICE, dtype).contiguous(memory_format=LAST)
    w1 = (torch.randn(m, c, 1, 1, generator=g) * c**-0.5).to(DEVICE, dtype)
    w2 = (torch.randn(m, 1, 3, 3, generator=g) / 3).to(DEVICE, dtype)
    scale, residual = torch.rand(n, c, generator=g).to(x), torch.randn(n, 2 * m, h, w, generator=g).to(x)
    more = {"input_scale": scale, "residual": residual.contiguous(memory_format=LAST), "return_squeeze": True}
    assert select("ghost_module", x, 3).backend == "cuda"
    ours = functional.ghost_module(x, w1, None, w2, None, **more)
    with use_backend("reference"):
        plain = functional.ghost_module(x, w1, None, w2, None, **more)
        more = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in more.items()}
        exact = functional.ghost_module(x.double(), w1.double(), None, w2.double(), None, **more)
    for a, b, e in zip(ours, plain, exact):
        assert_as_accurate(a, b, e, ulps=8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_nets(dtype):
    net, x = net_and_images(dtype=dtype)
    frozen = ghost_ops.freeze(net)
    program = next(m for m in frozen.modules() if isinstance(m, FrozenProgram))
    described = describe(x, program.packed, program.steps)
    assert sum(name.startswith("bottleneck") for names, _ in described for name in names) >= 14
    with torch.no_grad():
        exact = ghost_ops.models.ghostnet_050().eval().to(DEVICE).double()
        exact.load_state_dict(net.state_dict())
        assert_as_accurate(frozen(x), net(x), exact.double()(x.double()), ulps=16)
    assert "cuda" in str(ghost_ops.explain(frozen, x))


def test_graph_capture_and_the_callers_stream():
    """No host synchronisation, no memory but torch's, on the stream that is current."""
    net, x = net_and_images(dtype=torch.float16)
    frozen = ghost_ops.freeze(net)
    with torch.no_grad():
        expected = frozen(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            frozen(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        side, late = torch.cuda.Stream(), torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            out = frozen(late)
        torch.cuda.current_stream().wait_stream(side)
        assert torch.equal(out, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = frozen(x)
        captured.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)


def test_threads_at_once():
    net, x = net_and_images(dtype=torch.float16)
    assert_threads_agree(ghost_ops.freeze(net), [x, x.flip(0), x * 0.5, -x])


def test_threads_with_thread_blocks_of_all_sizes():
    """What a launch may have of shared memory is an attribute of the kernel, which all threads set."""
    net, x = net_and_images(side=224, dtype=torch.float16)
    assert_threads_agree(ghost_ops.freeze(net), [x, x[:, :, :65, :49], x[:, :, :160, :160], x[:1, :, :33, :33]])


def test_maps_that_begin_anywhere():
    for seed in range(20):
        p, x = draw_block(seed)
        x = x.to(DEVICE, torch.float16).contiguous(memory_format=LAST)
        memory, packed = torch.empty(x.numel() + 1, device=DEVICE, dtype=x.dtype), packed_of(p, torch.float16)
        view = memory[1:].as_strided(x.shape, x.stride()).copy_(x)
        ours = [torch.ops.ghost_ops.program(v, packed, p.code) for v in (view, x)]
        assert torch.equal(*ours)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_another_device_than_the_current_one():
    p, x = draw_block(2)
    packed = packed_of(p, torch.float32)
    ours = torch.ops.ghost_ops.program(x.to("cuda:1"), packed.to("cuda:1"), p.code)
    torch.testing.assert_close(
        ours, reference.program(x.to("cuda:1"), packed.to("cuda:1"), p.code), rtol=1e-4, atol=1e-4
    )
