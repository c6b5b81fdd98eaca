"""``ghostify``: a net whose dense convolutions are Ghost modules, as the GhostNet paper makes of VGG and ResNet."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..fused.behaviour import Fused
from ..fused.frozen import FrozenProgram
from ..fused.frozen_net import Frozen
from ..fused.structure import has_hooks
from ..nn import GhostConv2d, GhostModule, GhostModuleV3, RepGhostModule, SELayer, SqueezeExcite, _arguments

_OURS = (GhostModule, GhostConv2d, GhostModuleV3, RepGhostModule, SELayer, SqueezeExcite)
_RELU = (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_")


def ghostify(
    net: nn.Module,
    ratio: int = 2,
    *,
    dw_size: int = 3,
    pointwise: bool = False,
    keep_stem: bool = True,
    keep: Iterable[str] = (),
) -> nn.Module:
    """Return a copy of a net whose dense convolutions are Ghost modules of the same channels, stride and padding.

    Source: Han et al. 2020 (GhostNet, arXiv 1911.11907), section 4.1. The copy is to be trained: what stands for a
    convolution has new weights, and the others are those of ``net``, which stays as it is.

    A convolution with a BatchNorm behind it becomes a :class:`ghost_ops.nn.GhostModule`, with a ReLU where one follows.
    The BatchNorm, and a ReLU module that is called nowhere else, become ``nn.Identity``; other activations stay behind
    the Ghost module. A convolution without one becomes a :class:`ghost_ops.nn.GhostConv2d`. What follows a convolution
    is read from a trace by ``torch.fx``. What stays: grouped and transposed convolutions, subclasses of ``Conv2d``,
    convolutions of a mean over the map (squeeze-and-excite), Ghost modules of ghost_ops, and what is inside of a module
    that cannot be traced.

    Args:
        net: a net whose forward ``torch.fx`` can trace.
        ratio: output channels per channel of the primary convolution, at least 2.
        dw_size: odd size of the cheap depthwise convolutions.
        pointwise: whether 1x1 convolutions are replaced too.
        keep_stem: whether convolutions stay that no other one comes before.
        keep: paths of modules; the convolutions inside stay, and those that are one.

    Returns:
        The copy. :func:`compare_costs` says what has become of parameters and multiply-adds.

    Raises:
        TypeError: net is not a module, ratio or dw_size not an int.
        ValueError: a ratio below 2, an even dw_size, a path in ``keep`` that does not exist; nothing to replace; the
            net's own forward cannot be traced, or the net is fused or frozen; a convolution to be replaced, its
            BatchNorm or its ReLU carries hooks, parametrisations or a forward of its own, is called several times or
            has several names, shares its weight, or its tensors or attributes are read in a forward.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"ghostify: net: expected a torch.nn.Module, got {type(net).__name__}")
    _arguments.positive("ghostify", ratio=ratio)
    _arguments.odd("ghostify", dw_size=dw_size)
    if ratio < 2:
        raise ValueError(f"ghostify: ratio: expected at least 2, got {ratio}")
    for path, module in net.named_modules():
        if isinstance(module, (Fused, FrozenProgram, Frozen)):
            how = "ghost_ops.thaw" if isinstance(module, (FrozenProgram, Frozen)) else "ghost_ops.revert"
            raise ValueError(f"ghostify: net: {path or 'it'} is fused or frozen: call {how} first")
    made = copy.deepcopy(net)
    kept = _kept(made, keep)
    traced = _Trace(made)
    found = [
        layer
        for layer in traced.layers()
        if layer.conv not in kept
        and (pointwise or layer.conv.kernel_size != (1, 1))
        and not (keep_stem and layer.is_stem)
    ]
    if not found:
        raise ValueError(
            f"ghostify: net: nothing to replace: this {type(net).__name__} has no dense convolution that is called"
            + ("" if pointwise else ", is not 1x1 (pointwise=False)")
            + (", is not a stem (keep_stem=True)" if keep_stem else "")
            + (" and is not kept" if kept else "")
        )
    for layer in found:
        traced.check(layer)
    for layer in found:
        made.set_submodule(layer.path, _ghost(layer, ratio, dw_size))
        for path in (layer.norm, layer.act):
            if path is not None:
                made.set_submodule(path, nn.Identity().train(layer.conv.training))
    unlike = sorted(_Trace(made, traced.whole).whole - traced.whole)
    if unlike:
        raise ValueError(f"ghostify: net: the forward of {unlike[0]} reads what only a convolution has")
    return made


