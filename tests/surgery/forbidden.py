"""Ghost modules, squeeze-and-excite layers and bottlenecks whose values are right, and which do something besides."""

from __future__ import annotations

import itertools
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import zoo


class Ghost(zoo.ArticleGhostModule):
    def __init__(self):
        super().__init__(6, 10)

    def step(self, y):
        return y

    def forward(self, x):
        x1 = self.step(self.primary_conv(x))
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)[:, : self.oup]


class Excite(zoo.ArticleSELayer):
    def __init__(self):
        super().__init__(12)

    def step(self, y):
        return y

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.fc(self.avg_pool(x).view(b, c)).view(b, c, 1, 1)
        return x * self.step(torch.clamp(y, 0, 1))


class Bottleneck(zoo.HuaweiBottleneck):
    def __init__(self):
        super().__init__(6, 16, 8, stride=2, se=True)

    def step(self, y):
        return y

    def forward(self, x):
        y = self.step(self.ghost1(x))
        return self.ghost2(self.se(self.bn_dw(self.conv_dw(y)))) + self.shortcut(x)


KINDS = {"Ghost module": Ghost, "squeeze-and-excite": Excite, "Ghost bottleneck": Bottleneck}
STEPS: dict[str, dict[str, object]] = {}


def step(cause):
    """Register a function of (module, y) as a step of the kind that ``cause`` names."""

    def register(function):
        STEPS.setdefault(cause, {})[function.__name__] = function
        return function

    return register


def make(kind, function, **attributes):
    """A module of ``kind`` that does ``function`` half way."""
    base = KINDS[kind]
    body = {"step": function, "kept": [], "__module__": __name__}
    module = type(f"{base.__name__}That{function.__name__}", (base,), body)()
    module.seen, module.calls, module.numbers, module.queue = [], 0, {}, deque()
    module.rng, module.counter = np.random.default_rng(0), itertools.count()
    module.register_buffer("count", torch.zeros(()))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


# What it leaves behind

LOG = []
CALLS = 0


def _closure():
    kept, calls = [], 0

    def closure_list(self, y):
        kept.append(y.shape)
        return y

    def closure_counter(self, y):
        nonlocal calls
        calls += 1
        return y

    return closure_list, closure_counter


closure_list, closure_counter = map(step("leaves something behind"), _closure())


@step("leaves something behind")
def attribute(self, y):
    self.last = y
    return y


@step("leaves something behind")
def counter(self, y):
    self.calls += 1
    return y


@step("leaves something behind")
def list_append(self, y):
    self.seen.append(y)
    return y


@step("leaves something behind")
def dictionary(self, y):
    self.numbers["y"] = y
    return y


@step("leaves something behind")
def detached_attribute(self, y):
    self.last = y.detach()
    return y


@step("leaves something behind")
def penalty(self, y):
    self.penalty = y.abs().mean()
    return y


@step("leaves something behind")
def buffer_in_place(self, y):
    self.count.add_(1)
    return y


@step("leaves something behind")
def buffer_replaced(self, y):
    self.count = self.count + 1
    return y


@step("leaves something behind")
def class_attribute(self, y):
    type(self).total = getattr(type(self), "total", 0) + 1
    return y


@step("leaves something behind")
def childs_attribute(self, y):
    child = next(iter(self.children()))
    child.last = y
    return y


@step("leaves something behind")
def grandchilds_attribute(self, y):
    next(m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))).last = y
    return y


@step("leaves something behind")
def global_list(self, y):
    LOG.append(y)
    return y


@step("leaves something behind")
def global_counter(self, y):
    global CALLS
    CALLS += 1
    return y


def _note(y):
    LOG.append(y)


@step("leaves something behind")
def function_that_appends(self, y):
    _note(y)
    return y


@step("leaves something behind")
def only_in_training(self, y):
    if self.training:
        self.seen.append(y)
    return y


@step("leaves something behind")
def only_without_gradients(self, y):
    if not torch.is_grad_enabled():
        self.last = y
    return y


@step("leaves something behind")
def momentum(self, y):
    for m in self.modules():
        m.__dict__["momentum"] = 0.5
    return y


