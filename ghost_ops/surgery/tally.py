"""How many of the blocks of a net are fused, and why the others are not, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import nn

from ..fused.behaviour import block_of
from ..fused.block import Block
from .recognise import Finding, survey, survey_open

MANY = 3  # reasons that a message names


class Tally:
    """The blocks of a net, fused and left, by kind. As text: ``18 of 32 Ghost modules, 7 of 7 squeeze-and-excite``.

    Attributes:
        fused: how many modules of each kind run fused.
        frozen: how many of each kind run as a part of programs.
        left: how many of each kind look like it and stay plain PyTorch.
        reasons: why these do, each with the paths of the modules, the most frequent first.

    Args:
        net: the net.
        findings: what :func:`survey` found in it, before or after it was fused.
        frozen: its fused modules that programs compute.
    """

    def __init__(self, net: nn.Module, findings: Sequence[Finding], frozen: Collection[nn.Module] = ()) -> None:
        blocks = {m: block for m in net.modules() if _is_counted(block := block_of(m))}
        self.frozen = Counter(block.kind for m, block in blocks.items() if m in frozen)
        self.fused = Counter(block.kind for m, block in blocks.items() if m not in frozen)
        left = [f for f in findings if _is_counted(f.block) and block_of(f.module) is None]
        self.left = Counter(found.kind for found in left)
        by_reason: dict[str, list[str]] = {}
        for found in left:
            by_reason.setdefault(found.reason or "it could be fused", []).append(found.name or "the net itself")
        self.reasons = dict(sorted(by_reason.items(), key=lambda item: -len(item[1])))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and vars(self) == vars(other)

    __hash__ = None

    def __str__(self) -> str:
        kinds = dict.fromkeys((*self.fused, *self.left))
        return ", ".join(f"{self.fused[k]} of {self.fused[k] + self.left[k]} {_plural(k)}" for k in kinds)

    def in_programs(self) -> str:
        """Those that run as a part of programs, by kind."""
        return ", ".join(f"{count} {_plural(kind) if count > 1 else kind}" for kind, count in self.frozen.items())

    def why(self) -> str:
        """The reasons that leave most modules plain, each with how many and the first of them."""
        said = []
        for reason, paths in list(self.reasons.items())[:MANY]:
            where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
            said.append(f"{where}: {reason}")
        more = len(self.reasons) - MANY
        return "; ".join(said) + (f"; and {more} more reasons" if more > 0 else "")


def tally(net: nn.Module) -> Tally:
    """Count the blocks of a net.

    Args:
        net: any module, fused or not; it is not changed.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
    """
    findings = survey(net)
    return Tally(net, [*findings, *survey_open(net, findings)])


def _is_counted(block: Block | type[Block] | None) -> bool:
    """Whether it is a block: a convolution layer is none, and runs fused only where that is predicted to be faster."""
    return block is not None and not block.is_layer


def _plural(kind: str) -> str:
    if kind.endswith("excite"):
        return kind
    noun, *more = kind.partition(" with ")
    return "".join((noun, "s", *more))
