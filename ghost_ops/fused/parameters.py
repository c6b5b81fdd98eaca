"""Whether kernels may read a module's parameters beside an input."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..dispatch import PLAIN_TENSORS
from .errors import NotNow

Tensors = Iterable[torch.Tensor | None]


def check_parameters(x: torch.Tensor, convolutions: Tensors, others: Tensors = ()) -> None:
    """Refuse what PyTorch would refuse, so that it does in its own words, and parameters that are not plain tensors.

    Args:
        x: the input as autocast casts it.
        convolutions: weights and biases of convolutions and linear layers: of the dtype of x, under autocast float32
            too.
        others: of BatchNorms and PReLUs: of the dtype of x, or float32.

    Raises:
        NotNow: one of them is of another class or dtype, or on another device.
    """
    dtype, device, on_cpu = x.dtype, x.device, x.is_cpu
    compiling = torch.compiler.is_compiling()
    for tensors, takes_float32 in ((convolutions, torch.is_autocast_enabled(device.type)), (others, True)):
        for t in tensors:
            if t is None:
                continue
            if not compiling and type(t) not in PLAIN_TENSORS:
                raise NotNow(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
            if t.dtype is not dtype and not (takes_float32 and t.dtype is torch.float32):
                raise NotNow(f"its input is {dtype}, one of its parameters {t.dtype}")
            if not t.is_cpu if on_cpu else t.device != device:  # making a device costs more than asking for the CPU
                raise NotNow(f"its input is on {device}, one of its parameters on {t.device}")
