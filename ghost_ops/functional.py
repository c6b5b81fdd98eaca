"""The operators as functions, such as ``functional.ghost_module``: see the docstring of each."""

from .ops import FUNCTIONS

globals().update(FUNCTIONS)
__all__ = sorted(FUNCTIONS)
