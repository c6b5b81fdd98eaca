"""A folded net in ncnn's file format (a text of layers, a binary of weights), written without its converter.

It knows what GhostNets are made of, and the nets that they are timed beside. Source of the format: ncnn's wiki, "param
and model file structure", "operators".
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

MAGIC = 7767517
ADD, MULTIPLY = 0, 2  # of BinaryOp
MAX, AVERAGE = 0, 1  # of Pooling
RELU, CLIP, HARD_SWISH = 1, 3, 6  # of a convolution's activation


class Unsupported(Exception):
    """What the writer does not know."""


def write(graph: fx.GraphModule) -> tuple[str, bytes]:
    """The two files' contents for a traced net of one input and one output, BatchNorms folded; blobs "in" and "out".

    Raises:
        Unsupported: a node that is not written here.
    """
    return _Writer(graph).run()


class _Writer:
    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph, self.children = graph, dict(graph.named_modules())
        self.layers: list[tuple[str, list[str], str, str]] = []  # type, inputs, output, parameters
        self.weights = bytearray()
        self.values: dict[fx.Node, str] = {}
        self.scalars: dict[fx.Node, tuple[str, float]] = {}  # v + 3 and relu6(v + 3), on the way to a hard sigmoid

    def run(self) -> tuple[str, bytes]:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self._add("Input", [], "")
            elif node.op == "output":
                self._add("Noop", [self.values[node.args[0]]], "", name="out")
            elif node.op == "call_module":
                self._module(node, self.children[node.target])
            else:
                self._function(node)
        return self._text(), bytes(self.weights)

    def _add(self, kind: str, inputs: list[str], parameters: str, name: str | None = None) -> str:
        name = name or ("in" if kind == "Input" else f"blob{len(self.layers)}")
        self.layers.append((kind, list(inputs), name, parameters))
        return name

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        source = self.values.get(node.args[0])
        if isinstance(module, nn.Conv2d):
            self.values[node] = self._convolution(source, module)
        elif isinstance(module, nn.Linear):
            size = f"0={module.out_features} 1={int(module.bias is not None)} 2={module.weight.numel()}"
            self._weights(module.weight, module.bias)
            self.values[node] = self._add("InnerProduct", [source], size)
        elif isinstance(module, nn.ReLU):
            self.values[node] = self._activation(node, source, "ReLU", "", RELU, ())
        elif isinstance(module, nn.ReLU6):
            self.values[node] = self._activation(node, source, "Clip", "0=0 1=6", CLIP, (0.0, 6.0))
        elif isinstance(module, nn.Hardswish):
            sixth = f"0={1 / 6:.9g} 1=0.5"
            self.values[node] = self._activation(node, source, "HardSwish", sixth, HARD_SWISH, (1 / 6, 0.5))
        elif isinstance(module, nn.Hardsigmoid):
            self.values[node] = self._add("HardSigmoid", [source], f"0={1 / 6:.9g} 1=0.5")
        elif isinstance(module, nn.MaxPool2d):
            self.values[node] = self._max_pool(source, module)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self.values[node] = self._pool(source, module.output_size)
        elif isinstance(module, (nn.Identity, nn.Dropout)) or not list(module.children()):
            if not isinstance(module, (nn.Identity, nn.Dropout, nn.Sequential)):
                raise Unsupported(f"its conversion to ncnn does not know a {type(module).__name__}")
            self.values[node] = source
        else:
            raise Unsupported(f"its conversion to ncnn does not know a {type(module).__name__}")

    def _activation(
        self, node: fx.Node, source: str, kind: str, parameters: str, code: int, values: tuple[float, ...]
    ) -> str:
        """Within the convolution before it, as ncnn's optimiser does, where nothing else reads that."""
        before, inputs, name, others = self.layers[-1]
        if name == source and before.startswith("Convolution") and len(node.args[0].users) == 1:
            listed = f" -23310={len(values)},{','.join(f'{v:.9g}' for v in values)}" if values else ""
            self.layers[-1] = (before, inputs, name, f"{others} 9={code}{listed}")
            return source
        return self._add(kind, [source], parameters)

    def _max_pool(self, source: str, pool: nn.MaxPool2d) -> str:
        if pool.ceil_mode or pool.dilation != 1 or any(isinstance(v, tuple) for v in (pool.kernel_size, pool.stride)):
            raise Unsupported("its conversion to ncnn knows no pooling with dilation, ceil_mode or two sizes")
        floor = "5=1"  # what does not fill a window is left out
        return self._add("Pooling", [source], f"0={MAX} 1={pool.kernel_size} 2={pool.stride} 3={pool.padding} {floor}")

    def _pool(self, source: str, size: object) -> str:
        """The mean over H and W, as a map of one pixel."""
        if size not in (1, (1, 1)):
            raise Unsupported("its conversion to ncnn knows no pooling to more than one pixel")
        pooled = self._add("Pooling", [source], f"0={AVERAGE} 4=1")
        return self._add("Reshape", [pooled], "0=1 1=1 2=-1")

    def _convolution(self, source: str, conv: nn.Conv2d) -> str:
        (height, width), (top, left) = conv.kernel_size, conv.padding
        parameters = {
            0: conv.out_channels, 1: width, 11: height, 2: conv.dilation[1], 12: conv.dilation[0], 3: conv.stride[1],
            13: conv.stride[0], 4: left, 14: top, 5: int(conv.bias is not None), 6: conv.weight.numel(),
        }  # fmt: skip
        if conv.groups > 1:
            parameters[7] = conv.groups
        self._weights(conv.weight, conv.bias)
        kind = "Convolution" if conv.groups == 1 else "ConvolutionDepthWise"
        return self._add(kind, [source], " ".join(f"{key}={value}" for key, value in parameters.items()))

    def _weights(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """The flag 0 says that float32 follows; biases have none."""
        self.weights += struct.pack("<I", 0) + weight.detach().float().contiguous().numpy().astype("<f4").tobytes()
        if bias is not None:
            self.weights += bias.detach().float().contiguous().numpy().astype("<f4").tobytes()

    def _function(self, node: fx.Node) -> None:
        target, args = node.target, node.args
        known: dict[object, Callable[[], None]] = {
            torch.cat: lambda: self._concatenate(node),
            operator.getitem: lambda: self._slice(node),
            operator.add: lambda: self._binary(node, ADD),
            operator.iadd: lambda: self._binary(node, ADD),
            operator.mul: lambda: self._binary(node, MULTIPLY),
            operator.truediv: lambda: self._hard_sigmoid(node),
            F.relu6: lambda: self.scalars.__setitem__(node, self.scalars[args[0]]),
            "mean": lambda: self._mean(node),
            F.adaptive_avg_pool2d: lambda: self.values.__setitem__(node, self._pool(self.values[args[0]], args[1])),
            "flatten": lambda: self.values.__setitem__(node, self._add("Flatten", [self.values[args[0]]], "")),
        }
        known[torch.flatten] = known["flatten"]
        if target not in known or (target is F.relu6 and args[0] not in self.scalars):
            raise Unsupported(f"its conversion to ncnn does not know {target}")
        known[target]()

    def _concatenate(self, node: fx.Node) -> None:
        if (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) != 1:
            raise Unsupported("its conversion to ncnn concatenates channels only")
        self.values[node] = self._add("Concat", [self.values[v] for v in node.args[0]], "0=0")

    def _slice(self, node: fx.Node) -> None:
        """``v[:, :channels]``, which is nothing where v has no more."""
        source, index = node.args
        everything, kept = slice(None), index[1]
        if len(index) < 2 or any(i != everything for i in (index[0], *index[2:])) or kept.start or kept.step:
            raise Unsupported(f"its conversion to ncnn does not know the slice {index}")
        total = sum(self._channels(v) for v in source.args[0]) if source.target is torch.cat else None
        if total == kept.stop:
            self.values[node] = self.values[source]
        else:
            self.values[node] = self._add("Crop", [self.values[source]], f"-23309=1,0 -23310=1,{kept.stop} -23311=1,0")

    def _channels(self, node: fx.Node) -> int | None:
        while node.op == "call_module" and not isinstance(self.children[node.target], nn.Conv2d):
            node = node.args[0]
        if node.op != "call_module":
            raise Unsupported("its conversion to ncnn concatenates what convolutions made only")
        return self.children[node.target].out_channels

    def _binary(self, node: fx.Node, kind: int) -> None:
        left, right = node.args
        if not isinstance(right, fx.Node):
            if kind != ADD or right != 3:
                raise Unsupported(f"its conversion to ncnn does not know {node.target.__name__} of {right}")
            self.scalars[node] = self.values[left], 3.0
            return
        self.values[node] = self._add("BinaryOp", [self.values[left], self.values[right]], f"0={kind}")

    def _hard_sigmoid(self, node: fx.Node) -> None:
        """relu6(v + 3) / 6 is clip(v / 6 + 1 / 2, 0, 1)."""
        value, divisor = node.args
        if value not in self.scalars or value.target is not F.relu6 or divisor != 6:
            raise Unsupported("its conversion to ncnn knows no division but that of a hard sigmoid")
        self.values[node] = self._add("HardSigmoid", [self.scalars[value][0]], f"0={1 / 6:.9g} 1=0.5")

    def _mean(self, node: fx.Node) -> None:
        if tuple(node.args[1]) != (2, 3) or not node.kwargs.get("keepdim"):
            raise Unsupported("its conversion to ncnn knows no mean but that over H and W")
        self.values[node] = self._pool(self.values[node.args[0]], 1)

    def _text(self) -> str:
        """The layers, a Split before every blob that is read more than once: in ncnn each has one reader."""
        readers: dict[str, int] = {}
        for _, inputs, _, _ in self.layers:
            for name in inputs:
                readers[name] = readers.get(name, 0) + 1
        lines, taken, blobs = [], dict.fromkeys(readers, 0), 0
        for index, (kind, inputs, output, parameters) in enumerate(self.layers):
            sources = []
            for name in inputs:
                sources.append(name if readers[name] == 1 else f"{name}_{taken[name]}")
                taken[name] += 1
            blobs += 1
            lines.append(f"{kind} layer{index} {len(sources)} 1 {' '.join([*sources, output])} {parameters}".rstrip())
            copies = readers.get(output, 0)
            if copies > 1:
                blobs += copies
                names = " ".join(f"{output}_{i}" for i in range(copies))
                lines.append(f"Split split{index} 1 {copies} {output} {names}")
        return "\n".join([str(MAGIC), f"{len(lines)} {blobs}", *lines]) + "\n"
