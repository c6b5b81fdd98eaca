"""WHAT each operator is: checks with their messages, shapes, autograd, autocast; no kernel.

Every file here is imported, so that the operators of all are defined. ``FUNCTIONS`` are the public ones by name: those
that the files have in ``__all__``.
"""

import importlib
import pkgutil
from collections.abc import Callable

from . import flops

FUNCTIONS: dict[str, Callable] = {}
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    FUNCTIONS.update((_name, getattr(_module, _name)) for _name in getattr(_module, "__all__", ()))
flops.register_with_counter()
