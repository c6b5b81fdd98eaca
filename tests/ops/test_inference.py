"""``ghost_module_eval``, ``cheap_concat_eval`` and ``excite``: values, dtypes, layouts, and that a gradient is refused
on every backend."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.library import opcheck

import ghost_ops
from ghost_ops import functional as F
from ghost_ops.activations import ACTIVATIONS, GATES
from ghost_ops.backends import native, reference
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.ops._library import overload
from ghost_ops.verify import draws, evaluate
from tests.helpers import LAYOUTS, assert_as_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def ghost(dtype: torch.dtype = torch.float32, **options) -> tuple[dict, dict]:
    """Tensors and options of a call; ``options`` replaces some."""
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 6, 5, 7), "primary_weight": (5, 6, 1, 1), "cheap_weight": (10, 1, 3, 3)}
    for half, channels in (("primary", 5), ("cheap", 10)):
        shapes |= {f"{half}_{name}": (channels,) for name in ("bias", "gamma", "beta", "mean", "var")}
    shapes |= {"input_scale": (2, 6), "residual": (2, 13, 5, 7), "act_weight": (5,)}
    tensors = {name: torch.randn(shape, generator=g) * 0.5 for name, shape in shapes.items()}
    for half in ("primary", "cheap"):
        tensors[f"{half}_var"] = tensors[f"{half}_var"].abs() + 0.5
    named = {"out_channels": 13, "act": "prelu", "cheap_act": "leaky_relu", "cheap_act_slope": 0.2}
    named |= {"primary_eps": 1e-3, "cheap_eps": 1e-2, "return_squeeze": True}
    return {name: t.to(dtype) for name, t in tensors.items()}, named | options


def raw(tensors: dict, options: dict) -> tuple:
    """The operator's arguments in its schema's order."""
    names = [
        f"{half}_{name}" for half in ("primary", "cheap") for name in ("weight", "bias", "gamma", "beta", "mean", "var")
    ]
    names = ["x", *names, "input_scale", "residual", "act_weight", "cheap_act_weight"]
    codes = (ACTIVATIONS.index(options[name]) for name in ("act", "cheap_act"))
    scalars = (options["out_channels"], *codes, 0.01, 0.2, 1e-3, 1e-2, options["return_squeeze"])
    return *map(tensors.get, names), *scalars


def squeeze_of(dtype: torch.dtype) -> list[torch.Tensor]:
    """Squeeze, and weight and bias of both layers."""
    g = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=g).mul(0.3).to(dtype) for s in ((3, 40), (10, 40), (10,), (40, 10), (40,))]


def by_torch(t: dict, o: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """With PyTorch's own layers."""
    f = torch.nn.functional
    y = f.conv2d(t["x"] * t["input_scale"][:, :, None, None], t["primary_weight"], t["primary_bias"])
    y = f.batch_norm(y, *(t[f"primary_{n}"] for n in ("mean", "var", "gamma", "beta")), eps=o["primary_eps"])
    y = f.prelu(y, t["act_weight"])
    z = f.conv2d(y, t["cheap_weight"], t["cheap_bias"], padding=1, groups=5)
    z = f.batch_norm(z, *(t[f"cheap_{n}"] for n in ("mean", "var", "gamma", "beta")), eps=o["cheap_eps"])
    out = torch.cat([y, f.leaky_relu(z, o["cheap_act_slope"])], 1)[:, :13] + t["residual"]
    return out, out.mean((2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ghost_module_eval_is_convolutions_and_batch_norms(dtype, layout):
    tensors, options = ghost(dtype)
    tensors["x"] = tensors["x"].contiguous(memory_format=LAYOUTS[layout])
    exact = by_torch({name: t.double() for name, t in tensors.items()}, options)
    ours, plain = F.ghost_module_eval(**tensors, **options), by_torch(tensors, options)
    for what, a, b, c in zip(("out", "squeeze"), ours, plain, exact, strict=True):
        assert_as_accurate(a, b, c, what=what)
    assert ours[0].is_contiguous(memory_format=LAYOUTS[layout])
    assert torch.equal(F.ghost_module_eval(**tensors, **(options | {"return_squeeze": False})), ours[0])


def tail(tensors: dict) -> dict:
    """The tensors of ``cheap_concat_eval``: z is there in the place of x and what is multiplied with it."""
    rest = {name: t for name, t in tensors.items() if name not in ("x", "primary_weight", "input_scale")}
    return {"z": torch.nn.functional.conv2d(tensors["x"], tensors["primary_weight"])} | rest


def raw_tail(tensors: dict, options: dict) -> tuple:
    names = SCHEMAS["cheap_concat_eval"].split("int")[0].replace("?", "").split("Tensor ")[1:]
    return *(tensors.get(name.strip(", ")) for name in names), *raw(tensors, options)[-8:]


NORM = ("gamma", "beta", "mean", "var")


@pytest.mark.parametrize("without", [(), ("primary",), ("cheap",), ("primary", "cheap")], ids="-".join)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cheap_concat_eval_is_batch_norms_and_a_convolution(dtype, layout, without):
    tensors, options = ghost(dtype)
    tensors = tail(tensors) | {f"{half}_{name}": None for half in without for name in NORM}
    tensors["z"] = tensors["z"].contiguous(memory_format=LAYOUTS[layout])

    def by_torch(t):
        f, halves = torch.nn.functional, {}
        for half, eps in (("primary", 1e-3), ("cheap", 1e-2)):
            gamma, beta, mean, var = (t[f"{half}_{name}"] for name in NORM)
            halves[half] = lambda y, args=(mean, var, gamma, beta), eps=eps: (
                y if args[0] is None else f.batch_norm(y, *args, eps=eps)
            )
        y = f.prelu(halves["primary"](t["z"] + t["primary_bias"][:, None, None]), t["act_weight"])
        z = halves["cheap"](f.conv2d(y, t["cheap_weight"], t["cheap_bias"], padding=1, groups=5))
        out = torch.cat([y, f.leaky_relu(z, 0.2)], 1)[:, :13] + t["residual"]
        return out, out.mean((2, 3))

    exact = by_torch({name: None if t is None else t.double() for name, t in tensors.items()})
    ours, plain = F.cheap_concat_eval(**tensors, **options), by_torch(tensors)
    for what, a, b, c in zip(("out", "squeeze"), ours, plain, exact, strict=True):
        assert_as_accurate(a, b, c, what=what)
    assert ours[0].is_contiguous(memory_format=LAYOUTS[layout])
    assert torch.equal(F.cheap_concat_eval(**tensors, **(options | {"return_squeeze": False})), ours[0])


@pytest.mark.parametrize("backend", [None, "reference"])
def test_defaults(backend):
    """All channels, ReLU twice, and the eps of BatchNorm2d."""
    tensors, _ = ghost()
    for name in ("input_scale", "residual", "act_weight"):
        del tensors[name]
    options = {"out_channels": 15, "act": "relu", "cheap_act": "relu", "primary_eps": 1e-5, "cheap_eps": 1e-5}
    with ghost_ops.use_backend(backend):
        assert torch.equal(F.ghost_module_eval(**tensors), F.ghost_module_eval(**tensors, **options))
        layers = squeeze_of(torch.float32)
        assert torch.equal(F.excite(*layers), F.excite(*layers, act="relu", gate="hard_sigmoid"))


def test_use_backend_reaches_them():
    """To the bit what the reference gives, whatever kernels there are."""
    tensors, options = ghost()
    with ghost_ops.use_backend("reference"):
        out, _ = F.ghost_module_eval(**tensors, **options)
        tail_out, _ = F.cheap_concat_eval(**tail(tensors), **options)
        gate = F.excite(*squeeze_of(torch.float32))
    for found, name, args in (
        (out, "ghost_module_eval_reference", raw(tensors, options)),
        (tail_out, "cheap_concat_eval_reference", raw_tail(tail(tensors), options)),
        (gate, "excite_reference", (*squeeze_of(torch.float32), 1, 1)),
    ):
        expected = overload(name)(*args)
        assert torch.equal(found, expected if isinstance(expected, torch.Tensor) else expected[0])


@pytest.mark.parametrize("operator", ["ghost_module_eval", "cheap_concat_eval"])
def test_drawn_calls(operator):
    for drawn in draws(operator, torch.float32, 8):
        ours, plain = (evaluate(drawn, torch.float32, "channels_last", False, b) for b in (None, "reference"))
        exact = evaluate(drawn, torch.float64, "channels_last", False, "reference")
        assert_as_accurate(ours["output 0"], plain["output 0"], exact["output 0"])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_excite(gate, dtype):
    layers = squeeze_of(dtype)
    code = GATES.index(gate)
    exact = reference.excite(*(t.double() for t in layers), 1, code)
    plain = reference.excite(*layers, 1, code)
    ours = F.excite(*layers, gate=gate)
    assert_as_accurate(ours, plain, exact)
    squeeze, w3, b3, w4, b4 = layers
    assert torch.equal(F.excite(squeeze, w3[:, :, None, None], b3, w4[:, :, None, None], b4, gate=gate), ours)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_is_refused(backend, dtype):
    """On every backend: what runs in inference may not silently train, or train on some machines only."""
    tensors, options = ghost(dtype)
    layers = squeeze_of(dtype)
    with ghost_ops.use_backend(backend) if backend else nullcontext():
        for name in ("x", "cheap_gamma", "residual"):
            wanted = tensors | {name: tensors[name].clone().requires_grad_()}
            out, squeeze = F.ghost_module_eval(**wanted, **options)
            with pytest.raises(NotImplementedError, match=r"ghost_ops.ghost_module_eval is for inference: .* no grad"):
                out.sum().backward()
            with pytest.raises(NotImplementedError, match=r"cheap_concat_eval is for inference"):
                F.cheap_concat_eval(**tail(wanted), **options)[0].sum().backward()
            with torch.no_grad():
                assert not F.ghost_module_eval(**wanted, **options)[0].requires_grad
        layers[1].requires_grad_()
        with pytest.raises(NotImplementedError, match=r"ghost_ops.excite is for inference: it has no gradients"):
            F.excite(*layers).sum().backward()
        with torch.inference_mode():
            assert not F.excite(*layers).requires_grad


def test_autocast():
    tensors, options = ghost()
    with torch.autocast("cpu", torch.bfloat16):
        out, squeeze = F.ghost_module_eval(**tensors, **options)
        gate = F.excite(*squeeze_of(torch.float32))
    assert out.dtype == squeeze.dtype == gate.dtype == torch.bfloat16


def test_the_operators_are_checked_by_pytorch():
    tensors, options = ghost()
    utilities = ("test_schema", "test_faketensor")
    opcheck(overload("ghost_module_eval"), raw(tensors, options), test_utils=utilities)
    opcheck(overload("cheap_concat_eval"), raw_tail(tail(tensors), options), test_utils=utilities)
    opcheck(overload("excite"), (*squeeze_of(torch.float32), 1, 2), test_utils=utilities)


@pytest.mark.skipif(not native.available(), reason="the reference takes what its linear layers take")
def test_the_operator_itself_refuses_what_does_not_fit():
    squeeze, w3, _, w4, _ = squeeze_of(torch.float32)
    with pytest.raises(RuntimeError, match="reduce_weight"):
        overload("excite")(squeeze, w4, None, w3, None, 1, 1)


class Net(torch.nn.Module):
    def forward(self, tensors, layers):
        out, _ = F.ghost_module_eval(**tensors, out_channels=13, act="prelu", return_squeeze=True)
        tail_out = F.cheap_concat_eval(**tail(tensors), out_channels=13, act="prelu")
        return out, tail_out, F.excite(*layers, gate="sigmoid")


def test_compile_and_export():
    tensors, _ = ghost()
    args = tensors, squeeze_of(torch.float32)
    with torch.no_grad():
        expected = Net()(*args)
        for found in (torch.compile(Net(), fullgraph=True)(*args), torch.export.export(Net(), args).module()(*args)):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b)
