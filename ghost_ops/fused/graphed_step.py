"""One forward of a block as a CUDA graph, and its backward as another, behind one autograd function.

What is captured runs on a copy of the module whose parameters are leaves of their own over the same memory: neither
hooks on parameters nor the accumulation of gradients become part of a graph, and threads that call the module meanwhile
see nothing of it. Buffers are the module's own, so that a replay updates running statistics.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from . import graph
from .errors import NotNow
from .graph import Capturable, GraphPool, without_autocast_cache
from .graph_key import State
from .in_place import STATE

_ALIGNMENT = 64  # bytes, of each gradient in the tensor that holds them all


class Ticket:
    """Held by the autograd node of a forward: what the graph keeps belongs to that forward as long as this lives."""

    __slots__ = ("__weakref__",)


class GraphedStep:
    """A captured forward, and its backward where gradients are wanted.

    Attributes:
        device: where they run.
        x, out: what the forward graph reads and writes.
        grad_out, grads: what the backward graph reads and writes: the gradient of x first, where x needs one, then
            those of the parameters that need one.
        places: addresses of parameters and buffers.
        moved, fixed: which of the buffers the forward writes, and which it does not.
        kept: what must exist as long as the graphs.
    """

    def __init__(
        self,
        pool: GraphPool,
        state: State,
        replay: Callable[[], None],
        x: torch.Tensor,
        out: torch.Tensor,
        is_moved: Sequence[bool],
    ) -> None:
        self.pool = pool
        self.device = x.device
        self.x = x
        self.out = out
        self.grad_out: torch.Tensor | None = None
        self.grads: list[torch.Tensor] = []
        self.moved = [i for i, moved in enumerate(is_moved) if moved]
        self.fixed = [i for i, moved in enumerate(is_moved) if not moved]
        self.places = [t.data_ptr() for t in (*state.parameters, *state.buffers)]
        self.kept: object = None
        self._replay_forward = replay
        self._replay_backward: Callable[[], None] | None = None
        self._owner: Callable[[], Ticket | None] = _nobody
        self._waits = False

    def add_backward(
        self, replay: Callable[[], None], grad_out: torch.Tensor, grads: Sequence[torch.Tensor], of_input: bool
    ) -> None:  # fmt: skip
        """Take what was captured of the backward."""
        self._replay_backward, self.grad_out, self.grads = replay, grad_out, list(grads)
        self._fresh = _Fresh(self.grads, of_input)

    def is_busy(self) -> bool:
        """Whether a forward was replayed whose backward may still come."""
        return self._waits and self._owner() is not None

    def take(self) -> Ticket | None:
        """The right to the next forward; None where an earlier one still waits for its backward."""
        with self.pool.lock:
            if self.is_busy():
                return None
            ticket = Ticket()
            self._owner, self._waits = weakref.ref(ticket), True
            return ticket

    def forward(self, x: torch.Tensor, buffers: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output, a fresh tensor; whoever calls holds the ticket."""
        with torch.no_grad(), self.pool.turn(self.device):
            self.x.copy_(x)
            self._replay_forward()
            out = self.out.clone()
        moved = [buffers[i] for i in self.moved if not buffers[i].is_inference()]
        if moved:  # what remembers values by their version must see that they are others
            torch.autograd.graph.increment_version(moved)
        return out

    def backward(self, ticket: Ticket, grad_out: torch.Tensor, again: bool) -> list[torch.Tensor]:
        """The gradients, fresh tensors.

        Args:
            ticket: that of the forward.
            again: whether another backward of the same forward may follow.

        Raises:
            RuntimeError: a later forward has overwritten what this one kept.
        """
        with self.pool.turn(self.device):
            if self._owner() is not ticket:
                raise RuntimeError(
                    "a block that was fused with cuda_graph=True: a later forward has overwritten what this one kept "
                    "for its backward; call the earlier backward with retain_graph=True, or use cuda_graph=False"
                )
            self.grad_out.copy_(grad_out)
            self._replay_backward()
            found = self._fresh.copies(self.grads)
            self._waits = again
        return found


class Replay(torch.autograd.Function):
    """A forward and a backward by their graphs; arguments are step, ticket, buffers, x and all parameters."""

    @staticmethod
    def forward(ctx, step, ticket, buffers, x, *parameters):
        out = step.forward(x, buffers)
        ctx.step, ctx.ticket = step, ticket
        fixed = [buffers[i] for i in step.fixed if not buffers[i].is_inference()]
        ctx.save_for_backward(*parameters, *fixed)
        ctx.places = [t.data_ptr() for t in (*parameters, *fixed)]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out):
        # raises where one was changed in place, and in a second backward without retain_graph
        if [t.data_ptr() for t in ctx.saved_tensors] != ctx.places:
            raise RuntimeError(
                "a block that was fused with cuda_graph=True: a parameter or buffer got other memory between forward "
                "and backward, which a graph cannot follow; use cuda_graph=False"
            )
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        grads = iter(ctx.step.backward(ctx.ticket, grad_out, again))
        return None, None, None, *[next(grads) if need else None for need in ctx.needs_input_grad[3:]]


