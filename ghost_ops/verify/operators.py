"""Compare every operator, and eager PyTorch in the same dtype, with float64: forward and backward, on this machine."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from .. import functional
from ..activations import ACTIVATIONS, GATES, PRELU, WITH_SLOPES
from ..dispatch import select, use_backend
from .compare import (
    DTYPES,
    GRADIENT_ULPS,
    KINK,
    LAYOUTS,
    NEARBY,
    ULPS,
    Measures,
    Outcome,
    Tensors,
    Worst,
    compare,
    jumps,
    measure_call,
    name_of,
    nearby,
)


@dataclass(frozen=True)
class Drawn:
    """A call of an operator: tensors in float64, and the rest of the arguments."""

    operator: str
    tensors: Tensors
    options: dict[str, object]

    @property
    def differentiable(self) -> bool:
        return self.operator not in FORWARD_ONLY

    @property
    def input(self) -> torch.Tensor:
        """x, or z of an operator that begins at the primary convolution's result."""
        return self.tensors["z" if "z" in self.tensors else "x"]

    def describe(self) -> str:
        x = self.input
        options = ", ".join(f"{name}={value}" for name, value in self.options.items() if value not in (None, False))
        return f"{'x'.join(map(str, x.shape))}, {', '.join(n for n in self.tensors if n not in 'xz')}; {options}"


def _names(generator: random.Random, *without: int) -> str:
    return generator.choice([name for code, name in enumerate(ACTIVATIONS) if code not in without])


