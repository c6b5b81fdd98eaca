"""``BlockGraphs``: the calls of a fused block as CUDA graphs, one for its forward and one for its backward.

Whatever the block runs is captured as it stands, so that this knows nothing of how a block computes. A call that is
replayed is one autograd function. What it returns, output and gradients, are fresh tensors: nothing that anybody can
hold is written by a later replay.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from operator import is_
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..dispatch import refuse_call, refuse_function_modes
from . import graph
from .errors import NotNow, Unfusable, first_line
from .graph import GraphPool
from .graph_key import ModuleState, State, layout, settings
from .graphed_step import GraphedStep, Replay, capture_step

if TYPE_CHECKING:
    from .block import Block

MOST_GRAPHS = 4  # of a block
WARM_UPS = 3  # calls of a kind that run without a graph before one is captured
WINDOW = 16  # calls within which these must lie: the last, smaller batch of an epoch is not worth a graph's memory


class _Call(NamedTuple):
    """What a call depends on: the key of its graph, whether a backward may come, and the module's tensors."""

    key: tuple
    needs_grad: bool
    state: State


class BlockGraphs:
    """The CUDA graphs of one block, by what its calls depend on.

    A graph takes as much memory as what its forward keeps for its backward. The least recently used one is dropped
    where there would be more than ``most``, and those that were captured with other parameters when a new one is
    captured. Copies and pickles start without graphs.

    Args:
        pool: what the blocks of a net share.
        most: graphs that are kept.
    """

    def __init__(self, pool: GraphPool, most: int = MOST_GRAPHS) -> None:
        self.pool = pool
        self.most = most
        self._clear()

    def _clear(self) -> None:
        self._graphs: OrderedDict[tuple, GraphedStep] = OrderedDict()
        self._refused: OrderedDict[tuple, str] = OrderedDict()
        self._seen: OrderedDict[tuple, list[int]] = OrderedDict()
        self._calls = 0
        self._lock = threading.Lock()
        self._found: tuple | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __getstate__(self) -> dict:
        return {"pool": self.pool, "most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._clear()

    def forget(self) -> None:
        """Drop all graphs: the tensors that they were captured with are about to be replaced."""
        with self._lock:
            dropped = list(self._graphs.values())
            self._graphs.clear()
        self.pool.drop(dropped)

    def call(self, block: Block, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The output of the block: by a graph where there is one, else as without graphs."""
        try:
            refusal = _observed_by_python()
            if refusal is not None:
                raise NotNow(refusal)
            call = self._look(block, module, x)
        except Unfusable:
            return block.run(module, x)
        found = self._graph(call.key)
        if found is None and self._is_due(call.key):
            found = self._capture(module, x, call)
        ticket = None if found is None else found.take()
        if ticket is None:
            return block.run(module, x)
        if call.needs_grad:
            return Replay.apply(found, ticket, call.state.buffers, x, *call.state.parameters)
        return found.forward(x, call.state.buffers)

    def describe(self, block: Block, module: nn.Module, x: torch.Tensor) -> str | None:
        """Why a call with x would not be replayed now; None where it would."""
        try:
            call = self._look(block, module, x)
        except Unfusable as reason:
            return str(reason)
        with self._lock:
            found, refusal = self._graphs.get(call.key), self._refused.get(call.key)
            seen = len(self._recent(call.key))
        if refusal is not None:
            return refusal
        if found is None:
            return f"its graph is captured after {WARM_UPS} calls like this one, of which {seen} were made"
        return "an earlier forward still waits for its backward" if found.is_busy() else None

    def _look(self, block: Block, module: nn.Module, x: torch.Tensor) -> _Call:
        """What the call depends on; raises ``Unfusable`` where no graph can hold it."""
        refusal = refuse_call(x) or graph.device_graphs.refuse(x.device)
        if refusal is None and graph.device_graphs.is_capturing():
            refusal = "a graph around it is being captured"
        if refusal is not None:
            raise NotNow(refusal)
        for size, stride in zip(x.shape, x.stride()):
            if stride == 0 and size > 1:
                raise NotNow("elements of its input share their memory")
        kind, plans, known = type(module), block.plans(module), self._found  # read once: other threads may call too
        if known is None or known[0] is not kind or not _are_same(known[1], plans) or known[2].has_changed():
            if any(base.__name__ == "FSDPModule" for base in kind.__mro__):
                raise NotNow("fully_shard gives its parameters memory anew on every call")
            known = self._found = kind, plans, ModuleState(module)
        try:
            state = known[2].read()
        except NotNow:
            self._found = None
            raise
        for t in (*state.parameters, *state.buffers):
            if t.device != x.device:
                raise NotNow("its tensors are not all on the device of its input")
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state.parameters))
        if needs_grad and block.recomputes:
            raise NotNow("it recomputes in the backward, which a graph would keep the memory for")
        options = getattr(block, "memory", None), needs_grad, x.requires_grad, x.is_inference()
        key = (layout(x), options, settings(x.device), state.key)
        try:
            hash(key)
        except TypeError:
            raise NotNow("an attribute of one of its modules cannot be compared") from None
        return _Call(key, needs_grad, state)

    def _graph(self, key: tuple) -> GraphedStep | None:
        with self._lock:
            self._calls += 1
            found = self._graphs.get(key)
            if found is not None:
                self._graphs.move_to_end(key)
            return found

    def _recent(self, key: tuple) -> list[int]:
        return [n for n in self._seen.get(key, ()) if n > self._calls - WINDOW]

    def _is_due(self, key: tuple) -> bool:
        """Count a call that has no graph; whether one is to be captured."""
        with self._lock:
            if key in self._refused:
                return False
            recent = self._recent(key)
            self._seen[key] = [*recent, self._calls]
            self._seen.move_to_end(key)
            _shorten(self._seen, WINDOW)
            return len(recent) >= WARM_UPS

    def _capture(self, module: nn.Module, x: torch.Tensor, call: _Call) -> GraphedStep | None:
        if not graph.capturing.acquire(blocking=False):
            return None  # another thread captures: this call does without
        try:
            with self._lock:
                found = self._graphs.get(call.key)
            if found is not None:  # another thread was faster
                return found
            found = capture_step(module, x, call.state, call.needs_grad, self.pool)
        except Exception as error:  # where it is the call's fault, the call without a graph raises it again
            why = str(error) if isinstance(error, NotNow) else f"its capture failed: {first_line(error)}"
            with self._lock:
                self._refused[call.key] = why
                _shorten(self._refused, WINDOW)
            return None
        finally:
            graph.capturing.release()
        with self._lock:
            self._seen.pop(call.key, None)
            dropped = [self._graphs.pop(key) for key, old in [*self._graphs.items()] if old.places != found.places]
            self._graphs[call.key] = found
            dropped += [self._graphs.popitem(last=False)[1] for _ in range(len(self._graphs) - self.most)]
        self.pool.drop(dropped)
        return found


def _are_same(plans: tuple, others: tuple) -> bool:
    return len(plans) == len(others) and all(map(is_, plans, others))


def _shorten(entries: OrderedDict, most: int) -> None:
    while len(entries) > most:
        entries.popitem(last=False)


def _observed_by_python() -> str | None:
    """What sees each operation of a call, or each tensor that is saved, and would not see those of a graph."""
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode is active"
    why = refuse_function_modes()
    if why is not None:
        return why
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return "hooks on saved tensors are active, as checkpointing has them"
    return "anomaly detection is on" if torch.is_anomaly_enabled() else None
