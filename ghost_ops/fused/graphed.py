"""``GraphedNet`` and ``Graphs``: a net in inference, replayed as a CUDA graph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..backends.kept import Kept, reading
from ..dispatch import recorder
from . import graph
from .errors import NotNow
from .graph import GraphPool, without_autocast_cache
from .graph_key import ModuleState, State, layout, settings

MOST_GRAPHS = 8
WARM_UPS = 3


class _Graph(NamedTuple):
    replay: Callable[[], None]
    input: torch.Tensor
    output: torch.Tensor
    places: list[int]
    kept: list[Kept]  # what it reads that was made of other tensors

    @property
    def device(self) -> torch.device:
        return self.input.device


class Graphs:
    """CUDA graphs of a function of one tensor, one for each kind of call.

    Calls are of one kind where shape, dtype and layout of the input are the same, autocast and the other settings of
    PyTorch that choose kernels, and modes, attributes, parameters and buffers of the modules that the function runs.

    A call copies its input into the graph's own buffer, replays on the caller's stream, and returns a copy of the
    result, so that a later call changes no earlier result. Graphs keep their memory; the least recently used one is
    dropped where there would be more than ``most``, once the device is done with it. Calls from several threads or
    streams take turns on the device. Within a capture of the caller's no graph is used. Copies and pickles start
    without graphs.
    """

    def __init__(self, most: int = MOST_GRAPHS) -> None:
        self.most = most
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._pool = GraphPool()
        self._lock = threading.Lock()
        self._found: ModuleState | None = None

    def forget(self) -> None:
        """Drop all graphs: the tensors that they were captured with are about to be replaced."""
        with self._lock:
            self._pool.drop(self._graphs.values())
            self._graphs.clear()
            self._found = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self,
        run: Callable[[torch.Tensor], torch.Tensor],
        x: torch.Tensor,
        name: str,
        look: Callable[[], ModuleState],
    ) -> torch.Tensor:
        """What ``run`` makes of x. ``name`` is what error messages call x; ``look`` finds the modules that run.

        Raises:
            ValueError: x is not on a CUDA device.
            TypeError: x is not a tensor, or ``run`` returns something else than one.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if graph.device_graphs.refuse(x.device) is not None:
            raise ValueError(f"{name}: expected a tensor on a CUDA device, got one on {x.device}")
        if graph.device_graphs.is_capturing():
            return run(x)
        with self._lock, torch.no_grad():
            if self._found is None or self._found.has_changed():
                self._found = look()
            try:
                state = self._found.read()
                key = (layout(x), x.is_inference(), settings(x.device), state.key)
                found = self._graphs.pop(key, None)
            except (NotNow, TypeError):  # an attribute has gone, or cannot be compared
                self._found = None
                return run(x)
            if found is None:
                found = self._capture(run, x, state)
                for other in [k for k, old in self._graphs.items() if old.places != found.places]:
                    self._pool.drop([self._graphs.pop(other)])  # its parameters are gone, or elsewhere
            self._graphs[key] = found
            while len(self._graphs) > self.most:
                self._pool.drop([self._graphs.popitem(last=False)[1]])
            with self._pool.turn(x.device):
                for kept in found.kept:
                    kept.prepare()
                found.input.copy_(x)
                found.replay()
                return found.output.clone()

    def _capture(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, state: State) -> _Graph:
        graphs, pool = graph.device_graphs, self._pool

        def captured() -> tuple[torch.Tensor, torch.Tensor]:
            held = torch.empty_like(x)
            return held, run(held)

        with graph.capturing, graphs.aside(x.device), without_autocast_cache():
            held = torch.empty_like(x).copy_(x)
            for _ in range(WARM_UPS):  # kernels are compiled and libraries choose theirs before the capture
                out = run(held)
            if not isinstance(out, torch.Tensor):
                kind = type(out).__name__
                raise TypeError(f"a net that is replayed as a CUDA graph must return a tensor, got a {kind}")
            # between two replays nothing of a graph is read: all may lie in the same memory
            with reading() as kept:
                replay, (held, out) = graphs.capture(captured, pool.memory(x.device))
        places = [t.data_ptr() for t in (*state.parameters, *state.buffers)]
        return _Graph(replay, held, out, places, [*dict.fromkeys(kept)])

    def __getstate__(self) -> dict:
        return {"most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["most"])


class GraphedNet(nn.Module):
    """A net on a CUDA device, captured once for each kind of call, and replayed from then on.

    Kinds of calls, memory, threads and streams are as :class:`Graphs` says.

    Args:
        net: in eval mode, on one CUDA device, from one tensor to one tensor, the same work for every input of a shape.
        most: graphs that are kept.

    Raises:
        ValueError: an input that is not on a CUDA device, a net in training mode, ``most`` below 1.
        TypeError: an input that is not a tensor, or a net that returns something else than one.
    """

    def __init__(self, net: nn.Module, most: int = MOST_GRAPHS) -> None:
        super().__init__()
        if net.training:
            raise ValueError("GraphedNet: net: expected a net in eval mode (net.eval()), got one in training mode")
        if most < 1:
            raise ValueError(f"GraphedNet: most: expected at least 1, got {most}")
        self.net = net
        self.most = most
        self.training = False
        self._graphs = Graphs(most)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or recorder() is not None:  # the compiler has graphs of its own
            return self.net(x)
        return self._graphs(self.net, x, "GraphedNet: x", lambda: ModuleState(self.net, strict=False))

    def _apply(self, *args: object, **kwargs: object) -> GraphedNet:
        self._graphs.forget()
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> GraphedNet:
        if mode:
            raise ValueError("GraphedNet: train: expected eval mode, which its graphs were captured in")
        return super().train(mode)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_graphs"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.__dict__["_graphs"] = Graphs(self.most)
