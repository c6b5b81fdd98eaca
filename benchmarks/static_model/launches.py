"""Launches by name: what operators launch at a net's layer shapes, recorded on tensors without memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch

from ghost_ops.activations import GATES, NONE, RELU
from ghost_ops.backends.triton import (
    cheap_concat_train,
    convolution,
    depthwise,
    depthwise_gradients,
    dfc_gate_train,
    excite,
    ghost_module,
    ghost_module_train,
    launch,
    normalise,
    program_train,
    squeeze_excite,
    tiles,
)
from ghost_ops.backends.triton.epilogue import Epilogue
from ghost_ops.backends.triton.joins import Joins
from ghost_ops.backends.triton.norm import BatchNorm, NormVectors
from ghost_ops.backends.triton.taps import as_taps
from ghost_ops.program import Conv, Ghost, Layer, Load, Store, encode
from ghost_ops.program.training import number_of_program

BATCH = 256
HALF = torch.float16


@dataclass(frozen=True, eq=False)
class Recorded:
    """A launch as the operators' code makes it; the tensors among the arguments are on the meta device."""

    kernel: object
    grid: tuple[int, ...]
    arguments: dict
    warps: int
    stages: int

    @property
    def name(self) -> str:
        return self.kernel.__name__


@contextmanager
def recording(found: list[Recorded], architecture: str) -> Iterator[None]:
    """Within the block kernels are not launched but added to ``found``."""

    def start_kernel(kernel, grid, arguments, warps, stages):
        if min(grid) > 0:
            found.append(Recorded(kernel, grid, dict(arguments), warps, stages))

    with mock.patch.object(launch, "start_kernel", start_kernel), tiles.assume(architecture):
        yield


def record(call: Callable[[], object], architecture: str = "sm_90") -> list[Recorded]:
    """All that ``call`` would launch, in its order."""
    found: list[Recorded] = []
    with recording(found, architecture), torch.no_grad():
        call()
    return found


def _map(n: int, c: int, side: int) -> torch.Tensor:
    shape = (n, c, side, side)
    return torch.empty(shape, dtype=HALF, device="meta", memory_format=torch.channels_last)


