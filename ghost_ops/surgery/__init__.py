"""Changes to a net: ``fuse``, ``revert``, ``freeze`` and ``thaw``; ``explain`` says what runs and why."""

from .explain import Explanation, Row, explain
from .freeze import freeze, thaw
from .fuse import fuse, revert
from .recognise import Finding, survey
from .tally import Tally, tally

__all__ = ["Explanation", "Finding", "Row", "Tally", "explain", "freeze", "fuse", "revert", "survey", "tally", "thaw"]
