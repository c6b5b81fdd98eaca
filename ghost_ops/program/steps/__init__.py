"""The kinds of steps, one file each: fields, shapes, parameters and their packed form, meaning."""

from .activation import Activation
from .conv import Conv
from .depthwise import Depthwise
from .excite import Excite
from .ghost import Ghost
from .linear import Linear
from .load import Load
from .max_pool import MaxPool
from .pool import Pool
from .store import Store

__all__ = ["Activation", "Conv", "Depthwise", "Excite", "Ghost", "Linear", "Load", "MaxPool", "Pool", "Store"]
