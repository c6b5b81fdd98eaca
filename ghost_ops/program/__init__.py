"""The format and the meaning of programs.

A program is a list of steps over numbered slots, each slot a map: a step may read any slot that was written before it.
The first step fills a slot from the input; the last ones each return a slot, or the last one, after a pooling,
features. State besides the slots: the squeeze (channel means of the last step that was asked for them), the excitation,
and one row of features an image.
"""

from .format import (
    FORMAT,
    decode,
    encode,
    only_result,
    output_shape,
    output_shapes,
    output_sizes,
    precision_of,
    returning,
    slot_channels,
    weights_of,
    with_precision,
)
from .layer import BETA, BIAS, GAMMA, NORM, SLOPES, Folded, Layer
from .step import MapStep, Step, module_of_function, register_step, step_kinds, step_of_module
from .steps import *  # noqa: F403
from .steps import __all__ as _steps
from .weights import BFLOAT16, FLOAT32, WeightFormat, register_format, weight_format

__all__ = [
    *_steps,
    "BETA",
    "BFLOAT16",
    "BIAS",
    "FLOAT32",
    "FORMAT",
    "GAMMA",
    "NORM",
    "SLOPES",
    "Folded",
    "Layer",
    "MapStep",
    "Step",
    "WeightFormat",
    "decode",
    "encode",
    "module_of_function",
    "only_result",
    "output_shape",
    "output_shapes",
    "output_sizes",
    "precision_of",
    "register_format",
    "register_step",
    "returning",
    "slot_channels",
    "step_kinds",
    "step_of_module",
    "weight_format",
    "weights_of",
    "with_precision",
]
