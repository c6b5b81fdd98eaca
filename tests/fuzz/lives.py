"""What happens to a drawn net: fused, trained, frozen, reverted, changed in any order, beside two that are never fused.

A life is a net's description and a list of actions ``[name, choices]``, plain data as in ``nets.py``. Every action is
done to three nets: ours, which is fused, one in float32 and one in float64, which are not. Before an action that
computes, all get the parameters of ours, so that rounding does not add up over a life.
"""

from __future__ import annotations

import copy
import io
import random
import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import ghost_ops
from ghost_ops.fused.frozen_net import Frozen

from ..helpers import NEARBY, nearby, randomise
from .compare import (
    OVER_DRAWS,
    ULPS,
    Differs,
    Results,
    error,
    farther,
    faults,
    largest_of,
    nearby_net,
    outputs,
    step,
    with_gradients_in_layout,
)  # fmt: skip
from .nets import DrawnNet


class Refused(Exception):
    """PyTorch refuses what was asked, and ours does so too: a life ends there."""


class Life:
    def __init__(self, life: dict) -> None:
        self.rng = random.Random(0)
        torch.manual_seed(life["seed"])
        self.ours = randomise(DrawnNet(life["nodes"], life["channels"]), life["seed"])
        self.plain, self.exact = copy.deepcopy(self.ours), copy.deepcopy(self.ours).double()
        self.size, self.seed = life["size"], life["seed"]
        self.frozen: list[tuple[nn.Module, nn.Module, nn.Module]] = []  # with the plain and exact nets as they were

    @property
    def nets(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.ours, self.plain, self.exact

    def act(self, name: str, choices: int) -> None:
        self.rng = random.Random(f"{name} {choices}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            ACTIONS[name](self)

    # Parameters

    def align(self) -> None:
        """The two plain nets get the parameters, buffers and gradients of ours."""
        with torch.no_grad():
            for net in (self.plain, self.exact):
                theirs = {**dict(net.named_parameters()), **dict(net.named_buffers())}
                for name, t in (*self.ours.named_parameters(), *self.ours.named_buffers()):
                    theirs[name].copy_(t)
                    if theirs[name].requires_grad != t.requires_grad:
                        raise Differs(f"{name}: requires_grad is {t.requires_grad}")
                net.zero_grad()
            self.ours.zero_grad()

    def twins(self, change: Callable[[nn.Module], object]) -> None:
        """The same change of all three."""
        for net in self.nets:
            change(net)

    def an_image(self) -> torch.Tensor:
        n, h, w = self.size
        n, h, w = n + self.rng.randrange(2), h + self.rng.randrange(3), w + self.rng.randrange(3)
        x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(self.rng.randrange(2**31)))
        return x.to(memory_format=torch.channels_last) if self.rng.random() < 0.5 else x

    # Comparison

    def compare(self, what: str, compute: Callable[[nn.Module, torch.Tensor], Results], x: torch.Tensor) -> None:
        """What ``compute`` gives of ours is as accurate as plain PyTorch's, against float64.

        Where it is not by itself, it is compared over 24 copies with nearby parameters and images: near a kink
        of an activation a single one is a matter of luck. A copy of ours must give the same bits as ours.

        PyTorch sums over a channels_last map less accurately than over a contiguous one, and its operators hand on
        either. Ours hand on the layout of the map. So PyTorch's error is the larger one of those with its gradients as
        they come and in the layout of their maps.
        """
        state = [t.detach().clone() for t in (*self.ours.parameters(), *self.ours.buffers())]
        try:
            plain = compute(self.plain, x)
        except (RuntimeError, ValueError) as refusal:  # such as batch statistics of a single value
            try:
                compute(self.ours, x)
            except type(refusal):
                raise Refused from refusal
            raise Differs(f"{what}: PyTorch refuses it, ours does not: {refusal}") from refusal
        triple = [compute(self.ours, x), plain, compute(self.exact, x.double())]
        wrong = faults(*triple)
        if not wrong:
            return
        twin = nearby_net(self.ours, state, None)
        bits = compute(twin, x)
        for name, value in triple[0].items():
            if value is not None and not torch.equal(value, bits[name]) and not value.isnan().any():
                raise Differs(
                    f"{what}: {name}: a copy of the net gives something else; {wrong.get(name, 'both are right')}"
                )
        draws = []
        for seed in range(24):
            ours, plain, exact = (nearby_net(net, state, seed) for net in self.nets)
            image = nearby(x, seed)
            right = compute(exact, image.double())
            in_layout = with_gradients_in_layout(copy.deepcopy(plain))
            draws.append(
                (compute(ours, image), farther([compute(plain, image), compute(in_layout, image)], right), right)
            )
        for name, why in wrong.items():
            if why.endswith("missing"):
                raise Differs(f"{what}: {name}: {why}")
            pairs = [(error(o[name], e[name]), error(p[name], e[name]), float(e[name].norm()), o[name].dtype)
                     for o, p, e in draws]  # fmt: skip
            ours, plain, scale = (sorted(pair[i] for pair in pairs)[len(pairs) // 2] for i in range(3))
            scale = max(scale, largest_of(triple[2]))
            if ours > OVER_DRAWS * plain + ULPS * torch.finfo(pairs[0][3]).eps * scale:
                raise Differs(f"{what}: {name}: over nearby nets the median error is {ours:.3g}, "
                              f"PyTorch's {plain:.3g}, of {scale:.3g}")  # fmt: skip


# Actions

ACTIONS: dict[str, Callable[[Life], None]] = {}


def action(function: Callable[[Life], None]) -> Callable[[Life], None]:
    ACTIONS[function.__name__.replace("_", " ")] = function
    return function


def of_kind(net: nn.Module, *kinds: type) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, kinds)]


@action
def fuse(life: Life) -> None:
    life.align()
    ghost_ops.fuse(life.ours, memory=life.rng.choice([None, None, "low", "balanced"]))


@action
def revert(life: Life) -> None:
    ghost_ops.revert(life.ours)


@action
def train(life: Life) -> None:
    """Two steps of training, each compared, with an optimizer of ours."""
    life.twins(lambda net: net.train())
    optimizer = torch.optim.SGD(life.ours.parameters(), lr=0.01)
    for _ in range(2):
        life.align()
        life.compare("train", step, life.an_image())
        optimizer.step()


@action
def call(life: Life) -> None:
    """In eval, without gradients."""
    life.twins(lambda net: net.eval())
    life.align()
    life.compare("call", outputs, life.an_image())


@action
def call_with_gradients(life: Life) -> None:
    """In eval, with gradients: BatchNorms are constants."""
    life.twins(lambda net: net.eval())
    life.align()
    life.compare("call with gradients", step, life.an_image())


@action
def mixed_modes(life: Life) -> None:
    """Some BatchNorms in eval within a net in training."""
    life.twins(lambda net: net.train())
    names = [name for name in of_kind(life.ours, nn.BatchNorm2d) if life.rng.random() < 0.4]
    life.twins(lambda net: [net.get_submodule(name).eval() for name in names])
    life.align()
    life.compare("mixed modes", step, life.an_image())


@action
def freeze(life: Life) -> None:
    life.twins(lambda net: net.eval())
    life.align()
    frozen = ghost_ops.freeze(life.ours)
    life.frozen = [*life.frozen[-1:], (frozen, copy.deepcopy(life.plain), copy.deepcopy(life.exact))]
    call_frozen(life)


@action
def call_frozen(life: Life) -> None:
    """Every frozen net computes what its source computed when it was frozen."""
    for frozen, plain, exact in life.frozen:
        x = life.an_image()
        results = [outputs(net, x.to(next(net.parameters()).dtype)) for net in (frozen, plain, exact)]
        wrong = faults(*results)
        if wrong and not isinstance(frozen, Frozen):
            raise Differs(f"call frozen: {wrong}")
        if wrong:  # luck, or not: over a few images
            images = [life.an_image() for _ in NEARBY]
            again = [faults(*(outputs(net, x.to(next(net.parameters()).dtype)) for net in (frozen, plain, exact)))
                     for x in images]  # fmt: skip
            if sum(map(bool, again)) >= 2:
                raise Differs(f"call frozen: {wrong}")


@action
def thaw(life: Life) -> None:
    """The plain net of a frozen one goes on in place of ours, with the state that it was frozen with."""
    if life.frozen and isinstance(life.frozen[-1][0], Frozen):
        frozen, plain, exact = life.frozen[-1]
        life.ours, life.plain, life.exact = ghost_ops.thaw(frozen), copy.deepcopy(plain), copy.deepcopy(exact)
        for theirs, own in zip(life.plain.parameters(), life.ours.parameters(), strict=True):
            own.requires_grad_(theirs.requires_grad)


@action
def new_values(life: Life) -> None:
    """Parameters and statistics written in place."""
    with torch.no_grad():
        for t in (*life.ours.parameters(), *life.ours.buffers()):
            if t.is_floating_point() and life.rng.random() < 0.3:
                t.mul_(1 + 0.2 * life.rng.random())


@action
def load_state(life: Life) -> None:
    state = randomise(copy.deepcopy(life.plain), 7).state_dict()
    life.ours.load_state_dict(state, assign=life.rng.random() < 0.5)
    for theirs, own in zip(life.plain.parameters(), life.ours.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)


@action
def new_parameters(life: Life) -> None:
    """Parameters replaced by others."""
    for name in of_kind(life.ours, nn.Conv2d, nn.BatchNorm2d):
        module = life.ours.get_submodule(name)
        if module.weight is not None and life.rng.random() < 0.3:
            module.weight = nn.Parameter(module.weight.detach() * 0.9, module.weight.requires_grad)


@action
def some_need_no_gradient(life: Life) -> None:
    names = {name for name, _ in life.ours.named_parameters() if life.rng.random() < 0.4}
    life.twins(lambda net: [p.requires_grad_(name not in names) for name, p in net.named_parameters()])


@action
def all_need_gradients(life: Life) -> None:
    life.twins(lambda net: net.requires_grad_(True))


@action
def other_norms(life: Life) -> None:
    """eps, momentum, or no running statistics of some BatchNorms."""
    for name in of_kind(life.ours, nn.BatchNorm2d):
        chance = life.rng.random()
        eps, momentum = life.rng.choice([1e-3, 1e-5]), life.rng.choice([None, 0.3, 0.1])
        if chance < 0.2:
            life.twins(lambda net, name=name, eps=eps: setattr(net.get_submodule(name), "eps", eps))
        elif chance < 0.4:
            life.twins(lambda net, name=name, m=momentum: setattr(net.get_submodule(name), "momentum", m))


@action
def another_activation(life: Life) -> None:
    """An activation, or a BatchNorm, is replaced in its parent."""
    names = of_kind(life.ours, nn.ReLU, nn.SiLU, nn.Hardswish, nn.ReLU6)
    if names:
        name, kind = life.rng.choice(names), life.rng.choice([nn.SiLU, nn.ReLU, nn.Tanh, nn.Identity])
        life.twins(lambda net: net.set_submodule(name, kind()))


@action
def a_hook(life: Life) -> None:
    """On a child: what it returns is halved. Taken away again after a call."""
    names = of_kind(life.ours, nn.Conv2d, nn.BatchNorm2d)
    name = life.rng.choice(names)
    handles = []
    life.twins(lambda net: net.train(life.size[0] % 2 == 1))
    life.twins(lambda net: handles.append(net.get_submodule(name).register_forward_hook(lambda *args: args[-1] * 0.5)))
    try:
        life.align()
        life.compare("a hook", step if life.rng.random() < 0.5 else outputs, life.an_image())
    finally:
        for handle in handles:
            handle.remove()


@action
def a_copy(life: Life) -> None:
    life.ours = copy.deepcopy(life.ours)


@action
def through_a_file(life: Life) -> None:
    if any("ways" in type(module).__module__ for module in life.ours.modules()):
        return  # its activations are functions of a test
    file = io.BytesIO()
    torch.save(life.ours, file)
    file.seek(0)
    life.ours = torch.load(file, weights_only=False)


@action
def to_double_and_back(life: Life) -> None:
    life.twins(lambda net: net.eval())
    life.ours.double()
    out = outputs(life.ours, life.an_image().double())["output"]
    if out.dtype != torch.float64:
        raise Differs(f"to double: {out.dtype}")
    life.ours.float()


@action
def functional_call(life: Life) -> None:
    """With other parameters, which need gradients."""
    life.twins(lambda net: net.train(life.size[0] % 2 == 1))
    life.align()
    factor = 0.5 + life.rng.random()

    def compute(net: nn.Module, x: torch.Tensor) -> Results:
        others = {name: (p.detach() * factor).requires_grad_() for name, p in net.named_parameters()}
        out = torch.func.functional_call(net, others, (x,))
        out.square().sum().backward()
        return {"output": out.detach(), **{f"gradient of {name}": p.grad for name, p in others.items()}}

    life.compare("functional call", compute, life.an_image())


@action
def checkpointed(life: Life) -> None:
    life.twins(lambda net: net.train())
    life.align()

    def compute(net: nn.Module, x: torch.Tensor) -> Results:
        net.zero_grad()
        x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        F.softplus(torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)).sum().backward()
        return {"gradient of x": x.grad, **{f"gradient of {name}": p.grad for name, p in net.named_parameters()}}

    life.compare("checkpointed", compute, life.an_image())


@action
def explain(life: Life) -> None:
    """Says something of every fused module, and changes nothing."""
    state = {name: t.clone() for name, t in life.ours.state_dict().items()}
    x = life.an_image().to(next(life.ours.parameters()).dtype)
    try:
        str(ghost_ops.explain(life.ours, x))
    except ValueError as refusal:  # it calls the net
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            outputs(life.plain, x)
        raise Refused from refusal
    for name, t in life.ours.state_dict().items():
        if not torch.equal(t, state[name]) and not t.isnan().any():
            raise Differs(f"explain: {name} has changed")


def live(life: dict) -> None:
    """Raises where ours does not do what plain PyTorch does."""
    ours = Life(life)
    for name, choices in life["actions"]:
        try:
            ours.act(name, choices)
        except Refused:
            return
