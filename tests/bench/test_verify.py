from dataclasses import dataclass

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import registered_blocks, unregister_block
from ghost_ops.verify import blocks, compare, draws, evaluate, verify_blocks, verify_operators
from ghost_ops.verify import operators as checks
from ghost_ops.verify.compare import measure_call

EXACT = torch.linspace(-1, 1, 64, dtype=torch.float64)


@pytest.mark.parametrize(
    "ours, eager, ok",
    [
        (EXACT.float(), EXACT.float(), True),
        ((EXACT + 1.9e-3).float(), (EXACT + 1e-3).float(), True),
        ((EXACT + 2.1e-3).float(), (EXACT + 1e-3).float(), False),
        ((EXACT + 1e-6).float(), EXACT.float(), False),
        (EXACT.float() * float("nan"), EXACT.float(), False),
        (EXACT[:5].float(), EXACT.float(), False),
        (EXACT, EXACT.float(), False),
    ],
)
def test_comparison(ours, eager, ok):
    assert (compare(ours, eager, EXACT, ulps=2)[2] <= 1) == ok


def test_every_operator_dtype_layout_and_direction_is_verified():
    told = []
    outcomes = verify_operators(1, told.append)
    keys = {(o.operator, o.dtype, o.layout, o.direction) for o in outcomes}
    assert len(keys) == len(outcomes) == len(told) == checks.count_operators() == 80
    assert {o.operator for o in outcomes} == set(checks.OPERATORS)
    assert all(o.error < 1 and o.ratio >= 0 for o in outcomes)


def test_draws_repeat_and_vary():
    first, again = (list(draws("ghost_module", torch.float32, 8)) for _ in range(2))
    assert [d.describe() for d in first] == [d.describe() for d in again]
    assert len({d.describe() for d in first}) == 8
    assert len({d.options["act"] for d in first}) > 2
    assert all(torch.equal(d.tensors["x"], d.tensors["x"].float().double()) for d in first)


@pytest.mark.parametrize("operator", checks.OPERATORS)
def test_the_arguments_of_a_call_stay(operator):
    (drawn,) = draws(operator, torch.float32, 1)
    before = {name: t.clone() for name, t in drawn.tensors.items()}
    results = evaluate(drawn, torch.float64, "channels_last", drawn.differentiable, "reference")
    assert results and all(torch.equal(t, before[name]) for name, t in drawn.tensors.items())
    assert not any(t.requires_grad for t in drawn.tensors.values())


def test_a_wrong_operator_fails(monkeypatch):
    right = checks.evaluate

    def wrong(drawn, dtype, layout, backward, backend=None):
        results = right(drawn, dtype, layout, backward, backend)
        spoilt = backend is None and dtype == torch.float32
        return {name: t * 1.001 for name, t in results.items()} if spoilt else results

    monkeypatch.setattr(checks, "OPERATORS", ("squeeze_excite",))
    monkeypatch.setattr(checks, "evaluate", wrong)
    outcomes = {(o.dtype, o.layout, o.direction): o for o in verify_operators(1, lambda what: None)}
    assert len(outcomes) == 8
    assert all(o.ok == (dtype == "bfloat16") for (dtype, _, _), o in outcomes.items())


def test_an_operator_that_raises_fails(monkeypatch):
    right = checks.evaluate

    def raising(drawn, dtype, layout, backward, backend=None):
        if backend is None and backward:
            raise RuntimeError("no kernel")
        return right(drawn, dtype, layout, backward, backend)

    monkeypatch.setattr(checks, "OPERATORS", ("depthwise",))
    monkeypatch.setattr(checks, "evaluate", raising)
    for o in verify_operators(1, lambda what: None):
        assert o.ok == (o.direction == "forward")
        assert o.ok or o.what.startswith("RuntimeError: no kernel, of ")


# Blocks


@dataclass(frozen=True)
class Parts:
    conv: str = "conv"


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)

    def forward(self, x):
        return 2 * self.conv(x)


