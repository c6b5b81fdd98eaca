"""Ghost modules and squeeze-and-excite layers, each written in another way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .. import zoo


class Functional(nn.Module):
    """The activation is a function in the forward."""

    def __init__(self, act=F.relu, cheap_act=None, conv=nn.Conv2d, norm=nn.BatchNorm2d, kernel=3, **cheap):
        super().__init__()
        self.primary, self.norm1 = conv(6, 8, 1, bias=False), norm(8)
        cheap = {"padding": kernel // 2 if isinstance(kernel, int) else 0, **cheap}
        self.cheap, self.norm2 = conv(8, 8, kernel, groups=8, bias=False, **cheap), norm(8)
        self.act, self.cheap_act = act, cheap_act or act

    def halves(self, x):
        first = self.act(self.norm1(self.primary(x)))
        return first, self.cheap_act(self.norm2(self.cheap(first)))

    def forward(self, x):
        return torch.cat(self.halves(x), 1)


def none(x):
    return x


class OwnReLU(nn.ReLU):
    """A subclass that changes nothing."""


class OwnSiLU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class OwnLeaky(nn.Module):
    def __init__(self, slope=0.2):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.maximum(x, self.slope * x)


class OwnSwish(nn.Module):
    """d-li14's ``h_swish``: a module with a module inside."""

    def __init__(self):
        super().__init__()
        self.sigmoid = zoo.HardSigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class OwnConv(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.wanted = "something that no forward reads"


class OwnNorm(nn.BatchNorm2d):
    def extra_repr(self):
        return "mine"


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class FrozenNorm(nn.Module):
    """torchvision's and detectron2's FrozenBatchNorm2d: buffers only."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
        scale = w * (v + self.eps).rsqrt()
        return x * scale + (b - m * scale)


def without_statistics(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Optional(Functional):
    def forward(self, x, skip=None):
        y = super().forward(x)
        return y if skip is None else y + skip


class ActAfter(Functional):
    def forward(self, x):
        first = self.norm1(self.primary(x))
        return F.relu(torch.cat([first, self.norm2(self.cheap(first))], 1))


class NormAfter(nn.Module):
    def __init__(self, act=F.relu):
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm, self.act = nn.BatchNorm2d(16), act

    def forward(self, x):
        first = self.primary(x)
        return self.act(self.norm(torch.cat([first, self.cheap(first)], 1)))


class Reversed(Functional):
    def forward(self, x):
        return torch.cat(self.halves(x)[::-1], 1)


class DropoutAfter(Functional):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout2d(0.1)

    def forward(self, x):
        return self.drop(super().forward(x))


class Scaled(Functional):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x) * self.gamma


class Residual(Functional):
    def forward(self, x):
        return (
            torch.cat([x, x], 1)[:, :16] + super().forward(x)
            if x.shape[1] == 8
            else F.pad(x, (0, 0, 0, 0, 0, 10)) + super().forward(x)
        )


class TwoCheap(nn.Module):
    def __init__(self):
        super().__init__()
        self.primary = zoo.conv_bn(6, 8, 1, act=nn.ReLU())
        self.small = zoo.conv_bn(8, 8, 3, groups=8, act=nn.ReLU())
        self.large = zoo.conv_bn(8, 8, 5, groups=8, act=nn.ReLU())

    def forward(self, x):
        y = self.primary(x)
        return torch.cat([y, self.small(y), self.large(y)], 1)


class Branches(nn.Module):
    """GhostNetV3's training form in short, with depthwise branches of two sizes."""

    def __init__(self):
        super().__init__()
        self.primary = nn.ModuleList(zoo.conv_bn(6, 8, 1) for _ in range(3))
        self.cheap = nn.ModuleList(zoo.conv_bn(8, 8, k, groups=8) for k in (3, 3, 5))

    def forward(self, x):
        y = F.relu(sum(branch(x) for branch in self.primary))
        return torch.cat([y, F.relu(sum(branch(y) for branch in self.cheap))], 1)


class Inline(nn.Module):
    """PicoDet's and others': a Ghost module within the forward of a block."""

    def __init__(self):
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.cheap, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project = nn.Conv2d(16, 6, 1)

    def forward(self, x):
        y = F.relu(self.norm1(self.expand(x)))
        y = torch.cat([y, F.relu(self.norm2(self.cheap(y)))], 1)
        return x + self.project(y)


class TwoInline(nn.Module):
    def __init__(self):
        super().__init__()
        self.pw1, self.dw1 = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pw2, self.dw2 = nn.Conv2d(16, 3, 1), nn.Conv2d(3, 3, 3, padding=1, groups=3)

    def forward(self, x):
        y = self.pw1(x)
        z = self.pw2(torch.cat([y, self.dw1(y)], 1))
        return x + torch.cat([z, self.dw2(z)], 1)


class Split(Inline):
    """Half of the channels pass by."""

    def forward(self, x):
        kept, x = x.chunk(2, 1)
        return torch.cat([kept, super().forward(x)], 1)


class Excite(nn.Module):
    def __init__(self, act=F.relu, gate=F.hardsigmoid):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.act, self.gate = act, gate

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


def fifth(x):
    """Paddle's hard sigmoid."""
    return (x / 5 + 0.5).clamp(0, 1)


def beyond(x):
    return 1.1 * fifth(x)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = 0.2137, 0.4

    def forward(self, x):
        return F.hardtanh(x * self.scale + self.shift, 0.0, 1.0)


class LineOfBuffer(nn.Module):
    """A buffer may change, and is drawn in a copy."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 0.2))

    def forward(self, x):
        return (x * self.scale + 0.5).clamp(0, 1)


class Layer(nn.Module):
    """ultralytics' ``Conv``, whose net's own ``fuse`` folds the BatchNorm and gives the instance another forward."""

    def __init__(self, inp, out, kernel=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, 1, kernel // 2, groups=groups)
        self.bn, self.act = nn.BatchNorm2d(out), nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x):
        return self.act(self.conv(x))

    def fold(self):
        self.conv = torch.nn.utils.fuse_conv_bn_eval(self.conv, self.bn)
        del self.bn
        self.forward = self.forward_fuse


class Foldable(nn.Module):
    def __init__(self):
        super().__init__()
        self.cv1, self.cv2 = Layer(6, 8), Layer(8, 8, 3, 8)

    def forward(self, x):
        y = self.cv1(x)
        return torch.cat([y, self.cv2(y)], 1)

    def fold(self):
        for layer in (self.cv1, self.cv2):
            layer.fold()
        return self
