"""Where the pieces of somebody's module are: what surgery recognises, and what the fused modules read.

A path is that of ``torch.nn.Module.get_submodule``, from the module that is fused: ``"primary_conv.0"``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GhostParts:
    """The pieces of a Ghost module.

    Attributes:
        primary_conv: path of the primary ``Conv2d``.
        primary_norm: path of the ``BatchNorm2d`` after it, or None.
        primary_act: path of its activation, or None; an empty ``Sequential`` or an ``Identity`` counts as none.
        cheap_conv: path of the depthwise ``Conv2d``, or None: ratio 1, a plain convolution.
        cheap_norm, cheap_act: as for the primary half.
        out_channels: channels kept of the concatenation; None keeps all.
    """

    primary_conv: str
    primary_norm: str | None = None
    primary_act: str | None = None
    cheap_conv: str | None = None
    cheap_norm: str | None = None
    cheap_act: str | None = None
    out_channels: int | None = None


@dataclass(frozen=True)
class SqueezeExciteParts:
    """The pieces of a squeeze-and-excite layer.

    Attributes:
        reduce, expand: paths of the two ``Linear`` or 1x1 ``Conv2d``.
        act: path of the activation between them, or None.
        gate: ``clamp``, ``hard_sigmoid``, ``sigmoid`` or ``identity``: not in a state_dict, so the recogniser says.
        others: paths of the further modules that a forward calls (pooling, gate): fused code skips them, so that they
            must carry no hooks.
    """

    reduce: str
    expand: str
    act: str | None = None
    gate: str = "sigmoid"
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class BottleneckParts:
    """The pieces of a Ghost bottleneck.

    Attributes:
        ghost1, ghost2: paths of the two Ghost modules.
        depthwise: paths of what stands between them before the SE layer, in order: convolutions, BatchNorms,
            activations, or ``Sequential`` of these (an empty one counts as nothing).
        se: path of the squeeze-and-excite layer, or None.
        shortcut: paths as in ``depthwise``; none, or only empty ``Sequential``: the identity.
    """

    ghost1: str
    ghost2: str
    depthwise: tuple[str, ...] = ()
    se: str | None = None
    shortcut: tuple[str, ...] = ()
