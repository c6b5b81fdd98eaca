"""``freeze``: a net for inference alone, its longest runs of known modules as one operator call each."""

from __future__ import annotations

import copy
import operator
import warnings
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..backends import native
from ..dispatch import select
from ..nn import FusedGhostBottleneck, FusedGhostModule, SyncBatchNorm
from ..nn._fused import Fused
from ..nn._program import Builder, Dense
from ..nn._structure import Structure, Unfusable, is_hooked
from ..nn.frozen import FrozenProgram
from ..nn.graphed import GraphedNet
from .fuse import fuse
from .recognise import survey

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm, nn.BatchNorm1d)
_ACTS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.Hardswish)
_ACT_FUNCTIONS = {F.relu: nn.ReLU, torch.relu: nn.ReLU, F.relu6: nn.ReLU6, F.silu: nn.SiLU, F.hardswish: nn.Hardswish}
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def freeze(net: nn.Module, dtype: torch.dtype | None = None, *, cuda_graph: bool = False) -> nn.Module:
    """A copy of ``net`` for inference: BatchNorms folded, weights packed, whole runs of blocks in one operator call.

    Stem, Ghost modules, Ghost bottlenecks with or without stride and squeeze-and-excite, 1x1 convolutions, pooling and
    classifier of a net become programs (:class:`ghost_ops.nn.FrozenProgram`), the longest runs of them one each; what
    lies between stays as it is. The result takes every batch and image size that ``net`` takes, and many threads may
    call it at once. Its weights are copies: a later change of ``net`` does not reach it, and it cannot be trained.
    ``explain`` names the programs, and what was left as it is and why.

    It can be saved with ``torch.save``, exported with ``torch.export``, packed with AOTInductor and compiled; whoever
    loads it must have imported ghost_ops. Packed weights are the same on every processor.

    Args:
        net: any module in eval mode; it is not changed.
        dtype: torch.float32 or torch.bfloat16, on a CUDA device torch.float16 too, of weights, inputs and results; None
            keeps that of the parameters. On a CPU bfloat16 rounds weights, which then take half the memory, inputs and
            results; in between programs have maps and sums in float32, and round maps where the processor multiplies
            bfloat16 itself. On a CUDA device maps have this dtype throughout.
        cuda_graph: replay the whole net as a CUDA graph, one for each of the last few shapes of input
            (:class:`ghost_ops.nn.GraphedNet`); the net must be on a CUDA device.

    Raises:
        TypeError: net is no ``torch.nn.Module``.
        ValueError: net is in training mode, a dtype that is not known, or ``cuda_graph`` of a net that is not on one
            CUDA device.

    Warns:
        UserWarning: nothing was found to freeze; the copy runs as ``net`` does.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"freeze: net: expected a torch.nn.Module, got {type(net).__name__}")
    devices = {t.device for t in (*net.parameters(), *net.buffers())}
    on_cuda = len(devices) == 1 and all(device.type == "cuda" for device in devices)
    if dtype not in (None, torch.float32, torch.bfloat16, *((torch.float16,) if on_cuda else ())):
        wanted = "None, torch.float32 or torch.bfloat16" + (" or torch.float16" if on_cuda else "")
        raise ValueError(f"freeze: dtype: expected {wanted}, got {dtype}")
    if cuda_graph and not on_cuda:
        where = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"freeze: cuda_graph: expected a net on one CUDA device, got one on {where}")
    if net.training:
        raise ValueError("freeze: net: expected a net in eval mode (net.eval()), got one in training mode")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        frozen = fuse(copy.deepcopy(net)).requires_grad_(False)
    if dtype is not None:
        frozen = frozen.to(dtype)
    _open(frozen)
    reason = _no_kernels(net)
    if reason is None:
        frozen = _by_graph(frozen)
    if not any(isinstance(module, FrozenProgram) for module in frozen.modules()):
        why = reason or "no Ghost module that a program computes was found"
        warnings.warn(f"freeze: nothing of this {type(net).__name__} was frozen: {why}", UserWarning, stacklevel=2)
    return GraphedNet(frozen) if cuda_graph else frozen


def _no_kernels(net: nn.Module) -> str | None:
    """Why no program of this net would run faster than its modules."""
    example = next((t for t in net.parameters() if t.is_cuda), None)
    if example is None:
        return None if native.available() else f"its kernels are not there: {native.reason()}"
    choice = select("program", example)
    return f"its kernels do not run there: {choice.why}" if choice.is_reference else None


def _open(net: nn.Module) -> None:
    """Subclasses that compute what PyTorch's own modules do, as these: BatchNorms that apply an activation too (timm's
    ``BatchNormAct2d``), linear layers under another name. Only where running both shows that they agree."""
    for owner in list(net.modules()):
        for name, child in owner._modules.items():
            if child is None or is_hooked(child) or "parametrizations" in child._modules:
                continue
            if isinstance(child, nn.BatchNorm2d) and type(child) not in _NORMS and child.running_mean is not None:
                inner = [m for m in child.children() if type(m) not in _NOTHING]
                opened = nn.Sequential(_as(nn.BatchNorm2d, child), *inner)
                known, shape = all(type(m) in _ACTS for m in inner), (2, child.num_features, 3, 2)
            elif isinstance(child, nn.Linear) and type(child) is not nn.Linear and not child._modules:
                opened, known, shape = _as(nn.Linear, child), True, (3, child.in_features)
            else:
                continue
            if known and _same(child, opened, shape):
                owner._modules[name] = opened


def _as(kind: type, module: nn.Module) -> nn.Module:
    """The module as one of a class that it derives from, with the same parameters, without children."""
    plain = kind.__new__(kind)
    plain.__dict__.update(module.__dict__, _modules={})
    return plain


def _same(a: nn.Module, b: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two modules in eval make the same of an input, in float64."""
    a, b = copy.deepcopy(a).cpu().double(), copy.deepcopy(b).cpu().double()
    x = 3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.allclose(a(x.clone()), b(x.clone()), rtol=1e-12, atol=1e-12)


