"""How many functions of the package a training forward calls: of a step on two threads Python is a good part."""

import sys
from pathlib import Path

import pytest

import ghost_ops
from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule

from ..helpers import make_map, randomise
from .inverted import Block

MOST = {"bottleneck": 150, "Ghost module": 45, "inverted residual": 110}
MADE = {
    "bottleneck": lambda memory: FusedGhostBottleneck(8, 20, 12, stride=2, se_ratio=0.25, memory=memory),
    "Ghost module": lambda memory: FusedGhostModule(8, 20),
    "inverted residual": lambda memory: ghost_ops.fuse(Block(8, 24, 8, se=True), memory=memory),
}


def calls_of(function):
    """Calls of functions of the package, comprehensions included where Python calls them."""
    root, count = str(Path(ghost_ops.__file__).parent), 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(root)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("kind", MADE)
def test_a_training_forward(kind, memory):
    module, x = randomise(MADE[kind](memory)).train(), make_map((2, 8, 9, 7), requires_grad=True)
    module(x)
    assert 10 < calls_of(lambda: module(x)) <= MOST[kind]
