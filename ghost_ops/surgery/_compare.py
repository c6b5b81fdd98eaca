"""Whether two results are the same up to rounding, wherever they are finite, infinite or NaN."""

from __future__ import annotations

import torch

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.05}  # where only rounding should differ

_OWN_PRECISION = (torch.float64, torch.float32)  # in which a difference of near values is exact, or nearly so


def _largest(t: torch.Tensor) -> torch.Tensor:
    """The largest absolute value, of each image of a batch of maps; NaN where there is one."""
    return torch.linalg.vector_norm(t.detach(), float("inf"), (1, 2, 3) if t.dim() == 4 else None)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """How far two results are apart, as a phrase."""
    if ours.shape != theirs.shape:
        return f"it makes {tuple(ours.shape)} where the module makes {tuple(theirs.shape)}"
    far, most = float((ours - theirs).abs().max()), float(theirs.abs().max())
    return f"it is off by {far:.3g} where values reach {most:.3g}"


def agree(ours: torch.Tensor | None, theirs: torch.Tensor | None, tolerance: float | None = None) -> bool:
    """Whether two results or gradients agree: shape, dtype, where they are NaN or infinite, and finite values.

    Each image of a batch is measured by its own largest value, so that a huge image hides nothing in its neighbours.
    """
    if ours is None or theirs is None:
        return ours is theirs
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if torch.equal(ours, theirs):
        return True
    tolerance = TOLERANCE.get(theirs.dtype, 0) if tolerance is None else tolerance
    if theirs.dtype in _OWN_PRECISION and theirs.numel():
        error, size = _largest(ours - theirs), _largest(theirs)
        if error.isfinite().all() and size.isfinite().all():  # no NaN and nothing infinite in either
            return bool((error <= tolerance * size.clamp(min=1)).all())
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        for of in (torch.isnan, torch.isposinf, torch.isneginf):
            if not torch.equal(of(ours), of(theirs)):
                return False
        ours, theirs = (torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in (ours, theirs))
    ours, theirs = ours.double(), theirs.double()
    error, size = (ours - theirs).abs(), theirs.abs()
    if theirs.dim() == 4 and theirs.numel():
        error, size = (t.amax((1, 2, 3)) for t in (error, size))
    elif theirs.numel():
        error, size = error.max(), size.max()
    return bool((error <= tolerance * size.clamp(min=1)).all())
