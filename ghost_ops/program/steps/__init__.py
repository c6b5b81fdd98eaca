"""The kinds of steps, one file each: fields, shapes, parameters and their packed form, meaning.

A file here that registers a step is all that a new kind needs in Python.
"""

import importlib
import pkgutil

from ..step import step_kinds

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [kind.__name__ for kind in step_kinds().values()]
globals().update({kind.__name__: kind for kind in step_kinds().values()})
