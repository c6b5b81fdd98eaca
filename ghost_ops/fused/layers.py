"""Layers that fused code reads: a convolution or linear layer with the BatchNorm and the activation after it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from ..activations import NONE, PRELU, WITH_NUMBER, code_of, slope_of
from ..nn import SyncBatchNorm
from .errors import NotNow, Unfusable
from .in_place import source_class

SYNCED = (nn.SyncBatchNorm, SyncBatchNorm)
NORMS = (nn.BatchNorm2d, *SYNCED)
OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_ANY_NORM = (nn.BatchNorm1d, *NORMS)
geometry_now = itemgetter("stride", "padding", "dilation", "groups", "padding_mode")  # of a convolution's dictionary
_NO_PADDING = ((0, 0), "valid", "same")
_Item = TypeVar("_Item")


class ConvBNAct(NamedTuple):
    """A convolution with what follows it.

    Attributes:
        conv, norm, act: the modules; None where there is none.
        code: code of the activation.
        geometry: stride, padding, dilation, groups and padding mode, each size a pair (or the name of a padding).
        seen: the same attributes as they stood, to notice a change.
        is_depthwise: whether there is a filter for each channel, square, with one stride, padded by half its size.
    """

    conv: nn.Conv2d
    norm: nn.Module | None
    act: nn.Module | None
    code: int
    geometry: tuple
    seen: tuple
    is_depthwise: bool = False

    def slope(self) -> float:
        return slope_of(self.act, self.code) if self.code in WITH_NUMBER else 0.0  # asked for on every call

    def entries(self) -> tuple[tuple[dict, str] | None, ...]:
        """Where each of ``tensors`` is: a dictionary and a name, or None where there is no such module."""
        conv, norm = self.conv, self.norm
        found: list[tuple[dict, str] | None] = [None] * 7
        if conv is not None:
            found[:2] = (conv._parameters, "weight"), (conv._parameters, "bias")
        if norm is not None:
            found[2:4] = (norm._parameters, "weight"), (norm._parameters, "bias")
            found[4:6] = (norm._buffers, "running_mean"), (norm._buffers, "running_var")
        if self.code == PRELU:
            found[6] = self.act._parameters, "weight"
        return tuple(found)

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Weight, bias, gamma, beta, running mean and variance, PReLU's weight: each None where there is none."""
        return gather(self.entries())

    def parts(self) -> tuple[ParameterSource, ...]:
        """The layers whose parameters its tensors are made of."""
        return (self,)

    def kernel(self) -> tuple[int, int]:
        """Height and width of the filters."""
        return _pair(self.conv.kernel_size)

    def is_pointwise(self) -> bool:
        stride, padding, _, groups, _ = self.geometry
        one = self.kernel() == (1, 1) and stride == (1, 1)
        return one and padding in _NO_PADDING and groups == 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what the convolution makes of a map."""
        stride, padding, dilation, _, _ = self.geometry
        if padding == "same":  # PyTorch takes it with stride 1 only
            return height, width
        before = (0, 0) if padding == "valid" else padding
        rows, columns = self.kernel()
        return (
            (height + 2 * before[0] - dilation[0] * (rows - 1) - 1) // stride[0] + 1,
            (width + 2 * before[1] - dilation[1] * (columns - 1) - 1) // stride[1] + 1,
        )

    def is_cheap(self, channels: int) -> bool:
        """A depthwise convolution of ``channels`` that keeps the size of the map."""
        (height, width), conv = self.kernel(), self.conv
        stride, padding, dilation, groups, _ = self.geometry
        same = padding in ((height // 2, width // 2), "same") and (dilation == (1, 1) or height == 1)
        square = height == width and height % 2 == 1
        return square and same and stride == (1, 1) and groups == conv.in_channels == channels

    def why_not_cheap(self, channels: int) -> str:
        """The sentence where it is not ``is_cheap``."""
        stride, padding, dilation, groups, _ = self.geometry
        if groups != self.conv.in_channels or groups != channels:
            return f"its cheap operation is not depthwise: it has {groups} groups for {channels} channels"
        kernel = " x ".join(map(str, self.kernel()))
        found = f"kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}"
        return f"its cheap operation must be square and odd, keep the size of the map and not be dilated: {found}"

    def _is_depthwise(self) -> bool:
        (height, width), conv = self.kernel(), self.conv
        stride, padding, dilation, groups, _ = self.geometry
        half = padding == (height // 2, width // 2) or (padding == "same" and height % 2 == 1)
        regular = height == width and stride[0] == stride[1] and (dilation == (1, 1) or height == 1)
        return half and regular and groups == conv.in_channels == conv.out_channels


class LinearAct(NamedTuple):
    """A linear layer, or a 1x1 convolution of a single pixel, with what follows it; as :class:`ConvBNAct`.

    With no ``conv`` it is an activation of its own.
    """

    conv: nn.Module | None
    norm: nn.Module | None
    act: nn.Module | None
    code: int

    slope = ConvBNAct.slope
    entries = ConvBNAct.entries
    tensors = ConvBNAct.tensors
    parts = ConvBNAct.parts


ParameterSource = ConvBNAct | LinearAct


def gather(entries: tuple[tuple[dict, str] | None, ...]) -> tuple[torch.Tensor | None, ...]:
    """The tensors in the dictionaries, where ``torch.func.functional_call`` too puts its own.

    Raises:
        NotNow: one of them is not there: sharded, pruned or otherwise computed, it is an attribute but not a parameter.
    """
    found = []
    try:
        for entry in entries:
            found.append(None if entry is None else entry[0][entry[1]])
    except KeyError as name:
        raise NotNow(f"{name} of one of its children is not a parameter or buffer of its own") from None
    return tuple(found)


class LayerItems(NamedTuple):
    """The items of one layer; ``idle`` are those between and after them that do nothing."""

    conv: object
    norm: object | None
    act: object | None
    idle: list

    def slots(self) -> tuple[object, object | None, object | None]:
        """Convolution, BatchNorm and activation, an idle item where there is none, so that none is overlooked."""
        conv, norm, act, idle = self
        if norm is None and len(idle) > (act is None):
            norm, *idle = idle
        if act is None and idle:
            act, *idle = idle
        if idle:
            raise Unfusable("it calls several modules that do nothing one after the other")
        return conv, norm, act


def take_layer(items: list[_Item], module_of: Callable[[_Item], nn.Module | None] = lambda item: item) -> LayerItems:
    """Take the first item, a convolution or linear layer, with the BatchNorm and the activation that follow it.

    Args:
        items: modules, calls or nodes in order; what was taken is removed.
        module_of: the module that an item stands for.
    """
    conv, norm, act, idle = items.pop(0), None, None, []
    while items and act is None:
        module = module_of(items[0])
        if module is not None and does_nothing(module):
            idle.append(items.pop(0))
        elif norm is None and isinstance(module, _ANY_NORM):
            norm = items.pop(0)
        elif code_of(module) is not None:
            act = items.pop(0)
        else:
            break
    return LayerItems(conv, norm, act, idle)


def conv_bn_act(
    conv: nn.Module, norm: nn.Module | None, act: nn.Module | None, derived: bool = False
) -> ConvBNAct:  # fmt: skip
    """A convolution with what follows it. Raises ``Unfusable`` where one of the modules is of another kind.

    Args:
        derived: whether the BatchNorm may be of a class that derives from PyTorch's, which the caller has compared, and
            the modules of classes that were changed in place.
    """
    own = source_class if derived else type
    if not is_conv(conv, own(conv)):
        raise Unfusable(f"one of its convolutions is a {type(conv).__name__}, not a Conv2d")
    if conv.padding_mode != "zeros":
        raise Unfusable(f"one of its convolutions pads with mode {conv.padding_mode!r}")
    norm = None if does_nothing(norm) else norm
    if norm is not None and not is_norm(norm, own(norm)) and not (derived and isinstance(norm, nn.BatchNorm2d)):
        raise Unfusable(f"one of its normalisations is a {type(norm).__name__}, not a BatchNorm2d")
    seen = conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    stride, padding, dilation, groups, mode = seen
    sizes = _pair(stride), padding if isinstance(padding, str) else _pair(padding), _pair(dilation)
    code = activation_code(act, source_class(act) if derived and act is not None else None)
    layer = ConvBNAct(conv, norm, act, code, (*sizes, groups, mode), seen)
    return layer._replace(is_depthwise=layer._is_depthwise())


def is_conv(module: nn.Module | None, own: type[nn.Module] | None = None) -> bool:
    """Whether it is a ``Conv2d``, or of a subclass that computes the same. ``own``: its class, if not its type."""
    kind = type(module) if own is None else own
    return kind is nn.Conv2d or _computes_as(kind, nn.Conv2d)


def is_norm(module: nn.Module | None, own: type[nn.Module] | None = None) -> bool:
    """Whether it is a BatchNorm over maps, or of a subclass that computes what ``BatchNorm2d`` does; as ``is_conv``."""
    kind = type(module) if own is None else own
    return kind in NORMS or _computes_as(kind, nn.BatchNorm2d)


# What a subclass must not define to compute what its base does with the same parameters, buffers and numbers.
_DECISIVE = frozenset(
    "forward __call__ _call_impl __getattr__ __getattribute__ _conv_forward _check_input_dim weight bias running_mean "
    "running_var num_batches_tracked stride padding dilation groups padding_mode eps momentum training affine "
    "track_running_stats _parameters _buffers".split()
)


@functools.cache
def _computes_as(cls: type, base: type) -> bool:
    if not issubclass(cls, base):
        return False
    between = cls.__mro__[: cls.__mro__.index(base)]
    return not any(_DECISIVE & vars(c).keys() for c in between)


def activation_code(act: nn.Module | None, own: type[nn.Module] | None = None) -> int:
    """The code of an activation module. Raises ``Unfusable`` where no operator knows it.

    Args:
        own: its class where that was changed in place.
    """
    if does_nothing(act):
        return NONE
    code = code_of(act, own)
    if code is None:
        raise Unfusable(f"one of its activations is a {type(act).__name__}, which no operator knows")
    return code


def is_activation(module: nn.Module | None) -> bool:
    """Whether the module is an activation that the operators know, or does nothing."""
    return does_nothing(module) or code_of(module) is not None


def does_nothing(module: nn.Module | None) -> bool:
    """Whether the module returns its input: there is none, it is an ``Identity``, or an empty ``Sequential``."""
    return module is None or type(module) is nn.Identity or (type(module) is nn.Sequential and not module._modules)