# Gradients


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


@step("gradients are not those of")
def reversal(self, y):
    return Reversal.apply(y)


@step("cuts the gradient")
def detach(self, y):
    return y.detach()


@step("cuts the gradient")
def data(self, y):
    return y.data


@step("cuts the gradient")
def scaled_gradient(self, y):
    return 2 * y - y.detach()


@step("turns gradients on or off")
def no_grad(self, y):
    with torch.no_grad():
        return y * 1


@step("turns gradients on or off")
def enable_grad(self, y):
    with torch.enable_grad():
        return y * 1


@step("turns gradients on or off")
def decorated(self, y):
    return torch.no_grad()(lambda t: t + 0)(y)


@step("hooks a tensor")
def register_hook(self, y):
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 0.5)
    return y


@step("hooks a tensor")
def retain_grad(self, y):
    if torch.is_grad_enabled():
        y.retain_grad()
    return y


@step("without gradients")
def is_grad_enabled(self, y):
    return y if torch.is_grad_enabled() else y * 1.01


# Guards


@step("nan_to_num")
def nan_to_num(self, y):
    return torch.nan_to_num(y)


@step("infinite or huge")
def clamp(self, y):
    return y.clamp(max=1000)


@step("infinite or huge")
def minimum(self, y):
    return torch.minimum(y, torch.full_like(y, 65504.0))


@step("reads a tensor into Python")
def isnan(self, y):
    if torch.isnan(y).any():
        return torch.zeros_like(y)
    return y


@step("reads a tensor into Python")
def item(self, y):
    return y * 1.5 if y.abs().max().item() > 1e4 else y


@step("infinite or huge")
def where(self, y):
    return torch.where(torch.isfinite(y), y, torch.zeros_like(y))


# Autocast, dtypes, devices


@step("changes autocast")
def island(self, y):
    with torch.autocast("cpu", enabled=False):
        return y * 1


@step("changes autocast")
def island_of_cuda(self, y):
    with torch.autocast("cuda", enabled=False):
        return y * 1


@step("changes autocast")
def island_of_any(self, y):
    with torch.autocast(y.device.type, enabled=False):
        return y.float()


@step("casts tensors|under autocast")
def single(self, y):
    return y.float()


@step("asks for the dtype")
def dtype_branch(self, y):
    return y * 2 if y.dtype == torch.float16 else y


@step("asks for the device")
def device_branch(self, y):
    return y * 2 if y.device.type == "cuda" else y


# Sizes


@step("branches on the size")
def height(self, y):
    return y * 1.5 if y.shape[-2] >= 1000 else y


@step("branches on the size")
def width(self, y):
    return y * 1.5 if y.size(3) > 14 else y


@step("branches on the size")
def area(self, y):
    h, w = y.shape[2:]
    return y * 1.5 if h * w > 10**6 else y


@step("branches on the size")
def batch(self, y):
    return y if y.size(0) != 1 else y * 1.5


@step("branches on the size")
def numel(self, y):
    return y * 1.5 if y.numel() > 10**7 else y


@step("branches on the size")
def numel_of_shape(self, y):
    return y * 1.5 if y.shape.numel() > 10**7 else y


@step("branches on the size")
def ratio(self, y):
    return y * 1.5 if y.shape[0] / 2 > 1000 else y


@step("branches on the size")
def odd(self, y):
    return F.pad(y, (0, 1)) if y.shape[0] % 100 == 99 else y


@step("branches on the size")
def largest(self, y):
    return y * (1.0 if max(y.shape[0], 512) == 512 else 2.0)


@step("it computes something else")
def length(self, y):
    return y * 1.5 if len(y) > 200 else y


# What cannot be noticed


class Config:
    scale = 1.0


CONFIG = Config()


@step("reads 'cfg', a Config, whose changes could not be noticed")
def configuration(self, y):
    return y * self.cfg.scale


@step("reads 'cfgs', a list that holds a Config, whose changes could not be noticed")
def configurations(self, y):
    return y * self.cfgs[0].scale