class DoubledBlock(ghost_ops.LayerBlock):
    """A block of a user's own, whose program is wrong by as much as ``OFF``."""

    kind, Parts, off = "doubled convolution", Parts, 0.0

    @classmethod
    def find(cls, module):
        return Parts() if isinstance(module, Doubled) else None

    def read(self, structure, parts):
        return (structure.conv_bn_act(parts.conv, None, None),)

    def compute(self, layers, x):
        return (2 + self.off) * self.call(layers[0], x)


@pytest.fixture
def doubled():
    ghost_ops.register_block(DoubledBlock)
    yield DoubledBlock
    unregister_block(DoubledBlock)


def outcomes_of(kind, monkeypatch, count=1):
    monkeypatch.setattr(blocks, "registered_blocks", lambda: [b for b in registered_blocks() if b.kind == kind])
    told = []
    found = verify_blocks(count, told.append)
    assert len(found) == len(told) == blocks.count_blocks()
    return found


def test_every_block_has_examples_which_are_recognised():
    """Comparing them all takes a minute: ``ghost-ops verify`` does, and tests/fused compares each in full."""
    for block in registered_blocks():
        assert block.examples(), block
    for block, name, make in blocks.examples():
        blocks._Example(block, name, make(), torch.float32)._fused()


@pytest.mark.parametrize("kind", ["RepGhost module", "squeeze-and-excite"])
def test_a_block_is_verified(kind, monkeypatch):
    found = outcomes_of(kind, monkeypatch)
    keys = {(o.example, o.dtype, o.layout, o.direction) for o in found}
    assert len(keys) == len(found) and {o.direction for o in found} == set(blocks.DIRECTIONS)
    assert all(o.error < 1 and o.ratio >= 0 and o.backend for o in found)
    assert all(o.ok for o in found if o.dtype == "float32"), [o for o in found if not o.ok]


def test_a_block_of_ones_own_is_verified_where_it_has_examples(doubled, monkeypatch):
    (outcome,) = outcomes_of(doubled.kind, monkeypatch)
    assert not outcome.calls and outcome.ok and "has no examples" in outcome.what
    monkeypatch.setattr(doubled, "examples", classmethod(lambda cls: {"mine": Doubled}))
    found = outcomes_of(doubled.kind, monkeypatch)
    assert len(found) == 12 and all(o.ok and o.example == "mine" for o in found)


def test_a_block_that_is_wrong_or_not_fused_fails(doubled, monkeypatch):
    monkeypatch.setattr(doubled, "examples", classmethod(lambda cls: {"mine": Doubled}))
    right = doubled.compute
    monkeypatch.setattr(doubled, "off", 1e-3)
    found = outcomes_of(doubled.kind, monkeypatch)  # fuse compares too, and refuses
    assert all(not o.ok and "computes something else" in o.what for o in found), found[0]
    monkeypatch.setattr(doubled, "off", 0.0)
    monkeypatch.setattr(doubled, "compute", lambda self, layers, x: right(self, layers, x) * WRONG[0])
    made = blocks._Example._made
    monkeypatch.setattr(blocks._Example, "_made", lambda self: (made(self), WRONG.__setitem__(0, 1.001))[0])
    WRONG[0] = 1.0
    found = outcomes_of(doubled.kind, monkeypatch)
    assert {o.direction for o in found if not o.ok and o.dtype == "float32"} == {"inference", "training"}
    monkeypatch.setattr(doubled, "find", classmethod(lambda cls, module: None))
    found = outcomes_of(doubled.kind, monkeypatch)
    assert all(not o.ok and "can run fused" in o.what for o in found), found[0]


WRONG = [1.0]


def test_a_call_past_its_bound_is_judged_with_nearby_ones():
    """One that is past it alone is luck, which a fault in each of them is not; without one no other call is made."""
    ratios = {"call": 1.5, "near": 0.4, "far": 3.0}
    made = []

    def measure(call):
        made.append(call)
        return {"output": (0.0, 0.0, ratios[call]), "gradient": (0.0, 0.0, 0.2)}

    assert measure_call(measure, "call", ["near"] * 8) == {"output": (0.0, 0.0, 0.4), "gradient": (0.0, 0.0, 0.2)}
    assert measure_call(measure, "call", ["far"] * 8)["output"][2] == 3.0
    made.clear()
    assert measure_call(measure, "near", ["far"] * 8)["output"][2] == 0.4 and made == ["near"]
