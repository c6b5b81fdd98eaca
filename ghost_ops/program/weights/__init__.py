"""Formats of the weights of products, one file each."""

from .bfloat16 import BFLOAT16
from .float32 import FLOAT32
from .format import WeightFormat, register_format, weight_format

__all__ = ["BFLOAT16", "FLOAT32", "WeightFormat", "register_format", "weight_format"]
