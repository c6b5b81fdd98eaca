"""Every operator on drawn configurations: outputs and gradients against PyTorch in the same dtype and float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from ghost_ops import functional, use_backend
from ghost_ops.activations import ACTIVATIONS
from ghost_ops.dispatch import select
from tests.ops.cases import DTYPES, LAYOUTS, Case, check, check_drawn, draw_case, in_layout


@pytest.mark.parametrize("kind", ["ghost_module", "cheap_concat", "ghost_module_train", "cheap_concat_train"])
def test_ghost_modules(kind):
    results = lambda case: 2 if case.options.get("return_squeeze") else 1
    check_drawn(getattr(functional, kind), lambda draw: draw_case(draw, kind), results)


def draw_squeeze_excite(draw) -> Case:
    n, c, h, w = (draw(st.integers(1, most)) for most in (9, 80, 40, 40))
    r = draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(*shape, scale):
        return (torch.randn(shape, generator=generator) * scale).to(draw(st.sampled_from([dtype, torch.float32])))

    x = torch.randn((n, c, h, w), generator=generator) + 0.5
    tensors = {
        "x": in_layout(x.to(dtype), draw(st.sampled_from(LAYOUTS))),
        "reduce_weight": numbers(r, c, scale=c**-0.5),
        "reduce_bias": numbers(r, scale=0.3) if draw(st.booleans()) else None,
        "expand_weight": numbers(c, r, scale=r**-0.5),
        "expand_bias": numbers(c, scale=0.3) if draw(st.booleans()) else None,
    }
    options = {
        "act": draw(st.sampled_from(["none", "relu", "relu6", "silu", "hard_swish"])),
        "gate": draw(st.sampled_from(["clamp", "hard_sigmoid", "sigmoid", "identity"])),
    }
    return Case(tensors, options, draw(st.sampled_from([1, 2])))


def test_gradients_of_squeeze_excite_on_small_maps():
    """Over many draws they are as near as PyTorch's, to a quarter. Of a single draw a gradient of a few biases is luck:
    one of a hundred is seven times as far off as PyTorch's, and as many the other way round."""
    squares = {}
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        n, c = 1 + seed % 3, 4 + seed % 29
        r = 1 + seed % c
        shapes = {"x": (n, c, 8, 5), "reduce_weight": (r, c), "reduce_bias": (r,), "expand_weight": (c, r)}
        shapes |= {"expand_bias": (c,), "grad": (n, c, 8, 5)}
        values = {
            k: torch.randn(s, generator=generator) * (s[1] ** -0.5 if len(s) == 2 else 1) for k, s in shapes.items()
        }

        def gradients(dtype, backend, values=values):
            tensors = {k: v.to(dtype).requires_grad_() for k, v in values.items() if k != "grad"}
            with use_backend(backend):
                out = functional.squeeze_excite(**tensors, act="silu", gate="sigmoid")
                return dict(zip(tensors, torch.autograd.grad(out, tensors.values(), values["grad"].to(dtype))))

        ours, plain = gradients(torch.float32, None), gradients(torch.float32, "reference")
        for name, exact in gradients(torch.float64, "reference").items():
            pair = (((t[name] - exact).norm() / exact.norm()).square() for t in (ours, plain))
            squares.setdefault(name, []).append(torch.stack(tuple(pair)))
    for name, pairs in squares.items():
        mine, theirs = torch.stack(pairs).mean(0).sqrt()
        assert mine <= 1.25 * theirs, (name, mine, theirs)


def test_squeeze_excite():
    check_drawn(functional.squeeze_excite, draw_squeeze_excite)


