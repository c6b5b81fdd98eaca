"""The fused Ghost module against the plain one: every BatchNorm mode, structure, layout and dtype."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ghost_ops import use_backend
from ghost_ops.backends import native
from ghost_ops.fused import FusedGhostModule
from ghost_ops.fused.ghost_module import with_epilogues
from ghost_ops.nn import GhostModule
from ghost_ops.surgery.saved import Saved
from tests.ops.activation_cases import MODULES

from ..helpers import assert_as_accurate, draw_shapes, make_map, randomise
from .twins import assert_agree, plain_twin, why

GHOSTS = {
    "default": {"inp": 6, "oup": 12},
    "odd": {"inp": 5, "oup": 11},
    "ratio 3, dw 5": {"inp": 4, "oup": 9, "ratio": 3, "dw_size": 5},
    "ratio 3, cut": {"inp": 4, "oup": 7, "ratio": 3},
    "ratio 4, dw 1": {"inp": 3, "oup": 16, "ratio": 4, "dw_size": 1},
    "ratio 5, dw 7": {"inp": 8, "oup": 10, "ratio": 5, "dw_size": 7},
    "no relu": {"inp": 6, "oup": 8, "relu": False},
    "3x3": {"inp": 4, "oup": 8, "kernel_size": 3},
    "3x3, stride 2": {"inp": 4, "oup": 9, "kernel_size": 3, "stride": 2},
    "stride 2, ratio 3": {"inp": 4, "oup": 6, "stride": 2, "ratio": 3},
}
PLAIN_WHEN_TRAINING = {"ratio 1": {"inp": 6, "oup": 7, "ratio": 1}}
ALWAYS_PLAIN = {
    "cheap operation cut away": {"inp": 4, "oup": 1},
    "ratio 1, 3x3": {"inp": 4, "oup": 6, "ratio": 1, "kernel_size": 3},
    "dw 9": {"inp": 4, "oup": 6, "dw_size": 9},
}


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def swap_norms(module, **arguments):
    for half in (module.primary_conv, module.cheap_operation):
        if len(half):
            half[1] = nn.BatchNorm2d(half[1].num_features, **arguments)
    return module


def set_mode(module, mode):
    """Put the BatchNorms of a module into one of the modes that BatchNorm has."""
    if mode == "momentum None":
        swap_norms(module, momentum=None)
    elif mode.startswith("no running statistics"):
        swap_norms(module, track_running_stats=False)
    elif mode.startswith("no affine"):
        swap_norms(module, affine=False)
    elif mode == "eps":
        for norm in norms(module):
            norm.eps, norm.momentum = 1e-3, 0.03
    elif mode == "stopped tracking":
        for norm in norms(module):
            norm.track_running_stats = False
    randomise(module)
    module.train(not mode.endswith("eval"))
    if mode == "frozen":
        for norm in norms(module):
            norm.eval()
    return module


BATCH = ["train", "momentum None", "no running statistics", "no running statistics, eval", "no affine", "eps",
         "stopped tracking"]  # fmt: skip
RUNNING = ["eval", "frozen", "no affine, eval"]


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("mode", BATCH + RUNNING)
@pytest.mark.parametrize("name", [*GHOSTS, *PLAIN_WHEN_TRAINING, *ALWAYS_PLAIN])
def test_agrees_in_every_mode(name, mode, layout):
    arguments = (GHOSTS | PLAIN_WHEN_TRAINING | ALWAYS_PLAIN)[name]
    module = set_mode(FusedGhostModule(**arguments), mode)
    x = make_map((2, arguments["inp"], 5, 7), layout=layout)
    assert_agree(module, x, calls=2)
    if mode in RUNNING:
        with torch.no_grad():
            assert_agree(module, x, backward=False)
    plain = name in ALWAYS_PLAIN or (mode in BATCH and name in PLAIN_WHEN_TRAINING)
    assert why(module, x).startswith("plain PyTorch") == plain, why(module, x)


@pytest.mark.parametrize("shape", draw_shapes(12, seed=1))
@pytest.mark.parametrize("training", [True, False])
def test_agrees_on_drawn_shapes(shape, training):
    shape = (shape[0], 1 + shape[1], *shape[2:])  # BatchNorm over one channel has no gradient but rounding
    module = randomise(FusedGhostModule(shape[1], 3 + shape[2] + shape[3], ratio=1 + shape[0])).train(training)
    values = shape[0] * shape[2] * shape[3]  # a channel; over very few, gradients are nothing but rounding
    if training and values == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module(make_map(shape))
    else:
        assert_agree(module, make_map(shape), backward=not training or values >= 10)


@pytest.mark.skipif(not native.available(), reason="a promise of the compiled operators")
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_memory_format_is_kept(layout):
    module, x = FusedGhostModule(6, 12), make_map((2, 6, 5, 7), layout=layout)
    for mode in (True, False):
        assert module.train(mode)(x).is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_bfloat16_module(mode):
    module = set_mode(FusedGhostModule(16, 24), mode).bfloat16()
    assert_agree(module, make_map((2, 16, 9, 9), torch.bfloat16), backward=False)
    assert not why(module, make_map((2, 16, 9, 9), torch.bfloat16)).startswith("plain")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_bfloat16_with_float32_norms(mode, kernel):
    module = set_mode(FusedGhostModule(16, 24, kernel), mode).bfloat16()
    for norm in norms(module):
        norm.float()
    assert_agree(module, make_map((2, 16, 9, 9), torch.bfloat16), backward=False)


@pytest.mark.parametrize("arguments", [{}, {"kernel_size": 3}])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast(mode, grad, arguments):
    module = set_mode(FusedGhostModule(16, 24, **arguments), mode)
    plain, x = plain_twin(module), make_map((2, 16, 9, 9))
    exact = copy.deepcopy(plain).double()
    with torch.set_grad_enabled(grad):
        truth = exact(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            ours, eager = module(x), plain(x)
    assert_as_accurate(ours, eager, truth)
    assert not why(module, x).startswith("plain")
    if grad:
        ours.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in module.parameters())


def test_running_statistics_in_bfloat16_are_rounded_once():
    module = randomise(FusedGhostModule(16, 24)).bfloat16()
    plain, x = plain_twin(module), make_map((4, 16, 8, 8), torch.bfloat16)
    exact = copy.deepcopy(plain).double()
    for m, v in ((module, x), (plain, x), (exact, x.double())):
        m(v)
    for (name, b), e, t in zip(module.named_buffers(), plain.buffers(), exact.buffers(), strict=True):
        if b.is_floating_point():
            assert_as_accurate(b, e, t, what=name)
        else:
            assert torch.equal(b, e)


@pytest.mark.parametrize("options", [{}, {"relu": False}, {"kernel_size": 3}])
@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_output_may_be_modified_in_place(mode, options):
    """timm's bottlenecks add the shortcut into a Ghost module's output: the gradients must not see it."""
    module = set_mode(FusedGhostModule(6, 12, **options), mode)
    twin = copy.deepcopy(module)
    x, y = make_map((2, 6, 5, 5), requires_grad=True), make_map((2, 6, 5, 5), requires_grad=True)
    out = module(x)
    out += 1
    out.mul_(2).pow(2).sum().backward()
    ((twin(y) + 1) * 2).pow(2).sum().backward()
    assert torch.equal(x.grad, y.grad)
    for ours, expected in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_input_is_not_altered(mode):
    module, x = set_mode(FusedGhostModule(6, 12), mode), make_map((2, 6, 5, 5))
    before = x.clone()
    module(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 6, 5, 5), (2, 6, 1, 1), (1, 6, 2, 1)])
def test_small_and_empty_maps(shape):
    module = randomise(FusedGhostModule(6, 12, dw_size=5)).eval()
    x = make_map(shape)
    assert_agree(module, x)
    with torch.no_grad():
        assert_agree(module, x, backward=False)
    assert module(x).shape == (shape[0], 12, *shape[2:])


def test_strided_inputs():
    module = randomise(FusedGhostModule(6, 12))
    views = [make_map((2, 12, 5, 7))[:, ::2], make_map((2, 6, 1, 7)).expand(2, 6, 5, 7), make_map((2, 6, 7, 5)).mT]
    for x in views:
        assert_agree(module.train(), x)
        assert_agree(module.eval(), x, backward=False)


@pytest.mark.parametrize(
    "x, error",
    [
        (torch.randn(6, 5, 5), (ValueError, RuntimeError)),
        (torch.randn(2, 5, 5, 5), RuntimeError),
        (torch.randn(2, 6, 5, 5).double(), RuntimeError),
        (torch.randn(2, 6, 5, 5).bfloat16(), RuntimeError),
        (torch.ones(2, 6, 5, 5, dtype=torch.int64), RuntimeError),
        ("x", TypeError),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_wrong_inputs_raise_as_the_plain_module(x, error, training):
    module = FusedGhostModule(6, 12).train(training)
    with pytest.raises(error):
        plain_twin(module)(x)
    with pytest.raises(error):
        module(x)


@pytest.mark.parametrize("half", ["primary_conv", "cheap_operation"])
@pytest.mark.parametrize("act", [*MODULES.values(), nn.PReLU(), nn.PReLU(6), nn.Identity()])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_activations(act, half, mode):
    module = FusedGhostModule(5, 12)
    getattr(module, half)[2] = copy.deepcopy(act)
    set_mode(module, mode)
    x = make_map((2, 5, 5, 5))
    assert_agree(module, x)
    assert_agree(module, x, backward=False)
    assert not why(module, x).startswith("plain")


def test_convolutions_with_bias_and_no_norms():
    """As nets deployed with their BatchNorms folded."""
    for arguments in ({}, {"ratio": 3}, {"kernel_size": 3, "stride": 2}, {"ratio": 1}):
        module = FusedGhostModule(5, 12, **arguments)
        for half in (module.primary_conv, module.cheap_operation):
            if len(half):
                conv = half[0]
                half[0] = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                                    groups=conv.groups)  # fmt: skip
                half[1] = nn.Identity()
        randomise(module)
        x = make_map((2, 5, 6, 7))
        for training in (True, False):
            assert_agree(module.train(training), x)
            assert_agree(module, x, backward=False)
        assert not why(module, x).startswith("plain"), why(module, x)


@pytest.mark.parametrize("primary", [{"kernel_size": 1}, {"kernel_size": 3, "padding": "valid"}])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_bias_before_batch_norm(mode, primary):
    module = FusedGhostModule(5, 12)
    module.primary_conv[0] = nn.Conv2d(5, 6, **primary)
    module.cheap_operation[0] = nn.Conv2d(6, 6, 3, padding="same", groups=6)
    set_mode(module, mode)
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            m.bias.requires_grad_(mode == "eval")  # over batch statistics its gradient is zero but for rounding
    assert_agree(module, make_map((2, 5, 6, 7)))
    assert not why(module, make_map((2, 5, 6, 7))).startswith("plain")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_grouped_and_dilated_primary_convolution(mode):
    module = FusedGhostModule(6, 12, kernel_size=3)
    module.primary_conv[0] = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3, bias=False)
    set_mode(module, mode)
    x = make_map((2, 6, 6, 7))
    assert_agree(module, x)
    assert_agree(module, x, backward=False)
    assert why(module, x).startswith("cheap_concat_train on" if mode == "train" else "cheap_concat on")
    with torch.no_grad():
        assert why(module, x).startswith("cheap_concat_train on" if mode == "train" else "cheap_concat_eval on")


class Readers(TorchDispatchMode):
    """Which operators take a tensor of a weight's size."""

    def __init__(self, weight):
        super().__init__()
        self.size, self.found = weight.shape, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(a, torch.Tensor) and a.shape == self.size for a in args):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_inference_does_not_fold_a_dense_primary_weight():
    """It may be larger than the map: only the convolution reads it, and the BatchNorm is applied to the result."""
    module = randomise(FusedGhostModule(6, 12, kernel_size=3)).eval()
    x = make_map((2, 6, 6, 7))
    with Readers(module.primary_conv[0].weight) as readers:
        out = module(x)
    assert readers.found == [torch.ops.aten.convolution.default]
    torch.testing.assert_close(out, plain_twin(module)(x))