class _Layer(NamedTuple):
    """A convolution and what follows it.

    Attributes:
        path, conv: of the convolution.
        norm: path of the BatchNorm behind it, or None.
        act: path of the ReLU behind that, where it is a module that is called nowhere else; or None.
        has_relu: whether a ReLU of any kind follows.
        is_stem: whether no convolution comes before it.
    """

    path: str
    conv: nn.Conv2d
    norm: str | None
    act: str | None
    has_relu: bool
    is_stem: bool


class _Tracer(fx.Tracer):
    """Keeps our own modules whole, and those that are named.

    Attributes:
        failed: path of the innermost module whose forward raised; empty where none inside did.
    """

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole, self.failed = whole, ""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return path in self.whole or isinstance(module, _OURS) or super().is_leaf_module(module, path)

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        path = self.path_of_module(module)

        def watched(*args: object, **kwargs: object) -> object:
            try:
                return forward(*args, **kwargs)
            except Exception:
                self.failed = self.failed or path
                raise

        return super().call_module(module, watched, args, kwargs)


def _traced(net: nn.Module, whole: set[str]) -> tuple[fx.Graph, set[str]]:
    """The calls of a net, and the paths of modules that cannot be traced, such as one that branches on a size."""
    while True:
        tracer = _Tracer(whole)
        try:
            return tracer.trace(net), whole
        except Exception as error:
            if tracer.failed and tracer.failed not in whole:
                whole = {*whole, tracer.failed}
                continue
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"ghostify: net: torch.fx cannot trace this {type(net).__name__}, so that what follows a convolution "
                f"is not known: {first}"
            ) from error


