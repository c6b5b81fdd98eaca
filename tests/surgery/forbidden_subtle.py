"""More of ``forbidden``: what is harder to see (containers, counters and helpers of other kinds), and chance."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .forbidden import CONFIG, step


def _counted(y, calls=[0]):  # noqa: B006  (that it is kept is the point)
    calls[0] += 1
    return y


@step("leaves something behind")
def default_argument(self, y):
    return _counted(y)


@step("leaves something behind")
def queue(self, y):
    self.queue.append(y)
    return y


@step("leaves something behind")
def nested_list(self, y):
    self.numbers.setdefault("maps", []).append(y)
    return y


@step("leaves something behind|could not be noticed")
def object_attribute(self, y):
    self.cfg.calls = getattr(self.cfg, "calls", 0) + 1
    return y


@step("leaves something behind")
def class_list(self, y):
    type(self).kept.append(y)
    return y


@step("leaves something behind")
def buffer_data(self, y):
    self.get_buffer("count").data.add_(1)
    return y


@step("leaves something behind")
def new_buffer(self, y):
    self.register_buffer("latest", y)
    return y


@step("leaves something behind")
def hook_on_a_child(self, y):
    next(iter(self.children())).register_forward_hook(lambda *_: None)
    return y


@step("leaves something behind")
def replaced_child(self, y):
    self.extra = nn.Identity()
    return y


@step("leaves something behind")
def written_parameter(self, y):
    with torch.no_grad():
        next(self.parameters()).mul_(1.001)
    return y


@step("leaves something behind")
def attribute_of_the_result(self, y):
    CONFIG.last = y
    return y


@step("could not be noticed|computes something else")
def numpy_generator(self, y):
    return y + 1e-15 * float(self.rng.random())


@step("differ from one call to the next")
def noise_of_its_own(self, y):
    return y + float(self.rng.random())


@step("could not be noticed|leaves something behind")
def itertools_counter(self, y):
    next(self.counter)
    return y


@step("handles gradients itself")
def requires_grad(self, y):
    return y.requires_grad_()


@step("reads a tensor into Python")
def asks_for_gradients(self, y):
    return y * 2 if not y.requires_grad and not self.training else y


@step("reads a tensor into Python|cuts the gradient")
def numpy_copy(self, y):
    return y * float(y.detach().numpy().max() < 1e30)


@step("reads a tensor into Python")
def equal(self, y):
    return y if torch.equal(y, y) else y * 0


@step("draws random numbers")
def seeded(self, y):
    torch.manual_seed(0)
    return y


@step("branches on the size")
def compared_shapes(self, y):
    return y if y.shape[2:] != (224, 224) else y * 2


@step("branches on the size")
def cached_by_size(self, y):
    return y * {True: 1.0, False: 2.0}[y.shape[3] < 999]


@step("it computes something else")
def converted(self, y):
    return y * 1.5 if int(y.shape[-1]) >= 100 else y


@step("it computes something else")
def converted_product(self, y):
    return y * 1.5 if 0.5 * y.shape[-2] >= 100 else y


# Chance


@step("draws random numbers")
def rand(self, y):
    return y + torch.rand(1)


@step("draws random numbers")
def dropout(self, y):
    return F.dropout(y, 0.5, self.training)


@step("draws random numbers")
def rand_like(self, y):
    return y + 1e-12 * torch.rand_like(y)


@step("draws random numbers")
def numpy_noise(self, y):
    return y + float(np.random.rand())


@step("draws random numbers")
def python_random(self, y):
    return y * 2 if random.random() < 1e-9 else y
