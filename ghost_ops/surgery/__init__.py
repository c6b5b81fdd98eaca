"""Changes to somebody's net: ``fuse`` and ``revert``, ``freeze``, and ``explain``, which says what runs and why."""

from .explain import Explanation, Row, explain
from .freeze import freeze
from .fuse import fuse, revert
from .recognise import Finding, survey

__all__ = ["Explanation", "Finding", "Row", "explain", "freeze", "fuse", "revert", "survey"]
