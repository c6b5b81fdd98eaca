"""The operators in PyTorch's own ones, for tools that read exported programs and do not know ours."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..backends import reference
from ..backends.registry import SCHEMAS
from ._library import overload


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., object]]:
    """A table for ``torch.export.ExportedProgram.run_decompositions``: what each operator of ghost_ops computes.

    A frozen net that was exported holds our operators. With this table it is what PyTorch's own operators compute, of
    the weights that are taken out of the packed ones as it runs. A tool that wants weights as parameters (a quantiser,
    a delegate) is given ``ghost_ops.thaw(net, fold=True)`` instead.

    Returns:
        A new dictionary of operators, to be merged with others as the tool asks for them:
        ``exported.run_decompositions({**torch.export.default_decompositions(), **ghost_ops.decompositions()})``.
        They are not in PyTorch's own table: Inductor would refuse to keep our kernels wherever ``CI`` is set.
    """
    names = [operator for name in SCHEMAS for operator in (name, f"{name}_reference")]
    return {overload(name): getattr(reference, name.removesuffix("_reference")) for name in names}
