"""The forward of a Ghost module in inference: the primary convolution into the output, or into scratch memory where a
residual is added, and the cheap half from there."""

from __future__ import annotations

import torch

from . import checks, launch, module_kernel
from .cheap import cheap_half
from .epilogue import Epilogue
from .products import primary_product
from .squeeze_excite import image_sums


def ghost_module_fwd(
    x: torch.Tensor,
    weight: torch.Tensor,
    primary: Epilogue,
    cheap_weight: torch.Tensor | None,
    cheap: Epilogue,
    out_channels: int,
    *,
    scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    squeeze: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output and its squeeze (empty if not asked for).

    Args:
        x: N x C x H x W of any strides.
        primary, cheap: the epilogues of the two convolutions.
        cheap_weight: m(s - 1) x 1 x d x d, or None.
        scale: N x C, the excitation of x.
        residual: added to the output.
        squeeze: whether the means of the output are computed too.
    """
    checks.expect_module(x, weight, primary, cheap_weight, cheap, out_channels)
    n, c, height, width = x.shape
    m = weight.shape[0]
    checks.expect("input_scale", scale, (n, c), x)
    checks.expect("residual", residual, (n, out_channels, height, width), x)
    out = launch.new_map(x, out_channels)
    if cheap_weight is None:
        primary_product(x, weight, primary, to=out, scale=scale, residual=residual)
        return out, image_sums(out, None, True) if squeeze else launch.empty((0,), x.dtype, x.device)
    means = launch.empty((n, out_channels) if squeeze else (0,), x.dtype, x.device)
    if module_kernel.takes(x, cheap_weight, m, residual, squeeze):
        means_to = means if squeeze else None
        module_kernel.launch_module(x, weight, primary, cheap_weight, cheap, out, scale, residual, means_to)
        return out, means
    y = out if residual is None else launch.scratch(x, m)
    primary_product(x, weight, primary, to=y, scale=scale)
    cheap_half(y, out, cheap_weight, cheap, m=m, residual=residual, squeeze=means if squeeze else None)
    return out, means
