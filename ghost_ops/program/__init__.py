"""The format and the meaning of programs.

A program is a chain of steps over numbered slots, each slot a map. The first step fills a slot from the input; the last
returns a slot, or, after a pooling, features. State besides the slots: the squeeze (channel means of the last step that
was asked for them), the excitation, and one row of features an image.
"""

from .format import FORMAT, decode, encode, output_shape, output_sizes, precision_of, weights_of, with_precision
from .layer import BETA, BIAS, GAMMA, NORM, SLOPES, Folded, Layer
from .step import MapStep, Step, register_step, step_kinds
from .steps import Activation, Conv, Depthwise, Excite, Ghost, Linear, Load, MaxPool, Pool, Store
from .weights import BFLOAT16, FLOAT32, WeightFormat, register_format, weight_format

__all__ = [
    "BETA",
    "BFLOAT16",
    "BIAS",
    "FLOAT32",
    "FORMAT",
    "GAMMA",
    "NORM",
    "SLOPES",
    "Activation",
    "Conv",
    "Depthwise",
    "Excite",
    "Folded",
    "Ghost",
    "Layer",
    "Linear",
    "Load",
    "MapStep",
    "MaxPool",
    "Pool",
    "Step",
    "Store",
    "WeightFormat",
    "decode",
    "encode",
    "output_shape",
    "output_sizes",
    "precision_of",
    "register_format",
    "register_step",
    "step_kinds",
    "weight_format",
    "weights_of",
    "with_precision",
]
