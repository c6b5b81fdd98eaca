"""Runs of nodes of a graph, each a program: what a program computes, read from what the nodes call."""

from __future__ import annotations

import operator
from dataclasses import replace
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import fx, nn

from ...fused.behaviour import Fused, block_of
from ...fused.builder import Builder
from ...fused.errors import Unfusable
from ...fused.frozen import FrozenProgram
from ...fused.layers import LinearAct, activation_code, conv_bn_act, take_layer
from ...fused.structure import is_hooked
from ...program import module_of_function

_LONGEST_LAYER = 5  # nodes: a convolution, a BatchNorm, an activation, and what does nothing between them
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def replace_runs(
    graph: fx.Graph, modules: dict[str, nn.Module], opened: dict[nn.Module, tuple[nn.Module, ...]], child: str
) -> list[Run]:
    """Put a call of a program in the place of every run of nodes that a program computes.

    Args:
        graph: changed in place.
        modules: what its nodes call, by path.
        opened: modules of other classes, each with those of PyTorch that compute the same.
        child: path of the module whose children ``"0"``, ``"1"``, ... the programs are to be.

    Returns:
        the runs, in the order of the graph, each with its ``program``.
    """
    done: set[fx.Node] = set()
    runs: list[Run] = []
    for node in list(graph.nodes):
        if node in done or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        run = Run(node, modules, opened)
        if not run.grow():
            continue
        try:
            run.finish()
        except Unfusable:  # parameters of a dtype or on a device that no kernel reads
            continue
        with graph.inserting_before(node):
            result = graph.call_module(f"{child}.{len(runs)}", (node.args[0],))
            if run.flat is False:
                index = (slice(None), slice(None), None, None)
                result = graph.call_function(operator.getitem, (result, index))
        run.last.replace_all_uses_with(result)
        done.update(run.nodes)
        for old in reversed(run.nodes):
            graph.erase_node(old)
        runs.append(run)
    graph.lint()
    return runs


