"""Every layer shape of GhostNets, odd addresses, means far from zero, and maps of more than 2^31 elements."""

from __future__ import annotations

import pytest
import torch

from ghost_ops import functional
from ghost_ops.bench.cases import ModuleCase, module_cases
from tests.gpu.test_operators import DEVICE, DTYPES, KINDS, check, drawn, layer_cases, moved, results
from tests.ops.cases import Case, Errors

HALVES = (torch.float16, torch.bfloat16)
SHAPES = {  # each once
    (case.inp, case.primary, case.side, case.kernel): case
    for net in ("ghostnet_100", "ghostnet_130")
    for case in module_cases(net)
}.values()
LAST = torch.channels_last
GIB = 2**30


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda case: case.name)
def test_every_ghost_module(shape: ModuleCase, dtype):
    batch = 4 if shape.side > 56 else 8
    cases = layer_cases(batch, shape.inp, shape.side, shape.side, shape.primary, shape.kernel)
    for kind, case in cases.items():
        check(kind, case, dtype, Errors(), DEVICE, exact_on=DEVICE)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(48, 3, 112), (72, 5, 56), (240, 3, 28), (672, 5, 14), (16, 3, 112), (24, 5, 56)])
def test_strided_depthwise_convolutions(shape, dtype):
    channels, kernel, side = shape
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, side, side, generator=g).contiguous(memory_format=LAST)
    weight = torch.randn(channels, 1, kernel, kernel, generator=g) / kernel
    check("depthwise", Case({"x": x, "weight": weight, "bias": None}, {"stride": 2}), dtype, Errors(), DEVICE, DEVICE)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(72, 20, 28), (120, 32, 28), (480, 120, 14), (960, 240, 7)])
def test_squeeze_and_excite_layers(shape, dtype):
    channels, hidden, side = shape
    g = torch.Generator().manual_seed(0)
    tensors = {
        "x": (torch.randn(8, channels, side, side, generator=g) + 0.5).contiguous(memory_format=LAST),
        "reduce_weight": torch.randn(hidden, channels, generator=g) * channels**-0.5,
        "reduce_bias": torch.randn(hidden, generator=g) * 0.3,
        "expand_weight": torch.randn(channels, hidden, generator=g) * hidden**-0.5,
        "expand_bias": torch.randn(channels, generator=g) * 0.3,
    }
    smooth = {"act": "silu", "gate": "sigmoid"}
    check("squeeze_excite", Case(tensors, smooth), dtype, Errors(), DEVICE, exact_on=DEVICE)


def at_an_odd_address(t: torch.Tensor) -> torch.Tensor:
    """The same values and strides, one element after where an allocation begins."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride()))
    memory = torch.full((size + 2,), torch.nan, dtype=t.dtype, device=t.device)
    return memory[1:].as_strided(t.shape, t.stride()).copy_(t.detach()).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_at_odd_addresses(kind, dtype):
    """As a slice of a larger tensor has. Drawn shapes, and one whose strides alone would allow wide loads."""
    cases = [drawn(kind, seed) for seed in (0, 3, 6)]
    cases += [case for name, case in layer_cases(2, 16, 16, 16, 16).items() if name == kind]
    for case in cases:
        case = moved(case, dtype, DEVICE)
        odd, even = (results(kind, case, False, 1, *leaf) for leaf in ((at_an_odd_address,), ()))
        for what, expected in even.items():
            scale = float(expected.double().norm()) or 1.0
            error = float((odd[what].double() - expected.double()).norm()) / scale
            assert error <= torch.finfo(dtype).eps, f"{kind}, {what}: {error:.2g}"


@pytest.mark.parametrize("dtype, shift", [(torch.float32, 30.0), (torch.float32, 300.0), (torch.float16, 10.0)])
def test_statistics_of_a_mean_far_from_zero(dtype, shift):
    """The variance is a small difference of large sums unless they are taken from somewhere near the mean."""
    case = layer_cases(4, 24, 28, 28, 36, shift=shift)["ghost_module_train"]
    weight = case.tensors["primary_weight"]
    case.tensors["primary_weight"] = weight + weight.std()  # or the means of z would cancel
    check("ghost_module_train", case, dtype, Errors(), DEVICE, exact_on=DEVICE)


@pytest.mark.parametrize("kind", ["ghost_module", "ghost_module_train", "depthwise"])
def test_maps_of_more_than_two_to_the_31_elements(kind):
    """8 images of 48 channels at 112 x 112, 512 times over: their results are those of the 8, and sums 512 times."""
    if torch.cuda.mem_get_info()[0] < 48 * GIB:
        pytest.skip("needs 48 GiB of free device memory")
    few, many = (repeated(kind, count, DEVICE, torch.float16, 112) for count in (1, 512))
    assert many["output"].numel() > 2**31
    compare_repeated(few, many)


def repeated(kind: str, count: int, device: str, dtype: torch.dtype, side: int) -> dict[str, torch.Tensor]:
    """Output and gradients of a call on 8 images repeated ``count`` times; those of weights divided by ``count``."""
    if kind == "depthwise":
        g = torch.Generator().manual_seed(0)
        weight = torch.randn(48, 1, 3, 3, generator=g) / 3
        case = Case({"x": torch.randn(8, 48, side, side, generator=g), "weight": weight, "bias": None})
    else:
        case = layer_cases(8, 16, side, side, 24)[kind]
        case = Case(case.tensors, {k: v for k, v in case.options.items() if k != "return_squeeze"})
    case = moved(case, dtype, device)
    leaves = {k: None if t is None else t.clone().requires_grad_() for k, t in case.tensors.items()}
    x = case.tensors["x"].repeat(count, 1, 1, 1).contiguous(memory_format=LAST).requires_grad_()
    out = getattr(functional, kind)(**leaves | {"x": x}, **case.options)
    out = out if isinstance(out, torch.Tensor) else out[0]
    grad = torch.randn(8, *out.shape[1:], generator=torch.Generator().manual_seed(1)) / 512  # sums stay below 65504
    out.backward(grad.to(out).repeat(count, 1, 1, 1).contiguous(memory_format=LAST))
    weights = {f"gradient of {k}": t.grad / count for k, t in leaves.items() if t is not None and k != "x"}
    return {"output": out.detach(), "gradient of x": x.grad} | weights


def compare_repeated(few: dict[str, torch.Tensor], many: dict[str, torch.Tensor]) -> None:
    for what, right in few.items():
        found = many[what]
        for part in (found[: len(right)], found[-len(right) :]) if right.dim() == 4 else (found,):
            error = float((part.double() - right.double()).norm() / right.double().norm())
            assert error < 4e-3, f"{what}: {error:.2g}"