class _Tracer(fx.Tracer):
    """Looks into modules, but for those that are known, those where something else runs than their forward, and those
    that only look known: ``explain`` is to name them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.whole = {finding.module for finding in survey(net)}

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        known = isinstance(module, (Fused, FrozenProgram, SyncBatchNorm)) or module in self.whole
        return known or is_hooked(module) or super().is_leaf_module(module, path)


def _by_graph(net: nn.Module) -> nn.Module:
    """Runs of modules of the whole net, where its forward can be traced; else Ghost modules and blocks one by one."""
    if isinstance(net, FrozenProgram):
        return net
    if isinstance(net, Fused):
        return _alone(net)
    traced = None
    if not is_hooked(net):
        try:
            graph = _Tracer(net).trace(net)
            _only_plain_inputs(graph)
            graph._tracer_cls = fx.Tracer  # by which a saved one is made again, with every module a leaf
            traced = fx.GraphModule(net, graph, type(net).__name__)
            traced.training = net.training
        except Exception:  # a forward that depends on what only running it tells
            traced = None
    if traced is None:
        _one_by_one(net)
        return net
    if not _replace_runs(traced):
        return net
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    if len(nodes) == 1 and nodes[0].op == "call_module" and _returns(traced.graph, nodes[0]):
        return traced.get_submodule(nodes[0].target)
    return traced


def _alone(module: Fused) -> nn.Module:
    """A Ghost module or bottleneck as a program; itself where that is not possible."""
    run = _Run(None, {})
    if is_hooked(module) or not run.module("", module):
        return module
    try:
        return run.program()
    except Unfusable:
        return module


def _one_by_one(net: nn.Module) -> None:
    for name, child in net._modules.items():
        if isinstance(child, Fused):
            net._modules[name] = _alone(child)
        elif child is not None:
            _one_by_one(child)


def _only_plain_inputs(graph: fx.Graph) -> None:
    if any(node.op == "placeholder" and node.args for node in graph.nodes):
        raise Unfusable("its forward has optional arguments")


def _returns(graph: fx.Graph, node: fx.Node) -> bool:
    (output,) = (n for n in graph.nodes if n.op == "output")
    (source,) = (n for n in graph.nodes if n.op == "placeholder")
    return output.args == (node,) and node.args == (source,)


def _replace_runs(traced: fx.GraphModule) -> int:
    """Put a program in the place of every run of nodes that it computes; returns how many."""
    modules = dict(traced.named_modules())
    done: set[fx.Node] = set()
    count = 0
    for node in list(traced.graph.nodes):
        if node in done or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        run = _Run(node, modules)
        if not run.grow():
            continue
        try:
            program = run.program()
        except Unfusable:  # parameters of a dtype or on a device that no kernel reads
            continue
        name = f"program_{count}"
        count += 1
        traced.add_submodule(name, program)
        with traced.graph.inserting_before(node):
            result = traced.graph.call_module(name, (node.args[0],))
            if run.flat is False:
                index = (slice(None), slice(None), None, None)
                result = traced.graph.call_function(operator.getitem, (result, index))
        run.last.replace_all_uses_with(result)
        done.update(run.nodes)
        for old in reversed(run.nodes):
            traced.graph.erase_node(old)
    if count:
        traced.graph.lint()
        traced.delete_all_unused_submodules()
        traced.recompile()
    return count


class _Run:
    """A run of nodes, each reading only the one before, as it grows into a program.

    Attributes:
        nodes: those that the program stands for, in order.
        last: the one whose value the program returns.
        flat: whether the features are N x C as the program returns them (False: N x C x 1 x 1); None of a map.
    """

    def __init__(self, first: fx.Node | None, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.builder = Builder()
        self.slot = -1
        self.flat: bool | None = None
        self.nodes: list[fx.Node] = []
        self.parts: list[str] = []
        self.last = first
        self.has_ghost = False

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
        return self.has_ghost

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
        plain = node is not None and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
        return self.modules[node.target] if plain else None

    def _unit(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of the next unit, now part of the program; none where no program computes it."""
        module = self._module_of(node)
        if module is not None and is_hooked(module):
            return []
        nothing = isinstance(module, _NOTHING) and (isinstance(module, nn.Identity) or not module.training)
        if self.builder.steps and (nothing or self._is_dropout(node)):
            return [node]
        if self.flat is None and isinstance(module, Fused):
            return [node] if self.module(node.target, module) else []
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            return self._convolution(node, module)
        if self.flat is None and self.builder.steps and self._is_pooling(node, module):
            return self._pool(node)
        if self.flat is not None and self._is_flattening(node, module):
            self.flat = True
            return [*(user for user in self.last.users if user is not node), node]  # with its size, see _next
        return []

    # Units

    def module(self, name: str, module: nn.Module) -> bool:
        """A Ghost module or bottleneck."""
        try:
            if isinstance(module, FusedGhostBottleneck):
                source = self._source(module._ghost_ops.channels(module))
                self.slot = module._ghost_ops.build(module, self.builder, source)
            elif isinstance(module, FusedGhostModule):
                source = self._source(module._ghost_ops.channels(module))
                self.slot = module._ghost_ops.build(module, self.builder, source)
                self.builder.release(source)
            else:
                return False
        except Unfusable:
            return False
        self.parts.append(name)
        self.has_ghost = True
        return True

    def _source(self, channels: int) -> int:
        return self.slot if self.builder.steps else self.builder.load(channels)

    def _convolution(self, node: fx.Node, module: nn.Module) -> list[fx.Node]:
        """A convolution or linear layer with the BatchNorm and activation after it."""
        taken, norm, act = [node], None, None
        after = self._next(node)
        if isinstance(self._module_of(after), _NORMS):
            norm = self._module_of(after)
            taken.append(after)
            after = self._next(after)
        while isinstance(self._module_of(after), nn.Identity):
            taken.append(after)
            after = self._next(after)
        act = self._activation(after)
        if act is not None:
            taken.append(after)
        if any(is_hooked(m) for m in (norm, act) if m is not None):
            raise Unfusable("its BatchNorm or activation carries hooks")
        if self.flat is not None:
            code = Structure.activation(act)
            if type(module) is nn.Conv2d:
                if module.kernel_size != (1, 1) or module.groups != 1 or module.padding not in ((0, 0), "valid"):
                    raise Unfusable("its convolution of a single pixel is not 1x1")
            elif type(module) is not nn.Linear or not self.flat:
                raise Unfusable("a layer of other than flat features")
            self.builder.dense(Dense(module, norm, act, code))
        elif isinstance(module, nn.Linear):
            return []
        else:
            half = Structure(module).triple(module, norm, act)
            if not self.builder.steps and not half.is_pointwise():
                self.slot = self.builder.convolution(half)
            else:
                source = self._source(module.in_channels)
                self.slot = self.builder.chain([half], source)
                self.builder.release(source)
        self.parts += [n.target for n in taken if n.op == "call_module"]
        return taken

    def _activation(self, node: fx.Node | None) -> nn.Module | None:
        module = self._module_of(node)
        if type(module) in _ACTS:
            return module
        known = node is not None and node.op == "call_function" and node.target in _ACT_FUNCTIONS
        if known and len(node.args) == 1 and set(node.kwargs) <= {"inplace"}:
            return _ACT_FUNCTIONS[node.target]()
        return None

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
        self.builder.pool(step.kept if hasattr(step, "kept") else step.channels)
        keepdim = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        self.flat = node.target in ("mean", torch.mean) and not keepdim
        return [node]

    def _is_batch(self, size: object) -> bool:
        """Whether a node is the number of images: the first size of the net's input, or of what is flattened."""
        if not isinstance(size, fx.Node) or (size.op, size.target) != ("call_method", "size") or size.kwargs:
            return False
        of, *dim = size.args
        return dim == [0] and (of is self.last or of.op == "placeholder")

    @staticmethod
    def _is_dropout(node: fx.Node) -> bool:
        """Of a net in eval: it does nothing."""
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

    def program(self) -> FrozenProgram:
        if self.flat is None:
            self.builder.store(self.slot)
        return FrozenProgram.of(self.builder.finish(), tuple(self.parts))

    def _mark(self) -> tuple:
        return self.builder.mark(), self.slot, self.flat, list(self.parts), self.has_ghost

    def _reset(self, mark: tuple) -> None:
        builder, self.slot, self.flat, self.parts, self.has_ghost = mark
        self.builder.reset(builder)
