"""Whether a net is as accurate as plain PyTorch, against float64."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..helpers import nearby

# A result alone may be luck: of one net and image the ratio of two errors is a quotient of two random numbers. What is
# further off is held to twice PyTorch's error over nearby nets.
FACTOR, OVER_DRAWS = 4.0, 2.0  # times PyTorch's error, of one result and in the median of many nearby ones
ULPS = 16.0  # of the largest result of a call, always allowed. In eval with gradients a BatchNorm is folded into the
#              convolution, and PyTorch's backward of one (oneDNN's) adds up the gradient of a bias one by one, where
#              its BatchNorm adds in pairs: of 507 equal numbers an error of some 20 units was seen
Results = dict[str, torch.Tensor | None]


class Differs(AssertionError):
    """Ours is not as accurate as plain PyTorch, or does something else."""


def nearby_net(net: nn.Module, state: list[torch.Tensor], seed: int | None) -> nn.Module:
    """A copy with these parameters and buffers, or some that are a little different."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for t, value in zip((*net.parameters(), *net.buffers()), state, strict=True):
            t.copy_(nearby(value, seed) if seed is not None and value.is_floating_point() else value)
    return net


def with_gradients_in_layout(net: nn.Module) -> nn.Module:
    """The net, with gradients of its modules' results in the layout of these."""

    def forward_hook(module: nn.Module, args: tuple, out: object) -> None:
        if isinstance(out, torch.Tensor) and out.requires_grad and out.dim() == 4 and not out.is_contiguous():
            out.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))

    for module in net.modules():
        module.register_forward_hook(forward_hook)
    return net


def farther(results: list[Results], exact: Results) -> Results:
    """Of every result the one with the larger error."""
    return {
        name: max((found[name] for found in results), key=lambda t: -1.0 if t is None else error(t, exact[name]))
        for name in results[0]
    }


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference, infinite where one is not finite and the other is."""
    if not torch.equal(result.isnan(), exact.isnan()):
        return torch.inf
    return float(torch.nan_to_num(result.double() - exact).norm())


def largest_of(results: Results) -> float:
    """The largest element of all, beside which a gradient may be nothing but rounding."""
    return max((float(t.abs().max()) for t in results.values() if t is not None and t.numel()), default=0.0)


def faults(ours: Results, plain: Results, exact: Results) -> dict[str, str]:
    """Results of ours that are not as accurate as plain ones, or not there."""
    if ours.keys() != plain.keys():
        return {str(sorted(ours.keys() ^ plain.keys())): "missing"}
    largest = largest_of(exact)
    found = {}
    for name, value in ours.items():
        if (value is None) != (plain[name] is None):
            zero = value if value is not None else plain[name]
            if zero.any():
                found[name] = "missing"
            continue
        if value is None:
            continue
        if value.shape != plain[name].shape or value.dtype != plain[name].dtype:
            found[name] = f"{value.dtype} {tuple(value.shape)} is missing"
            continue
        a, b, scale = error(value, exact[name]), error(plain[name], exact[name]), float(exact[name].norm())
        floor = ULPS * torch.finfo(value.dtype).eps * max(scale, largest)
        if not a <= FACTOR * b + floor:
            found[name] = f"error {a:.3g}, PyTorch's {b:.3g}, of {scale:.3g}"
    return found


def outputs(net: nn.Module, x: torch.Tensor) -> Results:
    with torch.no_grad():
        return {"output": net(x)}


def step(net: nn.Module, x: torch.Tensor) -> Results:
    """Loss, gradients and buffers of a training step, without the optimizer's part."""
    net.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = net(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out * weights).sum()
    found: Results = {"output": out.detach().clone()}
    if loss.requires_grad:
        loss.backward()
    found["gradient of x"] = x.grad
    found |= {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    found |= {name: b.detach().clone() for name, b in net.named_buffers() if b.is_floating_point()}
    return found
