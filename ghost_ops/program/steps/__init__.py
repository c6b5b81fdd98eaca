"""The kinds of steps, one file each: fields, shapes, parameters and their packed form, meaning."""

from .conv import Conv
from .depthwise import Depthwise
from .excite import Excite
from .ghost import Ghost
from .linear import Linear
from .load import Load
from .pool import Pool
from .store import Store

__all__ = ["Conv", "Depthwise", "Excite", "Ghost", "Linear", "Load", "Pool", "Store"]
