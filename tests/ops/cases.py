"""Drawn configurations of the operators, and their results three ways: ours, PyTorch's in the same dtype, float64's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import ghost_ops
from ghost_ops.activations import ACTIVATIONS
from tests.helpers import NEARBY, assert_as_accurate, farthest, nearby, nudged, surrounded_by_nan, without_luck

DRAWN = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # a drawn case is small enough to read: no minutes of shrinking
    suppress_health_check=[HealthCheck.too_slow],
)
LAYOUTS = ("nchw", "channels_last", "strided")
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Case:
    """A Ghost module's arguments. ``tensors`` may be None; those in ``maps`` have x's dtype, the others their own."""

    tensors: dict[str, torch.Tensor | None]
    options: dict = field(default_factory=dict)
    threads: int = 1

    def to(self, dtype: torch.dtype, nudge: float = 0.0, seed: int = 0) -> Case:
        """In another dtype; nudged, every value is off by up to that share of itself."""

        def convert(t):
            t = t.detach().to(dtype)
            return nudged(t, nudge, seed) if nudge else t

        return Case({k: None if t is None else convert(t) for k, t in self.tensors.items()}, self.options, self.threads)

    def near(self, seed: int) -> Case:
        """The call with nearby arguments."""
        tensors = {k: None if t is None else nearby(t, seed) for k, t in self.tensors.items()}
        return Case(tensors, self.options, self.threads)

    def leaves(self) -> Case:
        """The same values as leaves that want gradients, with NaN around them in memory."""

        def leaf(t):
            t = surrounded_by_nan(t) if t.is_contiguous() or t.dim() != 4 else t.detach().clone()
            return t.detach().requires_grad_()

        return Case({k: None if t is None else leaf(t) for k, t in self.tensors.items()}, self.options, self.threads)


def in_layout(t: torch.Tensor, layout: str) -> torch.Tensor:
    """The map t in a memory format, or as a view into a larger map filled with NaN."""
    if layout == "channels_last":
        return t.to(memory_format=torch.channels_last)
    if layout == "strided":
        n, c, h, w = t.shape
        wide = torch.full((n, c + 2, h + 1, w + 3), torch.nan, dtype=t.dtype)
        wide[:, 1:-1, :h, 1:-2] = t
        return wide[:, 1:-1, :h, 1:-2]
    return t.contiguous()


@st.composite
def geometries(draw, least_values: int = 1):
    """N, C, H, W, primary channels, multiplier, out_channels, cheap kernel."""
    n, h, w = draw(st.integers(1, 4)), draw(st.integers(1, 18)), draw(st.integers(1, 31))
    while n * h * w < least_values:
        h, w = h + 3, w + 3
    # with batch statistics a single input channel has no gradient but rounding: the scale of its weight is normalised
    c, m = draw(st.integers(2 if least_values > 1 else 1, 70)), draw(st.integers(1, 50))
    multiplier = draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    total = m * (1 + multiplier)
    out_channels = draw(st.sampled_from([total, total, draw(st.integers(m + 1, total))]))
    return n, c, h, w, m, multiplier, out_channels, draw(st.sampled_from([1, 3, 3, 3, 5, 7]))


@st.composite
def activations(draw, m: int, cheap: int, numbers):
    """Options and PReLU weights of both halves."""
    options, tensors = {}, {}
    for name, channels in (("act", m), ("cheap_act", cheap)):
        options[name] = draw(st.sampled_from(ACTIVATIONS))
        options[f"{name}_slope"] = draw(st.sampled_from([0.01, 0.3]))
        size = draw(st.sampled_from([1, channels]))
        tensors[f"{name}_weight"] = numbers(size) * 0.3 if options[name] == "prelu" else None
    return options, tensors


def draw_case(draw, kind: str) -> Case:
    """kind: ghost_module, cheap_concat, ghost_module_train or cheap_concat_train."""
    trains, is_tail = kind.endswith("train"), kind.startswith("cheap_concat")
    n, c, h, w, m, multiplier, out_channels, k = draw(geometries(24 if trains else 1))
    if trains and is_tail:
        k = max(k, 3)  # a single tap is a scale, which is normalised: it has no gradient but rounding
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape):
        return torch.randn(shape, generator=generator)

    def parameter(*shape, scale=1.0, shift=0.0, optional=True):
        if optional and draw(st.booleans()):
            return None
        own = draw(st.sampled_from([dtype, torch.float32]))
        return (numbers(*shape) * scale + shift).to(own)

    def a_map(*shape):
        return in_layout(numbers(*shape).to(dtype), draw(st.sampled_from(LAYOUTS)))

    cheap = m * multiplier
    options, slopes = draw(activations(m, cheap, numbers))
    options["out_channels"] = out_channels
    tensors = {"z" if is_tail else "x": a_map(n, m if is_tail else c, h, w)}
    if not is_tail:
        tensors["primary_weight"] = parameter(m, c, 1, 1, scale=c**-0.5, optional=False)
    if kind != "cheap_concat":
        tensors["primary_bias"] = parameter(m, scale=0.3)
    if trains:
        tensors |= {"primary_gamma": parameter(m, scale=0.3, shift=1.0), "primary_beta": parameter(m, scale=0.3)}
    tensors["cheap_weight"] = parameter(cheap, 1, k, k, scale=1.0 / k, optional=False)
    tensors["cheap_bias"] = parameter(cheap, scale=0.3)
    if trains:
        tensors |= {"cheap_gamma": parameter(cheap, scale=0.3, shift=1.0), "cheap_beta": parameter(cheap, scale=0.3)}
    else:
        tensors["residual"] = a_map(n, out_channels, h, w) if draw(st.booleans()) else None
        options["return_squeeze"] = draw(st.booleans())
    if kind == "ghost_module":
        scale = torch.rand(n, c, generator=generator).to(dtype)
        tensors["input_scale"] = scale if draw(st.booleans()) else None
    return Case(tensors | slopes, options, draw(st.sampled_from([1, 2])))


def results(operator, case: Case, grads: list[torch.Tensor] | None, reference: bool) -> tuple[list, dict]:
    """All outputs, and the gradients of all tensors, for these gradients of the differentiable outputs."""
    torch.set_num_threads(case.threads)
    case = case.leaves()
    positional = [v for k, v in case.tensors.items() if k in POSITIONAL]
    named = {k: v for k, v in case.tensors.items() if k not in POSITIONAL}
    with ghost_ops.use_backend("reference") if reference else nullcontext():
        out = operator(*positional, **named, **case.options)
        outputs = [out] if isinstance(out, torch.Tensor) else list(out)
        if grads is not None:
            torch.autograd.backward(outputs[: len(grads)], [g.to(outputs[0].dtype) for g in grads])
    return outputs, {k: t.grad for k, t in case.tensors.items() if t is not None}


POSITIONAL = (
    "x", "z", "primary_weight", "primary_bias", "primary_gamma", "primary_beta", "cheap_weight", "cheap_bias",
    "cheap_gamma", "cheap_beta", "reduce_weight", "reduce_bias", "expand_weight", "expand_bias", "weight", "bias",
    "gamma", "beta",
)  # fmt: skip


class Errors:
    """Errors over many drawn cases, ours and PyTorch's, each against float64 and relative to its result."""

    def __init__(self) -> None:
        self.squares: dict[tuple[str, torch.dtype], list[tuple[float, float]]] = {}
        self.nearby: list[Callable[[Errors], None]] = []  # each adds the errors of a case's nearby arguments

    def add(
        self, what: str, ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, scale: float | None = None
    ) -> None:
        """The errors of a result, relative to its norm, or to ``scale``."""
        scale = scale or float(exact.norm()) or 1.0
        pair = tuple(float((t.double() - exact).norm() / scale) ** 2 for t in (ours, plain))
        self.squares.setdefault((what, ours.dtype), []).append(pair)

    def assert_over_draws(self) -> None:
        """The root of the mean square is at most twice PyTorch's, over the cases or over those and nearby arguments.

        A sum of one number, which few cases have, is a matter of luck.
        """
        try:
            self.assert_within(2.0)
        except AssertionError:
            for add in self.nearby:
                add(self)
            self.assert_within(2.0)

    def assert_within(self, factor: float = 2.0, ulps: float = 0.5, single: tuple[float, float] | None = None) -> None:
        """The root of the mean square of our errors is at most ``factor`` times PyTorch's, result by result.

        Args:
            single: factor and ulps that one case alone is allowed. What luck adds to the root of a mean square falls
                with the root of the number of cases, so of few cases as much of the difference is allowed.
        """
        for (what, dtype), pairs in self.squares.items():
            ours, plain = ((sum(p[i] for p in pairs) / len(pairs)) ** 0.5 for i in (0, 1))
            of_one = 0.0 if single is None else len(pairs) ** -0.5
            times, floor = (a + (b - a) * of_one for a, b in zip((factor, ulps), single or (factor, ulps)))
            allowed = times * plain + floor * torch.finfo(dtype).eps
            assert ours <= allowed, f"{what}, {dtype}, {len(pairs)} cases: error {ours:.3g}, PyTorch {plain:.3g}"


