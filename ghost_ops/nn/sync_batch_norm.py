"""``SyncBatchNorm``: BatchNorm over the batches of all processes, on the CPU too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from .running_statistics import update


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``torch.nn.SyncBatchNorm`` in plain PyTorch, so that it trains on the CPU too.

    PyTorch's refuses the CPU, and so does ``DistributedDataParallel`` of a net that holds one, for which reason this
    class does not derive from it. Arguments, parameters, buffers, state_dict and results are the same. On a GPU
    PyTorch's own is faster.

    Statistics are merged from each process's means and squared deviations, weighted by its number of values, so that
    batches of different sizes, empty ones among them, count as one (Chan, Golub and LeVeque 1983; docs/gradients.md).
    The gradients of weight and bias are those of the process's own values, as PyTorch's are: DDP averages them. In
    eval, and where no processes are joined, it is a BatchNorm.

    A fused Ghost module runs such layers as plain PyTorch in training, and folds them in eval.

    Shape, dtype: N x C x anything, floating-point; the output has the input's dtype and memory format.

    Raises:
        ValueError: one value a channel in all processes together, as ``BatchNorm2d``.
    """

    def __init__(self, num_features: int, *args, process_group: object = None, **kwargs) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: object = None) -> nn.Module:
        """Make every BatchNorm in ``module`` one of these, in place, PyTorch's SyncBatchNorm included; returns it.

        Parameters and buffers stay the same objects; other subclasses of BatchNorm stay as they are. To be
        called before DDP is made, as PyTorch's.
        """
        for child in module.modules():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
                child.__class__, child.process_group = cls, process_group
        return module

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2 or not x.shape[1]:
            raise ValueError(f"SyncBatchNorm: expected at least 2 dimensions and one channel, got {tuple(x.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = self.training and dist.is_available() and dist.is_initialized()
        group = (self.process_group or dist.group.WORLD) if joined else None
        if group is None or dist.get_world_size(group) == 1:
            return super().forward(x)
        self._check_input_dim(x)
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
        packed = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
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
        sums = own.to(torch.float64, copy=True)  # reduced in place
        dist.all_reduce(sums, group=ctx.group)
        c0, c1 = (sums / total).to(mean.dtype)
        k = scale if weight is None else scale * weight
        gx = k.view(ctx.shape) * (g - c0.view(ctx.shape) - x_hat * c1.view(ctx.shape))
        needs = ctx.needs_input_grad
        grad_weight = own[1].to(weight.dtype) if needs[1] else None
        return gx.to(x.dtype), grad_weight, own[0].to(weight.dtype) if needs[2] else None, None, None
