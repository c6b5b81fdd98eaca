"""``SyncBatchNorm``: PyTorch's, on the CPU too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from ._running_statistics import update


class SyncBatchNorm(nn.SyncBatchNorm):
    """``torch.nn.SyncBatchNorm`` that also trains on the CPU, which PyTorch's refuses.

    Arguments, parameters, buffers, state_dict and results are PyTorch's; on other devices, in eval, and where no
    processes are joined, its very code runs. On the CPU statistics are merged from each process's means and squared
    deviations, weighted by its number of values, so that batches of different sizes, empty ones among them, count as
    one (Chan, Golub and LeVeque 1983; docs/gradients.md). The gradients of weight and bias are those of the process's
    own values, as PyTorch's are: ``DistributedDataParallel`` averages them.

    A fused Ghost module runs such layers as plain PyTorch in training, and folds them in eval.

    Shape, dtype: N x C x anything, floating-point; the output has the input's dtype and memory format.

    Raises:
        ValueError: one value a channel in all processes together, as ``BatchNorm2d``.
    """

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: object = None) -> nn.Module:
        """``module`` with every BatchNorm in it, PyTorch's SyncBatchNorm included, made one of these.

        The parameters stay the same objects. To be called before an optimizer or DDP is made, as PyTorch's.
        """
        module = super().convert_sync_batchnorm(module, process_group)
        for child in module.modules():
            if type(child) is nn.SyncBatchNorm:
                child.__class__ = cls
        return module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = self.training and x.device.type == "cpu" and dist.is_available() and dist.is_initialized()
        group = (self.process_group or dist.group.WORLD) if joined else None
        if group is None or dist.get_world_size(group) == 1:
            # alone there is nothing to merge, but on the CPU PyTorch's would still refuse
            return nn.modules.batchnorm._BatchNorm.forward(self, x) if joined else super().forward(x)
        self._check_input_dim(x)
        self._check_non_zero_input_channels(x)
        out, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, group)
        with torch.no_grad():
            update(self, mean, var, count)
        return out


class _Normalise(torch.autograd.Function):
    """Output, and the mean, biased variance and count of all processes' values."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, group):
        wide = torch.promote_types(x.dtype, torch.float32)
        axes = [i for i in range(x.dim()) if i != 1]
        channels, count = x.shape[1], x.numel() // x.shape[1]
        packed = torch.zeros(2 * channels + 1, dtype=torch.float64)
        if count:
            var, mean = torch.var_mean(x.to(wide), axes, correction=0)
            packed[:channels], packed[channels:-1], packed[-1] = mean, var * count, count
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, packed, group)
        means, deviations, counts = torch.stack(parts).split((channels, channels, 1), dim=1)
        total = counts.sum()
        if total <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        mean = (means * counts).sum(0) / total
        var = (deviations + counts * (means - mean).square()).sum(0) / total
        mean, scale = mean.to(wide), (var + eps).rsqrt().to(wide)
        var = var.to(wide)

        shape = [1, -1] + [1] * (x.dim() - 2)
        out = (x.to(wide) - mean.view(shape)) * scale.view(shape)
        out = out if weight is None else out * weight.view(shape)
        out = out if bias is None else out + bias.view(shape)
        ctx.save_for_backward(x, weight, mean, scale, total)
        ctx.axes, ctx.shape, ctx.group = axes, shape, group
        ctx.mark_non_differentiable(mean, var, total)
        return out.to(x.dtype), mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        x, weight, mean, scale, total = ctx.saved_tensors
        g, x_hat = grad.to(mean.dtype), (x.to(mean.dtype) - mean.view(ctx.shape)) * scale.view(ctx.shape)
        own = torch.stack([g.sum(ctx.axes), (g * x_hat).sum(ctx.axes)])
        sums = own.double()
        dist.all_reduce(sums, group=ctx.group)
        c0, c1 = (sums / total).to(mean.dtype)
        k = scale if weight is None else scale * weight
        gx = k.view(ctx.shape) * (g - c0.view(ctx.shape) - x_hat * c1.view(ctx.shape))
        needs = ctx.needs_input_grad
        grad_weight = own[1].to(weight.dtype) if needs[1] else None
        return gx.to(x.dtype), grad_weight, own[0].to(weight.dtype) if needs[2] else None, None, None
