"""Names that moved to ``ghost_ops.program``, for one release."""

from .. import program
from ..moved import hand_on

__getattr__ = hand_on(__name__, {name: name for name in program.__all__} | {"Dense": "Linear"}, "ghost_ops.program")