def draw_batch_norm_act(draw) -> Case:
    n, c, h, w = draw(st.integers(1, 5)), draw(st.integers(1, 80)), draw(st.integers(3, 40)), draw(st.integers(3, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def numbers(size, scale, shift=0.0):
        values = torch.randn(size, generator=generator) * scale + shift
        return values.to(draw(st.sampled_from([dtype, torch.float32])))

    spread = torch.rand((1, c, 1, 1), generator=generator) + 0.5
    z = torch.randn((n, c, h, w), generator=generator) * spread + draw(st.sampled_from([0.0, 0.5, 8.0]))
    act = draw(st.sampled_from(ACTIVATIONS))
    tensors = {
        "z": in_layout(z.to(dtype), draw(st.sampled_from(LAYOUTS))),
        "gamma": numbers(c, 0.3, 1.0) if draw(st.booleans()) else None,
        "beta": numbers(c, 0.3) if draw(st.booleans()) else None,
        "act_weight": numbers(draw(st.sampled_from([1, c])), 0.3) if act == "prelu" else None,
    }
    options = {"act": act, "act_slope": draw(st.sampled_from([0.01, 0.3])), "eps": draw(st.sampled_from([1e-5, 1e-3]))}
    return Case(tensors, options, draw(st.sampled_from([1, 2])))


def test_batch_norm_act_train():
    check_drawn(functional.batch_norm_act_train, draw_batch_norm_act)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 16, 112, 112, 24),
        (9, 72, 28, 28, 20),
        (2, 960, 7, 7, 80),
        (1, 112, 14, 14, 336),
        (1, 40, 45, 30, 36),  # several bands of rows an image, over batch statistics too
        (3, 40, 33, 17, 36),
        (1, 72, 45, 30, 12),  # the same with z1 kept
    ],
)
def test_layer_shapes_of_ghostnet(shape, layout):
    """Long sums and whole tiles, as real layers have them."""
    n, c, h, w, m = shape
    g = torch.Generator().manual_seed(0)
    x = in_layout(torch.randn(n, c, h, w, generator=g) + 0.3, layout)
    tensors = {
        "x": x,
        "primary_weight": torch.randn(m, c, 1, 1, generator=g) * c**-0.5,
        "primary_bias": None,
        "primary_gamma": torch.rand(m, generator=g) + 0.5,
        "primary_beta": torch.randn(m, generator=g) * 0.2,
        "cheap_weight": torch.randn(m, 1, 3, 3, generator=g) / 3,
        "cheap_bias": None,
        "cheap_gamma": torch.rand(m, generator=g) + 0.5,
        "cheap_beta": torch.randn(m, generator=g) * 0.2,
    }
    check(functional.ghost_module_train, Case(tensors, {}, 2), differentiable=1)
    single = {k: v for k, v in tensors.items() if "gamma" not in k and "beta" not in k}
    check(functional.ghost_module, Case(single, {"return_squeeze": True}, 2), differentiable=2)


def test_the_kernels_are_what_is_tested():
    """Where the library was built, these tests are of it: a silent fallback would compare PyTorch to itself."""
    from ghost_ops.backends import native

    if not native.available():
        pytest.skip(f"no compiled library: {native.reason()}")
    for dtype in DTYPES:
        modules = ("ghost_module", "ghost_module_train", "cheap_concat", "cheap_concat_train")
        for op in (*modules, "squeeze_excite", "depthwise", "batch_norm_act_train"):
            assert select(op, torch.empty(1, dtype=dtype), 3).backend == "native"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_repeats_to_the_bit(threads):
    torch.set_num_threads(threads)
    try:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(5, 12, 29, 23, generator=g)
        parameters = [
            torch.randn(9, 12, 1, 1, generator=g),
            None,
            torch.rand(9, generator=g),
            torch.rand(9, generator=g),
        ]
        parameters += [
            torch.randn(18, 1, 5, 5, generator=g),
            None,
            torch.rand(18, generator=g),
            torch.rand(18, generator=g),
        ]
        seen = []
        for _ in range(3):
            leaves = [None if p is None else p.clone().requires_grad_() for p in (x, *parameters)]
            out = functional.ghost_module_train(*leaves, act="silu")
            out.out.square().sum().backward()
            seen.append([*out, *(leaf.grad for leaf in leaves if leaf is not None)])
        for again in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
    finally:
        torch.set_num_threads(2)


def test_large_mean_small_spread():
    """Statistics by shifted sums: with E[z^2] - E[z]^2 in float32 nothing of this variance would be left."""
    x = 4096 + torch.randn(4, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(3)[:, :, None, None]
    result = functional.ghost_module_train(x, eye, None, None, None, torch.ones(3, 1, 1, 1), None, None, None)
    torch.testing.assert_close(result.primary_var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(result.primary_mean, x.double().mean((0, 2, 3)).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_pass_as_in_pytorch(value):
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    x[0, 1, 2, 3] = value
    w1, w2 = torch.ones(3, 4, 1, 1), torch.ones(3, 1, 3, 3)
    from ghost_ops import use_backend

    for act in ("none", "relu", "relu6", "leaky_relu", "silu", "hard_swish"):
        ours = functional.ghost_module(x, w1, None, w2, None, act=act, cheap_act=act)
        with use_backend("reference"):
            plain = functional.ghost_module(x, w1, None, w2, None, act=act, cheap_act=act)
        torch.testing.assert_close(ours, plain, equal_nan=True)
    ours = functional.ghost_module_train(x, w1, None, None, None, w2, None, None, None)
    assert ours.out.isnan().all() and ours.primary_var.isnan().all()


def test_the_reference_asks_for_no_beta_without_gamma(monkeypatch):
    """On a CUDA device PyTorch's BatchNorm has no backward of these (``empty_like`` of a weight that is not there)."""
    batch_norm, seen = F.batch_norm, []

    def recorded(x, mean, var, weight, bias, *args):
        seen.append((weight is not None, bias is not None))
        return batch_norm(x, mean, var, weight, bias, *args)

    monkeypatch.setattr(F, "batch_norm", recorded)
    x, w1, w2 = torch.randn(2, 6, 5, 7), torch.randn(5, 6, 1, 1), torch.randn(5, 1, 3, 3)
    beta = torch.randn(5, requires_grad=True)
    with use_backend("reference"):
        out = functional.ghost_module_train(x, w1, None, None, beta, w2, None, None, beta).out
    out.sum().backward()
    assert seen == [(True, True)] * 2 and beta.grad.any()
