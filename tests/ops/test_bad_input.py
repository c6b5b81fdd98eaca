"""What does not fit is refused before a kernel runs, naming the argument; what is odd but valid gives the answer."""

from __future__ import annotations

import inspect

import pytest
import torch

from ghost_ops import functional as F
from ghost_ops import use_backend

x, w1, w2 = torch.randn(2, 6, 5, 7), torch.randn(4, 6, 1, 1), torch.randn(8, 1, 3, 3)
gate = {
    "reduce_weight": torch.randn(3, 6),
    "reduce_bias": None,
    "expand_weight": torch.randn(6, 3),
    "expand_bias": None,
}


def module(**changes):
    arguments = {"x": x, "primary_weight": w1, "primary_bias": None, "cheap_weight": w2, "cheap_bias": None} | changes
    return F.ghost_module(**arguments)


def train(**changes):
    names = "x primary_weight primary_bias primary_gamma primary_beta cheap_weight cheap_bias cheap_gamma cheap_beta"
    arguments = dict.fromkeys(names.split()) | {"x": x, "primary_weight": w1, "cheap_weight": w2} | changes
    return F.ghost_module_train(**arguments)


def evaluate(**changes):
    arguments = {"x": x, "primary_weight": w1, "cheap_weight": w2}
    for half, channels in (("primary", 4), ("cheap", 8)):
        arguments |= dict.fromkeys((f"{half}_bias", f"{half}_gamma", f"{half}_beta"))
        arguments |= {f"{half}_mean": torch.zeros(channels), f"{half}_var": torch.ones(channels)}
    return F.ghost_module_eval(**(arguments | changes))


def concat(**changes):
    return F.cheap_concat(**({"z": torch.randn(2, 4, 5, 7), "cheap_weight": w2, "cheap_bias": None} | changes))


def concat_eval(**changes):
    arguments = {"z": torch.randn(2, 4, 5, 7), "cheap_weight": w2, "primary_bias": None, "cheap_bias": None}
    for half, channels in (("primary", 4), ("cheap", 8)):
        arguments |= dict.fromkeys((f"{half}_gamma", f"{half}_beta"))
        arguments |= {f"{half}_mean": torch.zeros(channels), f"{half}_var": torch.ones(channels)}
    return F.cheap_concat_eval(**(arguments | changes))


def concat_train(**changes):
    names = "primary_bias primary_gamma primary_beta cheap_bias cheap_gamma cheap_beta"
    arguments = dict.fromkeys(names.split()) | {"z": torch.randn(2, 4, 5, 7), "cheap_weight": w2} | changes
    return F.cheap_concat_train(**arguments)


def norm(**changes):
    return F.batch_norm_act_train(**({"z": x, "gamma": None, "beta": torch.ones(6)} | changes))


def attend(**changes):
    return F.squeeze_excite(**({"x": x} | gate | changes))


def excite(**changes):
    return F.excite(**({"squeeze": x.mean((2, 3))} | gate | changes))


def depthwise(**changes):
    return F.depthwise(**({"x": x, "weight": torch.randn(6, 1, 3, 3), "bias": None, "stride": 2} | changes))


def gate_of(**changes):
    arguments = {"x": x, "weight": torch.randn(4, 6, 1, 1), "row_weight": rows, "column_weight": columns}
    arguments |= dict.fromkeys(("gamma", "beta", "row_gamma", "row_beta", "column_gamma", "column_beta"))
    return F.dfc_gate_train(**(arguments | changes))


def branched(**changes):
    arguments = {"x": x, "primary_weight": w1, "cheap_weight": w2[:4], "branches": 2}
    arguments |= dict.fromkeys(("primary_gamma", "primary_beta", "cheap_gamma", "cheap_beta"))
    return F.branched_module_train(**(arguments | changes))


