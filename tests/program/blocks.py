"""A bottleneck as a program, for tests of what holds for any."""

from __future__ import annotations

from ghost_ops.program import BIAS, NORM, Depthwise, Excite, Ghost, Layer, Linear, Pool, Store
from tests.program.cases import Program, conv, make_program

PLAIN = Layer()


def ghost(source, out, channels, primary, made, kept=None, kernel=3, residual=-1, scaled=False, squeeze=False):
    kept, cheap = kept or primary + made, PLAIN if made else None
    return Ghost(source, out, residual, scaled, squeeze, channels, primary, made, kept, kernel, PLAIN, cheap)


def block(features: bool = True) -> Program:
    """A bottleneck with excitation, behind a convolution, before pooling and layers; work for several threads."""
    relu, norm = Layer(BIAS, 0.0, 1), Layer(NORM, 1e-5, 0)
    steps = [
        conv(-1, 0, 3, 20, 3, 2, 1, relu),
        Ghost(0, 1, -1, False, False, 20, 33, 33, 66, 3, relu, relu),
        Depthwise.same(1, 2, True, 66, 5, 1, norm),
        Excite(66, 12, 1, relu, Layer(BIAS)),
        Ghost(2, 3, 0, True, False, 66, 10, 10, 20, 3, norm, norm),
        Ghost(3, 4, -1, False, True, 20, 37, 0, 37, 1, relu, None),
    ]
    tail = [Pool(37), Linear(37, 21, relu), Linear(21, 10, PLAIN)] if features else [Store(4)]
    return make_program(*steps, *tail)
