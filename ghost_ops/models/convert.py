"""State_dicts of other projects' Ghost nets under the keys of ours.

Each source is a function that is asked whether a state_dict is its own, and gives every tensor its name here. What is
left after that must have the keys and shapes of the net that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..folding import fold
from .checkpoint import MANY, CheckpointError, differences
from .ghostnet import STAGES
from .registry import MODELS

State = dict[str, torch.Tensor]
_TRACKED = "num_batches_tracked"  # which old versions of PyTorch did not save
_COUNTS = ("total_ops", "total_params")  # buffers of thop, which counts operations


def convert_state_dict(state_dict: Mapping[str, torch.Tensor], model: str) -> dict[str, torch.Tensor]:
    """Return a state_dict of another project with the keys and shapes of a net of ``ghost_ops.models``.

    The result loads with ``strict=True`` into ``MODELS[model](num_classes=..., in_chans=...)``, whose logits in eval
    are then those of the source net. The numbers of classes and of input channels are those of the checkpoint; without
    a classifier it is ``num_classes=0``. Known are:

    - timm's and Huawei's GhostNet V1, V2 and V3 and timm's RepGhostNet. Those of V3 and RepGhostNet may have branches,
      or be merged; the result loads into a net of the same form (``reparameterize()``).
    - ``iamhankai/ghostnet.pytorch``, the article's first code, as it is now, for ``ghostnet_050/100/130``. Its clamped
      gates become hard sigmoids of other numbers, their hidden units are filled up with zeros to a multiple of 4, and
      the BatchNorm of its head is folded into ``conv_head``: equal in eval, not in training.
    - ``d-li14/ghostnet.pytorch``: the same, with a ReLU in every shortcut, for ``ghostnet_100_d_li14``.
    - Huawei's Ghost-ResNet-50, for ``ghost_resnet50``. Parameters that its forward does not use are left out.

    Args:
        state_dict: names and tensors, as of :func:`load_checkpoint`. Tensors that need no change are shared.
        model: a name of ``MODELS``.

    Raises:
        ValueError: no such name.
        TypeError: the state_dict is not a mapping of tensors.
        CheckpointError: it is not a checkpoint of this net. The message has the first three keys that differ.
    """
    if model not in MODELS:
        raise ValueError(f"convert_state_dict: model: expected one of {', '.join(MODELS)}, got {model!r}")
    if not isinstance(state_dict, Mapping) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise TypeError(
            f"convert_state_dict: state_dict: expected a mapping of names to tensors, got {type(state_dict).__name__}"
        )
    state = {name: value for name, value in state_dict.items() if not name.endswith(_COUNTS)}
    target = _Target(model)
    source = next((source for source in _SOURCES if source.is_own(state)), None)
    names = {name: name for name in state}
    if source is not None:
        state, names = source.convert(state, target)
    wanted = target.shapes(state)
    state.update((name, torch.tensor(0)) for name in wanted if name.endswith(_TRACKED) and name not in state)
    found = differences(state, wanted, names)
    if found:
        raise CheckpointError(f"convert_state_dict: this is not a checkpoint of {model}: {found}")
    return {name: state[name] for name in wanted}


class _Target:
    """The net that is asked for, without memory.

    Attributes:
        name: its name in ``MODELS``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._net = self._made()

    def _made(self, **options: int) -> nn.Module:
        return MODELS[self.name](device="meta", **options)

    def shape(self, name: str) -> torch.Size | None:
        """The shape of a tensor of the net with its usual numbers of channels and classes."""
        tensor = self._net.state_dict().get(name)
        return None if tensor is None else tensor.shape

    def shapes(self, state: State) -> dict[str, torch.Size]:
        """The keys and shapes of the net with the classes and channels of this state, in the form that it is of."""
        usual = self._net.state_dict()
        stem = next(name for name, value in usual.items() if value.dim() == 4)
        head = next(name for name, value in reversed(usual.items()) if value.dim() == 2)
        options = {"num_classes": len(state[head]) if head in state else 0}
        if stem in state and state[stem].dim() == 4:
            options["in_chans"] = state[stem].shape[1]
        net = self._made(**options)
        shapes = _shapes_of(net)
        if hasattr(net, "reparameterize"):
            net.reparameterize()
            merged = _shapes_of(net)
            if not any(name in state for name in shapes.keys() - merged.keys()):
                return merged
        return shapes


