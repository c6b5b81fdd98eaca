# What type checkers read in the place of functional.py, which finds the operators as it is imported; a test compares.
from .ops.batch_norm_act_train import batch_norm_act_train as batch_norm_act_train
from .ops.branched_module_train import branched_module_train as branched_module_train
from .ops.cheap_concat import cheap_concat as cheap_concat
from .ops.cheap_concat import cheap_concat_eval as cheap_concat_eval
from .ops.cheap_concat_train import cheap_concat_train as cheap_concat_train
from .ops.depthwise import depthwise as depthwise
from .ops.dfc_gate_train import dfc_gate_train as dfc_gate_train
from .ops.excite import excite as excite
from .ops.ghost_module import ghost_module as ghost_module
from .ops.ghost_module import ghost_module_eval as ghost_module_eval
from .ops.ghost_module_train import ghost_module_train as ghost_module_train
from .ops.squeeze_excite import squeeze_excite as squeeze_excite
