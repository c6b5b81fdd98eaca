"""Shortcuts without parameters: every other row and column of a map, and channels of zeros around it, in a program."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghost_ops.surgery import explain, freeze

from ..helpers import assert_as_accurate, make_map, randomise
from .test_freeze import _as_with_kernels, programs  # noqa: F401  (a fixture)

SHORTCUTS = {
    "as in akamaster's": lambda x, s, more: F.pad(x[:, :, ::s, ::s], (0, 0, 0, 0, more // 2, more - more // 2)),
    "value and mode": lambda x, s, more: F.pad(x[..., ::s, ::s], [0, 0, 0, 0, 0, more], "constant", 0),
    "zeros before, some channels": lambda x, s, more: F.pad(x[:, 1:, ::s, ::s], (0, 0, 0, 0, more + 1, 0)),
    "pooled": lambda x, s, more: F.pad(F.avg_pool2d(x, s), pad=(0, 0, 0, 0, 0, more), value=0.0),
}


class Block(nn.Module):
    def __init__(self, channels, filters, stride, shortcut, branches=False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, filters, 3, stride, 1), nn.BatchNorm2d(filters)
        self.more, self.stride, self.shortcut, self.branches = filters - channels, stride, shortcut, branches

    def forward(self, x):
        out = self.norm(self.conv(x))
        if self.branches and x.shape[2] == 10**6:  # which no tracer takes
            return out
        out += self.shortcut(x, self.stride, self.more) if self.more else x
        return F.relu(out)


def net_of(name, **options):
    sizes = (5, 5, 1), (5, 12, 2), (12, 12, 1), (12, 21, 2)
    blocks = [Block(*size, SHORTCUTS[name], **options) for size in sizes]
    return randomise(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(21, 4))).eval()


@pytest.mark.parametrize("branches", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("name", SHORTCUTS)
def test_one_program(name, branches):
    net = net_of(name, branches=branches)
    frozen, exact = freeze(net), net_of(name).double()
    exact.load_state_dict(net.state_dict())
    assert len(programs(frozen)) == 1
    for shape in ((2, 5, 16, 12), (1, 5, 24, 8)):
        for layout in ("nchw", "channels_last"):
            x = make_map(shape, layout=layout)
            with torch.no_grad():
                assert_as_accurate(frozen(x), net(x), exact(x.double()))


def test_bfloat16():
    net, x = net_of("as in akamaster's"), make_map((2, 5, 16, 12))
    frozen = freeze(net, torch.bfloat16)
    assert len(programs(frozen)) == 1
    with torch.no_grad():
        x = x.bfloat16()
        plain, exact = copy.deepcopy(net).bfloat16()(x), copy.deepcopy(net).double()(x.double())
        assert_as_accurate(frozen(x), plain, exact)


def test_zeros_add_nothing_to_what_is_not_finite():
    class Added(Block):
        def forward(self, x):
            return self.conv(x) + F.pad(x, (0, 0, 0, 0, 1, 2))

    net, x = Added(4, 7, 1, None).eval(), make_map((1, 4, 6, 6))
    x[0, 1, 2, 3], x[0, 2, 5, 5] = torch.inf, torch.nan
    frozen = freeze(net)
    assert len(programs(frozen)) == 1
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-5, atol=1e-5, equal_nan=True)


class Other(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.between, self.last = nn.Conv2d(4, 6, 1), between, nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1)), "channels of zeros"),
        (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1), value=1.0), "something else than zeros"),
        (lambda y: F.pad(y, (1, 1, 0, 0, 1, 1)), "the sides of a map"),
        (lambda y: torch.cat([y, y[:, :2]], 1)[:, :, 1:], "a part of the rows or columns"),
    ],
)
def test_left_to_pytorch(between, why):
    net, x = Other(between).eval(), make_map((2, 4, 9, 7))
    frozen = freeze(net)
    assert len(programs(frozen)) == 2
    assert any(why in row.why for row in explain(frozen, x).rows)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), net(x), rtol=1e-4, atol=1e-5)