class _Draw:
    """Arguments of every operator, drawn from one generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale

    def positive(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64) + 0.5

    def sometimes(self, make: Callable[[], object]) -> object | None:
        return make() if self.random.random() < 0.5 else None

    def map(self, channels: int) -> torch.Tensor:
        pick = self.random.randint
        return self.normal(pick(1, 3), channels, pick(2, 11), pick(2, 11))

    def halves(self, names: tuple[str, ...], shapes: tuple[int, ...]) -> tuple[Tensors, dict[str, object]]:
        """The activations of the halves, and PReLU's weights."""
        tensors, options = {}, {}
        for name, channels in zip(names, shapes):
            options[name] = _names(self.random)
            if options[name] == "prelu":
                tensors[f"{name}_weight"] = self.normal(self.random.choice([1, channels]), scale=0.3)
        return tensors, options

    def ghost(self, trains: bool = False) -> tuple[int, int, int, Tensors, dict[str, object]]:
        """Sizes m and cheap channels, out_channels, both weights, activations.

        ``trains``: over batch statistics, which take away the scale of a filter. Of one with a single weight nothing
        would be left, and its gradient would be rounding.
        """
        m, ratio = self.random.randint(1, 20), self.random.choice([2, 2, 2, 3, 5])
        size = self.random.choice([3, 3, 5, 7] if trains else [1, 3, 5, 7])
        cheap, channels = m * (ratio - 1), self.random.randint(2 if trains else 1, 40)
        tensors, options = self.halves(("act", "cheap_act"), (m, cheap))
        options["out_channels"] = self.random.randint(m + 1, m + cheap)
        tensors["primary_weight"] = self.normal(m, channels, 1, 1, scale=channels**-0.5)
        tensors["cheap_weight"] = self.normal(cheap, 1, size, size, scale=1 / size)
        return m, cheap, channels, tensors, options

    def ghost_module(self) -> Drawn:
        m, cheap, channels, tensors, options = self.ghost()
        x = self.map(channels)
        if self.random.random() < 0.15:  # ratio 1: a plain convolution
            cheap, options = 0, {"act": options["act"], "out_channels": m}
            tensors = {n: t for n, t in tensors.items() if n in ("primary_weight", "act_weight")}
        optional = {
            "primary_bias": self.sometimes(lambda: self.normal(m, scale=0.3)),
            "cheap_bias": self.sometimes(lambda: self.normal(cheap, scale=0.3)) if cheap else None,
            "input_scale": self.sometimes(lambda: self.positive(x.shape[0], channels)),
            "residual": self.sometimes(lambda: self.normal(x.shape[0], options["out_channels"], *x.shape[2:])),
        }
        tensors |= {"x": x} | {name: t for name, t in optional.items() if t is not None}
        return Drawn("ghost_module", tensors, options | {"return_squeeze": self.random.random() < 0.5})

    def ghost_module_eval(self) -> Drawn:
        m, cheap, channels, tensors, options = self.ghost()
        x = self.map(channels)
        for half, size in (("primary", m), ("cheap", cheap)):
            tensors |= {f"{half}_mean": self.normal(size, scale=0.3), f"{half}_var": self.positive(size)}
            tensors |= {f"{half}_gamma": self.positive(size), f"{half}_beta": self.normal(size, scale=0.3)}
        return Drawn("ghost_module_eval", tensors | {"x": x}, options)

    def cheap_concat_eval(self) -> Drawn:
        m, cheap, _, tensors, options = self.ghost()
        del tensors["primary_weight"]
        z = self.map(m)
        for half, size in (("primary", m), ("cheap", cheap)):
            tensors |= {f"{half}_bias": self.normal(size, scale=0.3)}
            if self.random.random() < 0.7:
                tensors |= {f"{half}_mean": self.normal(size, scale=0.3), f"{half}_var": self.positive(size)}
                tensors |= {f"{half}_gamma": self.positive(size), f"{half}_beta": self.normal(size, scale=0.3)}
        return Drawn("cheap_concat_eval", tensors | {"z": z}, options)

    def norms(self, m: int, cheap: int) -> Tensors:
        """The affine parameters of both BatchNorms."""
        tensors = {}
        for half, size in (("primary", m), ("cheap", cheap)):
            tensors |= {f"{half}_gamma": self.positive(size), f"{half}_beta": self.normal(size, scale=0.3)}
        return tensors

    def ghost_module_train(self) -> Drawn:
        m, cheap, channels, tensors, options = self.ghost(trains=True)
        x = self.map(channels)
        tensors |= self.norms(m, cheap)
        size = (x.shape[0], options["out_channels"], self.random.randint(1, 6), self.random.randint(1, 6))
        gate = self.sometimes(lambda: self.positive(*size))
        tensors |= {} if gate is None else {"gate": gate}
        return Drawn("ghost_module_train", tensors | {"x": x}, options)

    def branched_module_train(self) -> Drawn:
        """Eight channels and more, or a vector's error would be luck. A weight that scales has a gradient where eps is
        large: else its BatchNorm removes the scale."""
        channels, m = self.random.randint(2, 40), self.random.randint(8, 24)
        branches, depthwise = self.random.choice([(1, 1), (3, 3), (2, 1), (1, 2)])
        size, identity, scales = self.random.choice([3, 3, 5]), self.random.random() < 0.5, self.random.random() < 0.3
        tensors = {
            "x": self.map(channels),
            "primary_weight": self.normal(branches * m, channels, 1, 1, scale=channels**-0.5),
            "cheap_weight": self.normal(depthwise * m, 1, size, size, scale=1 / size),
        }
        tensors |= self.norms(branches * m, (depthwise + scales + identity) * m)
        options = {"branches": branches, "identity": identity, "out_channels": self.random.randint(m, 2 * m)}
        options |= {name: _names(self.random, PRELU) for name in ("act", "cheap_act")}
        if scales:
            tensors["scale_weight"], options["cheap_eps"] = self.positive(m)[:, None, None, None], 0.5
        gate = tensors["x"].shape[0], options["out_channels"], self.random.randint(1, 6), self.random.randint(1, 6)
        tensors |= {"gate": self.positive(*gate)} if self.random.random() < 0.5 else {}
        return Drawn("branched_module_train", tensors, options)

    def dfc_gate_train(self) -> Drawn:
        channels, m, taps = self.random.randint(2, 40), self.random.randint(1, 40), self.random.choice([3, 5, 7])
        n, height, width = self.random.randint(2, 3), self.random.randint(4, 13), self.random.randint(4, 13)
        tensors = {
            "x": self.normal(n, channels, height, width),
            "weight": self.normal(m, channels, 1, 1, scale=channels**-0.5),
            "row_weight": self.normal(m, 1, 1, taps, scale=taps**-0.5),
            "column_weight": self.normal(m, 1, taps, 1, scale=taps**-0.5),
        }
        for layer in ("", "row_", "column_"):
            tensors |= {f"{layer}gamma": self.positive(m), f"{layer}beta": self.normal(m, scale=0.3)}
        return Drawn("dfc_gate_train", tensors, {"gate": self.random.choice(GATES)})

    def cheap_concat(self) -> Drawn:
        m, cheap, _, tensors, options = self.ghost()
        z = self.map(m)
        del tensors["primary_weight"]
        optional = {
            "cheap_bias": self.sometimes(lambda: self.normal(cheap, scale=0.3)),
            "residual": self.sometimes(lambda: self.normal(z.shape[0], options["out_channels"], *z.shape[2:])),
        }
        tensors |= {"z": z} | {name: t for name, t in optional.items() if t is not None}
        return Drawn("cheap_concat", tensors, options | {"return_squeeze": self.random.random() < 0.5})

    def cheap_concat_train(self) -> Drawn:
        m, cheap, _, tensors, options = self.ghost(trains=True)
        del tensors["primary_weight"]
        return Drawn("cheap_concat_train", tensors | self.norms(m, cheap) | {"z": self.map(m)}, options)

    def batch_norm_act_train(self) -> Drawn:
        channels = self.random.randint(1, 48)
        z = self.normal(self.random.randint(2, 3), channels, self.random.randint(3, 11), self.random.randint(3, 11))
        tensors, options = self.halves(("act",), (channels,))
        tensors |= {"z": z, "gamma": self.positive(channels), "beta": self.normal(channels, scale=0.3)}
        return Drawn("batch_norm_act_train", tensors, options)

    def squeeze_excite(self) -> Drawn:
        channels = self.random.randint(2, 48)
        hidden = self.random.randint(1, channels)
        tensors = {
            "x": self.map(channels),
            "reduce_weight": self.normal(hidden, channels, scale=channels**-0.5),
            "reduce_bias": self.normal(hidden, scale=0.3),
            "expand_weight": self.normal(channels, hidden, scale=hidden**-0.5),
            "expand_bias": self.normal(channels, scale=0.3),
        }
        gate = self.random.choice(GATES)
        return Drawn("squeeze_excite", tensors, {"act": _names(self.random, *WITH_SLOPES), "gate": gate})

    def depthwise(self) -> Drawn:
        channels, size = self.random.randint(1, 48), self.random.choice([1, 3, 5, 7])
        tensors = {"x": self.map(channels), "weight": self.normal(channels, 1, size, size, scale=1 / size)}
        bias = self.sometimes(lambda: self.normal(channels, scale=0.3))
        tensors |= {} if bias is None else {"bias": bias}
        return Drawn("depthwise", tensors, {"stride": self.random.choice([1, 2, 2, 3])})


