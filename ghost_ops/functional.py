"""The operators as functions: see each one's docstring."""

from .ops.cheap_concat import cheap_concat
from .ops.depthwise import depthwise
from .ops.excite import excite
from .ops.ghost_module import ghost_module, ghost_module_eval
from .ops.ghost_module_train import ghost_module_train
from .ops.squeeze_excite import squeeze_excite

__all__ = [
    "cheap_concat",
    "depthwise",
    "excite",
    "ghost_module",
    "ghost_module_eval",
    "ghost_module_train",
    "squeeze_excite",
]
