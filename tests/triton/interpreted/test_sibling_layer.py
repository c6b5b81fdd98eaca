"""A stem whose convolution, BatchNorm and activation are children of the net: one program where the calling code is
proven to show nothing in between, and the modules' own results everywhere else."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import ghost_ops
from ghost_ops.fused import conv_layer
from ghost_ops.fused.behaviour import block_of, is_fused
from tests.fused.twins import assert_agree, plain_twin
from tests.helpers import make_map, randomise

from .drawn import few_tiles

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python tells no positions of calls before 3.11")


@pytest.fixture(autouse=True)
def _few_tiles(monkeypatch):
    monkeypatch.setattr(conv_layer, "slower", lambda layer, x: None)
    with few_tiles():
        yield


class Net(nn.Module):
    def __init__(self, act=nn.SiLU):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.act = act()
        self.last = nn.Conv2d(6, 2, 1)


class InTurn(Net):  # as timm has it
    def features(self, x):
        x = self.conv(x)
        x = self.bn(x)
        x = self.act(x)
        return self.last(x)

    def forward(self, images):
        return self.features(images)


class Nested(Net):  # as Huawei and we have it
    def forward(self, x):
        return self.last(self.act(self.bn(self.conv(x))))


class WithoutActivation(Net):
    def forward(self, x):
        x = self.conv(x)
        x = self.bn(x)
        y = self.act(x)
        return self.last(x) + self.last(y)


PROVEN = [InTurn, Nested, WithoutActivation]


class Kept(Net):
    def forward(self, x):
        z = self.conv(x)
        y = self.bn(z)
        return self.last(self.act(y)) + z.mean()


class Between(Net):
    def forward(self, x):
        x = self.conv(x)
        x = x + 1
        x = self.bn(x)
        x = self.act(x)
        return self.last(x)


class Walrus(Net):
    def forward(self, x):
        x = self.act(self.bn(z := self.conv(x)))
        return self.last(x) + z.mean()


class ByName(Net):
    def forward(self, x):
        for name in ("conv", "bn", "act"):
            x = getattr(self, name)(x)
        return self.last(x)


class Global(Net):
    def forward(self, x):
        global _seen
        _seen = self.conv(x)
        _seen = self.bn(_seen)
        _seen = self.act(_seen)
        return self.last(_seen)


class LooksUp(InTurn):
    def __getattr__(self, name):
        return super().__getattr__(name)


UNPROVEN = [Kept, Between, Walrus, ByName, Global, LooksUp]


def a_net(kind, **kwargs):
    net = randomise(kind(**kwargs)).train()
    return ghost_ops.fuse(net) if kind in PROVEN else _fused_if_anything(net)


def _fused_if_anything(net):
    try:
        return ghost_ops.fuse(net)
    except UserWarning:
        return net


def images(n=2):
    return make_map((n, 3, 7, 6), torch.float32, "channels_last")


def what_runs(net, x):
    return {row.name: f"{row.runs}: {row.why}" for row in ghost_ops.explain(net, x).rows}


@pytest.mark.parametrize("act", [nn.SiLU, nn.PReLU, lambda: nn.ReLU(inplace=True), lambda: nn.GELU("tanh")])
@pytest.mark.parametrize("kind", PROVEN)
def test_proven(kind, act):
    net, x = a_net(kind, act=act), images()
    runs = what_runs(net, x)
    assert "program_train" in runs["conv"] and "within conv" in runs["bn"]
    assert ("within conv" in runs.get("act", "")) == (kind is not WithoutActivation)
    assert_agree(net, x, of_input=False, calls=2)


@pytest.mark.filterwarnings("ignore:fuse. no Ghost module")
@pytest.mark.parametrize("kind", UNPROVEN)
def test_unproven(kind):
    net, x = a_net(kind), images()
    assert not any("program_train" in run for run in what_runs(net, x).values())
    assert_agree(net, x, of_input=False)


def test_each_on_its_own_is_what_it_was():
    net, x = a_net(InTurn), images()
    plain = plain_twin(net)
    net(x), plain(x)
    z = plain.conv(x)
    assert torch.equal(net.conv(x), z)
    assert torch.equal(net.bn(z), plain.bn(z))
    assert torch.equal(net.act(z), plain.act(z))
    assert torch.equal(nn.Sequential(net.conv, net.bn, net.act)(x), nn.Sequential(plain.conv, plain.bn, plain.act)(x))


def hook(net):
    net.bn.register_forward_hook(lambda *_: None)


def hook_on_the_convolution(net):
    net.conv.register_forward_pre_hook(lambda *_: None)


def global_hook(net):
    nn.modules.module.register_module_forward_hook(lambda *_: None)


def other_norm(net):
    net.bn = nn.GroupNorm(2, 6)


def norm_in_eval(net):
    net.bn.eval()


def attribute(net):
    net.__dict__["act"] = nn.Tanh()


@pytest.mark.parametrize("change", [hook, hook_on_the_convolution, other_norm, norm_in_eval, attribute])
def test_a_change_is_noticed(change):
    net, x = a_net(InTurn), images()
    assert "program_train" in what_runs(net, x)["conv"]
    change(net)
    assert "program_train" not in what_runs(net, x)["conv"]
    assert_agree(net, x, of_input=False)


def test_hooks_see_their_modules_results():
    net, x = a_net(InTurn), images()
    plain, seen = plain_twin(net), []
    net(x)
    net.conv.register_forward_hook(lambda module, args, out: seen.append(out))
    net(x)
    torch.testing.assert_close(seen[0], plain.conv(x))


def test_another_activation_is_plain_until_the_net_is_fused_again():
    net, x = a_net(InTurn), images()
    net(x)
    net.act = nn.Hardswish()
    assert "another module" in what_runs(net, x)["conv"]
    assert_agree(net, x, of_input=False)
    ghost_ops.fuse(net)
    assert "program_train" in what_runs(net, x)["conv"]
    assert_agree(net, x, of_input=False)


def test_copies_pickles_and_reverting():
    net, x = a_net(Nested), images()
    own = [type(m) for m in plain_twin(net).modules()]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert "program_train" in what_runs(other, x)["conv"]
        assert_agree(other, x, of_input=False)
    assert isinstance(net.conv, nn.Conv2d) and isinstance(net.bn, nn.BatchNorm2d)
    assert net.state_dict().keys() == Nested().state_dict().keys()
    ghost_ops.fuse(net)
    assert block_of(net.conv) is not None
    assert [type(m) for m in ghost_ops.revert(net).modules()] == own


def test_functional_call_and_another_net_with_the_same_child():
    net, x = a_net(InTurn), images()
    values = {name: p.detach() + 0.5 for name, p in net.named_parameters()}
    ours = torch.func.functional_call(net, values, x)
    theirs = torch.func.functional_call(plain_twin(net), values, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    other = Nested().train()
    other.conv = net.conv
    other(x)  # its BatchNorm and activation are its own
    torch.testing.assert_close(other(x), plain_twin(other)(x), rtol=1e-4, atol=1e-4)


def test_an_error_leaves_nothing_behind():
    net, x = a_net(InTurn), images()
    with pytest.raises(RuntimeError):
        net(x[:, :2])
    assert_agree(net, x, of_input=False)


def test_eval_and_frozen():
    net, x = a_net(InTurn).eval(), images()
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain_twin(net)(x))
    assert not any(is_fused(m) for m in ghost_ops.revert(net).modules())


def test_compiled():
    net, x = a_net(InTurn), images()
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    torch.testing.assert_close(compiled(x), plain_twin(net)(x))
