"""What many tests share: comparison with float64, drawn maps, poisoned memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ghost_ops.backends import native
from ghost_ops.dispatch import Decision

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def assert_as_accurate(
    ours: torch.Tensor,
    plain: torch.Tensor,
    exact: torch.Tensor,
    factor: float = 2.0,
    what: str = "result",
    ulps: float = 4.0,
) -> None:
    """The error of ``ours`` against ``exact`` (float64) is at most ``factor`` times that of ``plain``.

    Both in the largest element and in the Euclidean norm. ``plain`` is PyTorch's result in the dtype of ``ours``; by
    luck it may be exact, so that ``ulps`` units in the last place of the largest element (half as many of each in the
    norm) are always allowed. NaN and infinities must stand where they stand in ``exact``.
    """
    assert exact.dtype == torch.float64, f"{what}: the exact result must be float64, is {exact.dtype}"
    assert ours.shape == plain.shape == exact.shape, (
        f"{what}: shapes {tuple(ours.shape)}, {tuple(plain.shape)}, {tuple(exact.shape)}"
    )
    assert ours.dtype == plain.dtype, f"{what}: {ours.dtype} for {plain.dtype}"
    ours, plain, exact, eps = ours.detach(), plain.detach(), exact.detach(), torch.finfo(ours.dtype).eps
    finite = exact.isfinite()
    odd = ~torch.isclose(ours.double(), exact, rtol=0, atol=torch.inf, equal_nan=True) & ~finite
    assert not odd.any(), f"{what}: {int(odd.sum())} elements are not the NaN or infinity that they should be"
    assert ours[finite].isfinite().all(), f"{what}: not finite where the exact result is"
    ours, plain, exact = ours[finite].double(), plain[finite].double(), exact[finite]
    if not exact.numel():
        return
    for measure, norm, floor in (("largest", torch.inf, ulps * eps), ("norm of the", 2, ulps * eps / 2)):
        error, of_plain, scale = (
            float(torch.linalg.vector_norm(v, norm)) for v in (ours - exact, plain - exact, exact)
        )
        bound = factor * of_plain + floor * scale
        assert error <= bound, (
            f"{what}: {measure} error {error:.3g}, allowed {bound:.3g} (PyTorch {of_plain:.3g}, scale {scale:.3g})"
        )


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in units of the largest element of ``b``."""
    return float((a - b).abs().max() / b.abs().max())


def nudged(t: torch.Tensor, share: float, seed: int = 0) -> torch.Tensor:
    """Every value of t off by up to that share of itself."""
    generator = torch.Generator().manual_seed(seed + t.numel())
    return t * (1 + share * (2 * torch.rand(t.shape, dtype=t.dtype, generator=generator) - 1))


NEARBY = range(4)  # seeds of ``nearby``


def nearby(t: torch.Tensor, seed: int) -> torch.Tensor:
    """A little different values, for which rounding goes another way."""
    return nudged(t.detach(), 2.0**-6, seed)


def farthest(exact: torch.Tensor, *candidates: torch.Tensor) -> torch.Tensor:
    """That of the candidates which is farthest from the exact result, in the Euclidean norm."""
    return max(candidates, key=lambda t: float((t - exact).norm()))


def without_luck(
    exact: torch.Tensor, plain: torch.Tensor, near: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """PyTorch's result; or where its error is less than the median of it and those nearby, one as far off as that.

    A result of few elements, such as a gradient of a few channels, may by luck be ten times as near as the same
    program's for other arguments.

    Args:
        near: PyTorch's results for nearby arguments, each with the exact one.
    """
    errors = sorted([plain - exact, *(p - e for p, e in near)], key=lambda error: float(error.norm()))
    return farthest(exact, plain, (exact + errors[len(errors) // 2]).to(plain.dtype))


def make_map(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: str = "nchw",
    seed: int = 0,
    requires_grad: bool = False,
) -> torch.Tensor:
    """A normal map of this shape, the same values in every layout (and, up to rounding, dtype)."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).to(memory_format=LAYOUTS[layout]).requires_grad_(requires_grad)


def draw_shapes(count: int, seed: int = 0, channels: int = 24, side: int = 9) -> list[tuple[int, int, int, int]]:
    """Small map shapes N x C x H x W, odd ones and single pixels among them."""
    rng = random.Random(seed)
    return [
        (rng.randint(1, 3), rng.randint(1, channels), rng.randint(1, side), rng.randint(1, side)) for _ in range(count)
    ]


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Parameters and running statistics as after some training: no BatchNorm left at its initial identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t):
        return torch.randn(t.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                if child.weight is not None:
                    child.weight.copy_(1 + 0.3 * normal(child.weight))
                    child.bias.copy_(0.3 * normal(child.bias))
                if child.running_mean is not None:
                    child.running_mean.copy_(0.3 * normal(child.running_mean))
                    child.running_var.copy_(0.5 + normal(child.running_var).abs())
            elif isinstance(child, (torch.nn.Conv2d, torch.nn.Linear)) and child.weight is not None:
                fan_in = child.weight[0].numel()
                child.weight.copy_(normal(child.weight) * fan_in**-0.5)
                if child.bias is not None:
                    child.bias.copy_(0.3 * normal(child.bias))
    return module


def surrounded_by_nan(t: torch.Tensor, margin: int = 64) -> torch.Tensor:
    """A copy of t, in its memory format, whose memory lies between NaNs: a read past either end shows in the result."""
    storage = torch.full((t.numel() + 2 * margin,), torch.nan, dtype=t.dtype)
    copy = storage[margin : margin + t.numel()].as_strided(t.shape, t.contiguous().stride(), margin)
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
        copy = storage.as_strided(t.shape, t.stride(), margin)
    return copy.copy_(t.detach()).requires_grad_(t.requires_grad)


@contextmanager
def poisoned_memory(*sizes: int) -> Iterator[None]:
    """Within the block, memory of about these sizes (in bytes) that malloc hands out again holds NaNs.

    Finds results that are left unwritten in part. Also has ``torch.empty`` fill what it returns, where PyTorch can, and
    the kernels what they keep for the next maps.
    """
    for size in sizes:
        blocks = [torch.full((max(size // 4, 1),), torch.nan) for _ in range(4)]
        del blocks
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    native.poison_maps(True)
    try:
        yield
    finally:
        native.poison_maps(False)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def on(backend: str, operator: str, *reasons: str) -> Decision:
    """The decision that a backend runs an operator."""
    return Decision(f"{operator} on {backend}", backend, operator, reasons)
