"""Where in a program a block of several steps begins that one kernel computes."""

from __future__ import annotations

from dataclasses import dataclass

from ...program import Add, Conv, Depthwise, Excite, Ghost, Linear, Pool, Scale, Step
from ..registry import CHEAP_KERNELS

MOST_WINDOW = 63  # a side of a dense convolution's window: csrc/cuda/shape.h
MOST_INPUTS = 256  # numbers of a window, which a pixel in shared memory has


@dataclass
class Bottleneck:
    """The steps of a bottleneck, each as its place after the first; None where there is none.

    Attributes:
        count: number of steps.
        one, two: the Ghost modules, or 1x1 convolutions; without ``one`` the depthwise convolution reads the input.
        cheap, cheap2: depthwise convolutions of all of their results, which take their place, as in RepGhost.
        depthwise: the depthwise convolution between them.
        excite: the excitation.
        shortcut: the depthwise convolution of the shortcut, which a 1x1 convolution follows.
        adds_input: whether the input is added.
    """

    count: int = 0
    one: int | None = None
    cheap: int | None = None
    depthwise: int | None = None
    excite: int | None = None
    shortcut: int | None = None
    two: int = 0
    cheap2: int | None = None
    adds_input: bool = False


class _Reader:
    """Takes the steps of a bottleneck one by one. A value is what a step made, by its place, or -1, the input."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps, self.at = steps, 0
        self.source = steps[0].source
        self._made: dict[int, int] = {}

    def next_is(self, kind: type, value: int | None = None, ahead: int = 0) -> bool:
        """Whether the next step is one of a kind that there is a kernel for, and reads this value."""
        at = self.at + ahead
        if at >= len(self.steps) or not isinstance(self.steps[at], kind):
            return False
        step = self.steps[at]
        if kind is Depthwise and not (step.is_same and step.kernel[0] in CHEAP_KERNELS):
            return False
        return value is None or self.value(step.source) == value

    def take(self) -> int:
        """The place of the next step, which is taken."""
        out = getattr(self.steps[self.at], "out", None)
        if out is not None:
            self._made[out] = self.at
        self.at += 1
        return self.at - 1

    def value(self, slot: int) -> int | None:
        """What is in a slot now: None where that is from before, and not the input."""
        return self._made.get(slot, -1 if slot == self.source else None)


def find_bottleneck(steps: list[Step], at: int) -> Bottleneck | None:
    """The bottleneck that begins at a step, and that one kernel computes."""
    if not isinstance(steps[at], Ghost | Depthwise):
        return None
    r, found = _Reader(steps[at:]), Bottleneck()
    inner, squeezed, channels, stride = -1, False, steps[at].channels, 1
    if r.next_is(Ghost):
        one = r.steps[0]
        if one.scaled or one.residual >= 0:
            return None
        inner = found.one = r.take()
        squeezed = one.squeeze
        if not (one.cheap_channels or squeezed) and r.next_is(Depthwise, inner):
            step = r.steps[r.at]
            follows = r.at + 1 < len(r.steps) and isinstance(r.steps[r.at + 1], Depthwise)
            if step.stride[0] == 1 and not step.squeeze and follows and r.steps[r.at + 1].source == step.out:
                inner = found.cheap = r.take()
    if not squeezed and r.next_is(Depthwise, inner):
        step = r.steps[r.at]
        inner = found.depthwise = r.take()
        squeezed, stride = step.squeeze, step.stride[0]
    if squeezed != r.next_is(Excite) or (found.one is None and found.depthwise is None):
        return None
    is_scaled = False
    if squeezed:
        found.excite = r.take()
        if r.next_is(Scale, inner) and not r.steps[r.at].squeeze:
            inner, is_scaled = r.take(), True
    added = None
    if found.one is not None and r.next_is(Depthwise, -1):
        added = _shortcut(r, found, stride)
        if added is None or not _is_plain(r.steps[added]):
            return None
    if not r.next_is(Ghost, inner) or r.steps[r.at].scaled != (squeezed and not is_scaled):
        return None
    two = r.steps[r.at]
    residual = None if two.residual < 0 else r.value(two.residual)
    if two.squeeze or (two.residual >= 0 and residual is None):
        return None
    last = found.two = r.take()
    if residual is None and not two.cheap_channels and r.next_is(Depthwise, last) and _is_added(r, found.one):
        if r.steps[r.at].stride[0] > 1 or r.steps[r.at].squeeze:
            return None
        last = found.cheap2 = r.take()
    if residual is None and added is None and found.one is not None and _adds_shortcut(r, r.at, last):
        added = residual = _shortcut(r, found, stride)
        if added is None:
            return None
        last = added
    elif residual is None and r.next_is(Add) and not r.steps[r.at].squeeze:
        wanted = -1 if added is None else added
        if sorted(r.value(slot) or 0 for slot in (r.steps[r.at].source, r.steps[r.at].other)) == sorted([wanted, last]):
            residual, last = wanted, r.take()
    if residual not in ([added] if added is not None else [None, -1] if stride == 1 else [None]):
        return None
    if residual == -1 and channels != two.out_channels:
        return None
    found.adds_input, found.count = residual == -1, r.at
    taken, later, kept = r.steps[: r.at], r.steps[r.at :], r.steps[last].out
    unwritten = {step.out for step in taken if hasattr(step, "out")} - {kept}
    return found if state_dies(later) and all(dies(slot, later) for slot in unwritten) else None


def _is_plain(step: Ghost) -> bool:
    """Whether a step is a 1x1 convolution and nothing else."""
    return not (step.scaled or step.squeeze or step.cheap_channels or step.residual >= 0)


def _shortcut(r: _Reader, found: Bottleneck, stride: int) -> int | None:
    """The place of the 1x1 convolution of a shortcut, whose steps are taken; None where it is another one."""
    if r.steps[r.at].stride != (stride, stride) or r.steps[r.at].squeeze:
        return None
    found.shortcut = r.take()
    if not r.next_is(Ghost, found.shortcut) or r.steps[r.at].scaled or r.steps[r.at].squeeze:
        return None
    return None if r.steps[r.at].cheap_channels else r.take()


def _adds_shortcut(r: _Reader, at: int, value: int | None) -> bool:
    """Whether the steps from ``at`` on are a shortcut of the input that a value is added to; None: what the step before
    makes."""
    if at + 1 >= len(r.steps):
        return False
    first, second = r.steps[at : at + 2]
    if not (isinstance(first, Depthwise) and isinstance(second, Ghost)) or second.residual in (-1, first.out):
        return False
    before = r.steps[at - 1].out
    added = second.residual == before if value is None else r.value(second.residual) == value
    return added and r.value(first.source) == -1 and (value is not None or first.source != before)


def _is_added(r: _Reader, one: int | None) -> bool:
    """Whether what the next step makes is added at once: by a step for this, or by a shortcut."""
    after = r.steps[r.at + 1] if r.at + 1 < len(r.steps) else None
    if isinstance(after, Add):
        return r.steps[r.at].out in after.reads()
    return one is not None and _adds_shortcut(r, r.at + 1, None)


def find_tail(steps: list[Step], at: int) -> int:
    """How many steps from ``at`` on are a 1x1 convolution of whose map only means are read, and linear layers of these;
    0 where they are none."""
    one, *rest = steps[at:]
    if not isinstance(one, Ghost) or not one.squeeze or one.cheap_channels or one.scaled or one.residual >= 0:
        return 0
    count = 1
    while count < len(rest) and isinstance(rest[count], Linear):
        count += 1
    later = rest[count:]
    reads_means = bool(rest) and isinstance(rest[0], Pool) and count > 1
    return 1 + count if reads_means and dies(one.out, later) and state_dies(later) else 0


def reads_windows(step: Step) -> bool:
    """Whether a step is a convolution of the program's input for which there is a kernel."""
    if not isinstance(step, Conv) or step.source >= 0:
        return False
    squares = all(len(set(sizes)) == 1 for sizes in (step.kernel, step.stride, step.padding))
    plain = step.dilation == (1, 1) and step.groups == 1 and step.residual < 0 and not step.squeeze
    inputs = step.channels * step.kernel[0] * step.kernel[1]
    return squares and plain and step.kernel[0] <= MOST_WINDOW and inputs <= MOST_INPUTS


def dies(slot: int, later: list[Step]) -> bool:
    """Whether nobody reads what is in a slot."""
    for step in later:
        if slot in step.reads():
            return False
        if getattr(step, "out", -1) == slot:
            return True
    return True


def state_dies(later: list[Step]) -> bool:
    """Whether nobody reads the squeeze and the excitation."""
    squeezed = excited = False
    for step in later:
        if (step.reads_squeeze and not squeezed) or (getattr(step, "scaled", False) and not excited):
            return False
        squeezed |= bool(getattr(step, "squeeze", False))
        excited |= isinstance(step, Excite)
    return True
