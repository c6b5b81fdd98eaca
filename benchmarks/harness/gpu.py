"""What is timed on a CUDA device, and how: nets and training steps, ours and PyTorch's at its best.

Both the benchmark (``benchmarks/gpu.py``) and the check (``benchmarks/gpu_check.py``) take their contenders from here.
A launch costs the host up to 30 us on some machines, which decides the time at every batch size, so both sides run as
CUDA graphs too.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

import ghost_ops
from ghost_ops.dispatch import select
from ghost_ops.fused import GraphedNet
from ghost_ops.surgery.saved import saved_bytes

from .baselines import fold
from .cases import ModuleCase, NetCase
from .comparison import Comparison, Results, results_of
from .results import FAILED, WRONG, Result, error_of
from .timing import interleave
from .training import TrainCase

MODES = ("default", "reduce-overhead", "max-autotune")  # torch.compile's; all but the first use CUDA graphs
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}  # relative to the largest element
LAST = torch.channels_last
GRAPHED = ", CUDA graph"
WARM_UPS = 3  # before a capture: kernels are compiled, libraries choose theirs
SCALE = 2.0**12  # of the loss, as under a GradScaler: float16 has no smaller numbers than 6e-8

Forward = Callable[[torch.Tensor], torch.Tensor]


class Device:
    """The CUDA device, or in a dry run the CPU, with what timing needs of it."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.name = "cpu" if dry else "cuda"
        self.label = "dry run" if dry else torch.cuda.get_device_name()

    def forget(self) -> None:
        """Drop what the last case compiled and kept: a compiler takes only so many nets of a class."""
        torch._dynamo.reset()
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], object]) -> int | None:
        """Device memory that a call takes beyond what is there before it."""
        if self.dry:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def bandwidth(self) -> float:
        """Bytes a second that a copy reads and writes."""
        size = 1 << (20 if self.dry else 30)
        a, b = (torch.empty(size, dtype=torch.uint8, device=self.name) for _ in range(2))
        return 2 * size / min(interleave({"copy": lambda: b.copy_(a)}, rounds=5)["copy"].samples)

    def compile(self, net: nn.Module, mode: str) -> Forward:
        """``torch.compile`` in a mode; in a dry run only its tracing, since a CPU's code takes minutes to build."""
        if self.dry:
            return torch.compile(net, backend="eager")
        return torch.compile(net, mode=None if mode == "default" else mode)


def by_backend(name: str, run: Forward) -> Forward:
    """``run`` with this backend first; raises where it does not come first on this machine."""

    def called(x: torch.Tensor) -> torch.Tensor:
        with ghost_ops.use_backend(name):
            choice = select("program", x)
            if choice.backend != name:
                raise RuntimeError(str(choice))
            return run(x)

    return called


def is_graph(name: str) -> bool:
    """Whether a contender replays CUDA graphs, whose memory is not that of a call."""
    return name.endswith((GRAPHED, *MODES[1:]))


def inference_baselines(
    device: Device, case: ModuleCase | NetCase, net: nn.Module, modes: tuple[str, ...]
) -> dict[str, Callable[[], Forward]]:
    """Functions that make a forward of the plain net, which is on the device and in the dtype; ours first."""
    found: dict[str, Callable[[], Forward]] = {}

    def add(name: str, build: Callable[[], nn.Module], around: Callable = lambda run: run) -> None:
        """As it is, and as a CUDA graph."""
        found[name] = lambda: around(build())
        if not device.dry:
            found[f"{name}{GRAPHED}"] = lambda: around(GraphedNet(build()))

    def folded() -> nn.Module:
        return fold(net).eval().to(memory_format=LAST)

    if isinstance(case, ModuleCase) or "ghostnet" in case.net:
        add("ghost_ops.freeze", lambda: ghost_ops.freeze(net))
        if not device.dry:
            add("ghost_ops.freeze, CUDA C++", lambda: ghost_ops.freeze(net), lambda run: by_backend("cuda", run))
        found["ghost_ops.fuse"] = lambda: ghost_ops.fuse(copy.deepcopy(net))
    found["eager, NCHW"] = lambda: copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    add("eager, channels_last", lambda: copy.deepcopy(net).to(memory_format=LAST))
    add("BN folded, channels_last", folded)
    for mode in modes:
        found[f"torch.compile {mode}"] = lambda mode=mode: device.compile(folded(), mode)
    return found


