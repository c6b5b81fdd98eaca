"""Every operator on the device: outputs and gradients against eager PyTorch in the same dtype and float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.library import opcheck

from ghost_ops import functional, use_backend
from ghost_ops.dispatch import select
from ghost_ops.ops._library import overload
from tests.helpers import assert_as_accurate, farthest
from tests.ops.cases import Case, Errors, in_layout
from tests.ops.test_registration import CALLS
from tests.triton.interpreted.drawn import (
    draw,
    draw_depthwise,
    draw_gate,
    draw_gated,
    draw_squeeze_excite,
)

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = (
    "ghost_module", "cheap_concat", "ghost_module_train", "cheap_concat_train", "ghost_module_train_gated",
    "dfc_gate_train", "squeeze_excite", "depthwise",
)  # fmt: skip
SEEDS = [range(first, first + 10) for first in range(0, 40, 10)]  # in parts, which processes share


def drawn(kind: str, seed: int) -> Case:
    others = {
        "squeeze_excite": draw_squeeze_excite, "depthwise": draw_depthwise, "dfc_gate_train": draw_gate,
        "ghost_module_train_gated": draw_gated,
    }  # fmt: skip
    return others.get(kind, partial(draw, kind))(seed)


def moved(case: Case, dtype: torch.dtype | None, device: str = DEVICE) -> Case:
    """The case on the device, in another dtype if one is given; strides stay."""

    def move(t):
        there = torch.empty_strided(t.shape, t.stride(), dtype=dtype or t.dtype, device=device)
        return there.copy_(t)

    return Case({k: None if t is None else move(t) for k, t in case.tensors.items()}, case.options)


def as_leaf(t: torch.Tensor) -> torch.Tensor:
    return t.detach().clone().requires_grad_()


def results(
    kind: str, case: Case, reference: bool, differentiable: int, leaf: Callable[[torch.Tensor], torch.Tensor] = as_leaf
) -> dict[str, torch.Tensor]:
    """Outputs and gradients by name, for drawn gradients of the differentiable outputs.

    Args:
        leaf: makes of each argument a leaf with the same values.
    """
    leaves = {k: None if t is None else leaf(t) for k, t in case.tensors.items()}
    with use_backend("reference" if reference else None):
        out = getattr(functional, kind.removesuffix("_gated"))(**leaves, **case.options)
        outputs = [out] if isinstance(out, torch.Tensor) else list(out)
        generator = torch.Generator().manual_seed(0)
        grads = [torch.randn(o.shape, generator=generator).to(o) for o in outputs[:differentiable]]
        torch.autograd.backward(outputs[:differentiable], grads)
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return found | {f"gradient of {k}": t.grad for k, t in leaves.items() if t is not None}


def check(
    kind: str, case: Case, dtype: torch.dtype, errors: Errors, device: str = DEVICE, exact_on: str = "cpu"
) -> None:
    """As ``check`` of ``tests/ops/cases.py``: what a float64 result moves when the arguments move by half a unit in
    their last place counts as PyTorch's error where it is larger. A sum that nearly cancels, as a gradient of a 1x1
    weight may, has an error of that size in whatever order it is taken, and PyTorch's order may be a lucky one."""
    differentiable = 2 if case.options.get("return_squeeze") else 1
    here = moved(case, dtype, device)
    ours, plain = (results(kind, here, reference, differentiable) for reference in (False, True))
    rounded = moved(case, dtype, "cpu")
    exact, nudged = (
        results(kind, moved(rounded.to(torch.float64, nudge), None, exact_on), True, differentiable)
        for nudge in (0.0, torch.finfo(dtype).eps / 2)
    )
    exact, nudged = ({what: t.to(device) for what, t in found.items()} for found in (exact, nudged))
    for what, result in ours.items():
        worst = farthest(exact[what], plain[what], nudged[what].to(result.dtype))
        errors.add(what, result, worst, exact[what])
        coarser = torch.finfo(dtype).eps / torch.finfo(result.dtype).eps
        assert_as_accurate(result, worst, exact[what], 4.0, what=f"{kind}, {what}", ulps=4 * max(coarser, 1))


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: f"from {seeds[0]}")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_drawn(kind, dtype, seeds):
    errors = Errors()
    for seed in seeds:
        case = drawn(kind, seed)
        x = moved(Case({"x": next(iter(case.tensors.values()))}), dtype).tensors["x"]
        assert select(kind, x).backend == "triton"
        check(kind, case, dtype, errors)
    errors.assert_within(2.0, single=(4.0, 2.0))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(8, 16, 112, 112, 24), (8, 72, 28, 28, 20), (8, 960, 7, 7, 80), (8, 112, 14, 14, 336), (3, 40, 33, 17, 36)],
)
def test_layer_shapes_of_ghostnet(shape, dtype, layout):
    n, c, h, w, m = shape
    for kind, case in layer_cases(n, c, h, w, m, layout=layout).items():
        check(kind, case, dtype, Errors())