class _Fresh:
    """Makes copies of gradients by as few launches as there are dtypes.

    The gradient of the input gets memory of its own, since whoever keeps that of a parameter should not keep a map.
    Those of the parameters share one tensor for each dtype.
    """

    def __init__(self, grads: Sequence[torch.Tensor], of_input: bool) -> None:
        self.sizes: dict[torch.dtype, int] = {}
        self.places: list[tuple] = []  # of each gradient: dtype, shape, strides, and offset in the tensor of all
        for i, t in enumerate(grads):
            strides, offset = torch.empty_like(t, device="meta").stride(), self.sizes.get(t.dtype, 0)
            if of_input and i == 0:
                self.places.append((t.dtype, t.shape, strides, None))
                continue
            self.places.append((t.dtype, t.shape, strides, offset))
            step = _ALIGNMENT // t.element_size()
            self.sizes[t.dtype] = offset + -(-t.numel() // step) * step

    def copies(self, grads: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        device = grads[0].device
        shared = {dtype: torch.empty(size, dtype=dtype, device=device) for dtype, size in self.sizes.items()}
        made: dict[torch.dtype, tuple[list, list]] = {}
        found = []
        for t, (dtype, shape, strides, offset) in zip(grads, self.places):
            if offset is None:
                copy = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            else:
                copy = shared[dtype].as_strided(shape, strides, offset)
            found.append(copy)
            copies, sources = made.setdefault(dtype, ([], []))
            copies.append(copy)
            sources.append(t)
        for copies, sources in made.values():
            torch._foreach_copy_(copies, sources)
        return found


class _Eager:
    """A forward and its backward on a copy of the module, as they are captured."""

    def __init__(self, module: nn.Module, state: State, needs_grad: bool) -> None:
        leaves = {id(t): _leaf(t, needs_grad) for t in state.parameters}
        self.module = _over(module, leaves, {})
        self.wanted = [t for t in leaves.values() if t.requires_grad]
        self.needs_grad = needs_grad

    def forward(self, x: torch.Tensor, needs_grad: bool) -> torch.Tensor:
        self.x = x.detach().requires_grad_(needs_grad)
        self.out = self.run(self.x)
        if type(self.out) is not torch.Tensor:
            raise NotNow(f"it returns a {type(self.out).__name__}, not a tensor")
        return self.out.detach()

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """The block's own work, whatever that is."""
        return self.module._ghost_ops.run(self.module, x)

    def backward(self, grad_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wanted = [self.x, *self.wanted] if self.x.requires_grad else self.wanted
        with torch.autocast(grad_out.device.type, enabled=False):  # as a backward after the autocast block
            grads = torch.autograd.grad(self.out, wanted, grad_out, allow_unused=True)
        if any(t is None for t in grads):
            raise NotNow("one of its parameters, or its input, gets no gradient")
        return grads


def _leaf(t: torch.Tensor, needs_grad: bool) -> torch.Tensor:
    leaf = t.detach()
    if isinstance(t, nn.Parameter):
        leaf = nn.Parameter(leaf, requires_grad=False)
    return leaf.requires_grad_(needs_grad and t.requires_grad)


def _over(module: nn.Module, leaves: dict[int, torch.Tensor], made: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of a module and of those inside, over these parameters and the module's own buffers, without graphs."""
    if module in made:
        return made[module]
    copy = made[module] = module._replicate_for_data_parallel()
    copy._parameters = {name: None if t is None else leaves[id(t)] for name, t in module._parameters.items()}
    copy._modules = {
        name: None if child is None else _over(child, leaves, made) for name, child in module._modules.items()
    }
    block = copy.__dict__.get(STATE)
    if block is not None:
        block.graphs = None
    return copy


def capture_step(
    module: nn.Module, x: torch.Tensor, state: State, needs_grad: bool, pool: GraphPool
) -> GraphedStep:  # fmt: skip
    """Capture a forward with an input such as x, and its backward where gradients are wanted.

    Both run once before, outside of a graph, so that every kernel is compiled and libraries have chosen theirs; running
    statistics are put back then. The captures execute nothing.

    Raises:
        NotNow: a graph cannot hold it.
        whatever the forward, the backward or the capture raises.
    """
    graphs, of_input = graph.device_graphs, needs_grad and x.requires_grad
    with graphs.aside(x.device), without_autocast_cache():
        is_moved = _rehearse(_Eager(module, state, needs_grad), x, of_input, state.buffers)
        eager = _Eager(module, state, needs_grad)

        def forward() -> tuple[torch.Tensor, torch.Tensor]:
            held = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            return held, eager.forward(held, of_input)

        def backward() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            grad_out = pool.buffer(step.out)
            return grad_out, eager.backward(grad_out)

        # what a forward keeps must not be overwritten before its backward by any other graph
        replay, (held, out) = graphs.capture(forward, graphs.new_pool() if needs_grad else pool.memory(x.device))
        step = GraphedStep(pool, state, replay, held, out, is_moved)
        step.kept = eager.module  # backends remember what kernels read with the tensors that it belongs to
        if needs_grad:
            replay, (grad_out, grads) = graphs.capture(backward, pool.memory(x.device))
            step.add_backward(replay, grad_out, grads, of_input)
    return step


def _rehearse(eager: _Eager, x: torch.Tensor, of_input: bool, buffers: Sequence[torch.Tensor]) -> list[bool]:
    """Run it once and put buffers back; returns which of them it has written."""
    before = [t.clone() for t in buffers]
    held = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
    with torch.no_grad():
        held.copy_(x)
    try:
        with Capturable(x.device):
            out = eager.forward(held, of_input)
            if eager.needs_grad:
                eager.backward(torch.zeros_like(out))
    finally:
        is_moved = [not torch.equal(t, value) for t, value in zip(buffers, before)]  # BatchNorm moves no version
        with torch.no_grad():
            for t, value, moved in zip(buffers, before, is_moved):
                if moved:
                    t.copy_(value)
    return is_moved


def _nobody() -> None:
    """Nobody's ticket."""
