"""What drawn cases leave out: no images, expanded maps, odd numbers, repetition, bad arguments, opcheck."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from ghost_ops import functional, use_backend
from ghost_ops.activations import ACTIVATIONS
from ghost_ops.backends import reference
from ghost_ops.backends.triton.convolution import convolution
from ghost_ops.ops._library import overload
from tests.ops.test_registration import CALLS

from .drawn import draw, draw_depthwise, draw_gate, draw_gated, few_tiles, many_tiles, one_launch

# of cases that take an interpreter few steps
SEEDS = {
    "ghost_module": 2, "ghost_module_train": 2, "cheap_concat": 10, "cheap_concat_train": 0, "depthwise": 8,
    "dfc_gate_train": 2, "ghost_module_train_gated": 2,
}  # fmt: skip


def drawn(kind):
    others = {"depthwise": draw_depthwise, "dfc_gate_train": draw_gate, "ghost_module_train_gated": draw_gated}
    return others.get(kind, partial(draw, kind))(SEEDS[kind])


@pytest.fixture(autouse=True)
def _few_tiles():
    with few_tiles():
        yield


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def both(call):
    """Results and gradients of ours and of the reference."""
    found = []
    for name in (None, "reference"):
        with use_backend(name):
            found.append(call())
    return found


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 4, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_no_images_and_single_pixels(shape, layout):
    def module():
        w1, b1, w2, r = leaves((3, 4, 1, 1), (3,), (6, 1, 3, 3), (shape[0], 8, *shape[2:]))
        (x,) = leaves(shape)
        seen = x.to(memory_format=layout)
        out, squeeze = functional.ghost_module(seen, w1, b1, w2, None, out_channels=8, residual=r, return_squeeze=True)
        (out.sum() + squeeze.sum()).backward()
        return [out, squeeze, x.grad, w1.grad, b1.grad, w2.grad, r.grad]

    def excited():
        x, *w = leaves(shape, (2, 4), (2,), (4, 2), (4,))
        out = functional.squeeze_excite(x.to(memory_format=layout), *w)
        out.sum().backward()
        return [out, x.grad, *(t.grad for t in w)]

    def trained():
        x, w1, w2 = leaves(shape, (3, 4, 1, 1), (3, 1, 3, 3))
        found = functional.ghost_module_train(x.to(memory_format=layout), w1, None, None, None, w2, None, None, None)
        found.out.sum().backward()
        return [*found, x.grad, w1.grad, w2.grad]

    for call in (module, excited, *([trained] if shape[0] else [])):
        for ours, plain in zip(*both(call), strict=True):
            assert ours.shape == plain.shape
            torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_expanded_maps():
    """Strides of 0: of an input, of a residual, and of the gradient that a sum hands back."""

    def call():
        x, w1, w2, r = leaves((2, 5, 1, 7), (4, 5, 1, 1), (4, 1, 3, 3), (2, 1, 6, 7))
        out = functional.ghost_module(
            x.expand(2, 5, 6, 7), w1, None, w2, None, residual=r.expand(2, 8, 6, 7), act="silu"
        )
        out.sum().backward()
        return [out, x.grad, w1.grad, w2.grad, r.grad]

    for ours, plain in zip(*both(call), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


WEIGHT_LAYOUTS = {
    "taps first": lambda w: w.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
    "rows and columns turned": lambda w: w.transpose(2, 3).contiguous().transpose(2, 3),
    "part of a wider kernel": lambda w: F.pad(w, (0, 2))[..., :-2],
    "every other channel": lambda w: torch.stack((w, w), 1).flatten(0, 1)[::2],
}


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_depthwise_weights_of_any_layout(layout):
    """The same bits, in the forward and in the backward, whatever the strides of channels and of taps."""

    def call(as_laid):
        x, w1, w2, w3 = leaves((1, 4, 5, 6), (3, 4, 1, 1), (6, 1, 3, 3), (9, 1, 5, 5))
        found = functional.ghost_module_train(x, w1, None, None, None, as_laid(w2), None, None, None)
        out = functional.depthwise(found.out, as_laid(w3), None, stride=2)
        out.square().sum().backward()
        return [found.out, out, x.grad, w1.grad, w2.grad, w3.grad]

    as_laid = WEIGHT_LAYOUTS[layout]
    w = torch.randn(6, 1, 3, 3)
    assert as_laid(w).stride() != w.stride() and torch.equal(as_laid(w), w)
    for ours, plain in zip(call(as_laid), call(lambda w: w.clone()), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("kind", [kind for kind in SEEDS if kind != "depthwise"])
def test_repeats_to_the_bit(kind):
    def call():
        case = drawn(kind).leaves()
        out = getattr(functional, kind.removesuffix("_gated"))(**case.tensors, **case.options)
        first = out if isinstance(out, torch.Tensor) else out[0]
        first.square().sum().backward()
        return [first, *(t.grad for t in case.tensors.values() if t is not None)]

    with many_tiles():
        assert all(torch.equal(a, b) for a, b in zip(call(), call(), strict=True))


def test_large_mean_small_spread():
    """Statistics around the tile's own mean: with E[z^2] - E[z]^2 in float32 nothing of this variance would be left."""
    x = 4096 + torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(3)[:, :, None, None]
    for tiles in (few_tiles(), many_tiles()):
        with tiles:
            found = functional.ghost_module_train(x, eye, None, None, None, torch.ones(3, 1, 1, 1), None, None, None)
        var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        torch.testing.assert_close(found.primary_var, var.float(), rtol=1e-4, atol=0)
        torch.testing.assert_close(found.primary_mean, mean.float(), rtol=1.2e-7, atol=0)  # the last place


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_pass_as_in_pytorch(value):
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    x[0, 1, 2, 3] = value
    w1, w2 = torch.ones(3, 4, 1, 1), torch.ones(3, 1, 3, 3)
    for act in ("none", "relu", "relu6", "leaky_relu", "silu", "hard_swish"):
        call = lambda act=act: functional.ghost_module(x, w1, None, w2, None, act=act, cheap_act=act)
        ours, plain = both(call)
        torch.testing.assert_close(ours, plain, equal_nan=True)
    found = functional.ghost_module_train(x, w1, None, None, None, w2, None, None, None)
    assert found.out.isnan().all() and found.primary_var.isnan().all()


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(overload(name.split()[0]), CALLS[name](x), test_utils=tests)