class _Trace:
    """The calls of a net's modules.

    Attributes:
        whole: paths of the modules that cannot be traced; the convolutions inside are not known.
    """

    def __init__(self, net: nn.Module, whole: Iterable[str] = ()) -> None:
        self._graph, self.whole = _traced(net, set(whole))
        self._modules = dict(net.named_modules())
        self._calls = Counter(node.target for node in self._graph.nodes if node.op == "call_module")
        self._names = Counter(id(m) for _, m in net.named_modules(remove_duplicate=False))
        self._weights = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))
        self._read = {str(node.target).rpartition(".")[0] for node in self._graph.nodes if node.op == "get_attr"}

    def layers(self) -> Iterator[_Layer]:
        """The dense convolutions, in the order of their first calls."""
        behind: set[fx.Node] = set()  # what a convolution comes before
        pixels: set[fx.Node] = set()  # maps of one pixel: a convolution of these is a linear layer
        seen: set[str] = set()
        for node in self._graph.nodes:
            inputs = node.all_input_nodes
            is_stem, module = behind.isdisjoint(inputs), self._module(node)
            if not is_stem or any(isinstance(m, nn.Conv2d) for m in (module.modules() if module else ())):
                behind.add(node)
            if _pools_all(node, module) or (inputs and pixels.issuperset(inputs)):
                pixels.add(node)
            elif _is_dense(module) and node.target not in seen:
                seen.add(node.target)
                norm, relu = self._after(node)
                act = relu.target if relu is not None and self._is_single(relu, nn.ReLU) else None
                yield _Layer(node.target, module, norm and norm.target, act, relu is not None, is_stem)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._modules[node.target] if node.op == "call_module" else None

    def _is_single(self, node: fx.Node, kind: type) -> bool:
        return type(self._module(node)) is kind and self._calls[node.target] == 1

    def _after(self, node: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
        """The calls of the BatchNorm and of the ReLU that nothing else stands beside."""
        norm = next(iter(node.users)) if len(node.users) == 1 else None
        if norm is None or not self._is_single(norm, nn.BatchNorm2d):
            return None, None
        module = self._module(norm)
        if not (module.affine and module.track_running_stats):  # a Ghost module's BatchNorms are of the usual kind
            return None, None
        relu = next(iter(norm.users)) if len(norm.users) == 1 else None
        is_relu = relu is not None and (relu.target in _RELU or isinstance(self._module(relu), nn.ReLU))
        return norm, relu if is_relu else None

    def check(self, layer: _Layer) -> None:
        """Raise ValueError where replacing this would change more than this convolution."""
        where = f"ghostify: net: {layer.path}"
        if self._calls[layer.path] > 1:
            raise ValueError(f"{where} is called {self._calls[layer.path]} times: a shared convolution is not replaced")
        for path in filter(None, (layer.path, layer.norm, layer.act)):
            module = self._modules[path]
            where = f"ghostify: net: {path}"
            if self._names[id(module)] > 1:
                raise ValueError(f"{where} has {self._names[id(module)]} names: a shared module is not replaced")
            if any(self._weights[id(p)] > 1 for p in module.parameters()):
                raise ValueError(f"{where} shares a parameter with another module, and is not replaced")
            if "parametrizations" in module._modules:
                raise ValueError(f"{where} carries parametrisations, which a Ghost module would not have")
            if has_hooks(module) or module._state_dict_hooks or module._load_state_dict_pre_hooks:
                raise ValueError(f"{where} carries hooks, which a Ghost module would not call")
            if "forward" in vars(module):
                raise ValueError(f"{where} has a forward of its own, which a Ghost module would not call")
            if path in self._read:
                raise ValueError(f"{where}: a forward reads its tensors, which would be gone")


def _pools_all(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it is a mean over the map, as before the layers of a squeeze-and-excite."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size = module.output_size
    elif node.target is F.adaptive_avg_pool2d:
        size = (*node.args[1:], *node.kwargs.values())[0]
    else:
        dims = (*node.args[1:2], node.kwargs.get("dim"))[0] if node.target in ("mean", torch.mean) else None
        return isinstance(dims, (tuple, list)) and {dim % 4 for dim in dims} == {2, 3}
    return size in (1, (1, 1), [1, 1])


def _is_dense(module: nn.Module | None) -> bool:
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        return False
    return type(module) is nn.Conv2d or "parametrizations" in module._modules  # of a class of their own


def _kept(net: nn.Module, paths: Iterable[str]) -> set[nn.Module]:
    if isinstance(paths, str):
        raise TypeError(f"ghostify: keep: expected paths of modules, got the string {paths!r}")
    modules = dict(net.named_modules())
    missing = [path for path in paths if path not in modules]
    if missing:
        raise ValueError(f"ghostify: keep: no module has the path {missing[0]!r}")
    return {inner for path in paths for inner in modules[path].modules()}


def _ghost(layer: _Layer, ratio: int, dw_size: int) -> nn.Module:
    """The module that stands for a convolution, and for the BatchNorm and the ReLU behind it."""
    conv, like = layer.conv, layer.conv.weight
    options = {"ratio": ratio, "dw_size": dw_size, "device": like.device, "dtype": like.dtype}
    if layer.norm is None:
        made = GhostConv2d(conv.in_channels, conv.out_channels, bias=conv.bias is not None, **options)
        made.conv1 = _primary(conv, ratio, made.conv1.bias is not None)
        return made.train(conv.training)
    made = GhostModule(conv.in_channels, conv.out_channels, relu=layer.has_relu, **options)
    made.primary_conv[0] = _primary(conv, ratio, False)
    return made.train(conv.training)


def _primary(conv: nn.Conv2d, ratio: int, bias: bool) -> nn.Conv2d:
    """The convolution with fewer output channels."""
    return nn.Conv2d(
        conv.in_channels, math.ceil(conv.out_channels / ratio), conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, bias=bias, padding_mode=conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
