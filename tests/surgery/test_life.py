"""What becomes of a fused net in the hands of others: copies, files, devices, optimizers, compilers."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule
from ghost_ops.surgery import fuse, revert

from .. import zoo
from ..helpers import assert_as_accurate, make_map, randomise


def make_net():
    blocks = zoo.HuaweiBottleneck(8, 16, 8, se=True), zoo.ArticleBottleneck(8, 16, 12, 3, 2, True)
    return randomise(zoo.Net(*blocks, zoo.YoloGhostConv(12, 12)))


@pytest.fixture
def x():
    return make_map((4, 3, 17, 17))


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": through_a_file,
}


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_fused_and_independent(how, called_before, x):
    net = fuse(make_net()).eval()
    with torch.no_grad():
        wanted = net(x)
        twin = COPIES[how](net if called_before else fuse(make_net()).eval())
        assert [type(m) for m in twin.modules()] == [type(m) for m in net.modules()]
        assert torch.equal(twin(x), wanted)
        for p in twin.parameters():
            p.mul_(1.5)
        assert torch.equal(net(x), wanted)
        changed = twin(x)
        assert not torch.allclose(changed, wanted)
        torch.testing.assert_close(revert(twin)(x), changed, rtol=1e-4, atol=1e-5 * float(changed.abs().max()))
        assert not any(isinstance(m, (FusedGhostModule, FusedGhostBottleneck)) for m in twin.modules())
        assert isinstance(net.blocks[0], FusedGhostBottleneck)
    assert not {id(m) for m in twin.modules()} & {id(m) for m in net.modules()}


def test_state_dicts_both_ways(x):
    plain, fused = make_net().eval(), fuse(zoo.Net(*copy.deepcopy(list(make_net().blocks)))).eval()
    for p in fused.parameters():
        nn.init.normal_(p)
    with torch.no_grad():
        wanted = plain(x)
        fused(x)
        fused.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(fused(x), wanted)
        other = zoo.Net(*copy.deepcopy(list(make_net().blocks))).eval()
        other.load_state_dict(fused.state_dict(), strict=True)
        assert torch.equal(other(x), wanted)
        fused.load_state_dict({key: value.clone() for key, value in plain.state_dict().items()}, assign=True)
        torch.testing.assert_close(fused(x), wanted)


def test_to_dtype(x):
    plain = make_net().eval()
    fused = fuse(copy.deepcopy(plain))
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(x.double())
        fused(x)
        torch.testing.assert_close(fused.double()(x.double()), exact)
        fused.to(torch.bfloat16)
        seen = x.to(torch.bfloat16)
        plain.to(torch.bfloat16)
        exact = copy.deepcopy(plain).double()(seen.double())
        assert_as_accurate(fused(seen), plain(seen), exact)


def test_to_meta_and_back():
    net = fuse(make_net().to("meta"))
    assert net(torch.empty(2, 3, 17, 17, device="meta")).shape == (2, 5)
    net.to_empty(device="cpu")
    net.load_state_dict(make_net().state_dict())
    net.eval()
    x = make_map((2, 3, 17, 17))
    with torch.no_grad():
        torch.testing.assert_close(net(x), make_net().eval()(x))


def test_train_and_eval_reach_everything(x):
    net, plain = fuse(make_net()), make_net()
    for mode in (True, False):
        net.train(mode), plain.train(mode)
        assert all(m.training is mode for m in net.modules())
        torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)
    assert all(not m.training for m in revert(net).modules())
    torch.testing.assert_close(net(x), plain(x), rtol=1e-4, atol=1e-5)


def train(net, optimizer, steps=3):
    losses = []
    for step in range(steps):
        x, target = make_map((8, 3, 17, 17), seed=step).to(net.stem.weight.dtype), torch.arange(8) % 5
        loss = nn.functional.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def test_an_optimizer_made_before_trains_the_fused_net():
    results = []
    for kind in ("fused", "plain", "exact"):
        net = make_net().to(torch.float64 if kind == "exact" else torch.float32)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        if kind == "fused":
            fuse(net)
        losses = train(net, optimizer)
        results.append({"losses": losses, **net.state_dict()})
    fused, plain, exact = results
    start = make_net().state_dict()
    assert not torch.equal(
        fused["blocks.0.ghost1.primary_conv.0.weight"], start["blocks.0.ghost1.primary_conv.0.weight"]
    )
    for key, value in fused.items():
        if value.is_floating_point():
            assert_as_accurate(value, plain[key], exact[key], what=key)
        else:
            assert torch.equal(value, plain[key]), key


def test_ema_copy(x):
    net = fuse(make_net())
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    ema.update_parameters(net)
    train(net, optimizer, 1)
    ema.update_parameters(net)
    net.eval(), ema.eval()
    assert isinstance(ema.module.blocks[0], FusedGhostBottleneck)
    plain = zoo.Net(*copy.deepcopy(list(make_net().blocks))).eval()
    plain.load_state_dict(ema.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ema(x), plain(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ema(x), net(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant, x):
    def gradients(net, call):
        features = net.stem(x)
        for block in net.blocks:
            features = call(block, features)
        net.head(features.mean((2, 3))).square().sum().backward()
        return {name: p.grad for name, p in net.named_parameters()}

    whole = gradients(fuse(make_net()), lambda block, x: block(x))
    parts = gradients(fuse(make_net()), lambda block, x: checkpoint(block, x, use_reentrant=use_reentrant))
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_functional_call(x):
    net, plain = fuse(make_net()).eval(), make_net().eval()
    others = {name: p.detach() * 1.5 for name, p in net.named_parameters()}
    with torch.no_grad():
        before = net(x)
        torch.testing.assert_close(
            functional_call(net, others, (x,)), functional_call(plain, others, (x,)), rtol=1e-4, atol=1e-5
        )
        assert torch.equal(net(x), before)


def test_vmap_over_parameters(x):
    net, plain = fuse(make_net()).eval(), make_net().eval()
    stacked = {name: torch.stack([p.detach(), p.detach() * 1.1]) for name, p in net.named_parameters()}
    ours = torch.vmap(lambda parameters: functional_call(net, parameters, (x,)))(stacked)
    theirs = torch.vmap(lambda parameters: functional_call(plain, parameters, (x,)))(stacked)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_compile(mode, x):
    torch._dynamo.reset()
    net = fuse(zoo.Net(randomise(zoo.HuaweiBottleneck(8, 16, 12, stride=2, se=True)))).train(mode == "train")
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(mode == "train"):
        ours, wanted = compiled(x), twin(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    if mode == "train":
        ours.square().sum().backward()
        wanted.square().sum().backward()
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(
                p.grad, q.grad, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        for (name, b), c in zip(net.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(b, c, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_compile_with_inductor(x):
    torch._dynamo.reset()
    net = fuse(make_net()).eval()
    with torch.no_grad():
        wanted = net(x)
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(x), wanted, rtol=1e-4, atol=1e-5)


def test_module_apply_and_weight_initialisation():
    net = fuse(make_net())

    def zero(module):
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)

    net.apply(zero)
    assert not any(m.weight.any() for m in net.modules() if isinstance(m, nn.Conv2d))
