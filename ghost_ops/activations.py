"""The activations that the operators know: their names, codes, values and derivatives in plain PyTorch.

The codes travel through operator schemas and match ``csrc/cpu/kernels/activation.h``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "prelu", "silu", "hard_swish")
NONE, RELU, RELU6, LEAKY_RELU, PRELU, SILU, HARD_SWISH = range(len(ACTIVATIONS))
WITH_SLOPES = (LEAKY_RELU, PRELU)

GATES = ("clamp", "hard_sigmoid", "sigmoid", "identity")
CLAMP, HARD_SIGMOID, SIGMOID, IDENTITY = range(len(GATES))


def _slopes(weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return weight.to(z.dtype).reshape(-1, *[1] * (z.dim() - 2)) if weight.numel() > 1 else weight.to(z.dtype)


def activate(z: torch.Tensor, act: int, slope: float = 0.0, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Activation ``act`` of z (N x C x ...); ``slope`` is LeakyReLU's, ``weight`` PReLU's (1 or C elements)."""
    if act == NONE:
        return z
    if act == RELU:
        return F.relu(z)
    if act == RELU6:
        return F.relu6(z)
    if act == LEAKY_RELU:
        return F.leaky_relu(z, slope)
    if act == PRELU:
        return F.prelu(z, weight.to(z.dtype))
    if act == SILU:
        return F.silu(z)
    return F.hardswish(z)


def activate_backward(
    grad: torch.Tensor,
    z: torch.Tensor,
    act: int,
    slope: float = 0.0,
    weight: torch.Tensor | None = None,
    sums: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of z and of PReLU's weight (None for the others), given the gradient of ``activate(z, ...)``; the
    weight's is added in the dtype ``sums``, or in z's."""
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    if act == NONE:
        return grad, None
    if act == RELU:
        return torch.ops.aten.threshold_backward(grad, z, 0), None  # one pass
    if act == RELU6:
        return torch.where((z > 0) & (z < 6), grad, zero), None
    if act == LEAKY_RELU:
        return torch.where(z > 0, grad, grad * slope), None
    if act == PRELU:
        grad_slopes = torch.where(z > 0, zero, grad * z)
        over = [0, *range(2, z.dim())] if weight.numel() > 1 else None
        grad_weight = grad_slopes.sum(over, dtype=sums).reshape(weight.shape)
        return torch.where(z > 0, grad, grad * _slopes(weight, z)), grad_weight.to(weight.dtype)
    if act == SILU:
        s = torch.sigmoid(z)
        return grad * (s * (1 + z * (1 - s))), None
    inner = torch.where(z < 3, grad * (z / 3 + 0.5), grad)
    return torch.where(z <= -3, zero, inner), None


def apply_gate(logits: torch.Tensor, gate: int) -> torch.Tensor:
    """Excitation gate of squeeze-and-excite: clamp(v, 0, 1), relu6(v + 3) / 6, sigmoid(v) or v."""
    if gate == CLAMP:
        return logits.clamp(0, 1)
    if gate == HARD_SIGMOID:
        return F.relu6(logits + 3) / 6
    if gate == SIGMOID:
        return torch.sigmoid(logits)
    return logits


def gate_backward(grad: torch.Tensor, logits: torch.Tensor, gate: int) -> torch.Tensor:
    """Gradient of the logits, given the gradient of the gate's value."""
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    if gate == CLAMP:  # PyTorch's clamp passes the gradient at both bounds
        return torch.where((logits >= 0) & (logits <= 1), grad, zero)
    if gate == HARD_SIGMOID:
        return torch.where((logits > -3) & (logits < 3), grad / 6, zero)
    if gate == SIGMOID:
        s = torch.sigmoid(logits)
        return grad * (s * (1 - s))
    return grad