def test_a_stride_that_leaves_one_value_a_channel():
    """Once the module has run on a larger map, too."""
    module = randomise(FusedGhostModule(6, 12, kernel_size=3, stride=2))
    module(make_map((1, 6, 3, 3)))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module(make_map((1, 6, 2, 2)))


def test_what_training_saves_after_pytorchs_convolution():
    """Its input, its result and statistics; not what the module computes of the result."""
    module, x = randomise(FusedGhostModule(8, 32, kernel_size=3)), make_map((4, 8, 24, 24), requires_grad=True)
    saved = Saved(module)
    with saved.watching(), saved.span() as count:
        module(x)
    kept = 4 * (x.numel() + 4 * 16 * 24 * 24)
    assert kept <= count() <= kept + 4 * 4 * 16 + 64


def test_only_some_gradients_after_pytorchs_convolution():
    module, x = randomise(FusedGhostModule(6, 12, kernel_size=3)), make_map((2, 6, 5, 7))
    module.requires_grad_(False)
    for name in ("primary_conv.0.weight", "cheap_operation.1.bias"):
        module.get_parameter(name).requires_grad_()
        assert_agree(module, x, of_input=False)
        module.requires_grad_(False)
    assert_agree(module, x)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_run_does_what_a_bottleneck_wants(mode):
    for arguments in ({}, {"kernel_size": 3}, {"ratio": 1}):
        module = set_mode(FusedGhostModule(5, 12, relu=False, **arguments), mode)
        plain = plain_twin(module)
        x, scale, residual = make_map((2, 5, 6, 7)), torch.rand(2, 5), make_map((2, 12, 6, 7), seed=1)
        expected = plain(x * scale[:, :, None, None]) + residual
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                out, squeeze = with_epilogues(
                    copy.deepcopy(module), x, input_scale=scale, residual=residual, return_squeeze=True
                )
            torch.testing.assert_close(out, expected)
            torch.testing.assert_close(squeeze, expected.mean((2, 3)))
        if mode == "eval":  # gradients of these alone
            module.requires_grad_(False)
            scale.requires_grad_()
            residual.requires_grad_()
            grads = [
                torch.autograd.grad(out.square().sum(), (scale, residual))
                for out in (with_epilogues(module, x, input_scale=scale, residual=residual),
                            plain(x * scale[:, :, None, None]) + residual)
            ]  # fmt: skip
            torch.testing.assert_close(*grads)


