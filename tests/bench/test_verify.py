import pytest
import torch

from ghost_ops import verify as checks
from ghost_ops.verify import compare, draws, evaluate

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
    outcomes = checks.verify(1)
    keys = {(o.operator, o.dtype, o.layout, o.direction) for o in outcomes}
    assert len(keys) == len(outcomes) == 80
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
    outcomes = {(o.dtype, o.layout, o.direction): o for o in checks.verify(1)}
    assert len(outcomes) == 8
    assert all(o.ok == (dtype == "bfloat16") for (dtype, _, _), o in outcomes.items())
