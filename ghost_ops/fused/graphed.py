"""``GraphedNet`` and ``Graphs``: a net in inference, replayed as a CUDA graph."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

MOST_GRAPHS = 8
WARM_UPS = 3


class _Graph(NamedTuple):
    replay: Callable[[], None]
    input: torch.Tensor
    output: torch.Tensor


class Graphs:
    """CUDA graphs of a function of one tensor, one for each shape, dtype and layout that it was called with.

    A call copies its input into the graph's own buffer, replays on the caller's stream, and returns a copy of the
    result, so that a later call changes no earlier result. Graphs keep their memory; the least recently used one is
    dropped where there would be more than ``most``. Calls from several threads or streams take turns on the device.
    Copies and pickles start without graphs.
    """

    def __init__(self, most: int = MOST_GRAPHS) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: the tensors that they were captured with are about to be replaced."""
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._last: torch.cuda.Event | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, name: str) -> torch.Tensor:
        """What ``run`` makes of x. ``name`` is what error messages call x.

        Raises:
            ValueError: x is not on a CUDA device.
            TypeError: x is not a tensor, or ``run`` returns something else than one.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if not x.is_cuda:
            raise ValueError(f"{name}: expected a tensor on a CUDA device, got one on {x.device}")
        with self._lock, torch.no_grad(), torch.cuda.device(x.device):
            key = (tuple(x.shape), x.dtype, x.stride(), x.device)
            graph = self._graphs.pop(key, None)
            graph = self._capture(run, x) if graph is None else graph
            self._graphs[key] = graph
            while len(self._graphs) > self.most:
                self._graphs.popitem(last=False)
            stream = torch.cuda.current_stream()
            if self._last is not None:  # another stream may still be reading this graph's buffers
                stream.wait_event(self._last)
            graph.input.copy_(x)
            graph.replay()
            result = graph.output.clone()
            self._last = stream.record_event()
            return result

    @staticmethod
    def _capture(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> _Graph:
        held = torch.empty_like(x).copy_(x)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # kernels are compiled and libraries choose theirs before the capture
            for _ in range(WARM_UPS):
                out = run(held)
        torch.cuda.current_stream().wait_stream(aside)
        if not isinstance(out, torch.Tensor):
            raise TypeError(f"a net that is replayed as a CUDA graph must return a tensor, got a {type(out).__name__}")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on working
            out = run(held)
        return _Graph(graph.replay, held, out)

    def __getstate__(self) -> dict:
        return {"most": self.most}

    def __setstate__(self, state: dict) -> None:
        self.most = state["most"]
        self.forget()


class GraphedNet(nn.Module):
    """A net on a CUDA device, captured once for each shape, dtype and layout of its input, and replayed from then on.

    Memory, threads and streams are as :class:`Graphs` says.

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
        if torch.compiler.is_compiling():  # the compiler has graphs of its own
            return self.net(x)
        return self._graphs(self.net, x, "GraphedNet: x")

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