def check(
    operator,
    case: Case,
    differentiable: int,
    errors: Errors | None = None,
    of_a_draw: float = 4.0,
    seeds: range = NEARBY,
) -> None:
    """Outputs and gradients are as accurate as PyTorch's, against float64.

    The rule is twice PyTorch's error. A single result may have a few elements only, where PyTorch's error is a matter
    of luck, so over drawn cases ``errors`` takes the rule, and the case itself, in largest element and norm,
    ``of_a_draw`` times the error. What a float64 result moves when the arguments move by half a unit in their last
    place is no error of an algorithm that sees rounded numbers: there it counts as PyTorch's where it is larger. So
    does, for a drawn case itself, the median of PyTorch's errors for it and for nearby arguments.
    """
    exact_case = case.to(torch.float64)
    outputs, _ = results(operator, exact_case, None, True)
    map_dtype = next(iter(case.tensors.values())).dtype
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(o.shape, generator=generator).to(map_dtype) for o in outputs[:differentiable]]

    def run(drawn: Case, reference: bool = True, grads: list[torch.Tensor] = grads) -> dict[str, torch.Tensor]:
        outputs, gradients = results(operator, drawn, grads, reference)
        named = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
        return named | {f"gradient of {name}": g for name, g in gradients.items()}

    ours, plain, exact = run(case, reference=False), run(case), run(exact_case)
    moved = run(case.to(torch.float64, torch.finfo(map_dtype).eps / 2))
    calls = [] if errors is None else [(case.near(seed), [nearby(g, seed) for g in grads]) for seed in seeds]
    near = [(run(call, grads=of), run(call.to(torch.float64), grads=of)) for call, of in calls]
    for what, result in ours.items():
        worst = farthest(exact[what], plain[what], moved[what].to(result.dtype))
        # float32 parameters of half-precision maps: their gradients are sums of rounded maps
        coarser = torch.finfo(map_dtype).eps / torch.finfo(result.dtype).eps
        factor = 2.0 if errors is None else of_a_draw
        if errors is not None and result.dtype == map_dtype:
            errors.add(what, result, worst, exact[what])
        worst = without_luck(exact[what], worst, [(p[what], e[what]) for p, e in near])
        assert_as_accurate(result, worst, exact[what], factor, what=what, ulps=4 * max(coarser, 1))

    def add_nearby(errors: Errors) -> None:
        """Relative to the results of all of them: one that cancels in a single call would outweigh the others."""
        found = [
            (run(call, False, of), run(call, True, of), run(call.to(torch.float64), True, of)) for call, of in calls
        ]
        for what, result in ours.items():
            if result.dtype == map_dtype:
                norms = [float(exact[what].norm()) for _, _, exact in found]
                scale = (sum(norm**2 for norm in norms) / len(norms)) ** 0.5
                for of_ours, of_plain, exact in found:
                    errors.add(what, of_ours[what], of_plain[what], exact[what], scale)

    if errors is not None:
        errors.nearby.append(add_nearby)


def check_drawn(operator, draw_case, differentiable=lambda case: 1) -> None:
    """Each drawn case alone, and their errors together."""
    errors = Errors()

    @DRAWN
    @given(data=st.data())
    def run(data):
        case = draw_case(data.draw)
        check(operator, case, differentiable(case), errors)

    run()
    errors.assert_over_draws()
