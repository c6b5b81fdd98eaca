"""Kernels over strips, whose tiles are flat where that leaves fewer lanes idle, against PyTorch, with gradients."""

from __future__ import annotations

import random
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import functional
from ghost_ops.activations import RELU
from ghost_ops.backends.triton import tiles
from ghost_ops.backends.triton.cheap import cheap_half
from ghost_ops.backends.triton.epilogue import Epilogue
from tests.ops.cases import Case, Errors, check, in_layout

from .drawn import EVERY

KINDS = ("ghost_module", "cheap_concat", "ghost_module_train")
GEOMETRIES = (  # primary channels, width, cheap kernel, dtype: all but the first have flat tiles
    (12, 7, 3, torch.float16),
    (12, 17, 3, torch.float16),
    (20, 14, 5, torch.float16),
    (36, 5, 3, torch.float16),
    (4, 28, 1, torch.float32),
    (12, 14, 3, torch.float32),
    (8, 17, 7, torch.float32),
)
CASES = range(len(GEOMETRIES)) if EVERY else (0, 2, 5)


@pytest.fixture
def seen(monkeypatch):
    """By kernel, the vectors of a column in each launch over strips, None where the tile is not flat."""
    found: dict[str, list] = {}
    start = tiles.Strips.start

    def noting(self, kernel, *args):
        found.setdefault(kernel.__name__, []).append(self.vectors)
        return start(self, kernel, *args)

    monkeypatch.setattr(tiles.Strips, "start", noting)
    monkeypatch.setattr(tiles, "PROGRAMS", 3)  # few splits: an interpreter's time is that of its programs
    return found


def draw(kind: str, index: int) -> Case:
    """A case of these channels and sides; the rest is drawn, always the same of an index."""
    rng, generator = random.Random(f"strips {kind} {index}"), torch.Generator().manual_seed(index)
    m, w, k, dtype = GEOMETRIES[index]
    if kind == "ghost_module_train" and k == 1:  # its weight is a scale that the BatchNorm takes away
        k = 3
    n, c, h = rng.randint(1, 2), 8, 5 if w < 8 else 3
    layout = "nchw" if index == 0 else "channels_last"
    out_channels = rng.choice([2 * m, 2 * m - 4 if m > 4 else 2 * m])

    def numbers(*shape, scale=1.0, shift=0.0):
        return torch.randn(shape, generator=generator) * scale + shift

    def a_map(*shape):
        return in_layout(numbers(*shape).to(dtype), layout)

    options = {"out_channels": out_channels}
    for name in ("act", "cheap_act"):
        options |= {name: rng.choice(["relu", "relu", "prelu", "silu", "none"]), f"{name}_slope": 0.3}
    tensors = {"z": a_map(n, m, h, w)} if kind == "cheap_concat" else {"x": a_map(n, c, h, w)}
    for name, weight in (
        ("primary", numbers(m, c, 1, 1, scale=c**-0.5)),
        ("cheap", numbers(m, 1, k, k, scale=1.0 / k)),
    ):
        if name == "cheap" or kind != "cheap_concat":
            tensors |= {f"{name}_weight": weight, f"{name}_bias": numbers(m, scale=0.3)}
        if kind == "ghost_module_train":
            tensors |= {f"{name}_gamma": numbers(m, scale=0.3, shift=1.0), f"{name}_beta": numbers(m, scale=0.3)}
    if kind != "ghost_module_train":
        tensors["residual"] = a_map(n, out_channels, h, w) if rng.random() < 0.5 else None
        options["return_squeeze"] = rng.random() < 0.7
    for name in ("act", "cheap_act"):
        tensors[f"{name}_weight"] = numbers(m, scale=0.3) if options[name] == "prelu" else None
    return Case(tensors, options)