@pytest.mark.parametrize("change", [0, 1, 2, 3, 4, 5, 6])
def test_direct_calls_refuse_what_does_not_fit(change):
    """Below the checks of the public functions nothing is read past its end."""
    args = list(CALLS["ghost_module"](torch.randn(2, 6, 5, 7)))
    args = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
    shapes = [(2, 7, 5, 7), (5, 7, 1, 1), (4,), (11, 1, 3, 3), (9,), (2, 5), (2, 13, 5, 6)]
    args[change] = torch.randn(shapes[change])
    with pytest.raises(ValueError, match="expected"):
        overload("ghost_module")(*args)


DEPTHWISE = ((2, 6, 7, 5), (6, 1, 3, 3), (6,))  # x, weight, bias
DEPTHWISE_REFUSED = {
    "x": (0, (2, 5, 7, 5), (2, 6, 7), (2, 6, 0, 5)),
    "weight": (1, (5, 1, 3, 3), (6, 1, 3, 2), (6, 1, 2, 3), (6, 2, 3, 3), (6, 3, 3), (6,), ()),
    "bias": (2, (5,), (7,), (1,), ()),
}


@pytest.mark.parametrize("name", ["depthwise", "depthwise_backward"])
@pytest.mark.parametrize("argument", DEPTHWISE_REFUSED)
def test_direct_depthwise_calls_refuse_what_does_not_fit(name, argument):
    index, *shapes = DEPTHWISE_REFUSED[argument]
    for shape in shapes:
        args = [torch.randn(s) for s in DEPTHWISE]
        args[index] = torch.randn(shape)
        more = (2,) if name == "depthwise" else (2, True, True)
        given = () if name == "depthwise" else (torch.randn(2, 6, 4, 3),)
        with pytest.raises(ValueError, match="expected"):
            overload(name)(*given, *args, *more)


@pytest.mark.parametrize("shape", [(2, 6, 4, 2), (2, 6, 3, 3), (1, 6, 4, 3), (2, 5, 4, 3), (2, 6, 7, 5)])
def test_direct_depthwise_backward_refuses_a_gradient_of_another_shape(shape):
    with pytest.raises(ValueError, match="grad_out: expected shape"):
        overload("depthwise_backward")(torch.randn(shape), *(torch.randn(s) for s in DEPTHWISE), 2, True, True)


def test_a_stride_of_nothing_is_refused():
    with pytest.raises(ValueError, match="stride: expected at least 1, got 0"):
        overload("depthwise")(*(torch.randn(s) for s in DEPTHWISE), 0)


