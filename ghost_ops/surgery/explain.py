"""``explain``: what runs for each module of a net, on inputs that it really sees, and why nothing faster does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..dispatch import PLAIN_PYTORCH, Decision
from ..fused import FrozenProgram
from ..fused.behaviour import Fused, block_of
from ..fused.block import Route, observing
from ..fused.frozen_net import Frozen, packed_modules
from ..fused.frozen_state import state_of
from ..fused.in_place import source_class
from .recognise import survey, survey_layers, survey_open
from .saved import Saved
from .tally import Tally


@dataclass(frozen=True)
class Row:
    """One module and one kind of input.

    Attributes:
        name: path in the net.
        module: name of the module's own class.
        input: shape, dtype and memory format; empty where the module was not called on its own.
        runs: the operator and its backend, or how else it runs.
        why: why nothing faster runs; empty where nothing faster is known.
        fused: whether it is a fused module.
        calls: how often it was called so.
        saved: bytes that autograd keeps of one such call for the backward, what is inside counted in; None in eval.
    """

    name: str
    module: str
    input: str
    runs: str
    why: str
    fused: bool
    calls: int = 1
    saved: int | None = None


@dataclass(frozen=True)
class Explanation:
    """The rows, in the order of the net; as text and for rich a table.

    Attributes:
        rows: one or more for each module.
        tally: how many of how many blocks run fused.
    """

    rows: tuple[Row, ...]
    tally: Tally | None = None

    def __rich__(self) -> Table:
        kept = any(row.saved is not None for row in self.rows)
        more = ["kept for the backward"] if kept else []
        table = Table("module", "class", "input", "runs", *more, "why not faster", title="How this net runs")
        if self.tally is not None and (self.tally.fused or self.tally.left):
            table.caption = f"{self.tally} run fused"
        if self.tally is not None and self.tally.frozen:
            table.caption = "; ".join(filter(None, (table.caption, f"{self.tally.in_programs()} in programs")))
        for row in self.rows:
            times = f"  ({row.calls} times)" if row.calls > 1 else ""
            size = "" if row.saved is None else f"{row.saved / 2**20:.2f} MiB"
            more = [size] if kept else []
            table.add_row(row.name or "(the net)", row.module, row.input + times, row.runs, *more, row.why)
        return table

    def __str__(self) -> str:
        console = Console(width=160, color_system=None, force_terminal=False, force_jupyter=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self if self.rows else "No Ghost module, nor anything that looks like one, was found.")
        return capture.get().rstrip("\n")


def explain(net: nn.Module, example: object) -> Explanation:
    """Run ``net`` once and say for each fused module, and each that could not be fused, what runs and why.

    The net runs in its present mode: in eval as in inference, without gradients; in training as in a training step.
    BatchNorm statistics and random generators are put back afterwards. Not meant for several threads at a time.

    Args:
        net: any module.
        example: its input: a tensor, or a tuple or list of arguments, or a mapping of keyword arguments.

    Raises:
        TypeError: net is no ``torch.nn.Module``.
        whatever ``net`` raises on this input.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"explain: net: expected a torch.nn.Module, got {type(net).__name__}")
    names = {module: name for name, module in net.named_modules()}
    frozen = _Frozen(names)
    known = {module: {} for module in names if isinstance(module, (Fused, FrozenProgram)) and module not in frozen}
    saved = Saved(net)
    with (
        _recording(known, saved),
        saved.watching(),
        _unchanged(net),
        frozen.through_programs(),
        torch.set_grad_enabled(net.training),
        _uncompiled(),
    ):
        if isinstance(example, Mapping):
            net(**example)
        else:
            net(*example) if isinstance(example, (tuple, list)) else net(example)

    rows = {}
    for module, notes in known.items():
        if not notes and frozen.is_opened(module):
            runs = frozen.describe(module)
            if runs:
                rows[module] = [Row(names[module], source_class(module).__name__, "", runs, "", True)]
            continue
        name, kind = frozen.whole.get(module, (names[module], source_class(module).__name__))
        rows[module] = [
            Row(
                name, kind, seen, decision.runs + more, decision.why, True, len(sizes),
                max(sizes) if net.training else None,
            )
            for (seen, decision, more), sizes in notes.items()
        ] or [Row(name, kind, "", frozen.uncalled(module) or _uncalled(module, known, names), "", True)]  # fmt: skip
    for path, module, why in frozen.left:
        rows.setdefault(module, []).append(Row(path, source_class(module).__name__, "", PLAIN_PYTORCH, why, False))
    findings = [
        found
        for found in survey(net)
        if not (found.module in frozen or found.module in frozen.packed or frozen.computes(found.module))
    ]
    opened = [] if frozen.states else survey_open(net, findings)
    layers = [] if frozen.states else survey_layers(net, findings)
    for found in (*findings, *opened, *layers):
        why = found.reason or "it could be fused: ghost_ops.fuse(net)"
        row = Row(found.name, type(found.module).__name__, "", PLAIN_PYTORCH, why, False)
        rows.setdefault(found.module, []).append(row)
    tally = Tally(net, [*findings, *opened], [module for module in known if frozen.is_opened(module)])
    return Explanation(tuple(row for module in names for row in rows.get(module, ())), tally)


