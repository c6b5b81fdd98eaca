"""How a net is divided for a profile: blocks that run fused, and the modules and runs of layers between them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from ..fused.behaviour import block_of
from ..surgery.freeze.compare import Arguments

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # their forward, if they have one, calls their children


@dataclass(eq=False)
class Part:
    """A module of a net, or a run of layers that one after the other compute what the net does there.

    Attributes:
        name: its path; that of a run is the path of the module that it fills, or the first path and the last.
        paths: of the modules, in the order of their calls; "" is the net itself.
        kind: the classes of the modules.
        calls: how often each of them is called in one call of the net.
        moved: bytes of what goes in and of what comes out, in all calls.
        parameters: bytes of the parameters, each counted once.
        arguments: copies of what it is called with; None where it is called more than once.
        output: a copy of what it returns; None where ``arguments`` is.
    """

    name: str
    paths: list[str]
    kind: str
    calls: int
    moved: int
    parameters: int
    arguments: Arguments | None = None
    output: object = None

    def copied(self, net: nn.Module) -> nn.Module:
        """A copy of the module, or of the run as a ``Sequential``."""
        modules = [copy.deepcopy(net.get_submodule(path)) for path in self.paths]
        return (modules[0] if len(modules) == 1 else nn.Sequential(*modules)).eval()


def size_of(values: object) -> int:
    """Bytes of all tensors in nested tuples, lists and mappings."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, torch.Tensor))


def parts_of(net: nn.Module, fused: nn.Module, call: Arguments) -> list[Part]:
    """The parts of a net, in the order in which they are first called. No two of them share a module.

    A part is a block that runs fused; a module that holds none and is not a stage of several; or a run of layers of one
    module, each of which is called with what the one before has returned. What forwards compute between their modules
    is in no part.

    Args:
        net: a plain net in eval mode; it is run once.
        fused: the same net fused, with the same paths.
        call: its arguments.
    """
    blocks = {path for path, module in fused.named_modules() if is_block(module)}
    modules = dict(_units(net, "", blocks, set()))
    calls = _record(net, modules, call)
    counts = Counter(one.path for one in calls)
    runs: list[list[_Call]] = []
    for one in calls:
        before = runs[-1][-1] if runs else None
        joins = before is not None and _follows(one, before) and counts[one.path] == counts[before.path] == 1
        if joins and not blocks.intersection((one.path, before.path)) and _are_layers(modules, one, before):
            runs[-1].append(one)
        elif all(one.path != run[0].path for run in runs):
            runs.append([one])
    filled = Counter(path.rpartition(".")[0] for path in modules)
    return [_part(run, [one for one in calls if one.path == run[0].path], modules, filled) for run in runs]


@dataclass(eq=False)
class _Call:
    """A call of a module: the very objects that it got and returned, and copies of these as they were then."""

    path: str
    given: Arguments
    arguments: Arguments
    returned: object = None
    output: object = None


def _record(net: nn.Module, modules: dict[str, nn.Module], call: Arguments) -> list[_Call]:
    """The calls of the modules in one call of the net, in their order."""
    calls: list[_Call] = []
    open_calls: dict[str, _Call] = {}
    with ExitStack() as stack:
        for path, module in modules.items():

            def enter(_module: nn.Module, args: tuple, kwargs: dict, path: str = path) -> None:
                given = Arguments(args, kwargs)
                calls.append(_Call(path, given, given.copied()))
                open_calls[path] = calls[-1]

            def leave(_module: nn.Module, _args: tuple, out: object, path: str = path) -> None:
                one = open_calls.pop(path)
                one.returned, one.output = out, tree_map(_copied, out)

            for handle in (
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ):
                stack.callback(handle.remove)
        with torch.no_grad():
            net(*call.args, **call.kwargs)
    return calls


def _copied(value: object) -> object:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _follows(one: _Call, before: _Call) -> bool:
    """Whether a call in the same module gets what the call before it has returned, and nothing else."""
    same = one.path.rpartition(".")[0] == before.path.rpartition(".")[0]
    return same and not one.given.kwargs and len(one.given.args) == 1 and one.given.args[0] is before.returned


def _are_layers(modules: dict[str, nn.Module], *calls: _Call) -> bool:
    """Whether nothing inside of the modules has parameters: a stage of blocks is not one run."""
    return not any(
        parameters for one in calls for child in modules[one.path].children() for parameters in child.parameters()
    )


def _part(run: list[_Call], calls: list[_Call], modules: dict[str, nn.Module], filled: Counter[str]) -> Part:
    paths = [one.path for one in run]
    parent = paths[0].rpartition(".")[0]
    if len(run) == 1:
        name = paths[0]
    else:
        name = parent if parent and filled[parent] == len(run) else f"{paths[0]} to {paths[-1]}"
    kinds = ", ".join(type(modules[path]).__name__ for path in paths)
    parameters = {id(p): p for path in paths for p in modules[path].parameters()}
    first, last = run[0], run[-1]
    if len(calls) > 1:
        moved = sum(size_of((*one.arguments, one.output)) for one in calls)
        return Part(name, paths, kinds, len(calls), moved, size_of(parameters))
    moved = size_of((*first.arguments, last.output))
    return Part(name, paths, kinds, 1, moved, size_of(parameters), first.arguments, last.output)


def is_block(module: nn.Module) -> bool:
    """Whether it is a block that runs fused, with what is inside."""
    block = block_of(module)
    return block is not None and not block.is_layer


def _units(module: nn.Module, path: str, blocks: set[str], seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are not divided further, with their paths, each once."""
    if module in seen:
        return
    seen.add(module)
    inside = f"{path}." if path else ""
    children = list(module.named_children())
    is_stage = not path or any(block.startswith(inside) for block in blocks) or _is_stage(module)
    if path in blocks or not children or not is_stage:
        yield path, module
        return
    for name, child in children:
        yield from _units(child, f"{inside}{name}", blocks, seen)


def _is_stage(module: nn.Module) -> bool:
    """Whether it is a container, or holds one of modules that have children themselves."""
    holders = [m for m in module.modules() if isinstance(m, _CONTAINERS)]
    return module in holders or any(child._modules for holder in holders for child in holder.children())
