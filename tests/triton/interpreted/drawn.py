"""Drawn configurations, small enough for an interpreter, for the checks of ``tests/ops/cases.py``."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch

from ghost_ops.activations import ACTIVATIONS
from ghost_ops.backends.triton import module_kernel, tiles
from tests.ops.cases import LAYOUTS, Case, in_layout

DTYPES = (torch.float32, torch.float16)
EVERY = os.environ.get("GHOST_OPS_EVERY_INTERPRETED") == "1"  # in `make interpreted`
CASES = 12 if EVERY else 4  # of each operator


@contextmanager
def few_tiles(pixels: int = 128) -> Iterator[None]:
    """Large tiles: an interpreter's time is that of its steps, not of their size."""
    with ExitStack() as stack:
        for kernel in tiles.KERNELS:
            stack.enter_context(tiles.override(kernel, pixels=pixels, values=64))
        yield


@contextmanager
def many_tiles() -> Iterator[None]:
    """Small ones: several blocks and groups, several tiles a group, strips side by side and below each other."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(tiles, "processors", lambda device: 2))
        stack.enter_context(mock.patch.object(tiles, "PROGRAMS", 20))
        stack.enter_context(mock.patch.object(tiles, "LEAST_ROWS", 2))
        for kernel in tiles.KERNELS:
            sides = {"columns": 4} if kernel.startswith("stencil") else {"pixels": 32, "depth": 16}
            stack.enter_context(tiles.override(kernel, channels=16, **sides))
        yield


@contextmanager
def one_launch(wanted: bool) -> Iterator[None]:
    """Whether Ghost modules of few input channels are one launch on these small maps, as they are on large ones."""
    with mock.patch.object(module_kernel, "LEAST_WIDTH", 1 if wanted else 17):
        yield


def draw(kind: str, seed: int) -> Case:
    """A case of ``ghost_module``, ``cheap_concat`` or of either in training: always the same of a seed."""
    rng, generator = random.Random(f"{kind} {seed}"), torch.Generator().manual_seed(seed)
    train, is_tail = kind.endswith("_train"), kind.startswith("cheap_concat")
    dtype = DTYPES[seed % 2]
    n, h, w = rng.randint(1, 2), rng.randint(1, 7), rng.randint(1, 9)
    if train and n * h * w < 24:
        h, w = h + 4, w + 3
    c, m = rng.randint(2, 24), rng.randint(1, 20)
    multiplier = rng.choice([1, 1, 1, 2, 3])
    k = rng.choice([1, 3, 3, 3, 5, 7]) if multiplier == 1 else rng.choice([1, 3])
    if train and k == 1:  # its weight is a scale that the BatchNorm takes away: a gradient of rounding alone
        k = 3
    cheap = m * multiplier
    out_channels = rng.choice([m + cheap, m + cheap, rng.randint(m + 1, m + cheap)])

    def numbers(*shape):
        return torch.randn(shape, generator=generator)

    def parameter(*shape, scale=1.0, shift=0.0, optional=True):
        if optional and rng.random() < 0.4:
            return None
        return (numbers(*shape) * scale + shift).to(rng.choice([dtype, torch.float32]))

    def a_map(*shape):
        return in_layout(numbers(*shape).to(dtype), rng.choice(LAYOUTS))

    options, slopes = {"out_channels": out_channels}, {}
    for name, channels in (("act", m), ("cheap_act", cheap)):
        options[name] = rng.choice(ACTIVATIONS)
        options[f"{name}_slope"] = rng.choice([0.01, 0.3])
        prelu = options[name] == "prelu"
        slopes[f"{name}_weight"] = numbers(rng.choice([1, channels])) * 0.3 if prelu else None
    tensors = {"z": a_map(n, m, h, w)} if is_tail else {"x": a_map(n, c, h, w)}
    if not is_tail:
        tensors["primary_weight"] = parameter(m, c, 1, 1, scale=c**-0.5, optional=False)
    if kind != "cheap_concat":
        tensors["primary_bias"] = parameter(m, scale=0.3)
    if train:
        tensors |= {"primary_gamma": parameter(m, scale=0.3, shift=1.0), "primary_beta": parameter(m, scale=0.3)}
    tensors["cheap_weight"] = parameter(cheap, 1, k, k, scale=1.0 / k, optional=False)
    tensors["cheap_bias"] = parameter(cheap, scale=0.3)
    if train:
        tensors |= {"cheap_gamma": parameter(cheap, scale=0.3, shift=1.0), "cheap_beta": parameter(cheap, scale=0.3)}
    else:
        tensors["residual"] = a_map(n, out_channels, h, w) if rng.random() < 0.5 else None
        options["return_squeeze"] = rng.random() < 0.5
    if kind == "ghost_module":
        scale = torch.rand(n, c, generator=generator).to(dtype)
        tensors["input_scale"] = scale if rng.random() < 0.5 else None
        if rng.random() < 0.2:  # ratio 1
            tensors |= {"cheap_weight": None, "cheap_bias": None}
            slopes["cheap_act_weight"] = None
            options |= {"out_channels": m, "cheap_act": "none"}
            if tensors["residual"] is not None:
                tensors["residual"] = a_map(n, m, h, w)
    return Case(tensors | slopes, options)


def draw_squeeze_excite(seed: int) -> Case:
    rng, generator = random.Random(f"squeeze {seed}"), torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 2]
    n, c, h, w, r = rng.randint(1, 3), rng.randint(1, 40), rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, 20)

    def numbers(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).to(rng.choice([dtype, torch.float32]))

    x = torch.randn((n, c, h, w), generator=generator) + 0.5
    tensors = {
        "x": in_layout(x.to(dtype), rng.choice(LAYOUTS)),
        "reduce_weight": numbers(r, c, scale=c**-0.5),
        "reduce_bias": numbers(r, scale=0.3) if rng.random() < 0.5 else None,
        "expand_weight": numbers(c, r, scale=r**-0.5),
        "expand_bias": numbers(c, scale=0.3) if rng.random() < 0.5 else None,
    }
    gate = rng.choice(["clamp", "hard_sigmoid", "sigmoid", "identity"])
    return Case(tensors, {"act": rng.choice(["none", "relu", "relu6", "silu", "hard_swish"]), "gate": gate})


def draw_gate(seed: int) -> Case:
    """A case of ``dfc_gate_train``. Of the gradients of the first two gammas a BatchNorm behind them leaves what eps is
    beside a variance, so these are large: else there would be rounding to compare."""
    rng, generator = random.Random(f"gate {seed}"), torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 2]
    n, c, m, h, w = rng.randint(1, 2), rng.randint(2, 20), rng.randint(1, 20), rng.randint(2, 11), rng.randint(2, 15)
    while n * (h // 2) * (w // 2) < 24:
        h, w = h + 2, w + 3
    across, along = (rng.choice([3, 5, 5, 7]) for _ in range(2))

    def numbers(*shape, scale=1.0, shift=0.0):
        t = torch.randn(shape, generator=generator) * scale + shift
        return t.to(rng.choice([dtype, torch.float32]))

    x = torch.randn((n, c, h, w), generator=generator) + 0.3
    tensors = {
        "x": in_layout(x.to(dtype), rng.choice(LAYOUTS)),
        "weight": numbers(m, c, 1, 1, scale=c**-0.5),
        "row_weight": numbers(m, 1, 1, across, scale=across**-0.5),
        "column_weight": numbers(m, 1, along, 1, scale=along**-0.5),
    }
    for layer in ("", "row_", "column_"):
        tensors[f"{layer}gamma"] = numbers(m, scale=0.3, shift=1.0) if rng.random() < 0.6 else None
        tensors[f"{layer}beta"] = numbers(m, scale=0.3) if rng.random() < 0.6 else None
    gate = rng.choice(["clamp", "hard_sigmoid", "sigmoid", "identity"])
    return Case(tensors, {"gate": gate, "eps": 0.1, "row_eps": 0.2, "column_eps": 0.3})


def draw_gated(seed: int) -> Case:
    """A case of ``ghost_module_train`` with a gate, half as large as the map, or of any size."""
    case, rng = draw("ghost_module_train", seed), random.Random(f"gated {seed}")
    x, sides = case.tensors["x"], (rng.randint(1, 9), rng.randint(1, 9))
    if rng.random() < 0.5:
        sides = max(x.shape[2] // 2, 1), max(x.shape[3] // 2, 1)
    shape = x.shape[0], case.options["out_channels"], *sides
    gate = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.2
    case.tensors["gate"] = in_layout(gate.to(x.dtype), rng.choice(LAYOUTS))
    return case


def draw_depthwise(seed: int) -> Case:
    rng, generator = random.Random(f"depthwise {seed}"), torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 2]
    n, c, h, w, k = (
        rng.randint(1, 2),
        rng.randint(1, 40),
        rng.randint(1, 12),
        rng.randint(1, 12),
        rng.choice([1, 3, 5, 7]),
    )

    def parameter(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).to(rng.choice([dtype, torch.float32]))

    x = in_layout(torch.randn((n, c, h, w), generator=generator).to(dtype), rng.choice(LAYOUTS))
    bias = parameter(c, scale=0.3) if rng.random() < 0.5 else None
    tensors = {"x": x, "weight": parameter(c, 1, k, k, scale=1.0 / k), "bias": bias}
    return Case(tensors, {"stride": rng.choice([1, 2, 2, 2, 3, 4])})