rows, columns = torch.randn(4, 1, 1, 5), torch.randn(4, 1, 5, 1)
REFUSED = [
    (gate_of, {"x": x[:, :, :1]}, ValueError, "x: expected at least two rows and columns, got 1x7"),
    (gate_of, {"x": x[:1, :, :3, :3]}, ValueError, "x: expected more than 1 value per channel after pooling"),
    (gate_of, {"weight": torch.randn(4, 5, 1, 1)}, ValueError, "weight: expected shape anyx6x1x1, got 4x5x1x1"),
    (gate_of, {"weight": torch.randn(0, 6, 1, 1)}, ValueError, "weight: expected at least one output channel, got 0"),
    (gate_of, {"row_weight": columns}, ValueError, "row_weight: expected shape 4x1x1xany, got 4x1x5x1"),
    (gate_of, {"column_weight": rows}, ValueError, "column_weight: expected shape 4x1xanyx1, got 4x1x1x5"),
    (gate_of, {"row_weight": rows[..., :4]}, ValueError, "row_weight: expected an odd number of taps, got 4"),
    (gate_of, {"column_gamma": torch.ones(3)}, ValueError, "column_gamma: expected shape 4, got 3"),
    (gate_of, {"beta": torch.ones(4).double()}, TypeError, "beta: expected the dtype of x"),
    (gate_of, {"gate": "softmax"}, ValueError, "gate: expected one of clamp"),
    (gate_of, {"eps": "small"}, TypeError, "eps: expected a number"),
    (branched, {"x": x[:1, :, :1, :1]}, ValueError, "x: expected more than 1 value per channel when training"),
    (branched, {"branches": 3}, ValueError, "branches: expected an int that divides the 4 primary channels, got 3"),
    (branched, {"branches": 1.0}, ValueError, "branches: expected an int that divides"),
    (branched, {"cheap_weight": w2[:3]}, ValueError, "cheap_weight: expected a positive multiple of the 2"),
    (branched, {"scale_weight": w2[:2]}, ValueError, "scale_weight: expected shape 2x1x1x1, got 2x1x3x3"),
    (branched, {"cheap_gamma": torch.ones(4)}, ValueError, "cheap_gamma: expected shape 6, got 4"),
    (branched, {"primary_beta": torch.ones(2)}, ValueError, "primary_beta: expected shape 4, got 2"),
    (branched, {"out_channels": 1}, ValueError, "out_channels: expected 2 to 4, once to twice .*, got 1"),
    (branched, {"act": "prelu"}, ValueError, "act: expected one of none, relu"),
    (branched, {"cheap_act": 1}, ValueError, "cheap_act: expected one of none, relu"),
    (branched, {"cheap_eps": "small"}, TypeError, "cheap_eps: expected a number"),
    (branched, {"gate": torch.rand(2, 3, 2, 3)}, ValueError, "gate: expected shape 2x4xanyxany, got 2x3x2x3"),
    (train, {"gate": [1.0]}, TypeError, "gate: expected a tensor, got list"),
    (train, {"gate": torch.rand(2, 11, 2, 3)}, ValueError, "gate: expected shape 2x12xanyxany, got 2x11x2x3"),
    (train, {"gate": torch.rand(2, 12, 2, 0)}, ValueError, "gate: expected at least one row and column"),
    (train, {"gate": torch.rand(2, 12, 2, 3).double()}, TypeError, "gate: expected the dtype of x"),
    (concat_eval, {"z": [1.0]}, TypeError, "z: expected a tensor, got list"),
    (concat_eval, {"primary_mean": None}, ValueError, "primary_mean: expected a tensor beside primary_var, got None"),
    (concat_eval, {"cheap_var": None}, TypeError, "cheap_var: expected a tensor, got NoneType"),
    (concat_eval, {"cheap_gamma": torch.ones(4)}, ValueError, "cheap_gamma: expected shape 8, got 4"),
    (concat_eval, {"primary_bias": torch.ones(3)}, ValueError, "primary_bias: expected shape 4, got 3"),
    (concat_eval, {"residual": torch.randn(2, 12, 5, 6)}, ValueError, "residual: expected shape 2x12x5x7"),
    (concat_eval, {"cheap_eps": "small"}, TypeError, "cheap_eps: expected a number"),
    (module, {"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
    (module, {"x": x[0]}, ValueError, "x: expected 4 dimensions .*, got 3 \\(6x5x7\\)"),
    (module, {"x": x.int()}, TypeError, "x: expected a floating-point dtype"),
    (module, {"x": x[:, :0]}, ValueError, "x: expected at least one channel"),
    (module, {"x": x[:, :, :0]}, ValueError, "x: expected at least one row and column, got 2x6x0x7"),
    (module, {"x": x[:, :5]}, ValueError, "primary_weight: expected shape anyx5x1x1, got 4x6x1x1"),
    (module, {"primary_weight": w1[0]}, ValueError, "primary_weight: expected shape"),
    (module, {"primary_weight": w1[:0]}, ValueError, "primary_weight: expected at least one output channel"),
    (module, {"primary_weight": torch.randn(4, 6, 3, 3)}, ValueError, "primary_weight: expected shape"),
    (module, {"primary_weight": w1.double()}, TypeError, "primary_weight: expected the dtype of x"),
    (module, {"primary_weight": w1.bfloat16()}, TypeError, "primary_weight: expected the dtype of x"),
    (module, {"primary_weight": w1.to("meta")}, ValueError, "primary_weight: expected the device of x"),
    (module, {"primary_bias": torch.randn(5)}, ValueError, "primary_bias: expected shape 4, got 5"),
    (module, {"cheap_weight": w2[:7]}, ValueError, "cheap_weight: expected a positive multiple of the 4"),
    (module, {"cheap_weight": w2[:0]}, ValueError, "cheap_weight: expected a positive multiple"),
    (module, {"cheap_weight": torch.randn(8, 1, 2, 2)}, ValueError, "cheap_weight: expected an odd square kernel"),
    (module, {"cheap_weight": torch.randn(8, 1, 3, 1)}, ValueError, "cheap_weight: expected an odd square kernel"),
    (module, {"cheap_weight": torch.randn(8, 1, 0, 0)}, ValueError, "cheap_weight: expected an odd square kernel"),
    (module, {"cheap_weight": torch.randn(8, 2, 3, 3)}, ValueError, "cheap_weight: expected shape"),
    (module, {"cheap_bias": torch.randn(7)}, ValueError, "cheap_bias: expected shape 8, got 7"),
    (module, {"cheap_weight": None, "cheap_bias": torch.randn(8)}, ValueError, "cheap_bias: expected None"),
    (module, {"out_channels": 4}, ValueError, "out_channels: expected 5 to 12"),
    (module, {"out_channels": 13}, ValueError, "out_channels: expected 5 to 12 .*, got 13"),
    (module, {"out_channels": 7.0}, TypeError, "out_channels: expected an int"),
    (module, {"act": "softplus"}, ValueError, "act: expected one of none, relu"),
    (module, {"cheap_act": 1}, ValueError, "cheap_act: expected one of none, relu"),
    (module, {"act": "prelu"}, ValueError, "act_weight: expected a tensor with prelu"),
    (module, {"act_weight": torch.ones(1)}, ValueError, "act_weight: expected a tensor with prelu, None without"),
    (module, {"act": "prelu", "act_weight": torch.ones(3)}, ValueError, "act_weight: expected 1 or 4 elements, got 3"),
    (module, {"input_scale": torch.ones(1, 6)}, ValueError, "input_scale: expected shape 2x6, got 1x6"),
    (module, {"residual": x}, ValueError, "residual: expected shape 2x12x5x7, got 2x6x5x7"),
    (module, {"residual": torch.randn(2, 12, 5, 7).double()}, TypeError, "residual: expected the dtype of x"),
    (train, {"x": x[:1, :, :1, :1]}, ValueError, "x: expected more than 1 value per channel when training"),
    (train, {"primary_gamma": torch.ones(5)}, ValueError, "primary_gamma: expected shape 4, got 5"),
    (train, {"cheap_beta": torch.ones(4)}, ValueError, "cheap_beta: expected shape 8, got 4"),
    (train, {"cheap_weight": None}, TypeError, "cheap_weight: expected a tensor, got NoneType"),
    (concat, {"z": torch.randn(2, 3, 5, 7)}, ValueError, "cheap_weight: expected a positive multiple of the 3"),
    (concat, {"z": torch.randn(4, 5)}, ValueError, "z: expected 4 dimensions"),
    (concat_train, {"z": torch.randn(4, 5)}, ValueError, "z: expected 4 dimensions"),
    (concat_train, {"z": torch.randn(2, 3, 5, 7)}, ValueError, "cheap_weight: expected a positive multiple of the 3"),
    (concat_train, {"z": torch.randn(1, 4, 1, 1)}, ValueError, "z: expected more than 1 value per channel"),
    (concat_train, {"primary_bias": torch.ones(5)}, ValueError, "primary_bias: expected shape 4, got 5"),
    (concat_train, {"cheap_gamma": torch.ones(8).double()}, TypeError, "cheap_gamma: expected the dtype of z"),
    (norm, {"z": x[0]}, ValueError, "z: expected 4 dimensions .*, got 3"),
    (norm, {"z": x[:, :0]}, ValueError, "z: expected at least one channel"),
    (norm, {"z": x[:1, :, :1, :1]}, ValueError, "z: expected more than 1 value per channel when training"),
    (norm, {"gamma": torch.ones(5)}, ValueError, "gamma: expected shape 6, got 5"),
    (norm, {"beta": torch.ones(6).double()}, TypeError, "beta: expected the dtype of z"),
    (norm, {"act": "softplus"}, ValueError, "act: expected one of none, relu"),
    (norm, {"act": "prelu", "act_weight": torch.ones(2)}, ValueError, "act_weight: expected 1 or 6 elements, got 2"),
    (norm, {"eps": "small"}, TypeError, "eps: expected a number"),
    (attend, {"reduce_weight": torch.randn(3, 5)}, ValueError, "reduce_weight: expected shape anyx6, got 3x5"),
    (attend, {"expand_weight": torch.randn(6, 4)}, ValueError, "expand_weight: expected shape 6x3, got 6x4"),
    (attend, {"expand_bias": torch.randn(3)}, ValueError, "expand_bias: expected shape 6, got 3"),
    (attend, {"gate": "relu"}, ValueError, "gate: expected one of clamp, hard_sigmoid"),
    (attend, {"act": "prelu"}, ValueError, "act: expected an activation without slopes"),
    (attend, {"x": x.double()}, TypeError, "reduce_weight: expected the dtype of x"),
    (attend, {"act": ["relu"]}, ValueError, "act: expected one of none, relu"),
    (excite, {"squeeze": None}, TypeError, "squeeze: expected a tensor, got NoneType"),
    (excite, {"squeeze": x}, ValueError, "squeeze: expected 2 dimensions .N x C., got 4 .2x6x5x7."),
    (excite, {"squeeze": torch.ones(2, 6, dtype=torch.int64)}, TypeError, "squeeze: expected a floating-point dtype"),
    (excite, {"squeeze": torch.randn(2, 0)}, ValueError, "squeeze: expected at least one channel, got 2x0"),
    (excite, {"squeeze": torch.randn(2, 6).double()}, TypeError, "reduce_weight: expected the dtype of squeeze"),
    (excite, {"squeeze": torch.randn(2, 6, device="meta")}, ValueError, "reduce_weight: expected the device of sq"),
    (excite, {"reduce_weight": torch.randn(3, 5)}, ValueError, "reduce_weight: expected shape anyx6, got 3x5"),
    (excite, {"reduce_weight": torch.randn(3, 6, 3, 3)}, ValueError, "reduce_weight: expected shape anyx6, got 3x6x3"),
    (excite, {"reduce_bias": torch.randn(4)}, ValueError, "reduce_bias: expected shape 3, got 4"),
    (excite, {"expand_weight": None}, TypeError, "expand_weight: expected a tensor, got NoneType"),
    (excite, {"expand_weight": torch.randn(6, 4)}, ValueError, "expand_weight: expected shape 6x3, got 6x4"),
    (excite, {"expand_bias": torch.randn(3)}, ValueError, "expand_bias: expected shape 6, got 3"),
    (excite, {"act": "leaky_relu"}, ValueError, "act: expected an activation without slopes"),
    (excite, {"act": 1}, ValueError, "act: expected one of none, relu"),
    (excite, {"gate": 0}, ValueError, "gate: expected one of clamp, hard_sigmoid"),
    (evaluate, {"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
    (evaluate, {"x": x[0]}, ValueError, "x: expected 4 dimensions .*, got 3 .6x5x7."),
    (evaluate, {"x": x.double()}, TypeError, "primary_weight: expected the dtype of x"),
    (evaluate, {"primary_weight": torch.randn(4, 6, 3, 3)}, ValueError, "primary_weight: expected shape anyx6x1x1"),
    (evaluate, {"primary_bias": torch.randn(5)}, ValueError, "primary_bias: expected shape 4, got 5"),
    (evaluate, {"primary_gamma": torch.randn(5)}, ValueError, "primary_gamma: expected shape 4, got 5"),
    (evaluate, {"primary_mean": None}, TypeError, "primary_mean: expected a tensor, got NoneType"),
    (evaluate, {"primary_var": torch.ones(8)}, ValueError, "primary_var: expected shape 4, got 8"),
    (evaluate, {"primary_var": torch.ones(4).double()}, TypeError, "primary_var: expected the dtype of x"),
    (evaluate, {"cheap_weight": None}, TypeError, "cheap_weight: expected a tensor, got NoneType"),
    (evaluate, {"cheap_weight": torch.randn(8, 1, 2, 2)}, ValueError, "cheap_weight: expected an odd square kernel"),
    (evaluate, {"cheap_beta": torch.ones(4)}, ValueError, "cheap_beta: expected shape 8, got 4"),
    (evaluate, {"cheap_mean": torch.ones(4)}, ValueError, "cheap_mean: expected shape 8, got 4"),
    (evaluate, {"cheap_var": torch.ones(8, device="meta")}, ValueError, "cheap_var: expected the device of x"),
    (evaluate, {"out_channels": 13}, ValueError, "out_channels: expected 5 to 12 .*, got 13"),
    (evaluate, {"act": 1}, ValueError, "act: expected one of none, relu"),
    (evaluate, {"cheap_act": "prelu"}, ValueError, "cheap_act_weight: expected a tensor with prelu"),
    (evaluate, {"input_scale": torch.ones(1, 6)}, ValueError, "input_scale: expected shape 2x6, got 1x6"),
    (evaluate, {"residual": x}, ValueError, "residual: expected shape 2x12x5x7, got 2x6x5x7"),
    (evaluate, {"primary_eps": None}, TypeError, "primary_eps: expected a number, got NoneType"),
    (evaluate, {"cheap_act_slope": "0.1"}, TypeError, "cheap_act_slope: expected a number, got '0.1'"),
    (module, {"act_slope": []}, TypeError, "act_slope: expected a number, got list"),
    (concat, {"cheap_act_slope": torch.ones(2)}, TypeError, "cheap_act_slope: expected a number, got Tensor"),
    (train, {"cheap_eps": []}, TypeError, "cheap_eps: expected a number, got list"),
    (depthwise, {"x": None}, TypeError, "x: expected a tensor, got NoneType"),
    (depthwise, {"x": x[0]}, ValueError, "x: expected 4 dimensions"),
    (depthwise, {"x": x[:, :, :, :0]}, ValueError, "x: expected at least one row and column"),
    (depthwise, {"x": x[:, :5]}, ValueError, "weight: expected shape 5x1xanyxany, got 6x1x3x3"),
    (depthwise, {"weight": torch.randn(6, 2, 3, 3)}, ValueError, "weight: expected shape 6x1xanyxany"),
    (depthwise, {"weight": torch.randn(12, 1, 3, 3)}, ValueError, "weight: expected shape 6x1xanyxany"),
    (depthwise, {"weight": torch.randn(6, 1, 3, 5)}, ValueError, "weight: expected a square kernel, got 6x1x3x5"),
    (depthwise, {"weight": torch.randn(6, 1, 0, 0)}, ValueError, "weight: expected a square kernel"),
    (depthwise, {"weight": torch.randn(6, 1, 3, 3).double()}, TypeError, "weight: expected the dtype of x"),
    (depthwise, {"bias": torch.randn(5)}, ValueError, "bias: expected shape 6, got 5"),
    (depthwise, {"stride": 0}, ValueError, "stride: expected at least 1, got 0"),
    (depthwise, {"stride": (2, 2)}, TypeError, "stride: expected an int, got \\(2, 2\\)"),
    (depthwise, {"stride": True}, TypeError, "stride: expected an int, got True"),
]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("call", "changes", "error", "message"), REFUSED)
def test_refused(call, changes, error, message, backend):
    with use_backend(backend), pytest.raises(error, match=message):
        call(**changes)


def test_every_function_says_what_it_takes():
    """What is exported has a docstring, arguments with names and no codes, and is among the calls above."""
    names = {call: call.__name__ for call, *_ in REFUSED}
    tested = {"ghost_module", "ghost_module_train", "ghost_module_eval", "cheap_concat", "squeeze_excite", "excite"}
    tested |= {"cheap_concat_eval", "depthwise", "dfc_gate_train", "cheap_concat_train", "branched_module_train"}
    tested |= {"batch_norm_act_train"}
    assert set(F.__all__) == tested and len(names) == len(F.__all__)
    for name in F.__all__:
        function = getattr(F, name)
        text, parameters = inspect.getdoc(function), inspect.signature(function).parameters
        assert text and "Args:" in text and "Raises:" in text
        assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()), name
        for of in ("act", "cheap_act", "gate"):
            default = parameters[of].default if of in parameters else ""
            is_map = of == "gate" and name in ("ghost_module_train", "branched_module_train")
            assert isinstance(default, str) or is_map, name


@pytest.mark.parametrize("call", [evaluate, excite])
def test_an_empty_batch_in_inference(call):
    empty = {"squeeze": torch.randn(0, 6)} if call is excite else {"x": torch.randn(0, 6, 5, 7)}
    assert call(**empty).shape == ((0, 6) if call is excite else (0, 12, 5, 7))


@pytest.mark.parametrize("call", [module, concat, attend, depthwise])
def test_an_empty_batch_gives_an_empty_result(call):
    argument = "z" if call is concat else "x"
    empty = torch.randn(0, 4 if call is concat else 6, 5, 7, requires_grad=True)
    out = call(**{argument: empty})
    assert out.shape == (0, out.shape[1], *((3, 4) if call is depthwise else (5, 7))) and out.shape[1] > 0
    out.sum().backward()
    assert empty.grad.shape == empty.shape


def test_map_smaller_than_the_kernel():
    big = torch.randn(4, 1, 7, 7)
    one = x[:, :, :1, :1]
    expected = torch.nn.functional.conv2d(one, w1).relu()
    expected = torch.cat([expected, (expected * big[:, 0, 3, 3, None, None]).relu()], 1)
    torch.testing.assert_close(module(x=one, cheap_weight=big), expected)


def test_expanded_and_non_contiguous():
    wide = torch.randn(1, 6, 5, 1).expand(2, 6, 5, 7)
    torch.testing.assert_close(module(x=wide), module(x=wide.contiguous()))
    turned = torch.randn(2, 6, 7, 5).transpose(2, 3)
    torch.testing.assert_close(module(x=turned), module(x=turned.contiguous()))
    weight = torch.randn(6, 4, 1, 1).transpose(0, 1)
    torch.testing.assert_close(module(primary_weight=weight), module(primary_weight=weight.contiguous()))
    cheap = torch.randn(3, 3, 1, 8).permute(3, 2, 1, 0)
    torch.testing.assert_close(module(cheap_weight=cheap), module(cheap_weight=cheap.contiguous()))


def test_tensors_that_require_grad_in_inference_mode():
    leaf = x.clone().requires_grad_()
    with torch.inference_mode():
        out = module(x=leaf, return_squeeze=True)
        trained = train(x=leaf)
    assert not out[0].requires_grad and not trained.out.requires_grad
    torch.testing.assert_close(out[0], module())


def test_more_than_2_to_the_31_elements():
    """Offsets are 64 bits wide: an expanded map of 2.2 G elements costs nothing until it is read."""
    n, side = 9, 8192
    row = torch.randn(1, 4, 1, 1)
    huge = row.expand(n, 4, side, side)
    assert huge.numel() > 2**31
    scale = F.ghost_module(huge[-1:, :, -3:, -3:], torch.ones(1, 4, 1, 1), None, None, None)
    torch.testing.assert_close(scale, row.sum().relu().expand(1, 1, 3, 3))
    last = torch.empty(2**31 + 64, dtype=torch.bfloat16).as_strided((1, 4, 2, 2), (0, 1, 4, 2**31 + 40))
    last.copy_(torch.arange(16.0).reshape(1, 4, 2, 2))
    ours = F.ghost_module(last, torch.ones(1, 4, 1, 1), None, None, None)
    torch.testing.assert_close(ours, last.float().sum(1, keepdim=True).bfloat16())