OPERATORS = (
    "ghost_module", "ghost_module_eval", "ghost_module_train", "cheap_concat", "cheap_concat_eval",
    "cheap_concat_train", "squeeze_excite", "depthwise", "dfc_gate_train", "branched_module_train",
    "batch_norm_act_train",
)  # fmt: skip
FORWARD_ONLY = ("ghost_module_eval", "cheap_concat_eval")
WITHOUT_BIASES = (  # of a Ghost module
    "squeeze_excite", "depthwise", "dfc_gate_train", "branched_module_train", "batch_norm_act_train",
)  # fmt: skip
OF_BATCH = tuple(name for name in OPERATORS if name.endswith("_train"))  # which return batch statistics


def _call(drawn: Drawn, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    arguments = dict(tensors)
    if drawn.operator not in WITHOUT_BIASES:
        for name in ("primary_bias", "cheap_bias", "cheap_weight")[drawn.operator == "cheap_concat" :]:
            arguments.setdefault(name, None)
    if drawn.operator == "cheap_concat_eval":  # whose BatchNorms may be missing
        halves = itertools.product(("primary", "cheap"), ("gamma", "beta", "mean", "var"))
        arguments = {f"{half}_{name}": None for half, name in halves} | arguments
    result = getattr(functional, drawn.operator)(**arguments, **drawn.options)
    return tuple(result) if isinstance(result, tuple) else (result,)


def evaluate(drawn: Drawn, dtype: torch.dtype, layout: str, backward: bool, backend: str | None = None) -> Tensors:
    """Results by name: outputs, or the gradients of all tensors for drawn gradients of the outputs."""
    tensors = {}
    for name, value in drawn.tensors.items():
        t = value.detach().to(dtype, copy=True)
        if name in ("x", "z", "residual", "gate"):
            t = t.contiguous(memory_format=LAYOUTS[layout])
        tensors[name] = t.requires_grad_(backward)
    # without a name the caller's own choice stands, which use_backend(None) would undo
    with use_backend(backend) if backend else nullcontext(), torch.set_grad_enabled(backward):
        outputs = _call(drawn, tensors)
    if not backward:
        return {f"output {i}": out for i, out in enumerate(outputs)}
    outputs = [out for out in outputs if out.requires_grad]
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype) for out in outputs]
    found = torch.autograd.grad(outputs, list(tensors.values()), grads)
    return {f"gradient of {name}": grad for name, grad in zip(tensors, found)}