def _shapes_of(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


class _Source(NamedTuple):
    """A project whose state_dicts are known.

    Attributes:
        is_own: whether a state_dict has its keys.
        convert: gives the state under our keys, and for each of these the key that it had.
    """

    is_own: Callable[[State], bool]
    convert: Callable[[State, _Target], tuple[State, dict[str, str]]]


# The first public code: iamhankai/ghostnet.pytorch and d-li14/ghostnet.pytorch

_BLOCKS = tuple(f"blocks.{i}.{j}" for i, stage in enumerate(STAGES) for j in range(len(stage)))
_IN_BLOCK = {
    "conv.0.": "ghost1.",
    "conv.1.0.": "conv_dw.",
    "conv.1.1.": "bn_dw.",
    "conv.2.fc.0.": "se.conv_reduce.",
    "conv.2.fc.2.": "se.conv_expand.",
    "conv.3.": "ghost2.",
    "shortcut.0.0.": "shortcut.0.",
    "shortcut.0.1.": "shortcut.1.",
    "shortcut.1.": "shortcut.2.",
    "shortcut.2.": "shortcut.3.",
}
_AFTER_RELU = {"shortcut.1.": "shortcut.3.", "shortcut.2.": "shortcut.4."}
_OUTSIDE = {
    "features.0.0.": "conv_stem.",
    "features.0.1.": "bn1.",
    "squeeze.0.": f"blocks.{len(STAGES)}.0.conv.",
    "squeeze.1.": f"blocks.{len(STAGES)}.0.bn1.",
    "classifier.0.": "conv_head.",
    "classifier.3.": "classifier.",  # without dropout before it
    "classifier.4.": "classifier.",
}
_HEAD_NORM = "classifier.1."
_STRIDED_SHORTCUT = "features.4.shortcut.0.0.weight"  # 5x5 as the block's kernel is; 3x3 before a ReLU


def _is_first_code(state: State) -> bool:
    return "features.0.0.weight" in state and "squeeze.0.weight" in state


def _from_first_code(state: State, target: _Target) -> tuple[State, dict[str, str]]:
    has_relu = target.shape("blocks.1.0.shortcut.4.weight") is not None
    _check_shortcuts(state, target, has_relu)
    norm = {name.removeprefix(_HEAD_NORM): value for name, value in state.items() if name.startswith(_HEAD_NORM)}
    is_whole = norm.keys() >= {"weight", "bias", "running_mean", "running_var"} and "classifier.0.weight" in state
    converted, names = {}, {}
    for name, value in state.items():
        new = _renamed(name, has_relu)
        if is_whole and name.startswith(_HEAD_NORM):
            continue
        converted[new], names[new] = _as_ours(new, value, target.shape(new)), name
    if is_whole:
        weight = converted["conv_head.weight"]
        statistics = norm["weight"], norm["bias"], norm["running_mean"], norm["running_var"]
        converted["conv_head.weight"], converted["conv_head.bias"] = fold(weight, None, *statistics, 1e-5)
        names["conv_head.bias"] = f"{_HEAD_NORM}bias"
    return converted, names


def _renamed(name: str, has_relu: bool) -> str:
    found = re.match(r"features\.([1-9]\d*)\.(.*)", name)
    table, above, rest = _OUTSIDE, "", name
    if found is not None and int(found[1]) <= len(_BLOCKS):
        table, above, rest = _IN_BLOCK | (_AFTER_RELU if has_relu else {}), f"{_BLOCKS[int(found[1]) - 1]}.", found[2]
    old = next((old for old in table if rest.startswith(old)), None)
    return name if old is None else f"{above}{table[old]}{rest.removeprefix(old)}"


def _as_ours(name: str, value: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """The tensor in the form in which our layers have it: 1x1 convolutions for linear layers, a gate of other numbers,
    zeros around a smaller kernel and for the units that are missing."""
    layer, _, kind = name.rpartition(".")
    if name.endswith("se.conv_expand.weight"):
        value = 6 * value  # clamp(v, 0, 1) is relu6((6 v - 3) + 3) / 6
    elif name.endswith("se.conv_expand.bias"):
        value = 6 * value - 3
    if kind == "weight" and value.dim() == 2 and (".se." in name or layer == "conv_head"):
        value = value[:, :, None, None]
    if shape is None or value.dim() != len(shape) or not (".se." in name or ".shortcut.0." in name):
        return value
    around = []
    for ours, theirs, axis in zip(reversed(shape), reversed(value.shape), reversed(range(value.dim()))):
        more = max(ours - theirs, 0)
        around += [more // 2, more - more // 2] if axis > 1 else [0, more]
    return F.pad(value, around) if any(around) else value


def _check_shortcuts(state: State, target: _Target, has_relu: bool) -> None:
    """A ReLU has no key, but in the code that has one the kernels beside it are 3x3 throughout."""
    kernel = state.get(_STRIDED_SHORTCUT)
    if kernel is None or "features.1.conv.1.0.weight" in state:  # its other layers say that it is another net
        return
    relu_in_state = kernel.shape[-1] == 3
    if relu_in_state == has_relu or target.shape("blocks.1.0.shortcut.0.weight") is None:
        return
    keys = [name for name in state if re.fullmatch(r"features\.\d+\.shortcut\.0\.0\.weight", name)]
    what = f"behind {', '.join(keys[:MANY])} and {len(keys) - MANY} more"
    raise CheckpointError(
        f"convert_state_dict: this is not a checkpoint of {target.name}: "
        + (f"a ReLU stands {what}, as in d-li14's code: convert it for ghostnet_100_d_li14" if relu_in_state
           else f"no ReLU stands {what}: convert it for ghostnet_050, ghostnet_100 or ghostnet_130")
    )  # fmt: skip


# Huawei's GhostNetV3 and Ghost-ResNet


def _is_huawei_v3(state: State) -> bool:
    return any("_rpr_" in name and ".bn." in name for name in state)


def _from_huawei_v3(state: State, target: _Target) -> tuple[State, dict[str, str]]:
    names = {name.replace(".bn.", ".bn1.") if "_rpr_" in name else name: name for name in state}
    return {new: state[old] for new, old in names.items()}, names


def _is_huawei_resnet(state: State) -> bool:
    return any(name.endswith(".weight1") for name in state)


def _from_huawei_resnet(state: State, target: _Target) -> tuple[State, dict[str, str]]:
    modules = [name.removesuffix("weight1") for name in state if name.endswith(".weight1")]
    unused = tuple(f"{module}{child}" for module in modules for child in ("weight1", "weight2", "bn1.", "bn2."))
    kept = {name: value for name, value in state.items() if not name.startswith(unused)}
    return kept, {name: name for name in kept}


_SOURCES = (
    _Source(_is_first_code, _from_first_code),
    _Source(_is_huawei_v3, _from_huawei_v3),
    _Source(_is_huawei_resnet, _from_huawei_resnet),
)
