"""Ghost modules with DFC attention: what is recognised, and what only looks like one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ghost_ops.activations import Function
from ghost_ops.fused import DFCAttentionParts
from ghost_ops.fused.behaviour import block_of
from ghost_ops.surgery.recognise import survey

from .dfc_modules import KIND, Functional, HuaweiModule, module


def with_forward(forward):
    return type("Other", (HuaweiModule,), {"forward": forward})(6, 20)


def ghost_of(self, x):
    y = self.primary_conv(x)
    return torch.cat([y, self.cheap_operation(y)], 1)[:, : self.oup]


def upsampled(self, x, mode="nearest", pool=2):
    res = self.short_conv(F.avg_pool2d(x, pool, pool))
    return F.interpolate(self.gate_fn(res), size=x.shape[2:], mode=mode)


OTHERS = {
    "bilinear": lambda self, x: ghost_of(self, x) * upsampled(self, x, "bilinear"),
    "nearest-exact": lambda self, x: ghost_of(self, x) * upsampled(self, x, "nearest-exact"),
    "pooling of 3": lambda self, x: ghost_of(self, x) * upsampled(self, x, pool=3),
    "added": lambda self, x: ghost_of(self, x) + upsampled(self, x),
    "doubled": lambda self, x: 2 * ghost_of(self, x) * upsampled(self, x),
    "detached": lambda self, x: ghost_of(self, x) * upsampled(self, x).detach(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_computations_stay(other):
    (finding,) = survey(with_forward(OTHERS[other]))
    assert finding.parts is None and finding.kind == KIND, finding


def test_an_unknown_function_stays():
    (finding,) = survey(Functional(6, 20, acts=(F.silu, F.softsign)))
    assert finding.parts is None and finding.kind == KIND, finding
    assert "does not compute a Ghost module times a gate" in finding.reason


def test_the_functions():
    (finding,) = survey(Functional(7, 19))
    parts = finding.parts
    assert (parts.primary_function, parts.cheap_function.name) == (Function("silu"), "leaky_relu")
    assert parts.cheap_function.slope == pytest.approx(0.2) and parts.gate == "hard_sigmoid"


def test_columns_before_rows_stay():
    source = HuaweiModule(6, 20)
    source.short_conv[2], source.short_conv[4] = source.short_conv[4], source.short_conv[2]
    assert all(finding.parts is None for finding in survey(source))


def test_the_parts():
    (finding,) = survey(HuaweiModule(7, 19, ratio=3, relu=False))
    assert finding.parts == DFCAttentionParts(
        "primary_conv.0", "primary_conv.1", "primary_conv.2", "cheap_operation.0", "cheap_operation.1",
        "cheap_operation.2", 19, others=("gate_fn",), attention=tuple(f"short_conv.{i}" for i in range(6)),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"parts\.gate: expected one of clamp, .*, got 'softmax'"):
        block_of(module()).paths(DFCAttentionParts("a", gate="softmax"), "fuse")
