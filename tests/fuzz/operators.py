"""Drawn calls of every operator, and calls as files: the very tensors, so that a file outlives how it was drawn."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st

from ghost_ops import functional
from ghost_ops.activations import GATES

from ..helpers import assert_as_accurate, farthest
from ..ops.cases import DTYPES, POSITIONAL, Case, Errors, check, draw_case, in_layout, results
from ..ops.test_branched_module_train import draw_branched
from ..ops.test_depthwise import draw as draw_depthwise
from ..ops.test_dfc_gate_train import draw_gate, draw_gated
from ..ops.test_forward_backward import draw_batch_norm_act, draw_squeeze_excite


def draw_eval(kind: str) -> Callable:
    """A call of ``<kind>_eval``: that of the single pass, with running statistics of both convolutions."""

    def drawn(draw) -> Case:
        case = draw_case(draw, kind)
        tensors = case.tensors
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        source = tensors.get("x", tensors.get("z"))
        m = source.shape[1] if kind == "cheap_concat" else tensors["primary_weight"].shape[0]
        tensors.setdefault("primary_bias", None)
        for half, channels in (("primary", m), ("cheap", tensors["cheap_weight"].shape[0])):
            for name, scale, shift in (("gamma", 0.3, 1.0), ("beta", 0.3, 0.0), ("mean", 0.3, 0.0)):
                tensors[f"{half}_{name}"] = torch.randn(channels, generator=generator) * scale + shift
            tensors[f"{half}_var"] = torch.rand(channels, generator=generator) + 0.5
            for name in ("gamma", "beta"):
                if draw(st.booleans()):
                    tensors[f"{half}_{name}"] = None
        return case

    return drawn


def draw_excite(draw) -> Case:
    n, c, r = draw(st.integers(1, 4)), draw(st.integers(1, 80)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape):
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)

    tensors = {"squeeze": numbers(n, c), "reduce_weight": numbers(r, c), "expand_weight": numbers(c, r)}
    tensors["reduce_bias"] = numbers(r) if draw(st.booleans()) else None
    tensors["expand_bias"] = numbers(c) if draw(st.booleans()) else None
    act = draw(st.sampled_from(["none", "relu", "relu6", "silu", "hard_swish"]))
    return Case(tensors, {"act": act, "gate": draw(st.sampled_from(GATES))}, draw(st.sampled_from([1, 2])))


def statistics_apart(operator: Callable) -> Callable:
    """The operator, each mean with its deviation added, whose rounding is in it and which may be far larger."""

    def call(*positional, **named):
        out, *statistics = operator(*positional, **named)
        return out, *(t if i % 2 else t + statistics[i + 1].sqrt() for i, t in enumerate(statistics))

    return call


GRADIENTS: dict[str, tuple[Callable, Callable]] = {  # the operator, and how a call is drawn
    "ghost_module": (functional.ghost_module, lambda draw: draw_case(draw, "ghost_module")),
    "cheap_concat": (functional.cheap_concat, lambda draw: draw_case(draw, "cheap_concat")),
    "squeeze_excite": (functional.squeeze_excite, draw_squeeze_excite),
    "depthwise": (functional.depthwise, draw_depthwise),
    "ghost_module_train": (
        statistics_apart(functional.ghost_module_train),
        lambda draw: draw_case(draw, "ghost_module_train"),
    ),
    "gated": (statistics_apart(functional.ghost_module_train), draw_gated),
    "cheap_concat_train": (
        statistics_apart(functional.cheap_concat_train),
        lambda draw: draw_case(draw, "cheap_concat_train"),
    ),
    "batch_norm_act_train": (statistics_apart(functional.batch_norm_act_train), draw_batch_norm_act),
    "dfc_gate_train": (statistics_apart(functional.dfc_gate_train), draw_gate),
    "branched_module_train": (statistics_apart(functional.branched_module_train), draw_branched),
}
VALUES: dict[str, tuple[Callable, Callable]] = {
    "ghost_module_eval": (functional.ghost_module_eval, draw_eval("ghost_module")),
    "cheap_concat_eval": (functional.cheap_concat_eval, draw_eval("cheap_concat")),
    "excite": (functional.excite, draw_excite),
}
DRAWS = {name: draw for name, (_, draw) in (GRADIENTS | VALUES).items()}


def check_call(name: str, case: Case) -> None:
    """Values, and gradients where there are any, are as accurate as PyTorch's.

    The rule is twice its error. Of very many calls some break it by luck: those with one number in a sum, or whose sums
    cancel. Their errors and those of nearby calls, which have the same shapes, are compared together; what is wrong
    with a shape stays in all of them. The call itself must stay within 16 times PyTorch's error, and their median,
    which does not see one that is beside a kink, within 2.5 times its own: twice, and what chance adds for so many.
    """
    threads = torch.get_num_threads()
    try:
        if name in VALUES:
            _check_values(VALUES[name][0], case)
            return
        operator, differentiable = GRADIENTS[name][0], 2 if case.options.get("return_squeeze") else 1
        try:
            check(operator, case, differentiable)
        except AssertionError:
            drawn, nearby = Errors(), Errors()
            check(operator, case, differentiable, drawn, of_a_draw=16.0, seeds=range(256))
            for add in drawn.nearby:
                add(nearby)
            for (what, dtype), pairs in nearby.squares.items():
                ours, plain = (statistics.median(pair[i] for pair in pairs) ** 0.5 for i in range(2))
                allowed = 2.5 * plain + 0.5 * torch.finfo(dtype).eps
                assert ours <= allowed, f"{what}: the median error of nearby calls is {ours:.3g}, PyTorch's {plain:.3g}"
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _check_values(operator: Callable, case: Case) -> None:
    def run(case: Case, reference: bool) -> list[torch.Tensor]:
        return results(lambda *a, **k: _named(operator, case, a, k), case, None, reference)[0]

    ours, plain, exact = run(case, False), run(case, True), run(case.to(torch.float64), True)
    moved = run(case.to(torch.float64, torch.finfo(ours[0].dtype).eps / 2), True)
    for i, (a, b, c, d) in enumerate(zip(ours, plain, exact, moved, strict=True)):
        assert_as_accurate(a, farthest(c, b, d.to(a.dtype)), c, 4.0, f"output {i}")


def _named(operator: Callable, case: Case, positional: tuple, named: dict):
    """The call with every tensor by its name: the order of positions is another operator's."""
    names = [name for name in case.tensors if name in POSITIONAL]
    tensors = dict(zip(names, positional, strict=True)) | named
    return operator(**{name: t.detach() if isinstance(t, torch.Tensor) else t for name, t in tensors.items()})


