"""The meaning of every operator in plain PyTorch: all devices and dtypes, differentiable, twice where PyTorch is.

What every other backend is tested against, and what runs where no kernel takes a configuration. Signatures are those
of ``ghost_ops/ops/schemas.inc``; ``reference.<operator>`` is the implementation of each operator there.
"""

from ..registry import SCHEMAS, Backend, find

for _operator in SCHEMAS:
    _implementation = find(__name__, _operator)
    if _implementation is None:
        raise ImportError(f"{__name__}: ops/schemas.inc has {_operator}, but no file here implements it")
    globals()[_operator] = _implementation

BACKEND = Backend(
    "reference",
    is_candidate=lambda device, forced: True,
    refuse_device=lambda device: None,
    has=lambda operator: True,
    can_be_forced=True,
)