class _Frozen:
    """What :func:`freeze` has done inside a net.

    Attributes:
        whole: programs that are all of a module's forward, with the path and the class of this module.
        packed: the modules whose parameters are in a program.
        programs: of each of these the path of the program, where that is not all of a module's forward.
        left: what went back to PyTorch: path, module and reason.
    """

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.states = {module: state_of(module) for module in names if isinstance(module, Frozen)}
        self.whole: dict[nn.Module, tuple[str, str]] = {}
        self.packed = frozenset().union(*map(packed_modules, self.states))
        self.programs: dict[nn.Module, str] = {}
        self.left: list[tuple[str, nn.Module, str]] = []
        for module, state in self.states.items():
            programs = module._modules.get(state.child, nn.ModuleList())
            for program in programs if state.whole else ():
                self.whole[program] = names[module], source_class(module).__name__
            for program in () if state.whole else programs:
                for part in program.parts:
                    self.programs.update(dict.fromkeys(module.get_submodule(part).modules(), names[program]))
            for path, why in state.left:
                name = ".".join(filter(None, (names[module], path)))
                self.left.append((name, module.get_submodule(path), why))

    def is_opened(self, module: nn.Module) -> bool:
        """Whether programs compute it, or some of what is inside: what they do not is named on its own."""
        return any(inner in self.packed for inner in module.modules())

    def describe(self, module: nn.Module) -> str:
        """How a fused block runs that programs compute; empty where the row of a program says it, or of a block that
        it is in."""
        outer = (m for m in self.programs if m is not module and isinstance(m, Fused) and module in set(m.modules()))
        found = dict.fromkeys(self.programs[m] for m in module.modules() if m in self.programs)
        return f"as a part of {' and '.join(found)}" if found and next(outer, None) is None else ""

    def uncalled(self, module: nn.Module) -> str:
        """How a module that was not called runs, in a module with a generated forward; empty of any other."""
        for holder, state in self.states.items():
            if state.code is None or module is holder or module not in set(holder.modules()):
                continue
            if isinstance(module, FrozenProgram):
                return "not on such inputs: for these its module's own forward runs" if state.guard is not None else ""
            return f"its layers, in the generated forward of {type(holder).__name__}"
        return ""

    def computes(self, module: nn.Module) -> bool:
        """Whether programs compute all of what is inside."""
        inside = set(module.modules())
        layers = [inner for inner in inside if inner._parameters]
        rest = any(left in inside for _, left, _ in self.left)
        return bool(layers) and all(inner in self.packed for inner in layers) and not rest

    def __contains__(self, module: nn.Module) -> bool:
        return module in self.states

    @contextmanager
    def through_programs(self) -> Iterator[None]:
        """Let calls that pass by the forward of a program, or replay a CUDA graph, be calls of programs."""
        kept = [(state, state.graphs, state.fast) for state in self.states.values()]
        for state in self.states.values():
            state.graphs = state.fast = None
        try:
            yield
        finally:
            for state, graphs, fast in kept:
                state.graphs, state.fast = graphs, fast


def _uncalled(module: nn.Module, known: dict[nn.Module, dict], names: dict[nn.Module, str]) -> str:
    for block, notes in known.items():
        holds = isinstance(block, Fused) and block_of(block).holds_blocks
        if holds and notes and block is not module and module in set(block.modules()):
            return f"within {names[block] or 'the block'}"
    return "was not called"


@contextmanager
def _recording(known: dict[nn.Module, dict], saved: Saved) -> Iterator[None]:
    """Note the decision for each call of a fused or frozen module, and what autograd keeps of that call."""

    def observe(module: nn.Module, x: object, route: Callable[[], Route]) -> object:
        decision, run = route()
        if module not in known:
            return run()
        decision = _with_graph(decision, module, x)
        more = f", {_scratch(module, x)}" if isinstance(module, FrozenProgram) else ""
        with saved.span() as count:
            out = run()
        known[module].setdefault((_describe(x), decision, more), []).append(count())
        return out

    with observing(observe):
        yield


def _with_graph(decision: Decision, module: nn.Module, x: object) -> Decision:
    """The decision, with what is known of the CUDA graphs of a module that is to have them."""
    block = block_of(module)
    if block is None or block.graphs is None:
        return decision
    why = block.graphs.describe(block, module, x)
    if why is None:
        return replace(decision, runs=f"{decision.runs}, as a CUDA graph")
    return replace(decision, reasons=(*decision.reasons, f"not as a CUDA graph, since {why}"))


def _scratch(program: FrozenProgram, x: torch.Tensor) -> str:
    kept = program.scratch_bytes(x) / 2**20
    return f"{len(program.parts)} modules in one call, {kept:.1f} MiB of scratch a thread"


@contextmanager
def _unchanged(net: nn.Module) -> Iterator[None]:
    """Put buffers and the states of the random generators back."""
    kept = [(m, name, t, t.clone()) for m in net.modules() for name, t in m._buffers.items() if t is not None]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                if buffer.is_meta or not torch.equal(buffer, value):  # a frozen net notices what is written
                    buffer.copy_(value)
                module._buffers[name] = buffer


@contextmanager
def _uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _describe(x: object) -> str:
    if not isinstance(x, torch.Tensor):
        return type(x).__name__
    text = f"{' x '.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return f"{text} channels_last" if last else text
