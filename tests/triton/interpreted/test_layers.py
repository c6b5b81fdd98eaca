"""Layers between Ghost modules in training: convolutions with a BatchNorm over the batch, and what follows it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import activations as activation
from ghost_ops.backends.triton import depthwise, excite, launch, squeeze_excite
from ghost_ops.backends.triton.convolution import convolution_before_norm, convolution_weight_gradient
from ghost_ops.backends.triton.depthwise_gradients import depthwise_gradients
from ghost_ops.backends.triton.epilogue import Epilogue
from ghost_ops.backends.triton.joins import Joins
from ghost_ops.backends.triton.norm import BatchNorm, NormVectors
from ghost_ops.backends.triton.normalise import norm_gradient, norm_gradient_sums, normalise
from tests.helpers import assert_as_accurate
from tests.ops.cases import LAYOUTS, Errors, in_layout

from .drawn import DTYPES, few_tiles, many_tiles

EPS = 1e-5
ACTS = [activation.NONE, activation.RELU, activation.PRELU, activation.ACTIVATIONS.index("hard_swish")]


def draw_layer(seed: int, dense: bool = False) -> SimpleNamespace:
    """A convolution, a BatchNorm, an activation and a residual: always the same of a seed."""
    rng, generator = random.Random(f"layer {seed} {dense}"), torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 2]

    def numbers(*shape, scale=1.0, shift=0.0):
        return torch.randn(shape, generator=generator) * scale + shift

    def a_map(*shape):
        return in_layout(numbers(*shape).to(dtype), rng.choice(LAYOUTS))

    n, k, stride = rng.randint(1, 2), rng.choice([3, 3, 5, 7] if seed > 5 else [3, 5]), rng.choice([1, 2, 2, 3])
    h, w = rng.randint(3, 5) * stride + rng.randint(0, 1), rng.randint(3, 5) * stride + rng.randint(0, 1)
    c = rng.randint(1, 4) if dense else rng.choice([3, 8, 16, 17, 20])
    m, padding = (rng.choice([5, 8, 16, 17]), rng.randint(0, k // 2)) if dense else (c, k // 2)
    if dense and k > min(h, w):
        k, padding = 3, 1
    act = rng.choice(ACTS)
    weight = numbers(m, c if dense else 1, k, k, scale=1 / k).to(rng.choice([dtype, torch.float32]))
    x = a_map(n, c, h, w)
    out = F.conv2d(x.double(), weight.double(), None, stride, padding, groups=1 if dense else c)
    return SimpleNamespace(
        x=x, weight=weight, gamma=numbers(m, scale=0.3, shift=1.0), beta=numbers(m, scale=0.3), act=act,
        slopes=numbers(m, scale=0.3) if act == activation.PRELU else None, stride=stride, padding=padding,
        groups=1 if dense else c, sides=out.shape[2:], grad=a_map(*out.shape), residual=a_map(*out.shape),
        more=a_map(*x.shape), seed=seed,
    )  # fmt: skip


def in_pytorch(layer: SimpleNamespace, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Results and gradients: maps in ``dtype``, vectors in float32, or everything in float64."""
    wide = dtype == torch.float64
    leaf = lambda t, kind: None if t is None else t.detach().to(kind).requires_grad_()
    x, weight, residual = leaf(layer.x, dtype), leaf(layer.weight, dtype), layer.residual.to(dtype)
    vectors = [leaf(t, dtype if wide else torch.float32) for t in (layer.gamma, layer.beta, layer.slopes)]
    z = F.conv2d(x, weight, None, layer.stride, layer.padding, groups=layer.groups)
    normed = F.batch_norm(z, None, None, vectors[0], vectors[1], True, 0.0, EPS)
    slopes = None if vectors[2] is None else vectors[2].to(dtype)
    out = activation.activate(normed, layer.act, 0.0, slopes) + residual
    out.backward(layer.grad.to(dtype))
    found = {"out": out, "sums": out.sum((2, 3)), "x": x.grad + layer.more.to(dtype), "weight": weight.grad}
    found |= {name: t.grad for name, t in zip(("gamma", "beta", "slopes"), vectors) if t is not None}
    return {name: t.detach() for name, t in found.items()}


def batch_norm(layer: SimpleNamespace) -> dict:
    return {"joins": Joins(layer.x.device), "norm": BatchNorm(layer.gamma, layer.beta, EPS)}


def forward(layer: SimpleNamespace, z: torch.Tensor, vectors: NormVectors):
    """The layer's results from the convolution on, and the BatchNorm as an epilogue of kernels."""
    norm = vectors.applied(Epilogue(None, layer.act, 0.0, layer.slopes))
    out, sums = normalise(z, norm, like=layer.x, residual=layer.residual, squeeze=True)
    return {"out": out, "sums": sums.sum(0)}, norm