# Calls as files


def to_plain(name: str, case: Case) -> dict:
    return {
        "operator": name,
        "threads": case.threads,
        "options": case.options,
        "tensors": {key: None if t is None else _tensor_to_plain(t) for key, t in case.tensors.items()},
    }


def from_plain(entry: dict) -> tuple[str, Case]:
    tensors = {key: None if t is None else _tensor_from_plain(t) for key, t in entry["tensors"].items()}
    return entry["operator"], Case(tensors, entry["options"], entry["threads"])


def _tensor_to_plain(t: torch.Tensor) -> dict:
    is_part = t.untyped_storage().nbytes() > t.numel() * t.element_size()  # even where its sides of 1 hide that
    layout = "strided" if is_part and t.dim() == 4 else "nchw" if t.is_contiguous() else "channels_last"
    flat = torch.empty(t.numel(), dtype=t.dtype).copy_(t.detach().reshape(-1))  # whose stride is 1, even of one element
    data = flat.view(torch.uint8).numpy().tobytes()
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "layout": layout,
            "data": base64.b64encode(data).decode()}  # fmt: skip


def _tensor_from_plain(entry: dict) -> torch.Tensor:
    data = np.frombuffer(base64.b64decode(entry["data"]), np.uint8).copy()
    dtype = getattr(torch, entry["dtype"])
    t = torch.from_numpy(data).view(dtype).reshape(entry["shape"])
    return in_layout(t, entry["layout"]) if t.dim() == 4 else t
