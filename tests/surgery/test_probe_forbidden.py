"""Modules whose values are right, and which do something that fused code would not do: left alone, with the reason."""

import re

import pytest
import torch

from ghost_ops.surgery import fuse, survey

from . import forbidden, forbidden_subtle  # noqa: F401  the second adds to the first

# The gate's values are at most one, in a map of one pixel.
HARMLESS = {("squeeze-and-excite", name) for name in ("clamp", "minimum", "converted", "converted_product")}
CASES = [
    pytest.param(kind, cause, function, id=f"{kind}, {name}")
    for kind in forbidden.KINDS
    for cause, functions in forbidden.STEPS.items()
    for name, function in functions.items()
    if (kind, name) not in HARMLESS
]
ATTRIBUTES = {"cfg": forbidden.CONFIG, "cfgs": [forbidden.CONFIG]}


@pytest.mark.filterwarnings("ignore:fuse. no Ghost module")
@pytest.mark.parametrize(("kind", "cause", "function"), CASES)
def test_left_alone_with_the_reason(kind, cause, function):
    module = forbidden.make(kind, function, **ATTRIBUTES)
    (finding,) = [f for f in survey(module) if f.module is module]
    assert finding.kind == kind and finding.parts is None
    assert re.search(cause, finding.reason), finding.reason
    cls = type(module)
    assert type(fuse(module)) is cls
    assert (module.seen, module.calls, module.numbers, forbidden.LOG, forbidden.CALLS) == ([], 0, {}, [], 0)
    assert not {"last", "penalty"} & vars(module).keys() and not hasattr(cls, "total")
    assert not module.kept and not module.queue and not vars(forbidden.CONFIG)
    assert module.count == 0 and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("kind", forbidden.KINDS)
def test_the_same_without_it_is_fused(kind):
    module = forbidden.make(kind, lambda self, y: y)
    (finding,) = [f for f in survey(module) if f.module is module]
    assert finding.reason is None and finding.parts is not None