@dataclass(frozen=True)
class Step:
    """A way to train: the layout of the net, what makes a forward of it, and whether a whole step is one CUDA graph."""

    prepare: Callable[[nn.Module], Forward]
    layout: torch.memory_format = LAST
    graphed: bool = False


def training_baselines(device: Device, modes: tuple[str, ...]) -> dict[str, Step]:
    """Ways to train, ours first."""

    def eager(net: nn.Module) -> nn.Module:
        return net

    found = {"ghost_ops.fuse": Step(ghost_ops.fuse)}
    found["ghost_ops.fuse, memory=low"] = Step(lambda net: ghost_ops.fuse(net, memory="low"))
    found["ghost_ops.fuse, memory=fast"] = Step(lambda net: ghost_ops.fuse(net, memory="fast"))
    found["ghost_ops.fuse, cuda_graph=True"] = Step(lambda net: ghost_ops.fuse(net, cuda_graph=True))
    if not device.dry:
        found[f"ghost_ops.fuse{GRAPHED}"] = Step(ghost_ops.fuse, graphed=True)
        found[f"eager, channels_last{GRAPHED}"] = Step(eager, graphed=True)
    found["eager, channels_last"] = Step(eager)
    found["eager, NCHW"] = Step(eager, torch.contiguous_format)
    for mode in modes:
        found[f"torch.compile {mode}"] = Step(lambda net, mode=mode: device.compile(net, mode))
    if "reduce-overhead" in modes:
        found["ghost_ops.fuse, torch.compile reduce-overhead"] = Step(
            lambda net: device.compile(ghost_ops.fuse(net), "reduce-overhead")
        )
    return found


def new_result(part: str, case: str, batch: int, dtype: torch.dtype, name: str) -> Result:
    group = "target" if name.startswith("ghost_ops") else "pytorch"
    return Result(part, case, batch, 1, 1, name, name, group, dtype=str(dtype).removeprefix("torch."))


def floor_bytes(case: ModuleCase | NetCase, batch: int, dtype: torch.dtype) -> int:
    """The least that must move, in this dtype (the cases count float32)."""
    return case.bytes(batch) * dtype.itemsize // 4


class Inference:
    """A case at a batch and dtype, with the float64 result of its first images."""

    def __init__(self, device: Device, case: ModuleCase | NetCase, batch: int, dtype: torch.dtype) -> None:
        self.device, self.case, self.batch, self.dtype = device, case, batch, dtype
        self.net = case.build().to(device.name, dtype)
        self.x = case.input(batch).to(device.name, dtype).contiguous(memory_format=LAST)
        exact = case.build().to(device.name).double().eval()
        exact.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in self.net.state_dict().items()})
        with torch.no_grad():
            self.expected = exact(self.x[:8].double())

    def run(
        self, part: str, builders: Mapping[str, Callable[[], Forward]], rounds: int, bandwidth: float | None = None
    ) -> list[Result]:
        """Compares each with float64, then times those that are right in turn."""
        rows, calls, size = [], {}, floor_bytes(self.case, self.batch, self.dtype)
        with torch.no_grad():
            for name, build in builders.items():
                row = new_result(part, self.case.name, self.batch, self.dtype, name)
                row.bytes, row.roof = size, size / bandwidth if bandwidth else None
                rows.append(row)
                try:
                    run, seen = build(), self.x.contiguous() if "NCHW" in name else self.x
                    row.error = error_of(run(seen)[:8], self.expected)
                    if row.error > TOLERANCE[self.dtype]:
                        row.refuse(WRONG, "its result differs from float64")
                        continue
                    call = lambda run=run, seen=seen: run(seen)
                    row.resident_bytes = None if is_graph(name) else self.device.peak(call)
                    calls[id(row)] = call
                except Exception as error:  # a contender's failure is a result of that contender
                    row.refuse(FAILED, f"{type(error).__name__}: {error}"[:200])
            take_turns(self.device, rows, calls, rounds)
        return rows