EXCITATION = {"reduce_weight": (3, 6), "reduce_bias": (3,), "expand_weight": (6, 3), "expand_bias": (6,)}
VECTORS = {"squeeze": (2, 6), "hidden": (2, 3), "logits": (2, 6)}


@pytest.mark.parametrize("argument", [*EXCITATION, *VECTORS])
def test_direct_excitations_refuse_what_does_not_fit(argument):
    good = {"grad_out": (2, 6, 4, 3), "x": (2, 6, 4, 3)} | VECTORS | EXCITATION
    calls = {"squeeze_excite": ("x", *EXCITATION), "squeeze_excite_backward": tuple(good)}
    calls["excite"] = ("squeeze", *EXCITATION)
    for name, arguments in calls.items():
        if argument in arguments:
            size = good[argument]
            for shape in ((*size[:-1], size[-1] - 1), (size[0] - 1, *size[1:]), (*size, 1)):
                args = [torch.randn(shape if a == argument else good[a]) for a in arguments]
                if name == "excite" and argument == "squeeze" and len(shape) == 2 and shape[1] == 6:
                    continue  # fewer images
                with pytest.raises(ValueError, match="expected"):
                    overload(name)(*args, 1, 0)


def test_direct_backward_refuses_a_gradient_of_another_shape():
    x, w1, w2 = (t.detach() for t in leaves((2, 6, 5, 7), (5, 6, 1, 1), (5, 1, 3, 3)))
    with pytest.raises(ValueError, match="grad_out: expected shape"):
        overload("ghost_module_backward")(
            torch.randn(2, 10, 5, 6), x, w1, None, w2, None, None, None, None, 10, 1, 1, 0.0, 0.0
        )


def test_offsets_in_64_bits(monkeypatch):
    """The route of maps that would not fit here, on small ones: the same bits."""
    kinds = (*SEEDS, "one launch", "first convolution")

    def call(kind):
        if kind not in SEEDS:
            g = torch.Generator().manual_seed(0)
            x = torch.randn((2, 6, 9, 7), generator=g).half()  # NCHW: channels are furthest apart
            if kind == "first convolution":
                return [convolution(x, torch.randn((5, 6, 3, 3), generator=g).half(), None, None, 2, 1, 1, 0.0)]
            w1, w2 = torch.randn((8, 6, 1, 1), generator=g).half(), torch.randn((8, 1, 3, 3), generator=g).half()
            with one_launch(True):
                return [functional.ghost_module(x, w1, None, w2, None)]
        case = drawn(kind).leaves()
        out = getattr(functional, kind.removesuffix("_gated"))(**case.tensors, **case.options)
        first = out if isinstance(out, torch.Tensor) else out[0]
        first.square().sum().backward()
        return [first, *(t.grad for t in case.tensors.values() if t is not None)]

    narrow = {kind: call(kind) for kind in kinds}
    monkeypatch.setattr("ghost_ops.backends.triton.launch.is_wide", lambda *maps, images=False: True)
    for kind in kinds:
        assert all(torch.equal(a, b) for a, b in zip(narrow[kind], call(kind), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cheap_concat_in_inference(dtype, layout):
    """Folded BatchNorms, a cut concatenation, a residual and the squeeze, against float64."""
    generator = torch.Generator().manual_seed(3)
    m, cheap, kept = 5, 10, 13
    numbers = lambda *shape: torch.randn(shape, generator=generator).to(dtype)
    norm = lambda c: (*(numbers(c) for _ in range(4)), numbers(c).abs() + 0.5)
    z, first = numbers(2, m, 7, 6), norm(m)
    weight, second, residual = numbers(cheap, 1, 3, 3) / 3, norm(cheap), numbers(2, kept, 7, 6)

    shaped = z.to(memory_format=layout), residual.to(memory_format=layout)
    options = {"out_channels": kept, "act": "silu", "cheap_act": "relu", "return_squeeze": True}
    with torch.no_grad():
        found = functional.cheap_concat_eval(shaped[0], *first, weight, *second, residual=shaped[1], **options)
    wide = [t.double() for t in (z, *first, weight, *second, residual)]
    codes = (ACTIVATIONS.index("silu"), ACTIVATIONS.index("relu"), 0.0, 0.0, 1e-5, 1e-5, True)
    exact = reference.cheap_concat_eval(*wide, None, None, kept, *codes)
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype is dtype
        assert (ours.double() - truth).abs().max() <= 16 * torch.finfo(dtype).eps * float(truth.abs().max())