def with_gradients_in_channels_last(operator):
    """The operator, whose outputs hand back gradients in channels_last, as nets do: no unit divides NCHW's strides."""

    def call(*args, **kwargs):
        found = operator(*args, **kwargs)
        for t in (found,) if isinstance(found, torch.Tensor) else found:
            if t is not None and t.requires_grad and t.dim() == 4:
                t.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
        return found

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_flat_tiles(kind, seen):
    errors, operator = Errors(), getattr(functional, kind)
    for index in CASES:
        case = draw(kind, index)
        used = with_gradients_in_channels_last(operator) if index else operator
        check(used, case, 2 if case.options.get("return_squeeze") else 1, errors)
    errors.assert_within(2.0, single=(4.0, 2.0))
    kernels = {"cheap_kernel", "cheap_epilogue_bwd_kernel", "cheap_conv_bwd_kernel"}
    kernels |= {"cheap_norm_bwd_kernel"} if kind == "ghost_module_train" else set()
    for kernel in kernels:
        assert None in seen[kernel] and any(seen[kernel]), f"{kernel}: flat tiles, and others"


def test_flat_tiles_and_others_agree(seen):
    """One call through flat tiles and, with no more than a channel side by side, without: rounding apart the same."""
    case = draw("ghost_module_train", 1)

    def call():
        used = case.to(torch.float32).leaves()
        found = functional.ghost_module_train(**used.tensors, **used.options)
        found.out.square().sum().backward()
        return [*(t for t in found if t is not None), *(t.grad for t in used.tensors.values() if t is not None)]

    flat = call()
    assert all(any(vectors) for vectors in seen.values())
    seen.clear()
    with mock.patch("ghost_ops.backends.triton.launch.unit", lambda *maps, counts=(): 1):
        others = call()
    assert not any(any(vectors) for vectors in seen.values())
    for ours, other in zip(flat, others, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


def test_offsets_in_64_bits_of_flat_tiles(seen, monkeypatch):
    """The same bits as with 32."""

    def call():
        used = draw("cheap_concat", 5).leaves()
        found = functional.cheap_concat(**used.tensors, **used.options)
        out = found if isinstance(found, torch.Tensor) else found[0]
        out.square().sum().backward()
        return [out, *(t.grad for t in used.tensors.values() if t is not None)]

    narrow = call()
    assert all(any(vectors) for vectors in seen.values())
    monkeypatch.setattr("ghost_ops.backends.triton.launch.is_wide", lambda *maps, images=False: True)
    assert all(torch.equal(a, b) for a, b in zip(narrow, call(), strict=True))


@pytest.mark.parametrize("m", [12, 5])
def test_a_residual_is_added_to_both_halves_in_training(m, seen):
    """``cheap_half`` with a primary epilogue, as in the last pass of a module in training."""
    generator = torch.Generator().manual_seed(0)
    numbers = lambda *shape: torch.randn(shape, generator=generator)
    z, residual = (in_layout(numbers(2, k, 3, 17), "channels_last") for k in (m, 2 * m))
    weight, norms = numbers(m, 1, 3, 3), [[numbers(m), numbers(m), numbers(m), numbers(m).abs()] for _ in range(2)]
    primary, cheap = (Epilogue(None, RELU, 0.0, None, *norm, 0.1) for norm in norms)
    bare, out = (torch.full_like(residual, torch.nan) for _ in range(2))
    cheap_half(z, bare, weight, cheap, m=m, primary=primary)
    cheap_half(z, out, weight, cheap, m=m, primary=primary, residual=residual)
    assert torch.equal(out, bare + residual)
    normed = lambda x, norm: F.batch_norm(x, norm[2], norm[3], norm[0], norm[1], eps=0.1).relu()
    y1 = normed(z, norms[0])
    y2 = normed(F.conv2d(y1, weight, None, 1, 1, 1, m), norms[1])
    torch.testing.assert_close(bare, torch.cat((y1, y2), 1), rtol=1e-5, atol=1e-5)
    assert all(bool(vectors) == (m == 12) for vectors in seen["cheap_kernel"])