def backward(layer: SimpleNamespace, z: torch.Tensor, vectors: NormVectors, norm: Epilogue):
    """Gradients of the BatchNorm's parameters, and what the convolution's gradients need."""
    own = Epilogue(None, layer.act, 0.0, layer.slopes, layer.gamma, layer.beta, eps=EPS)
    given = {"joins": Joins(z.device), "own": own, "vectors": vectors}
    coefficients, found = norm_gradient_sums(layer.grad, z, norm, **given)
    gradients = {"gamma": found.gamma, "beta": found.beta}
    gradients |= {} if layer.slopes is None else {"slopes": found.slopes}
    return gradients, {"z": z, "norm": norm, "coefficients": coefficients}


def compare(layer: SimpleNamespace, found: dict[str, torch.Tensor], errors: Errors) -> None:
    eager, exact = in_pytorch(layer, layer.x.dtype), in_pytorch(layer, torch.float64)
    for name, ours in found.items():
        plain = eager[name].to(ours.dtype)
        errors.add(name, ours, plain, exact[name])
        assert_as_accurate(ours, plain, exact[name], 4.0, what=f"seed {layer.seed}, {name}", ulps=8)


@pytest.mark.parametrize("seed", range(10))
def test_depthwise_convolution_and_batch_norm(seed):
    layer, errors = draw_layer(seed), Errors()
    with many_tiles() if seed % 4 == 3 else few_tiles():
        z, vectors = depthwise.depthwise_before_norm(layer.x, layer.weight, layer.stride, **batch_norm(layer))
        found, norm = forward(layer, z, vectors)
        gradients, options = backward(layer, z, vectors, norm)
        x, weight, _ = depthwise_gradients(
            layer.grad, layer.x, layer.weight, layer.stride, residual=layer.more, **options
        )  # fmt: skip
    compare(layer, found | gradients | {"x": x, "weight": weight}, errors)


