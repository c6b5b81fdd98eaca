"""The operators as PyTorch sees them: opcheck, compile, export, autocast, and no silent double backward."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

import ghost_ops
from ghost_ops import functional as F
from ghost_ops.backends import native, reference
from ghost_ops.ops._library import overload
from tests.helpers import assert_as_accurate

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def r(*shape):
    return torch.randn(*shape, requires_grad=True)


CALLS = {
    "ghost_module": lambda x: (
        x, r(5, 6, 1, 1), r(5), r(10, 1, 3, 3), r(10), r(2, 6), r(2, 13, 5, 7), None, r(10), 13, 1, 4, 0.1, 0.1, True,
    ),
    "ghost_module_train": lambda x, keep_primary=False: (
        x, r(5, 6, 1, 1), r(5), r(5), r(5), r(5, 1, 3, 3), None, r(5), r(5), None, None, 9, 1, 5, 0.1, 0.1, 1e-5, 1e-3,
        keep_primary,
    ),
    "ghost_module_train that keeps z1": lambda x: CALLS["ghost_module_train"](x, True),
    "ghost_module_train_gated": lambda x: (x, r(2, 9, 2, 3), *CALLS["ghost_module_train"](x)[1:-1]),
    "dfc_gate_train": lambda x: (
        x, r(5, 6, 1, 1), r(5), r(5), r(5, 1, 1, 5), r(5), None, r(5, 1, 3, 1), None, r(5), 2, 1e-5, 1e-3, 1e-4,
    ),
    "branched_module_train": lambda x: (
        x, r(2, 9, 2, 3), r(10, 6, 1, 1), r(10), r(10), r(5, 1, 3, 3), None, r(10), None, 2, True, 9, 1, 5, 0.1, 0.1,
        1e-5, 1e-3, True,
    ),
    "cheap_concat": lambda x: (x, r(6, 1, 5, 5), r(6), None, None, None, 11, 0, 6, 0.1, 0.1, False),
    "cheap_concat_train": lambda z: (
        z, r(6), r(6), r(6), r(12, 1, 3, 3), None, r(12), r(12), None, r(12), 17, 5, 4, 0.1, 0.1, 1e-5, 1e-3,
    ),
    "batch_norm_act_train": lambda z: (z, r(6), r(6), r(6), 4, 0.1, 1e-3),
    "squeeze_excite": lambda x: (x, r(3, 6), r(3), r(6, 3), r(6), 1, 0),
    "depthwise": lambda x: (x, r(6, 1, 3, 3), r(6), 2),
}  # fmt: skip


def results(name, args, of=overload):
    """What an operator returns, as a tuple."""
    out = of(name.split()[0])(*args)
    return (out,) if isinstance(out, torch.Tensor) else tuple(out)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name, layout):
    x = torch.randn(2, 6, 5, 7).to(memory_format=layout).requires_grad_()
    opcheck(overload(name.split()[0]), CALLS[name](x))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_operators_take_what_no_kernel_takes(name, dtype):
    """Called directly, on a dtype that the kernels leave to the reference."""
    args = CALLS[name](torch.randn(2, 6, 5, 7))
    args = [a.detach().to(dtype) if isinstance(a, torch.Tensor) else a for a in args]
    out = results(name, args)[0]
    with ghost_ops.use_backend("reference"):
        expected = results(name, args, lambda name: getattr(reference, name))[0]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", CALLS)
def test_double_backward_is_refused(name):
    x = r(2, 6, 5, 7)
    for out in results(name, CALLS[name](x))[:1]:
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises((NotImplementedError, RuntimeError), match=r"cannot be differentiated|once_differentiable"):
            grad.sum().backward()


def test_double_backward_is_refused_on_the_fast_path():
    x = r(2, 6, 5, 7)
    out = F.ghost_module(x, r(5, 6, 1, 1), None, r(5, 1, 3, 3), None)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_reference_differentiates_twice():
    with ghost_ops.use_backend("reference"):
        args = [t.detach().double().requires_grad_() for t in (r(2, 3, 4, 4), r(2, 3, 1, 1), r(2, 1, 3, 3))]

        def f(x, w1, w2):
            return F.ghost_module(x, w1, None, w2, None, act="silu", cheap_act="silu")

        assert torch.autograd.gradgradcheck(f, args)


@pytest.mark.parametrize("name", CALLS)
def test_gradcheck_of_the_explicit_backward(name):
    args = CALLS[name](torch.randn(2, 6, 5, 7, requires_grad=True))
    args = [a.detach().double().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    if name == "ghost_module":
        args[10] = 5  # relu and prelu have kinks that finite differences may straddle
    elif name == "cheap_concat_train":
        args[9], args[12] = None, 5
    elif name.startswith("ghost_module_train"):
        args[13 if name == "ghost_module_train_gated" else 12] = 5
    elif name == "squeeze_excite":
        args[5:] = [5, 2]
    leaves = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]

    def f(*tensors):
        full = list(args)
        for i, t in zip(leaves, tensors, strict=True):
            full[i] = t
        out = results(name, full)
        return out[:2] if name == "ghost_module" else out[:1]

    assert torch.autograd.gradcheck(f, [args[i] for i in leaves])


@pytest.mark.skipif(not native.available(), reason="the reference's is the convolution itself, in the dtype of x")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_that_is_kept(dtype, layout):
    """z1 in float32, without the primary's bias; a backward takes no other shape of it."""
    args = [
        a.detach().to(dtype) if isinstance(a, torch.Tensor) else a for a in CALLS["ghost_module_train"](r(2, 6, 5, 7))
    ]
    args = [args[0].to(memory_format=layout), *args[1:-1], True]
    x, w1, _, gamma1, beta1, w2, _, gamma2, beta2, act, cheap_act, *scalars, _ = args
    out, *statistics, kept = results("ghost_module_train", args)
    exact = torch.einsum("nchw,mc->nhwm", x.double(), w1.double().flatten(1))
    assert kept.dtype == torch.float32 and kept.is_contiguous()
    assert_as_accurate(kept, exact.float(), exact)
    for wrong in (kept[..., :-1], kept[:1], kept.permute(0, 3, 1, 2)):
        with pytest.raises((ValueError, RuntimeError), match="primary: expected"):
            overload("ghost_module_train_backward")(
                out, x, w1, gamma1, beta1, w2, gamma2, beta2, act, cheap_act, *statistics, wrong, *scalars
            )