def test_reference_backend_runs_the_children(monkeypatch):
    monkeypatch.undo()  # the real choice of backend
    module, x = FusedGhostModule(6, 12), make_map((2, 6, 5, 5))
    calls = []
    monkeypatch.setattr(GhostModule, "forward", lambda self, x: calls.append(self) or x)
    with use_backend("reference"):
        module(x)
        assert calls == [module]
        assert "plain PyTorch: not native, since" in why(module, x)


def test_other_dtypes_and_devices_run_plain(monkeypatch):
    monkeypatch.undo()
    module, x = FusedGhostModule(6, 12).double(), make_map((2, 6, 5, 5), torch.float64)
    assert why(module, x).startswith("plain PyTorch")
    assert_agree(module, x)
    assert module.to("meta")(x.to("meta")).shape == (2, 12, 5, 5)


def test_gradients_that_nearly_cancel():
    """Of a loss that is a linear ramp times the output, with running statistics: what is left of a BatchNorm's beta."""
    errors = {}
    for seed in range(8):
        plain = randomise(GhostModule(16, 24), seed).eval()
        fused, exact = FusedGhostModule(16, 24).eval(), copy.deepcopy(plain).double()
        fused.load_state_dict(plain.state_dict())
        x = make_map((1 + seed % 2, 16, 13, 13), seed=seed)
        ramp = torch.linspace(-1, 1, 13).expand(len(x), 24, 13, 13)
        for module in (fused, plain, exact):
            like = next(module.parameters())
            (module(x.to(like.dtype)) * ramp.to(like.dtype)).sum().backward()
        for path in ("primary_conv.1.bias", "cheap_operation.1.bias", "cheap_operation.1.weight"):
            truth = exact.get_parameter(path).grad
            for name, module in (("ours", fused), ("eager", plain)):
                error = float((module.get_parameter(path).grad.double() - truth).square().sum())
                errors[path, name] = errors.get((path, name), 0.0) + error
    for path in dict.fromkeys(path for path, _ in errors):
        assert errors[path, "ours"] <= 4 * errors[path, "eager"], (path, errors)  # of squares: twice in the mean
