"""Training over fused modules as a whole: the same bits each time, the same poison, the same errors as PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from ghost_ops import fuse
from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule
from ghost_ops.nn import GhostModuleV3, RepGhostModule

from ..helpers import make_map, randomise
from ..zoo import conv_bn
from .dfc_modules import HuaweiModule
from .inverted import Block
from .twins import plain_twin, why


def block(**options):
    return randomise(FusedGhostBottleneck(8, 20, 8, se_ratio=0.25, **options))


def train(net, steps=4):
    """Losses, parameters and buffers after some steps of SGD with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        out = net(make_map((4, 8, 11, 9), seed=step))
        loss = F.mse_loss(out, make_map(tuple(out.shape), seed=100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *net.state_dict().values()]


@pytest.mark.parametrize("threads", [1, 2])
def test_training_repeats_to_the_bit(threads):
    torch.set_num_threads(threads)
    try:
        first, again = train(block()), train(block())
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = train(block().train(False))  # what a run that differs looks like
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


MODULES = {
    "bottleneck": lambda: FusedGhostBottleneck(8, 20, 8, se_ratio=0.25),
    "strided, low memory": lambda: FusedGhostBottleneck(8, 20, 12, 5, 2, 0.25, memory="low"),
    "3x3": lambda: FusedGhostModule(8, 12, kernel_size=3, dw_size=5),
    "attention": lambda: fuse(HuaweiModule(8, 12)),
    "branches": lambda: fuse(GhostModuleV3(8, 12)),
    "RepGhost": lambda: fuse(RepGhostModule(8, 8)),
    "inverted residual": lambda: fuse(Block(8, 16, 8, act=torch.nn.ReLU, se=True)),
    "separate layers": lambda: fuse(conv_bn(8, 12, 3, act=torch.nn.ReLU())),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "channels_last"])
def test_gradients_have_the_strides_of_their_parameters(name, layout):
    """As PyTorch's have; DistributedDataParallel warns of others, of axes of size 1 too."""
    net = randomise(MODULES[name]()).to(memory_format=layout).train()
    net(make_map((2, 8, 11, 9)).to(memory_format=layout)).square().sum().backward()
    assert {name: p.grad.stride() for name, p in net.named_parameters()} == {
        name: p.stride() for name, p in net.named_parameters()
    }


TAIL = {"kernel_size": 3, "stride": 2}  # PyTorch computes the primary convolution


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"relu": False}, TAIL])
def test_what_is_not_finite_poisons_the_same_values(options, value):
    """Output, gradients and running statistics: finite where PyTorch's are, else not.

    The running mean of a channel with an infinity is NaN, where PyTorch's is that infinity.
    """
    fused, x = randomise(FusedGhostModule(6, 12, **options)), make_map((2, 6, 5, 5))
    x[0, 2, 1, 1] = value
    plain = plain_twin(fused)
    found = []
    for net in (fused, plain):
        v = x.clone().requires_grad_()
        out = net(v)
        out.square().sum().backward()
        gradients = {n: p.grad for n, p in net.named_parameters()}
        found.append({"out": out.detach(), "x": v.grad, **gradients, **dict(net.named_buffers())})
    assert not why(fused, x).startswith("plain")
    for name, ours in found[0].items():
        assert torch.equal(ours.isfinite(), found[1][name].isfinite()), name
        if "running" not in name:
            assert torch.equal(ours.isnan(), found[1][name].isnan()), name
    assert not found[0]["primary_conv.1.running_var"].isfinite().all()


def error_of(net, act):
    """The error that PyTorch raises when ``act`` is done with a graph of ``net``."""
    x = make_map((2, 6, 5, 5)).requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        act(net, x)
    return str(caught.value)


def twice(net, x):
    loss = net(x).square().sum()
    loss.backward()
    loss.backward()


def input_changed(net, x):
    v = x * 1
    out = net(v)
    v.add_(1)
    out.square().sum().backward()


def weight_changed(net, x):
    out = net(x)
    with torch.no_grad():
        net.primary_conv[0].weight.mul_(2)
    out.square().sum().backward()


ERRORS = {
    twice: "backward through the graph a second time",
    input_changed: "modified by an inplace operation",
    weight_changed: "modified by an inplace operation",
}


@pytest.mark.parametrize("act", ERRORS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("mode, options", [("train", {}), ("frozen", {}), ("train", TAIL)])
def test_misuse_of_a_graph_raises_as_in_pytorch(mode, options, act):
    fused = randomise(FusedGhostModule(6, 12, **options))
    if mode == "frozen":
        fused.eval()
    plain = plain_twin(fused)
    assert not why(fused, make_map((2, 6, 5, 5))).startswith("plain")
    for net in (fused, plain):
        assert ERRORS[act] in error_of(net, act)


@pytest.mark.parametrize("options", [{}, TAIL])
def test_a_retained_graph_gives_the_same_gradients_again(options):
    net, x = randomise(FusedGhostModule(6, 12, **options)), make_map((2, 6, 5, 5)).requires_grad_()
    loss = net(x).square().sum()
    first, again = (torch.autograd.grad(loss, [x, *net.parameters()], retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("mode, options", [("train", {}), ("eval", {}), ("train", TAIL)])
def test_double_backward_is_refused_rather_than_zero(mode, options):
    net, x = (
        randomise(FusedGhostModule(6, 12, **options)).train(mode == "train"),
        make_map((2, 6, 5, 5)).requires_grad_(),
    )
    (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()