class Both(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.ParameterList(
            [r(5, 6, 1, 1), r(5), r(5), r(5, 1, 3, 3), r(5), r(5), r(3, 9), r(9, 3), r(9, 1, 5, 5), r(4, 9, 3, 3)]
        )

    def forward(self, x):
        w1, g1, b1, w2, g2, b2, w3, w4, w5, w6 = self.w
        y = F.ghost_module_train(x, w1, None, g1, b1, w2, None, g2, b2, out_channels=9).out
        y = F.squeeze_excite(y, w3, None, w4, None)
        z, s = F.ghost_module(x, w1, None, w2, b2, out_channels=9, residual=y, return_squeeze=True)
        y = F.depthwise(z * s[:, :, None, None], w5, stride=2)
        z = torch.nn.functional.conv2d(y, w6, padding=1)
        return F.cheap_concat_train(z, b1[:4], g1[:4], None, w2[:4], None, None, b2[:4], act="silu").out


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic):
    net = Both()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic)
    shapes = [(2, 6, 5, 7), (3, 6, 8, 4)] if dynamic else [(2, 6, 5, 7)]
    for shape in shapes:
        for layout in LAYOUTS:
            grads = []
            for f in (net, compiled):
                x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
                x.requires_grad_()
                net.zero_grad()
                out = f(x)
                out.square().sum().backward()
                grads.append([out, x.grad, *(p.grad for p in net.parameters())])
            for a, b in zip(*grads, strict=True):  # in the norm: single elements are small differences of large sums
                assert (a - b).norm() <= 1e-5 * b.norm()
            assert grads[0][0].stride() == grads[1][0].stride()


def test_export_keeps_the_operators():
    program = torch.export.export(Both(), (torch.randn(2, 6, 5, 7),))
    called = {str(n.target) for n in program.graph.nodes if "ghost_ops" in str(n.target)}
    assert called == {
        f"ghost_ops.{name}.default"
        for name in ("ghost_module_train", "squeeze_excite", "ghost_module", "depthwise", "cheap_concat_train")
    }


def test_autocast():
    """The maps take autocast's dtype, the parameters keep theirs, and so do their gradients."""
    x, w1, w2 = r(2, 6, 5, 7), r(5, 6, 1, 1), r(5, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = F.ghost_module(x, w1, None, w2, None, residual=torch.randn(2, 10, 5, 7))
        trained = F.ghost_module_train(x, w1, None, None, None, w2, None, None, None)
        tail = F.cheap_concat_train(trained.out[:, :5].float(), None, None, None, w2, None, None, None).out
        deep = F.depthwise(tail[:, :5], w2, stride=2)
    assert out.dtype == trained.out.dtype == deep.dtype == torch.bfloat16
    assert trained.primary_mean.dtype == torch.float32
    (deep.float().sum() + out.float().sum() + trained.out.float().square().sum()).backward()
    assert {t.grad.dtype for t in (x, w1, w2)} == {torch.float32}


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("name", CALLS)
def test_a_result_that_gets_no_gradient(name):
    """Not even one of zeros."""
    args = CALLS[name](r(2, 6, 5, 7))
    loss = NoGradient.apply(results(name, args)[0])
    leaves = [a for a in args if isinstance(a, torch.Tensor)]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert all(g is None or not g.any() for g in found)


def test_compiled_autograd():
    from torch._dynamo import compiled_autograd

    net, x = Both(), r(2, 6, 5, 7)
    leaves = [x, *net.parameters()]
    plain = torch.autograd.grad(net(x).square().sum(), leaves)
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        net(x).square().sum().backward()
    for ours, expected in zip((leaf.grad for leaf in leaves), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    net, x = Both(), r(2, 6, 5, 7)
    plain = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
    again = torch.autograd.grad(checkpoint(net, x, use_reentrant=False).sum(), [x, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
