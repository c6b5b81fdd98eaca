"""The epilogue of a convolution: bias, BatchNorm and activation, their arguments of kernels, and their gradients."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...activations import NONE, PRELU
from . import launch, tiles
from .sums import CHANNELS_PER_PROGRAM


class Epilogue(NamedTuple):
    """Bias, BatchNorm (none where ``mean`` is None) and activation after a convolution."""

    bias: torch.Tensor | None = None
    act: int = NONE
    slope: float = 0.0
    weight: torch.Tensor | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    eps: float = 0.0

    def arguments(self, name: str) -> dict:
        """Arguments of a kernel, whose names begin with ``name``."""
        vectors = ("bias", "gamma", "beta", "mean", "var")
        found = {f"{name}_{field}": launch.vector(getattr(self, field)) for field in vectors}
        prelu = self.weight if self.act == PRELU else None
        return found | {
            f"{name}_eps": self.eps,
            f"{name}_slopes": launch.vector(prelu),
            f"{name}_slopes_stride": int(prelu is not None and prelu.numel() > 1),
            f"{name}_slope": self.slope,
            f"{name.upper()}_ACT": self.act,
        }


NO_EPILOGUE = Epilogue()


@triton.jit
def epilogue_gradients_kernel(
    partials, sums, bias, beta, gamma, slope, var, eps, groups, CHANNELS, BG: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Sums of the three rows of ``partials`` (groups x 3 x CHANNELS), and the parameters' gradients from them."""
    channels = tl.program_id(0) * BC + tl.arange(0, BC)
    wanted = channels < CHANNELS
    first = tl.zeros((BG, BC), tl.float32)
    second = tl.zeros((BG, BC), tl.float32)
    third = tl.zeros((BG, BC), tl.float32)
    for start in range(0, groups, BG):
        group = start + tl.arange(0, BG)
        mask = (group < groups)[:, None] & wanted[None, :]
        at = partials + group[:, None].to(tl.int64) * 3 * CHANNELS + channels[None, :]
        first += tl.load(at, mask=mask, other=0.0)
        second += tl.load(at + CHANNELS, mask=mask, other=0.0)
        third += tl.load(at + 2 * CHANNELS, mask=mask, other=0.0)
    first, second, third = tl.sum(first, axis=0), tl.sum(second, axis=0), tl.sum(third, axis=0)
    tl.store(sums + channels, first, mask=wanted)
    tl.store(sums + CHANNELS + channels, second, mask=wanted)
    tl.store(sums + 2 * CHANNELS + channels, third, mask=wanted)
    if bias is not None:
        tl.store(bias + channels, first.to(bias.dtype.element_ty), mask=wanted)
    if beta is not None:
        tl.store(beta + channels, first.to(beta.dtype.element_ty), mask=wanted)
    if gamma is not None:
        second = second / tl.sqrt(tl.load(var + channels, mask=wanted, other=1.0) + eps)
        tl.store(gamma + channels, second.to(gamma.dtype.element_ty), mask=wanted)
    if slope is not None:
        tl.store(slope + channels, third.to(slope.dtype.element_ty), mask=wanted)


class EpilogueGradients(NamedTuple):
    """Gradients of an epilogue's parameters, empty where there is no parameter."""

    bias: torch.Tensor
    slopes: torch.Tensor
    gamma: torch.Tensor
    beta: torch.Tensor


def epilogue_gradients(partials: torch.Tensor, epilogue: Epilogue) -> tuple[torch.Tensor, EpilogueGradients]:
    """Σ g, Σ g (z - mean) and PReLU's sum (3 x channels, float32), and the gradients of the parameters of ``half``."""
    groups, _, channels = partials.shape
    device = partials.device
    sums = launch.empty((3, channels), torch.float32, device)
    prelu = epilogue.weight if epilogue.act == PRELU else None
    shared = prelu is not None and prelu.numel() == 1
    given = (epilogue.bias, None if shared else prelu, epilogue.gamma, epilogue.beta)
    found = [None if p is None else launch.empty((channels,), p.dtype, device) for p in given]
    arguments = {
        "partials": partials, "sums": sums, **dict(zip(("bias", "slope", "gamma", "beta"), found)),
        "var": launch.vector(epilogue.var), "eps": epilogue.eps, "groups": groups, "CHANNELS": channels,
        "BG": min(tiles.rows(groups), 512), "BC": CHANNELS_PER_PROGRAM,
    }  # fmt: skip
    with launch.on_device_of(partials):
        launch.start_kernel(
            epilogue_gradients_kernel, (launch.cdiv(channels, CHANNELS_PER_PROGRAM),), arguments, warps=4, stages=1
        )
    if shared:
        found[1] = sums[2].sum().reshape(1).to(prelu.dtype)
    kind = torch.float32 if epilogue.bias is None else epilogue.bias.dtype
    return sums, EpilogueGradients(*(launch.empty((0,), kind, device) if t is None else t for t in found))