class Run:
    """A run of nodes, each reading only the one before, as it grows into a program.

    Attributes:
        nodes: those that the program stands for, in order.
        last: the one whose value the program returns.
        argument: name of the argument of the net's forward that the program reads, None where it reads something else.
        program: what ``finish`` makes.
        flat: whether the features are N x C as the program returns them (False: N x C x 1 x 1); None of a map.
    """

    def __init__(
        self,
        first: fx.Node | None,
        modules: dict[str, nn.Module],
        opened: dict[nn.Module, tuple[nn.Module, ...]] | None = None,
    ) -> None:
        self.modules = modules
        self.opened = opened or {}
        self.builder = Builder()
        self.slot = -1
        self.flat: bool | None = None
        self.nodes: list[fx.Node] = []
        self.parts: list[str] = []
        self.last = first
        self.has_block = False
        source = first.args[0] if first is not None else None
        self.argument = source.target if isinstance(source, fx.Node) and source.op == "placeholder" else None
        self.program: FrozenProgram | None = None

    # Nodes

    def grow(self) -> bool:
        """Take as many nodes as there are; whether that is worth a program."""
        node: fx.Node | None = self.last
        while node is not None:
            mark = self._mark()
            try:
                taken = self._unit(node)
            except Unfusable:
                taken = []
            if not taken:
                self._reset(mark)
                break
            self.nodes += taken
            self.last = taken[-1]
            node = self._next(self.last)
        return self.has_block

    def _next(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads this one; a ``view(x.size(0), -1)`` counts as one, its size taken on the way."""
        users = list(node.users)
        if len(users) == 2:
            sizes = [u for u in users if u.op == "call_method" and u.target == "size" and u.args == (node, 0)]
            views = [u for u in users if u.op == "call_method" and u.target in ("view", "reshape")]
            if len(sizes) == len(views) == 1 and list(sizes[0].users) == views and views[0].args == (
                node, sizes[0], -1,
            ):  # fmt: skip
                return views[0]
        return users[0] if len(users) == 1 and users[0].op in ("call_module", "call_function", "call_method") else None

    def _module_of(self, node: fx.Node | None) -> nn.Module | None:
        """The module that a node calls, or one of PyTorch's that computes the same as the function that it calls."""
        if node is None or len(node.all_input_nodes) != 1 or not node.args:
            return None
        if node.op == "call_module":
            return self.modules[node.target] if len(node.args) == 1 and not node.kwargs else None
        return module_of_function(node.target, node.args[1:], node.kwargs)

    def _unit(self, node: fx.Node) -> list[fx.Node]:
        """Nodes of the next unit, now part of the program; none where no program computes it."""
        module = self._module_of(node)
        if module is not None and is_hooked(module):
            return []
        nothing = isinstance(module, NOTHING) and (isinstance(module, nn.Identity) or not module.training)
        if self.builder.steps and (nothing or self._is_dropout(node)):
            return [node]
        if self.flat is None and isinstance(module, Fused):
            return [node] if self.add_block(node.target, module) else []
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._convolution(node, module)
        if self.flat is None and self.builder.steps and self._is_pooling(node, module):
            return self._pool(node)
        if self.flat is not None and self._is_flattening(node, module):
            self.flat = True
            return [*(user for user in self.last.users if user is not node), node]  # with its size, see _next
        if self.flat is None and self.builder.steps and module is not None:
            return self._step(node, module)
        return []

    # Units

    def add_block(self, name: str, module: Fused) -> bool:
        """A fused block; whether a program computes it."""
        block = block_of(module)
        if not block.has_program:
            return False
        try:
            source = self._source(block.channels(module))
            self.slot = block.lower_module(module, self.builder, source)
        except Unfusable:
            return False
        self.parts.append(name)
        self.has_block = True
        return True

    def _step(self, node: fx.Node, module: nn.Module) -> list[fx.Node]:
        """A module of PyTorch's that is a step of its own; raises ``Unfusable``."""
        source, self.slot = self.slot, self.builder.add_module(module, self.slot)
        self.builder.release(source)
        self.parts += [node.target] if node.op == "call_module" else []
        return [node]

    def _source(self, channels: int) -> int:
        return self.slot if self.builder.steps else self.builder.load(channels)

    def _convolution(self, node: fx.Node, module: nn.Module) -> list[fx.Node]:
        """A convolution or linear layer with the BatchNorm and activation after it."""
        items = self._items(node)
        nodes = [n for n, _ in items]
        found = take_layer(items, itemgetter(1))
        taken = list(dict.fromkeys(nodes[: len(nodes) - len(items)]))
        if items and items[0][0] is taken[-1]:
            raise Unfusable("its BatchNorm applies more than one activation")
        if any(is_hooked(m) for n in taken[1:] if (m := self._module_of(n)) is not None):
            raise Unfusable("its BatchNorm or activation carries hooks")
        module, norm, act = (None if item is None else item[1] for item in found[:3])
        if self.flat is not None:
            if type(module) is nn.Conv2d:
                if module.kernel_size != (1, 1) or module.groups != 1 or module.padding not in ((0, 0), "valid"):
                    raise Unfusable("its convolution of a single pixel is not 1x1")
            elif type(module) is not nn.Linear or not self.flat:
                raise Unfusable("a layer of other than flat features")
            self.builder.linear(LinearAct(module, norm, act, activation_code(act)))
        elif isinstance(module, nn.Linear):
            return []
        else:
            layer = conv_bn_act(module, norm, act)
            if not self.builder.steps and not layer.is_pointwise():
                self.slot = self.builder.dense_conv(layer)
            else:
                source = self._source(module.in_channels)
                self.slot = self.builder.chain([layer], source)
                self.builder.release(source)
        self.parts += [n.target for n in taken if n.op == "call_module"]
        return taken

    def _items(self, node: fx.Node) -> list[tuple[fx.Node, nn.Module | None]]:
        """A node and the next ones that may belong to its layer, each with the modules that it stands for."""
        items: list[tuple[fx.Node, nn.Module | None]] = []
        for _ in range(_LONGEST_LAYER):
            module = self._module_of(node)
            items += [(node, m) for m in self.opened.get(module, (module,))]
            following = self._next(node)
            if following is None:
                break
            node = following
        return items

    def _is_pooling(self, node: fx.Node, module: nn.Module | None) -> bool:
        if type(module) is nn.AdaptiveAvgPool2d:
            return module.output_size in (1, (1, 1))
        if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
            return node.args[1:] in ((1,), ((1, 1),)) and not node.kwargs
        if (node.op, node.target) in (("call_method", "mean"), ("call_function", torch.mean)):
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            maps = isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
            return maps and len(dims) == 2 and set(node.kwargs) <= {"dim", "keepdim"}
        return False

    def _pool(self, node: fx.Node) -> list[fx.Node]:
        step = self.builder.steps[-1]
        if getattr(step, "out", -1) != self.slot or not hasattr(step, "squeeze"):
            return []
        self.builder.steps[-1] = replace(step, squeeze=True)
        self.builder.pool(getattr(step, "out_channels", step.channels))
        keepdim = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        means = node.op != "call_module"  # of which the target is a path: it may be called "mean"
        self.flat = means and node.target in ("mean", torch.mean) and not keepdim
        return [node]

    def _is_batch(self, size: object) -> bool:
        """Whether a node is the number of images: the first size of the net's input, or of what is flattened."""
        if not isinstance(size, fx.Node) or (size.op, size.target) != ("call_method", "size") or size.kwargs:
            return False
        of, *dim = size.args
        return dim == [0] and (of is self.last or of.op == "placeholder")

    @staticmethod
    def _is_dropout(node: fx.Node) -> bool:
        """Whether it is a dropout of a net in eval, which does nothing."""
        called = node.op == "call_function" and node.target in (F.dropout, F.dropout2d) and len(node.args) < 3
        return called and node.kwargs.get("training") is False

    def _is_flattening(self, node: fx.Node, module: nn.Module | None) -> bool:
        if type(module) is nn.Flatten:
            return (module.start_dim, module.end_dim) == (1, -1)
        if node.op == "call_method" and node.target in ("view", "reshape"):
            return len(node.args) == 3 and node.args[2] == -1 and self._is_batch(node.args[1])
        flattens = (node.op, node.target) in (("call_method", "flatten"), ("call_function", torch.flatten))
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return flattens and start == 1 and len(node.args) < 3 and set(node.kwargs) <= {"start_dim"}

    # The program

    def finish(self) -> None:
        """Make the program; raises ``Unfusable``."""
        if self.flat is None:
            self.builder.store(self.slot)
        built = self.builder.finish()
        self.program = FrozenProgram.of(built, tuple(self.parts))
        self.sources = [(source.conv, source.norm, source.act) for source in built.sources]

    def packed(self) -> list[nn.Module]:
        """The modules of the net whose parameters and buffers were packed."""
        own = {parts[0]: module for module, parts in self.opened.items()}
        return [own.get(module, module) for source in self.sources for module in source if module is not None]

    def _mark(self) -> tuple:
        return self.builder.mark(), self.slot, self.flat, list(self.parts), self.has_block

    def _reset(self, mark: tuple) -> None:
        builder, self.slot, self.flat, self.parts, self.has_block = mark
        self.builder.reset(builder)