def _rounded(drawn: Drawn, dtype: torch.dtype) -> Drawn:
    """The same call with values that the dtype has: rounding the arguments is not an error of the operator."""
    tensors = {name: t.to(dtype).double() for name, t in drawn.tensors.items()}
    return Drawn(drawn.operator, tensors, drawn.options)


def _has_kink(drawn: Drawn) -> bool:
    moved = {name: t * (1 + KINK * (-1) ** i) for i, (name, t) in enumerate(drawn.tensors.items())}
    near = Drawn(drawn.operator, moved, drawn.options)
    return jumps(*(evaluate(d, torch.float64, "NCHW", True, "reference") for d in (drawn, near)))


def draws(operator: str, dtype: torch.dtype, count: int) -> Iterator[Drawn]:
    """``count`` calls of an operator, always the same ones."""
    seed, made = zlib.crc32(operator.encode()), 0
    while made < count:
        drawn = _rounded(getattr(_Draw(seed), operator)(), dtype)
        seed += 1
        if dtype != torch.float32 or not drawn.differentiable or not _has_kink(drawn):
            made += 1
            yield drawn


def count_operators() -> int:
    """The number of outcomes of ``verify_operators``."""
    return (2 * len(OPERATORS) - sum(name in FORWARD_ONLY for name in OPERATORS)) * len(DTYPES) * len(LAYOUTS)


def verify_operators(count: int, on_step: Callable[[str], None]) -> list[Outcome]:
    """Every operator in every dtype, layout and direction, on ``count`` drawn calls each."""
    outcomes = []
    for operator in OPERATORS:
        for dtype in DTYPES:
            calls = list(draws(operator, dtype, count))
            for layout in LAYOUTS:
                for direction in ("forward", "backward"):
                    if direction == "forward" or calls[0].differentiable:
                        on_step(f"{operator}, {name_of(dtype)}, {layout}, {direction}")
                        outcomes.append(_outcome(calls, dtype, layout, direction))
    return outcomes


def _size(operator: str, name: str, exact: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The scale of a mean is the root mean square of its values: their rounding is in it, and it may be far smaller."""
    variance = {"output 1": "output 2", "output 3": "output 4", "output 5": "output 6"}.get(name)
    if operator not in OF_BATCH or variance is None:
        return None
    return (exact[name].square() + exact[variance]).sqrt()


def _measured(drawn: Drawn, dtype: torch.dtype, layout: str, backward: bool) -> dict[str, Measures]:
    """Our results of a call, measured."""
    eager = evaluate(drawn, dtype, layout, backward, "reference")
    exact = evaluate(drawn, torch.float64, layout, backward, "reference")
    ours = evaluate(drawn, dtype, layout, backward)
    ulps = GRADIENT_ULPS if backward else ULPS
    return {n: compare(ours[n], eager[n], exact[n], ulps, _size(drawn.operator, n, exact)) for n in ours}


def _nearby(drawn: Drawn, dtype: torch.dtype) -> Iterator[Drawn]:
    """Calls with a little different values, for which rounding goes another way."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(NEARBY):
        moved = {name: nearby(t, generator) for name, t in drawn.tensors.items()}
        yield _rounded(Drawn(drawn.operator, moved, drawn.options), dtype)


def _outcome(calls: list[Drawn], dtype: torch.dtype, layout: str, direction: str) -> Outcome:
    backward, worst, backends = direction == "backward", Worst(), set()
    for drawn in calls:
        weight = drawn.tensors.get("weight", drawn.tensors.get("cheap_weight"))
        kernel = None if weight is None or drawn.operator == "dfc_gate_train" else weight.shape[-1]
        backends.add(select(drawn.operator, drawn.input.to(dtype), kernel).backend)
        try:
            found = measure_call(lambda call: _measured(call, dtype, layout, backward), drawn, _nearby(drawn, dtype))
        except Exception as error:  # a report says so of one operator, and goes on
            worst.fail(f"{type(error).__name__}: {error}, of {drawn.describe()}")
            continue
        for name, measures in found.items():
            worst.add(measures, f"{name} of {drawn.describe()}")
    backend = "+".join(sorted(backends))
    return Outcome(
        calls[0].operator, name_of(dtype), layout, direction, backend, len(calls), *worst.measures, worst.what
    )
