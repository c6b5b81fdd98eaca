"""Changes to somebody's net: ``fuse`` and ``revert``, and ``explain``, which says what runs and why."""

from .explain import Explanation, Row, explain
from .fuse import fuse, revert
from .recognise import Finding, survey

__all__ = ["Explanation", "Finding", "Row", "explain", "fuse", "revert", "survey"]