def layer_cases(
    n: int, c: int, h: int, w: int, m: int, kernel: int = 3, layout: str = "channels_last", shift: float = 0.3
) -> dict[str, Case]:
    """A Ghost module in training and one without BatchNorms, by operator; ``shift`` is the mean of x."""
    g = torch.Generator().manual_seed(0)
    numbers = lambda *s, scale=1.0: torch.randn(s, generator=g) * scale
    tensors = {
        "x": in_layout(numbers(n, c, h, w) + shift, layout),
        "primary_weight": numbers(m, c, 1, 1, scale=c**-0.5),
        "primary_bias": None,
        "primary_gamma": numbers(m, scale=0.3) + 1,
        "primary_beta": numbers(m, scale=0.2),
        "cheap_weight": numbers(m, 1, kernel, kernel, scale=1 / kernel),
        "cheap_bias": None,
        "cheap_gamma": numbers(m, scale=0.3) + 1,
        "cheap_beta": numbers(m, scale=0.2),
    }
    # SiLU: at a ReLU's kink two right results may differ by a whole gradient
    smooth = {"act": "silu", "cheap_act": "silu"}
    single = {k: v for k, v in tensors.items() if "gamma" not in k and "beta" not in k}
    squeezed = smooth | {"return_squeeze": True}
    return {"ghost_module_train": Case(tensors, smooth), "ghost_module": Case(single, squeezed)}


@pytest.mark.parametrize("kind", KINDS)
def test_repeats_to_the_bit(kind):
    def once():
        case = moved(drawn(kind, 4), torch.float16)
        return results(kind, case, False, 1)

    first, again = once(), once()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    call = CALLS[name](torch.randn(2, 6, 5, 7, requires_grad=True))
    call = [a.detach().to(DEVICE).requires_grad_() if isinstance(a, torch.Tensor) else a for a in call]
    opcheck(overload(name.split()[0]), tuple(call))


@pytest.mark.parametrize("name", CALLS)
def test_what_no_kernel_takes_runs_on_the_reference(name):
    args = CALLS[name](torch.randn(2, 6, 5, 7))
    args = [a.detach().to(DEVICE, torch.float64) if isinstance(a, torch.Tensor) else a for a in args]
    operator = name.split()[0]
    expected = overload(f"{operator}_reference")(*args)[0]
    torch.testing.assert_close(overload(operator)(*args)[0], expected)


def test_image_of_more_than_two_to_the_31_elements():
    """Offsets within an image in 64 bits: 17 GB in and out, so only where there is room."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("less than 40 GiB of device memory are free")
    side = 8192
    x = torch.randn(1, 33, side, side, dtype=torch.float16, device=DEVICE).to(memory_format=torch.channels_last)
    w1, w2 = torch.randn(16, 33, 1, 1, device=DEVICE).half(), torch.randn(16, 1, 3, 3, device=DEVICE).half()
    out = functional.ghost_module(x, w1, None, w2, None)
    for rows in (slice(0, 8), slice(side - 8, side)):
        part = functional.ghost_module(x[:, :, rows].contiguous(), w1, None, w2, None)
        inner = slice(0, 7) if rows.start == 0 else slice(1, 8)  # the cut's neighbours are not in the part
        torch.testing.assert_close(out[:, :, rows][:, :, inner], part[:, :, inner])


def test_tf32_where_pytorch_uses_it():
    x, w = torch.randn(4, 256, 14, 14, device=DEVICE), torch.randn(64, 256, 1, 1, device=DEVICE)
    exact = torch.nn.functional.conv2d(x.double(), w.double())
    errors = {}
    for allow in (False, True):
        torch.backends.cudnn.allow_tf32 = allow
        errors[allow] = float(
            (functional.ghost_module(x, w, None, None, None, act="none") - exact).norm() / exact.norm()
        )
    assert errors[False] < 1e-6 < 1e-5 < errors[True] < 1e-2