def graphed(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A whole training step as one CUDA graph; gradients stay in its memory from replay to replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


class Training:
    """A training step under autocast: zero_grad, forward, cross-entropy, backward, SGD.

    The learning rate is 0, so that every step is the first one. Each parameter's gradient is compared with float64 by
    what eager PyTorch's is off by in the same dtype: at random weights a rounding flips ReLUs, which moves every
    gradient before them.
    """

    def __init__(self, device: Device, case: TrainCase, batch: int, dtype: torch.dtype) -> None:
        self.device, self.case, self.batch, self.dtype = device, case, batch, dtype
        self.images, self.labels = (t.to(device.name) for t in case.batch(batch))

    @cached_property
    def exact(self) -> Results:
        net = self.case.build().to(self.device.name).double()
        (F.cross_entropy(net(self.images.double()), self.labels) * SCALE).backward()
        return results_of(net)

    @cached_property
    def eager(self) -> Results:
        net, step, _ = self.step(Step(lambda net: net))
        step()
        return results_of(net)

    def step(self, way: Step) -> tuple[nn.Module, Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
        """A new net, its step, and the forward to the loss. The step returns the loss."""
        net = self.case.build().to(self.device.name).to(memory_format=way.layout)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        x, run = self.images.contiguous(memory_format=way.layout), way.prepare(net)

        def loss() -> torch.Tensor:
            with torch.autocast(self.device.name, self.dtype):
                return F.cross_entropy(run(x), self.labels)

        def step() -> torch.Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # the compiler's graphs may reuse what the last step left
            optimizer.zero_grad(set_to_none=True)
            found = loss()
            (found * SCALE).backward()
            optimizer.step()
            return found.detach()

        return net, step, loss

    def run(self, ways: Mapping[str, Step], rounds: int) -> list[Result]:
        """Compares each with float64, then times those that are right in turn. An error is that of the gradients."""
        rows, calls, exact, eager = [], {}, self.exact, self.eager
        for name, way in ways.items():
            row = new_result("train", self.case.name, self.batch, self.dtype, name)
            rows.append(row)
            try:
                net, step, loss = self.step(way)
                call = graphed(step) if way.graphed else step
                for _ in range(1 if self.device.dry else WARM_UPS + 2):  # what replays graphs does so in the last
                    call()
                comparison = Comparison(self.dtype)
                comparison.add("the net", results_of(net), eager, exact)
                row.error = comparison.judge()["error"]
                if comparison.wrong:
                    row.refuse(WRONG, f"{comparison.wrong[0]}; {len(comparison.wrong)} in all")
                    continue
                if not is_graph(name):
                    row.saved_bytes, row.resident_bytes = saved_bytes(loss, net), self.device.peak(call)
                calls[id(row)] = call
            except Exception as error:
                row.refuse(FAILED, f"{type(error).__name__}: {error}"[:200])
        take_turns(self.device, rows, calls, rounds)
        return rows


def take_turns(device: Device, results: list[Result], calls: dict[int, Callable], rounds: int) -> None:
    """Times those that have a call, in turn, and relates all to the fastest of ours."""
    least = 0 if device.dry else 0.05
    timings = interleave(calls, rounds=rounds, threads=torch.get_num_threads(), min_seconds=least)
    running = [result for result in results if id(result) in timings]
    for result in running:
        result.take(timings[id(result)])
    ours = min((result.seconds for result in running if result.group == "target"), default=None)
    for result in running if ours else ():
        result.speedup = result.seconds / ours
