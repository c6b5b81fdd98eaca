"""The meaning of every operator in plain PyTorch: all devices and dtypes, differentiable, twice where PyTorch is.

What every other backend is tested against, and what runs where no kernel takes a configuration. Signatures are those
of ``ghost_ops/ops/schemas.inc``.
"""

from .cheap_concat import cheap_concat, cheap_concat_backward
from .depthwise import depthwise, depthwise_backward
from .ghost_module import ghost_module, ghost_module_backward, ghost_module_eval
from .ghost_module_train import ghost_module_train, ghost_module_train_backward
from .program import program, program_eval, program_pack
from .squeeze_excite import excite, squeeze_excite, squeeze_excite_backward

__all__ = [
    "cheap_concat",
    "cheap_concat_backward",
    "depthwise",
    "depthwise_backward",
    "excite",
    "ghost_module",
    "ghost_module_backward",
    "ghost_module_eval",
    "ghost_module_train",
    "ghost_module_train_backward",
    "program",
    "program_eval",
    "program_pack",
    "squeeze_excite",
    "squeeze_excite_backward",
]
