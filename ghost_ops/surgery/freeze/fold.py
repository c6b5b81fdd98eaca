"""BatchNorms of a plain net folded into the convolutions before them, by PyTorch's own function."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...fused.layers import SYNCED, is_conv, is_norm
from ...fused.structure import is_hooked
from . import compare
from .trace import Untraceable, trace

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *SYNCED)


def fold_batch_norms(net: nn.Module) -> str | None:
    """Fold in place each BatchNorm in eval whose input is the result of a convolution that nothing else reads; an
    ``Identity`` takes its place.

    The folding is in float64. The net is compared with what it was on a drawn input where it takes one.

    Returns:
        why nothing was folded; None where something was, or nothing is to be folded.
    """
    before = compare.private(net)
    replaced: list[tuple[str, nn.Module]] = []
    for conv_path, norm_path in _pairs(net):
        conv, norm = net.get_submodule(conv_path), net.get_submodule(norm_path)
        replaced += (conv_path, conv), (norm_path, norm)
        _put(net, conv_path, _folded(conv, norm))
        _put(net, norm_path, nn.Identity())
    calls = compare.draw(before)[:1] if replaced else []
    why = compare.difference(before, compare.private(net), calls) if calls else None
    if why is not None:
        for path, module in replaced:
            _put(net, path, module)
    return why


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Paths of the convolutions and of the BatchNorms to be folded into them."""
    known = dict(net.named_modules(remove_duplicate=False))
    count = Counter(map(id, known.values()))  # a module at two places is called from two
    found = []
    for inside, graph in _graphs(net, ""):
        times = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            following = next(iter(node.users), node)
            if node.op != "call_module" or len(node.users) != 1 or following.op != "call_module":
                continue
            if following.args != (node,) or following.kwargs:
                continue
            paths = f"{inside}{node.target}", f"{inside}{following.target}"
            once = times[node.target] == times[following.target] == 1
            if once and all(count[id(known[path])] == 1 for path in paths) and _takes(*map(known.get, paths)):
                found.append(paths)
    return found


def _graphs(module: nn.Module, inside: str) -> Iterator[tuple[str, fx.Graph]]:
    """The graph of a module; where it has none, those of the modules inside; each with the prefix of its paths."""
    apart: dict[str, nn.Module] = dict(module.named_children())
    try:
        traced = trace(module, ())
    except Untraceable:
        pass
    else:
        yield inside, traced.graph
        apart = {path: module.get_submodule(path) for path in traced.opaque}
    for path, child in apart.items():
        yield from _graphs(child, f"{inside}{path}.")


def _takes(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether the BatchNorm can be folded into the convolution."""
    if not (type(norm) in _NORMS or is_norm(norm)) or norm.training or norm.running_mean is None:
        return False
    is_one = is_conv(conv) or (isinstance(conv, _ConvNd) and type(conv).__module__ == _ConvNd.__module__)
    if not is_one or conv._parameters.get("weight") is None or (isinstance(conv, _ConvTransposeNd) and conv.groups > 1):
        return False
    return conv.weight.is_floating_point() and not any(map(is_hooked, (conv, norm)))


def _folded(conv: nn.Module, norm: _BatchNorm) -> nn.Module:
    exact = copy.deepcopy(conv).double(), copy.deepcopy(norm).double()
    made = fuse_conv_bn_eval(*exact, isinstance(conv, _ConvTransposeNd))
    return made.to(conv.weight.dtype).requires_grad_(conv.weight.requires_grad)


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    net.get_submodule(parent)._modules[name] = module