@pytest.mark.parametrize(("n", "c", "r", "splits"), [(1, 40, 12, 3), (18, 100, 33, 1), (2, 24, 8, 19), (3, 5, 257, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_an_excitation(n, c, r, splits, dtype, monkeypatch):
    """Sums of several splits, several blocks of images and shares of channels, more hidden channels than fit."""
    monkeypatch.setattr(excite, "PROGRAMS", 3)
    monkeypatch.setattr(excite, "LEAST_STEP", 16)
    act, gate = activation.ACTIVATIONS.index("silu"), activation.GATES.index("sigmoid")
    sums, per_value = torch.randn(splits, n, c), 0.25
    layers = [torch.randn(r, c) / c**0.5, torch.randn(r), torch.randn(c, r).to(dtype) / r**0.5, None]
    found = excite.excite_layers(sums, per_value, *layers, act, gate, dtype, gated=True)

    def plain(kind):
        squeeze = (sums.to(torch.promote_types(kind, torch.float32)).sum(0) * per_value).to(kind)
        hidden = F.linear(squeeze, layers[0].to(kind), layers[1].to(kind))
        logits = F.linear(activation.activate(hidden, act), layers[2].to(kind))
        return squeeze, hidden, logits, torch.sigmoid(logits)

    names = ("squeeze", "hidden", "logits", "gated")
    for name, ours, eager, exact in zip(names, found, plain(dtype), plain(torch.float64), strict=True):
        assert_as_accurate(ours, eager, exact, 4.0, what=name, ulps=8)


def test_launches_of_squeeze_and_excite():
    """Each way: a pass over the map, the layers, the scaling pass. Sums that the pass before made save the first."""
    started = []
    record = lambda kernel, grid, arguments, warps, stages: started.append(kernel.__name__)
    x, layers = torch.randn(2, 8, 5, 5), [torch.randn(4, 8), torch.randn(4), torch.randn(8, 4), torch.randn(8)]
    with pytest.MonkeyPatch.context() as patch, many_tiles():
        patch.setattr(launch, "start_kernel", record)
        _, *saved = squeeze_excite.squeeze_excite(x, *layers, 1, 1)
        assert started == ["sums_kernel", "layers_kernel", "scale_kernel"]
        del started[:]
        squeeze_excite.squeeze_excite_fwd(x, *layers, 1, 1, sums=torch.empty(3, 2, 8))
        assert started == ["layers_kernel", "scale_kernel"]
        del started[:]
        squeeze_excite.squeeze_excite_backward(x, x, *saved, *layers, 1, 1)
        assert started == ["sums_kernel", "hidden_bwd_kernel", "layers_bwd_kernel", "scale_kernel"]


@pytest.mark.parametrize("seed", range(8))
def test_first_convolution_and_batch_norm(seed):
    layer, errors = draw_layer(seed, dense=True), Errors()
    given = layer.stride, layer.padding
    with many_tiles() if seed % 4 == 3 else few_tiles():
        z, vectors = convolution_before_norm(layer.x, layer.weight, *given, **batch_norm(layer))
        found, norm = forward(layer, z, vectors)
        gradients, options = backward(layer, z, vectors, norm)
        weight = convolution_weight_gradient(layer.grad, layer.x, layer.weight, *given, **options)
    compare(layer, found | gradients | {"weight": weight}, errors)


def test_gradient_of_a_first_convolution_without_a_batch_norm():
    layer = draw_layer(2, dense=True)
    weight = layer.weight.double().requires_grad_()
    F.conv2d(layer.x.double(), weight, None, layer.stride, layer.padding).backward(layer.grad.double())
    found = convolution_weight_gradient(layer.grad, layer.x, layer.weight, layer.stride, layer.padding)
    torch.testing.assert_close(found.double(), weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_a_convolutions_result(layout):
    """For what no kernel computes it on the way: NCHW and strided gradients, odd channels."""
    layer = draw_layer(3)
    layer.grad = in_layout(layer.grad, layout)
    z, vectors = depthwise.depthwise_before_norm(layer.x, layer.weight, layer.stride, **batch_norm(layer))
    _, norm = forward(layer, z, vectors)
    _, options = backward(layer, z, vectors, norm)
    through = norm_gradient(layer.grad, **options)
    once = depthwise_gradients(layer.grad, layer.x, layer.weight, layer.stride, **options)
    twice = depthwise_gradients(through, layer.x, layer.weight, layer.stride)
    for a, b in zip(once[:2], twice[:2]):
        torch.testing.assert_close(a, b, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize(("place", "rows", "columns"), [((0, 0), (1, 2), (1, 2)), ((2, 1), (0, 1), (0, 1, 2))])
def test_nan_reaches_only_the_taps_that_met_it(place, rows, columns):
    """Pairs of a result with what is outside of the map add nothing, whatever the result's gradient is."""
    x, weight, grad = torch.randn(1, 3, 5, 4), torch.randn(3, 1, 3, 3), torch.randn(1, 3, 3, 2)
    grad[(0, 1, *place)] = torch.nan
    _, found, _ = depthwise_gradients(grad, x, weight, 2)
    assert found[1, 0].isnan().nonzero().tolist() == [[i, j] for i in rows for j in columns]
    assert found[0].isfinite().all() and found[2].isfinite().all()


def test_infinity_reaches_only_the_taps_that_met_it():
    x, weight, grad = torch.randn(1, 2, 5, 4), torch.randn(2, 1, 3, 3), torch.randn(1, 2, 3, 2)
    x[0, 1, 0, 0] = torch.inf
    _, found, _ = depthwise_gradients(grad, x, weight, 2)
    assert (~found[1, 0].isfinite()).nonzero().tolist() == [[1, 1]]
    assert found[0].isfinite().all()


def test_launches_of_a_layer():
    """Two forward and three backward, beside the one that starts all joins of a call."""
    started = []
    record = lambda kernel, grid, arguments, warps, stages: started.append(kernel.__name__)
    layer = draw_layer(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "start_kernel", record)
        z, vectors = depthwise.depthwise_before_norm(layer.x, layer.weight, layer.stride, **batch_norm(layer))
        _, norm = forward(layer, z, vectors)
        assert started == ["start_joins_kernel", "depthwise_kernel", "normalise_kernel"]
        del started[:]
        _, options = backward(layer, z, vectors, norm)
        depthwise_gradients(layer.grad, layer.x, layer.weight, layer.stride, residual=layer.more, **options)
        assert started == ["start_joins_kernel", "norm_bwd_kernel", "depthwise_bwd_kernel", "total_kernel"]


def test_layers_with_offsets_in_64_bits(monkeypatch):
    """The route of maps that would not fit here, on small ones: the same bits."""

    def call():
        found = []
        for dense in (False, True):
            layer = draw_layer(1, dense)
            before = convolution_before_norm if dense else depthwise.depthwise_before_norm
            given = (layer.stride, layer.padding) if dense else (layer.stride,)
            with few_tiles():
                z, vectors = before(layer.x, layer.weight, *given, **batch_norm(layer))
                out, norm = forward(layer, z, vectors)
                gradients, options = backward(layer, z, vectors, norm)
                after = convolution_weight_gradient if dense else depthwise_gradients
                last = after(layer.grad, layer.x, layer.weight, *given, **options)
            found += [*out.values(), *gradients.values(), *(last[:2] if isinstance(last, tuple) else [last])]
        return found

    narrow = call()
    monkeypatch.setattr("ghost_ops.backends.triton.launch.is_wide", lambda *maps, images=False: True)
    assert all(torch.equal(a, b) for a, b in zip(narrow, call(), strict=True))
