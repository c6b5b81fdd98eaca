"""What a node computes, as an operation of a program: read from what it calls and from shapes on examples."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ...activations import NONE, OF_GATES
from ...fused.behaviour import Fused as FusedModule
from ...fused.behaviour import block_of
from ...fused.errors import Unfusable
from ...fused.layers import NORMS, LinearAct, activation_code, conv_bn_act, is_conv, take_layer
from ...fused.squeeze_excite import SqueezeExciteBlock
from ...fused.structure import is_hooked
from ...program import module_of_function, step_of_module
from . import values as v
from .calls import describe, first_argument, is_called, operands
from .flat import is_flat, says_count
from .gates import activated, activation_of, affine_of, scaled
from .seen import Seen
from .slices import every_other, identity_convolution, taken, zeros_around
from .values import PADDED, Features, Grouped, Map, Operation, Padded, Several, Value

NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
_LONGEST_LAYER = 5  # nodes: a convolution, a BatchNorm, an activation, and what does nothing between them
_NORMS_OF_FEATURES = (nn.BatchNorm1d, *NORMS)


class Found(NamedTuple):
    """What a node is: its value, the nodes that it stands for, the last of which has the value, and whether these are
    worth a program."""

    value: Value
    nodes: tuple[fx.Node, ...]
    ops: tuple[Operation, ...] = ()
    is_worth: bool = False


class Reader:
    """Reads nodes of one graph.

    Args:
        modules: what its nodes call, by path.
        opened: modules of other classes, each with those of PyTorch that compute the same.
        seen: what its nodes were on examples.
        refused: nodes that are left to PyTorch whatever they compute.
    """

    def __init__(
        self, modules: dict[str, nn.Module], opened: dict[nn.Module, tuple[nn.Module, ...]], seen: Seen,
        refused: Mapping[fx.Node, str],
    ) -> None:  # fmt: skip
        self.modules, self.opened, self.seen, self.refused = modules, opened, seen, refused

    def read(self, node: fx.Node, known: Mapping[fx.Node, Value]) -> Found:
        """What a node computes of values that are known.

        Raises:
            Unfusable: no step computes it.
        """
        if node in self.refused:
            raise Unfusable(self.refused[node])
        module = self.module_of(node)
        if module is not None and node.op == "call_module" and is_hooked(module):
            raise Unfusable("it carries hooks, or a forward of its own: these must run")
        if self._is_idle(node, module):
            return Found(known[node.all_input_nodes[0]], (node,))
        pair = operands(node)
        if pair is not None:
            return self._pair(node, *pair, known)
        affine = affine_of(node)
        if affine is not None and isinstance(known.get(affine[0]), Features):
            return self._followed(node, known[affine[0]], lambda layer: scaled(layer, *affine[1:]))
        if node.op == "call_function" and node.target in (torch.cat, torch.concat, torch.concatenate):
            return self._concat(node, known)
        source = known.get(first_argument(node))
        if source is None:
            raise Unfusable(f"no step computes {describe(node, module)}")
        if isinstance(source, Several):
            return self._item(node, source)
        if isinstance(source, Features):
            return self._of_features(node, module, source)
        if isinstance(source, Grouped):
            return self._of_grouped(node, source)
        if isinstance(source, Padded):
            raise Unfusable(PADDED)
        return self._of_map(node, module, source, known)

    def module_of(self, node: fx.Node | None) -> nn.Module | None:
        """The module that a node calls, or one of PyTorch's that computes the same as the function that it calls."""
        if node is None or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        if node.op == "call_module":
            return self.modules[node.target] if len(node.args) == 1 and not node.kwargs else None
        if node.op not in ("call_function", "call_method") or len(node.all_input_nodes) != 1:
            return None
        return module_of_function(node.target, node.args[1:], node.kwargs)

    # What does nothing

    def _is_idle(self, node: fx.Node, module: nn.Module | None) -> bool:
        if isinstance(module, NOTHING):
            return isinstance(module, nn.Identity) or not module.training
        if node.op == "call_module":
            return isinstance(module, nn.Sequential) and not module._modules
        if node.op == "call_method":
            return node.target in ("contiguous", "clone", "detach") and len(node.args) == 1
        if node.op != "call_function":
            return False
        if node.target in (operator.add, operator.iadd) and 0 in node.args and len(node.all_input_nodes) == 1:
            return True  # of a sum that begins with 0
        name, dropouts = getattr(node.target, "__name__", ""), (F.dropout, F.dropout2d)
        if node.target in dropouts or name in ("stochastic_depth", "drop_path", "drop_block2d"):
            return node.kwargs.get("training") is False or (node.target in dropouts and node.args[2:3] == (False,))
        return False

    # Of a map

    def _of_map(self, node: fx.Node, module: nn.Module | None, source: Map, known: Mapping[fx.Node, Value]) -> Found:
        if isinstance(module, FusedModule):
            return self._block(node, module, source)
        if isinstance(module, nn.Conv2d) or module in self.opened or isinstance(module, NORMS):
            return self._layer(node, module, source)
        if self._is_pooling(node, module):
            op = v.Pool(node, source.channels, source)
            return Found(Features(op, len(self.seen.shapes(node)[0])), (node,), (op,))
        if is_called(node, ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes")):
            return self._split(node, source)
        if is_called(node, ("getitem", "narrow")):
            return self._slice(node, source)
        if is_called(node, ("pad",)):
            return self._padded(node, source)
        if is_called(node, ("interpolate",)) and module is None:
            return self._upsample(node, source, known)
        if is_flat(node, module, self.seen, known):
            op = v.Flatten(node, self.seen.shapes(node)[0][1], source, says_count(node))
            return Found(Features(op, 2), (node,), (op,))
        if is_called(node, ("view", "reshape", "unflatten")):
            return self._grouped(node, source)
        if module is not None:
            return self._module(node, module, source)
        raise Unfusable(f"no step computes {describe(node, module)}")

    def _made(self, op: Operation, nodes: tuple[fx.Node, ...], is_worth: bool = False) -> Found:
        channels = self.seen.channels(nodes[-1])
        if channels != op.channels:
            raise Unfusable(f"a map of {op.channels} channels was expected of it, it makes {channels}")
        return Found(Map.of(op), nodes, (op,), is_worth)

    def _block(self, node: fx.Node, module: FusedModule, source: Map) -> Found:
        block = block_of(module)
        if isinstance(block, SqueezeExciteBlock):
            op = v.Scale(node, source.channels, source, source, lambda b: block.lower_excitation(module, b))
            return self._made(op, (node,))
        if not block.has_program:
            raise Unfusable(f"a {block.kind} has no program")
        if block.channels(module) != source.channels:
            raise Unfusable(f"it reads {block.channels(module)} channels, its input has {source.channels}")
        return self._made(v.Fused(node, self.seen.channels(node), source, module), (node,), True)

    def _module(self, node: fx.Node, module: nn.Module, source: Map) -> Found:
        if step_of_module(module, 0, 1, source.channels) is None:
            raise Unfusable(f"no step computes {describe(node, module)}")
        return self._made(v.Module(node, source.channels, source, module), (node,))

    def _layer(self, node: fx.Node, module: nn.Module, source: Map) -> Found:
        """A convolution with the BatchNorm and activation after it, or a BatchNorm of its own."""
        first = self.opened.get(module, (module,))[0]
        if isinstance(first, NORMS):
            items = [(node, identity_convolution(first)), *self._items(node)]
        elif isinstance(first, nn.Conv2d):
            items = self._items(node)
        else:
            raise Unfusable(f"no step computes {describe(node, module)}")
        conv, norm, act, nodes = self._take_layer(items)
        layer = conv_bn_act(conv, norm, act)
        if layer.conv.in_channels != source.channels:
            raise Unfusable(f"it reads {layer.conv.in_channels} channels, its input has {source.channels}")
        return self._made(v.Layer(node, conv.out_channels, source, layer), nodes, not isinstance(first, NORMS))

    def _items(self, node: fx.Node) -> list[tuple[fx.Node, nn.Module | None]]:
        """A node and the next ones that may belong to its layer, each with the modules that it stands for."""
        items: list[tuple[fx.Node, nn.Module | None]] = []
        for _ in range(_LONGEST_LAYER):
            module = self.module_of(node)
            items += [(node, m) for m in self.opened.get(module, (module,))]
            users = list(node.users)
            if len(users) != 1 or users[0] in self.refused or first_argument(users[0]) is not node:
                break
            if users[0].op not in ("call_module", "call_function", "call_method"):
                break
            (node,) = users
        return items

    def _take_layer(self, items: list) -> tuple[nn.Module, nn.Module | None, nn.Module | None, tuple[fx.Node, ...]]:
        nodes = [n for n, _ in items]
        found = take_layer(items, itemgetter(1))
        taken = tuple(dict.fromkeys(nodes[: len(nodes) - len(items)]))
        if items and items[0][0] is taken[-1]:
            raise Unfusable("its BatchNorm applies more than one activation")
        if any(is_hooked(m) for n in taken[1:] if (m := self.module_of(n)) is not None):
            raise Unfusable("its BatchNorm or activation carries hooks")
        conv, norm, act = (None if item is None else item[1] for item in found[:3])
        return conv, norm, act, taken

    def _is_pooling(self, node: fx.Node, module: nn.Module | None) -> bool:
        if type(module) is nn.AdaptiveAvgPool2d:
            return module.output_size in (1, (1, 1))
        if node.op == "call_module":
            return False
        if node.target is F.adaptive_avg_pool2d:
            size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
            return size in (1, (1, 1), [1, 1])
        if node.target not in ("mean", torch.mean):
            return False
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        maps = isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims if isinstance(d, int)) == [2, 3]
        return maps and len(dims) == 2 and set(node.kwargs) <= {"dim", "keepdim"}

    def _split(self, node: fx.Node, source: Map) -> Found:
        (whole, *_), parts = self.seen.shapes(first_argument(node)), self.seen.values(node)
        counts = [shape[1] for shape in parts[0]]
        fits = all(_channel_counts(part) == counts for part in parts) and sum(counts) == source.channels
        if not fits or any(shape[:1] + shape[2:] != whole[:1] + whole[2:] for shape in parts[0]):
            raise Unfusable("it splits another dimension than the channels")
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        items = (Map(source.op, source.begin + end - n, source.begin + end) for n, end in zip(counts, ends))
        return Found(Several(tuple(items)), (node,))

    def _slice(self, node: fx.Node, source: Map) -> Found:
        begin, end, stride = taken(node, source.channels, self.seen)
        found = Map(source.op, source.begin + begin, source.begin + end)
        if stride == (1, 1):
            return Found(found, (node,))
        like = next(t for t in self.modules[""].parameters() if t.is_floating_point())
        return self._made(v.Layer(node, found.channels, found, every_other(found.channels, stride, like)), (node,))

    def _padded(self, node: fx.Node, source: Map) -> Found:
        before, after = zeros_around(node, self.seen)
        return Found(Padded(source, before, after) if before or after else source, (node,))

    def _upsample(self, node: fx.Node, source: Map, known: Mapping[fx.Node, Value]) -> Found:
        names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
        given = {**dict(zip(names, node.args[1:])), **node.kwargs}
        size, mode = given.pop("size", None), given.pop("mode", "nearest")
        dims = self.seen.dims(size)
        corners = given.pop("align_corners", None)
        if mode not in ("nearest", "bilinear") or any(given.values()):
            raise Unfusable(f"no step computes an interpolation of mode {mode!r} with these arguments")
        if dims is None or len(dims) != 2 or [d.index for d in dims] != [2, 3] or dims[0].node is not dims[1].node:
            raise Unfusable("it interpolates to a size that is not that of a map")
        like = known.get(dims[0].node)
        if not isinstance(like, Map):
            raise Unfusable("it interpolates to the size of a map outside of the program")
        corners = bool(corners) if mode == "bilinear" else None
        return self._made(v.UpsampleLike(node, source.channels, source, like, corners), (node,))

    def _grouped(self, node: fx.Node, source: Map) -> Found:
        """Channels seen as groups: the beginning of a channel shuffle."""
        before, after = self.seen.shapes(first_argument(node)), self.seen.shapes(node)
        if after is not None and all(b == a for b, a in zip(before, after)):
            return Found(source, (node,))
        groups = after[0][1] if after is not None and len(after[0]) == 5 else 0
        for b, a in zip(before, after or ()):
            if not groups or a != (b[0], groups, b[1] // groups, *b[2:]):
                groups = 0
        if not groups:
            raise Unfusable(f"no step computes {describe(node, None)}")
        return Found(Grouped(source, groups, False), (node,))

    def _of_grouped(self, node: fx.Node, source: Grouped) -> Found:
        before, after = self.seen.shapes(first_argument(node)), self.seen.shapes(node)
        if is_called(node, ("transpose", "swapaxes", "permute")):
            arguments = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            wanted = (0, 2, 1, 3, 4) if is_called(node, ("permute",)) else (1, 2)
            order = tuple(d % 5 if isinstance(d, int) else None for d in arguments)
            if order == wanted or (len(wanted) == 2 and order == (2, 1)):
                return Found(source._replace(turned=not source.turned), (node,))
        elif is_called(node, ("view", "reshape", "flatten")) and after is not None:
            channels = source.source.channels
            if all(a == (b[0], channels, *b[3:]) for b, a in zip(before, after)):
                if not source.turned:
                    return Found(source.source, (node,))
                return self._made(v.Shuffle(node, channels, source.source, source.groups), (node,))
        raise Unfusable(f"no step computes {describe(node, None)}")

    # Of several maps

    def _item(self, node: fx.Node, source: Several) -> Found:
        if node.target is operator.getitem and isinstance(node.args[1], (int, slice)):
            found = source.items[node.args[1]]
            return Found(Several(found) if isinstance(found, tuple) and not isinstance(found, Map) else found, (node,))
        raise Unfusable("it reads parts of a map as a tuple")

    def _concat(self, node: fx.Node, known: Mapping[fx.Node, Value]) -> Found:
        names = dict(zip(("tensors", "dim"), node.args)) | node.kwargs
        items = names.get("tensors")
        if isinstance(items, fx.Node):
            found = known.get(items)
            items = found.items if isinstance(found, Several) else None
        else:
            items = [known.get(item) if isinstance(item, fx.Node) else None for item in items]
        if items is None or not all(isinstance(item, Map) for item in items):
            raise Unfusable("it concatenates something else than maps of the program")
        if names.get("dim", names.get("axis", 0)) not in (1, -3):
            raise Unfusable("it concatenates along another dimension than the channels")
        parts: list[Map] = []
        for item in items:
            last = parts[-1] if parts else None
            if last is not None and last.op is item.op and last.end == item.begin:
                parts[-1] = last._replace(end=item.end)  # parts of a map, side by side again
            else:
                parts.append(item)
        if len(parts) == 1:
            return Found(parts[0], (node,))
        return self._made(v.Concat(node, sum(part.channels for part in parts), tuple(parts)), (node,))

    def _check_sizes(self, node: fx.Node) -> None:
        """Raise ``Unfusable`` where a node does not add maps of one size."""
        first, second, out = map(self.seen.shapes, (*operands(node), node))
        if not first == second == out:
            raise Unfusable("it adds maps of different sizes")

    def _pair(self, node: fx.Node, a: fx.Node, b: fx.Node, known: Mapping[fx.Node, Value]) -> Found:
        """A sum or a product of two."""
        one, two = known[a], known[b]
        is_sum = is_called(node, ("add", "iadd", "add_"))
        if is_sum and {type(one), type(two)} == {Map, Padded}:
            return self._padded_sum(node, *((one, two) if isinstance(one, Map) else (two, one)))
        if Padded in (type(one), type(two)):
            raise Unfusable(PADDED)
        if isinstance(one, Map) and isinstance(two, Map):
            first, second, out = self.seen.shapes(a), self.seen.shapes(b), self.seen.shapes(node)
            if is_sum:
                self._check_sizes(node)
                return self._made(v.Add(node, one.channels, one, two), (node,))
            if first != out or (isinstance(one.op, v.UpsampleLike) and second == out):
                first, second, one, two = second, first, two, one
            if first != out or one.channels != two.channels or not all(map(_is_gate, second, out)):
                raise Unfusable("it multiplies by a gate of other channels")
            return self._made(v.Multiply(node, one.channels, one, two), (node,))
        if is_sum or not (isinstance(one, Map) or isinstance(two, Map)):
            raise Unfusable("no step computes it of features")
        x, features = (one, two) if isinstance(one, Map) else (two, one)
        if not isinstance(features, Features) or features.dims not in (0, 4):
            raise Unfusable("no step multiplies by it")
        return self._made(self._scale(node, x, features), (node,))

    def _padded_sum(self, node: fx.Node, whole: Map, padded: Padded) -> Found:
        """A map with another added to some of its channels."""
        begin = whole.begin + padded.before
        end = begin + padded.source.channels
        middle = Map(whole.op, begin, end)
        total = v.Add(node, middle.channels, middle, padded.source)
        sides = [whole._replace(end=begin), Map.of(total), whole._replace(begin=end)]
        op = v.Concat(node, whole.channels, tuple(side for side in sides if side.channels))
        self._check_sizes(node)
        return Found(Map.of(op), (node,), (total, op))

    def _scale(self, node: fx.Node, x: Map, features: Features) -> v.Scale:
        """A map times what an excitation makes of the means of a map."""
        expand = features.op
        reduce = getattr(expand, "features", None)
        pool = getattr(reduce, "features", None)
        if not (isinstance(expand, v.Dense) and isinstance(reduce, v.Dense) and isinstance(pool, v.Pool)):
            raise Unfusable("no step multiplies by features that two layers have not made of means")
        if expand.channels != x.channels or pool.pooled.channels != x.channels:
            raise Unfusable("it multiplies by a gate of other channels")
        if expand.layer.code not in OF_GATES:
            raise Unfusable("no step computes an excitation with these activations")
        gate, last = OF_GATES.index(expand.layer.code), expand.layer
        last = LinearAct(last.conv, last.norm, None, NONE)
        return v.Scale(
            node, x.channels, x, pool.pooled, lambda b: b.excite(x.channels, reduce.layer, last, gate)
        )  # fmt: skip

    # Of features

    def _of_features(self, node: fx.Node, module: nn.Module | None, source: Features) -> Found:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._dense(node, source)
        if type(module) in _NORMS_OF_FEATURES and source.dims in (2, 4):
            return self._scaled_features(node, module, source)
        code = activation_of(node, module)
        if code is not None:
            return self._followed(node, source, lambda layer: activated(layer, code, module))
        if is_called(node, ("expand_as", "expand")) and source.dims == 4:
            return Found(source._replace(dims=0), (node,))
        views = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "getitem")
        if not source.dims or not (is_called(node, views) or type(module) in (nn.Flatten, nn.Unflatten)):
            raise Unfusable(f"no step computes {describe(node, module)} of features")
        before, after = self.seen.shapes(first_argument(node)), self.seen.shapes(node)
        dims = len(after[0]) if after else 0
        if not 2 <= dims <= 4 or any(a != (*b[:2], 1, 1)[:dims] for b, a in zip(before, after)):
            raise Unfusable(f"no step computes {describe(node, module)} of features")
        return Found(source._replace(dims=dims), (node,))

    def _followed(self, node: fx.Node, source: Features, change: Callable[[LinearAct], LinearAct]) -> Found:
        """What a layer of features makes of a number or an activation after it: a layer that computes both."""
        if not isinstance(source.op, v.OfFeatures):
            raise Unfusable("no step computes it of a map's features")
        op = type(source.op)(node, source.op.channels, source.op.features, change(source.op.layer))
        return Found(Features(op, source.dims), (node,), (op,))

    def _scaled_features(self, node: fx.Node, module: nn.Module, source: Features) -> Found:
        """A BatchNorm of features, with the activation after it."""
        conv, norm, act, nodes = self._take_layer([(node, identity_convolution(module)), *self._items(node)])
        if module.num_features != source.op.channels:
            raise Unfusable(f"it reads {module.num_features} features, there are {source.op.channels}")
        op = v.ScaleFeatures(node, source.op.channels, source.op, LinearAct(conv, norm, act, activation_code(act)))
        return Found(Features(op, source.dims), nodes, (op,))

    def _dense(self, node: fx.Node, source: Features) -> Found:
        module, norm, act, nodes = self._take_layer(self._items(node))
        if is_conv(module):
            if module.kernel_size != (1, 1) or module.groups != 1 or module.padding not in ((0, 0), "valid"):
                raise Unfusable("its convolution of a single pixel is not 1x1")
            if source.dims != 4:
                raise Unfusable("it is a convolution of flat features")
        elif type(module) is not nn.Linear or source.dims != 2:
            raise Unfusable("it is a linear layer of other than flat features")
        layer = LinearAct(module, norm, act, activation_code(act))
        features, channels = layer.tensors()[0].shape[:2]
        if channels != source.op.channels:
            raise Unfusable(f"it reads {channels} features, there are {source.op.channels}")
        op = v.Dense(node, features, source.op, layer)
        return Found(Features(op, source.dims), nodes, (op,))


def _channel_counts(parts: object) -> list[int]:
    return [shape[1] for shape in parts] if isinstance(parts, tuple) else []


def _is_gate(gate: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Whether a gate of this shape is nearest upsampling's of a map: its size, or 1 along a side."""
    return gate[:2] == out[:2] and all(g in (1, o) for g, o in zip(gate[2:], out[2:]))
