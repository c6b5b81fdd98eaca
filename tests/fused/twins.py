"""A fused module, its plain twin in the same dtype, and an exact one in float64, run side by side."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery import revert

from ..helpers import NEARBY, assert_as_accurate, nearby, without_luck
from ..ops.cases import Errors


def plain_twin(fused: nn.Module) -> nn.Module:
    """A copy of a module in which everything fused is plain PyTorch."""
    return revert(copy.deepcopy(fused))


def why(fused: nn.Module, x: torch.Tensor) -> str:
    """What would run a fused module, and why nothing faster does."""
    return str(block_of(fused).decide(fused, x))


def run(
    module: nn.Module, x: torch.Tensor, backward: bool, seed: int = 7, of_input: bool = True
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Output, gradients of input and parameters for a drawn gradient of the output, and buffers after the call."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(backward and of_input)
    module.zero_grad()
    with torch.set_grad_enabled(backward):
        out = module(x)
    results = {"output": out.detach().clone()}
    if backward:
        generator = torch.Generator().manual_seed(seed)
        out.backward(torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype))
        results |= {"gradient of the input": x.grad} if of_input else {}
        for name, p in module.named_parameters():
            if p.requires_grad:
                results[f"gradient of {name}"] = p.grad
    results |= {name: b.detach().clone() for name, b in module.named_buffers() if b.is_floating_point()}
    return results


def _near(module: nn.Module, seed: int) -> nn.Module:
    """A copy whose parameters and statistics are a little different."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                t.copy_(nearby(t, seed))
    return module


def assert_agree(
    fused: nn.Module, x: torch.Tensor, backward: bool = True, calls: int = 1, of_input: bool = True
) -> None:  # fmt: skip
    """Everything that ``run`` gives is as accurate as the plain twin, for that many calls; counters are equal.

    Of a few channels an error is a matter of luck, the plain twin's and ours. Where the twin's is larger, the median of
    its errors for these and for nearby parameters and inputs counts, as in ``tests/ops/cases.py``. A result that is
    still not as accurate is held to the rule over all of these draws, and alone to four times the error.
    """
    plain = plain_twin(fused)
    exact, first = copy.deepcopy(plain).double(), copy.deepcopy(fused)
    near = [(_near(plain, seed), nearby(x, seed)) for seed in NEARBY]
    near = [(module, copy.deepcopy(module).double(), values) for module, values in near]
    a_run = functools.partial(run, backward=backward, of_input=of_input)
    for call in range(calls):
        ours, eager, truth = a_run(fused, x), a_run(plain, x), a_run(exact, x.double())
        others = [(a_run(p, v), a_run(e, v.double())) for p, e, v in near]
        assert ours.keys() == eager.keys()
        largest = max(float(t.abs().max()) for t in truth.values() if t is not None and t.numel())
        again: list[dict[str, torch.Tensor]] = []
        for what, result in ours.items():
            if eager[what] is None:
                assert result is None or not result.any(), what
            elif not (truth[what].abs() > 1e-12 * largest).any():  # nothing but rounding, such as that of a bias
                assert not (result.abs() > 100 * torch.finfo(result.dtype).eps * largest).any(), what  # before a norm
            else:
                # on the CPU, PyTorch's BatchNorm sums gradients and statistics in double, the operators in float32
                ulps = 4 if what == "output" else 8
                theirs = without_luck(truth[what], eager[what], [(p[what], e[what]) for p, e in others])
                try:
                    assert_as_accurate(result, theirs, truth[what], what=what, ulps=ulps)
                except AssertionError:
                    assert_as_accurate(result, theirs, truth[what], 4.0, what=what, ulps=ulps)
                    again = again or [
                        [a_run(module, values) for _ in range(call + 1)][-1]
                        for module, values in ((_near(first, seed), nearby(x, seed)) for seed in NEARBY)
                    ]
                    draws = [(r[what], p[what], e[what]) for r, (p, e) in zip(again, others, strict=True)]
                    assert_over_draws(what, [(result, eager[what], truth[what]), *draws], ulps)
    counters = {n: b for n, b in fused.named_buffers() if not b.is_floating_point()}
    assert all(torch.equal(b, plain.get_buffer(n)) for n, b in counters.items())


def assert_over_draws(what: str, draws: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], ulps: float) -> None:
    """The root of the mean square of our errors is at most twice PyTorch's.

    Args:
        draws: our result, PyTorch's and the exact one for each.
        ulps: as of ``assert_as_accurate``.
    """
    errors = Errors()
    for ours, plain, exact in draws:
        errors.add(what, ours, plain, exact)
    errors.assert_within(2.0, ulps / 2)
