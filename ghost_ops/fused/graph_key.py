"""What a graph depends on beside the values in memory: where any of it differs, the graph must not be replayed."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import nn

from ..dispatch import PLAIN_TENSORS, forced
from .errors import NotNow
from .layers import SYNCED

_PLAIN = (bool, int, float, str, type(None), tuple, torch.Size, torch.dtype, torch.device)
_OF_HOOKS = ("_is_full_backward_hook",)  # set by the first hook, and not put back when it is removed
_HOOKS = itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def settings(device: torch.device) -> tuple:
    """Everything that is set for a thread or for the process and that changes which kernels run on a device."""
    kind, c, precision = device.type, torch._C, torch._C._get_fp32_precision_getter
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        forced(),
        precision("cuda", "matmul"),
        precision("cuda", "conv"),
        c._get_cublas_allow_fp16_reduced_precision_reduction(),
        c._get_cublas_allow_bf16_reduced_precision_reduction(),
        c._get_cublas_allow_fp16_accumulation(),
        c._get_cudnn_enabled(),
        c._get_cudnn_benchmark(),
        c._get_cudnn_deterministic(),
        c._get_deterministic_algorithms(),
    )


def layout(x: torch.Tensor) -> tuple:
    """Shape, strides, dtype and device."""
    return tuple(x.shape), x.stride(), x.dtype, x.device


class State(NamedTuple):
    """What the work of a module depends on, as it was at a call.

    Attributes:
        key: mode and plain attributes of each module inside, and where and what its tensors are.
        parameters, buffers: each tensor once.
    """

    key: tuple
    parameters: tuple[torch.Tensor, ...]
    buffers: tuple[torch.Tensor, ...]


class ModuleState:
    """Reads on each call what the work of a module depends on.

    Which modules there are, with which attributes and tensors, is found once; ``has_changed`` says when that is over.

    Args:
        module: the module.
        skipped: modules whose tensors and attributes do not count.
        strict: whether modules inside are refused that carry hooks, or tensors that are neither parameters nor buffers.

    Raises:
        NotNow: strict, and there is such a module inside.
    """

    def __init__(self, module: nn.Module, skipped: frozenset[nn.Module] = frozenset(), strict: bool = True) -> None:
        self.attributes: list[tuple[dict, Callable[[dict], tuple], int]] = []
        self.children: list[tuple[dict, int, tuple]] = []
        self.tensors: list[tuple[dict, tuple[str, ...], bool]] = []  # and whether these are parameters
        self.synced: list[dict] = []
        self.strict = strict
        for inner in module.modules():
            if inner in skipped or isinstance(inner, torch.jit.ScriptModule):  # its tables are not those of a module
                continue
            state = inner.__dict__
            if strict and inner is not module and ("forward" in state or any(_HOOKS(state))):
                kind = type(inner).__name__
                raise NotNow(f"its child, a {kind}, carries hooks, or a forward of its own: these must run")
            if strict and any(isinstance(value, torch.Tensor) for value in state.values()):
                raise NotNow("one of its modules holds a tensor that is neither a parameter nor a buffer")
            if strict and isinstance(inner, SYNCED):
                self.synced.append(state)
            names = [name for name, value in state.items() if isinstance(value, _PLAIN) and _has_hash(value)]
            names = [name for name in names if name not in _OF_HOOKS]
            self.attributes.append((state, itemgetter("training", *names), len(state)))
            children = state["_modules"]
            self.children.append((children, len(children), tuple(children.items())))
            for is_parameter, entries in ((True, state["_parameters"]), (False, state["_buffers"])):
                if entries:
                    self.tensors.append((entries, tuple(entries), is_parameter))

    def has_changed(self) -> bool:
        """Whether modules, attributes or tensors were added, taken away, or modules replaced."""
        for state, _, length in self.attributes:
            if len(state) != length:
                return True
        for children, length, found in self.children:
            if len(children) != length:
                return True
            for name, child in found:
                if children.get(name) is not child:
                    return True
        for entries, names, _ in self.tensors:
            if len(entries) != len(names):
                return True
        return False

    def read(self) -> State:
        """What it is now. Raises ``NotNow`` where that cannot be compared, or a tensor is not a plain one."""
        key: list[object] = []
        places: dict[int, int] = {}
        parameters: list[torch.Tensor] = []
        buffers: list[torch.Tensor] = []
        for state in self.synced:
            if state["training"]:
                raise NotNow("a SyncBatchNorm uses the statistics of all processes")
        try:  # for each module and tensor on each call: no comprehensions here
            for state, values, _ in self.attributes:
                key.append(values(state))
            for entries, names, is_parameter in self.tensors:
                for name in names:
                    t = entries[name]
                    if t is None:
                        key.append(None)
                        continue
                    if type(t) not in PLAIN_TENSORS:
                        if self.strict:
                            raise NotNow(f"one of its parameters is a {type(t).__name__}, not a plain tensor")
                        key.append(id(t))
                        continue
                    place = places.setdefault(id(t), len(places))
                    if place == len(parameters) + len(buffers):
                        (parameters if is_parameter else buffers).append(t)
                        key.append((t.data_ptr(), t.dtype, t.shape, t.stride(), t.requires_grad))
                    else:
                        key.append(place)
        except KeyError as error:
            raise NotNow(f"its attribute {error} has gone") from None
        return State(tuple(key), tuple(parameters), tuple(buffers))


def _has_hash(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
