"""``ghost_module_train``: the three passes of docs/gradients.md, section 1, and the backward of section 2."""

from __future__ import annotations

import triton
import triton.language as tl

from . import backward, launch, single_pass, tiles
from .activation import activate, affine, slopes
from .maps import block_of, depthwise, in_batch, numbers, whole, whole_strides
from .products import join, primary_product
from .single_pass import Half


@triton.jit
def cheap_half(
    out, out_n, out_c, out_h, out_w, cheap_weight,
    two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, two_slopes, two_slopes_stride, two_slope,
    H, W, M, KEPT, PIXELS, per_group, TWO_ACT: tl.constexpr, D: tl.constexpr, MULTIPLIER: tl.constexpr,
    WIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The third pass: out[:, M:] from y1 in out[:, :M], which nobody writes any more."""
    M, KEPT = whole(M, UNIT), whole(KEPT, UNIT)
    out_n, out_h, out_w = whole_strides(out_n, out_h, out_w, UNIT)
    blocks = tl.cdiv(M, BM)
    group = tl.program_id(0) // blocks
    channels = block_of(tl.program_id(0) % blocks, BM, WIDE)
    source = out + channels[None, :] * out_c
    unused = tl.zeros((BM,), tl.float32)
    for q in range(MULTIPLIER):
        made = channels * MULTIPLIER + q
        kept = (channels < M) & (made < KEPT - M)
        center, scale, shift = affine(two_bias, two_gamma, two_beta, two_mean, two_var, two_eps, made, kept)
        bent = slopes(two_slopes, two_slopes_stride, made, kept, two_slope, TWO_ACT)
        for t in range(per_group):
            pixels = numbers(group, per_group, t, BP, WIDE)
            valid = pixels < PIXELS
            rest = pixels % (H * W)
            places = in_batch(pixels, H, W, out_n, out_h, out_w, WIDE)
            z = depthwise(
                source, places, valid, rest // W, rest % W, H, W, out_h, out_w, cheap_weight, made, kept, unused,
                unused, unused, unused, TWO_ACT, False, D, BP, BM, "",
            )  # fmt: skip
            v = activate((z - center[None, :]) * scale[None, :] + shift[None, :], TWO_ACT, bent[None, :])
            to = out + (places[:, None] + (M + made)[None, :] * out_c)
            tl.store(to, v.to(out.dtype.element_ty), mask=valid[:, None] & kept[None, :])


def ghost_module_train(
    x, primary_weight, primary_bias, primary_gamma, primary_beta, cheap_weight, cheap_bias, cheap_gamma, cheap_beta,
    act_weight, cheap_act_weight, out_channels, act, cheap_act, act_slope, cheap_act_slope, primary_eps, cheap_eps,
    keep_primary=False,
):  # fmt: skip
    n, c, height, width = x.shape
    m, d, count = primary_weight.shape[0], cheap_weight.shape[-1], n * height * width
    # reading x twice moves 2c + 3m elements a pixel, keeping z1 in scratch memory c + 5m
    keep = keep_primary or c > 2 * m
    z, partials = primary_product(x, primary_weight, store=keep, statistics=True)
    primary_mean, primary_var = join(partials, count)
    one = Half(None, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps)
    none = Half(None, cheap_act, cheap_act_slope, cheap_act_weight)
    primary = z.permute(0, 2, 3, 1).float().contiguous() if keep_primary else primary_mean.new_empty(0)
    out, partials = single_pass.run(
        z if keep else x, None if keep else primary_weight, one, cheap_weight, none, out_channels, statistics=True,
        like=x,
    )  # fmt: skip
    cheap_mean, cheap_var = join(partials, count)
    two = none._replace(gamma=cheap_gamma, beta=cheap_beta, mean=cheap_mean, var=cheap_var, eps=cheap_eps)
    tile, per_group, groups = tiles.flat("depthwise", x, m)
    arguments = {
        "out": out, **launch.strides("out", out), "cheap_weight": launch.vector(cheap_weight), **two.arguments("two"),
        "H": height, "W": width, "M": m, "KEPT": out_channels, "PIXELS": count, "per_group": per_group, "D": d,
        "MULTIPLIER": cheap_weight.shape[0] // m, "WIDE": launch.is_wide(out, images=True),
        "UNIT": launch.unit(out, counts=(m, out_channels)),
        "BP": tile.pixels, "BM": tile.channels,
    }  # fmt: skip
    with launch.on_device_of(x):
        launch.run(cheap_half, (groups * launch.cdiv(m, tile.channels),), arguments, tile.warps, tile.stages)
    return out, primary_mean, primary_var, cheap_mean, cheap_var, primary


def ghost_module_train_backward(
    grad_out, x, primary_weight, primary_gamma, primary_beta, cheap_weight, cheap_gamma, cheap_beta, act_weight,
    cheap_act_weight, primary_mean, primary_var, cheap_mean, cheap_var, primary, out_channels, act, cheap_act,
    act_slope, cheap_act_slope, primary_eps, cheap_eps,
):  # fmt: skip
    """Gradients of x, primary weight, gamma, beta, cheap weight, gamma, beta, and the two PReLU weights.

    ``primary`` is not read: z1 is made again.
    """
    one = Half(None, act, act_slope, act_weight, primary_gamma, primary_beta, primary_mean, primary_var, primary_eps)
    two = Half(
        None, cheap_act, cheap_act_slope, cheap_act_weight, cheap_gamma, cheap_beta, cheap_mean, cheap_var, cheap_eps
    )
    found = backward.through_module(grad_out, x, primary_weight, one, cheap_weight, two, out_channels, batch=True)
    one_grad, two_grad = found.one, found.two
    return (
        found.x, found.weight, one_grad.gamma, one_grad.beta, found.cheap_weight, two_grad.gamma, two_grad.beta,
        one_grad.slopes, two_grad.slopes,
    )  # fmt: skip