def _own(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _half(*shape: int) -> torch.Tensor:
    return _own(*shape, dtype=HALF)


def _taps(c: int, d: int) -> torch.Tensor:
    """A depthwise weight as programs lay it out."""
    return as_taps(_half(c * d * d), (c, 1, d, d))


def train_module(n: int, c: int, m: int, side: int, d: int) -> None:
    x, w1, w2 = _map(n, c, side), _own(m, c, 1, 1), _own(m, 1, d, d)
    vectors = [_own(m), _own(m)]
    codes = 2 * m, RELU, RELU, 0.0, 0.0, 1e-5, 1e-5
    out, *statistics, _ = ghost_module_train.ghost_module_train(
        x, w1, None, *vectors, w2, None, *vectors, None, None, *codes
    )
    ghost_module_train.ghost_module_train_backward(
        out, x, w1, *vectors, w2, *vectors, None, None, *statistics, None, *codes
    )


def train_tail(n: int, m: int, side: int, d: int) -> None:
    z, weight, vectors = _map(n, m, side), _own(m, 1, d, d), [_own(m), _own(m)]
    codes = 2 * m, RELU, RELU, 0.0, 0.0, 1e-5, 1e-5
    out, *statistics = cheap_concat_train.cheap_concat_train(
        z, None, *vectors, weight, None, *vectors, None, None, *codes
    )
    cheap_concat_train.cheap_concat_train_backward(out, z, *vectors, weight, *vectors, None, None, *statistics, *codes)


def train_gated(n: int, c: int, m: int, side: int) -> None:
    x, gate, w1, w2 = _map(n, c, side), _map(n, 2 * m, side // 2), _own(m, c, 1, 1), _own(m, 1, 3, 3)
    vectors, codes = [_own(m), _own(m)], (2 * m, RELU, RELU, 0.0, 0.0, 1e-5, 1e-5)
    out, *statistics = ghost_module_train.ghost_module_train_gated(
        x, gate, w1, None, *vectors, w2, None, *vectors, None, None, *codes
    )
    ghost_module_train.ghost_module_train_gated_backward(
        out, x, gate, w1, *vectors, w2, *vectors, None, None, *statistics, *codes
    )


def train_gate(n: int, c: int, m: int, side: int) -> None:
    x, weight, row, column = _map(n, c, side), _own(m, c, 1, 1), _own(m, 1, 1, 5), _own(m, 1, 5, 1)
    parameters = [t for w in (weight, row, column) for t in (w, _own(m), _own(m))]
    numbers = GATES.index("sigmoid"), 1e-5, 1e-5, 1e-5
    out, *rest = dfc_gate_train.dfc_gate_train(x, *parameters, *numbers)
    dfc_gate_train.dfc_gate_train_backward(out, x, *parameters, *rest, *numbers)


def frozen_module(n: int, c: int, m: int, side: int, d: int, parts: frozenset[str]) -> None:
    scale = _half(n, c) if "scale" in parts else None
    residual = _map(n, 2 * m, side) if "residual" in parts else None
    cheap = NONE if residual is not None else RELU
    ghost_module.ghost_module(
        _map(n, c, side), _half(m, c, 1, 1), _half(m), _taps(m, d), _half(m), scale, residual, None, None, 2 * m, cheap,
        cheap, 0.0, 0.0, "squeeze" in parts,
    )  # fmt: skip


def frozen_product(n: int, c: int, m: int, side: int, parts: frozenset[str]) -> None:
    scale = _half(n, c) if "scale" in parts else None
    ghost_module.ghost_module(
        _map(n, c, side), _half(m, c, 1, 1), _half(m), None, None, scale, None, None, None, m, RELU, NONE, 0.0, 0.0,
        False,
    )  # fmt: skip


def frozen_depthwise(n: int, c: int, side: int, d: int, stride: int, parts: frozenset[str]) -> None:
    x = _map(n, c, side)
    depthwise.depthwise_with_epilogue(x, _taps(c, d), _half(c), None, stride, NONE, 0.0, "squeeze" in parts)


def train_depthwise(n: int, c: int, side: int, d: int, stride: int) -> None:
    x, weight = _map(n, c, side), _own(c, 1, d, d)
    depthwise.depthwise_backward(depthwise.depthwise(x, weight, None, stride), x, weight, None, stride, True, True)


def train_depthwise_norm(n: int, c: int, side: int, d: int, stride: int) -> None:
    x, weight, norm = _map(n, c, side), _own(c, 1, d, d), BatchNorm(_own(c), _own(c), 1e-5)
    z, vectors = depthwise.depthwise_before_norm(x, weight, stride, joins=Joins(x.device), norm=norm)
    grad, options = train_norm(z, norm, vectors, NONE)
    depthwise_gradients.depthwise_gradients(grad, x, weight, stride, z=z, **options)


def train_convolution_norm(n: int, c: int, m: int, side: int, d: int, stride: int) -> None:
    x, layer, weight = _map(n, c, side), Layer(0, 1e-5, RELU, 0.0), _own(m, c, d, d)
    if d == stride == 1:
        steps = [Load(0, c, False), Ghost(0, 1, -1, False, False, c, m, 0, m, 1, layer, None), Store(1)]
    else:
        steps = [Conv(0, c, m, d, stride, d // 2, layer), Store(0)]
    number = number_of_program(tuple(encode(steps, 2)))
    tensors = [weight, None, *(_own(m) for _ in range(4)), None, _own(dtype=torch.int64)]
    out, *saved = program_train.program_train(x, tensors, [0.1], number, "balanced")
    parameters = [None if 4 <= i < 6 or i == 7 else t for i, t in enumerate(tensors)]
    program_train.program_train_backward(out, x, parameters, saved, number, "balanced")


def train_norm(z: torch.Tensor, norm: BatchNorm, vectors: NormVectors, act: int) -> tuple[torch.Tensor, dict]:
    """A BatchNorm over the batch: its result, as the gradient too, and what its backward needs."""
    applied = vectors.applied(Epilogue(None, act))
    grad, _ = normalise.normalise(z, applied)
    own = Epilogue(None, act, gamma=norm.gamma, beta=norm.beta, eps=norm.eps)
    coefficients, _ = normalise.norm_gradient_sums(
        grad, z, applied, joins=Joins(z.device), own=own, vectors=vectors
    )  # fmt: skip
    return grad, {"norm": applied, "coefficients": coefficients}


def frozen_convolution(n: int, c: int, m: int, side: int, d: int, stride: int) -> None:
    convolution.convolution(_map(n, c, side), _half(m, c, d, d), _half(m), None, stride, d // 2, RELU, 0.0)


def train_excitation(n: int, c: int, side: int) -> None:
    r, x, gate = max(c // 4, 4), _map(n, c, side), GATES.index("hard_sigmoid")
    parameters = [_own(r, c), _own(r), _own(c, r), _own(c)]
    _, *vectors = squeeze_excite.squeeze_excite(x, *parameters, RELU, gate)
    squeeze_excite.squeeze_excite_backward(x, x, *vectors, *parameters, RELU, gate)


def frozen_excitation(n: int, c: int) -> None:
    r = max(c // 4, 4)
    gate = GATES.index("hard_sigmoid")
    excite.excite(_half(n, c), _half(r, c), _half(r), _half(c, r), _half(c), RELU, gate)


FORMS = """
train C->M@SIDE [DxD]                       a Ghost module of M primary channels, forward and backward
train tail M@SIDE [DxD]                     a Ghost module after its primary convolution, forward and backward
train gate C->M@SIDE                        the gate of DFC attention, forward and backward
train gated C->M@SIDE                       a Ghost module of M primary channels times a gate of half the size
train depthwise C DxD/STRIDE@SIDE           a depthwise convolution, forward and backward
train depthwise norm C DxD/STRIDE@SIDE      a depthwise convolution and a BatchNorm over the batch
train convolution norm C->M DxD/STRIDE@SIDE a first convolution, or a 1x1 one, a BatchNorm over the batch and ReLU
train excite C@SIDE                         squeeze and excitation, forward and backward
frozen C->M@SIDE [DxD][+residual][+scale][+squeeze]
frozen product C->M@SIDE[+scale]            a 1x1 convolution, which is a module without a cheap half
frozen depthwise C DxD/STRIDE@SIDE[+squeeze]
frozen convolution C->M DxD/STRIDE@SIDE
frozen excite C
""".strip()
PARTS = {"residual", "scale", "squeeze"}
_FORMS: list[tuple[str, Callable]] = [
    (r"train (\d+)->(\d+)@(\d+)(?: (\d+)x\4)?", lambda n, p, c, m, side, d=3: train_module(n, c, m, side, d)),
    (r"train tail (\d+)@(\d+)(?: (\d+)x\3)?", lambda n, p, m, side, d=3: train_tail(n, m, side, d)),
    (r"train gated (\d+)->(\d+)@(\d+)", lambda n, p, c, m, side: train_gated(n, c, m, side)),
    (r"train gate (\d+)->(\d+)@(\d+)", lambda n, p, c, m, side: train_gate(n, c, m, side)),
    (
        r"train depthwise (\d+) (\d+)x\2/(\d+)@(\d+)",
        lambda n, p, c, d, stride, side: train_depthwise(n, c, side, d, stride),
    ),
    (
        r"train depthwise norm (\d+) (\d+)x\2/(\d+)@(\d+)",
        lambda n, p, c, d, stride, side: train_depthwise_norm(n, c, side, d, stride),
    ),
    (
        r"train convolution norm (\d+)->(\d+) (\d+)x\3/(\d+)@(\d+)",
        lambda n, p, c, m, d, stride, side: train_convolution_norm(n, c, m, side, d, stride),
    ),
    (r"train excite (\d+)@(\d+)", lambda n, p, c, side: train_excitation(n, c, side)),
    (r"frozen (\d+)->(\d+)@(\d+)(?: (\d+)x\4)?", lambda n, p, c, m, side, d=3: frozen_module(n, c, m, side, d, p)),
    (r"frozen product (\d+)->(\d+)@(\d+)", lambda n, p, c, m, side: frozen_product(n, c, m, side, p)),
    (
        r"frozen depthwise (\d+) (\d+)x\2/(\d+)@(\d+)",
        lambda n, p, c, d, stride, side: frozen_depthwise(n, c, side, d, stride, p),
    ),
    (
        r"frozen convolution (\d+)->(\d+) (\d+)x\3/(\d+)@(\d+)",
        lambda n, p, c, m, d, stride, side: frozen_convolution(n, c, m, side, d, stride),
    ),
    (r"frozen excite (\d+)", lambda n, p, c: frozen_excitation(n, c)),
]


def case(name: str, batch: int = BATCH) -> list[Recorded]:
    """The launches of a case, which ``FORMS`` describes.

    Raises:
        ValueError: a name of no such form.
    """
    shape, *parts = name.split("+")
    if not set(parts) <= PARTS or (parts and not name.startswith("frozen")):
        raise ValueError(f"{name}: expected parts of {sorted(PARTS)} of a frozen layer")
    for form, call in _FORMS:
        if found := re.fullmatch(form, shape.strip()):
            numbers = [int(v) for v in found.groups() if v is not None]
            return record(partial(call, batch, frozenset(parts), *numbers))
    raise ValueError(f"{name}: expected a case like one of\n{FORMS}")


def labels(launches: list[Recorded]) -> list[str]:
    """A name for each launch of a case: the kernel's, and which of its launches this is, where there are several."""
    names = [one.name for one in launches]
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]
