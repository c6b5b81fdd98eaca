"""Names that moved to ``ghost_ops.program``, for one release."""

import warnings

from .. import program

_RENAMED = {"Dense": "Linear"}


def __getattr__(name: str) -> object:
    new = _RENAMED.get(name, name)
    if name.startswith("_") or new not in program.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"{__name__}.{name} is {program.__name__}.{new} now"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(program, new)
