"""Names and modules that moved: for one release they are found where they were, and pickles that name them load."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]

# Old module: the new one, and the names that changed besides.
_MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "bench.peers": ("bench.baselines", {"BASES": "TARGETS", "OURS": "FUSED", "Peer": "Baseline"}),
    "bench.rows": ("bench.results", {"PartRow": "PartResult", "Row": "Result"}),
    "nn._fused": ("fused.behaviour", {}),
    "nn._in_place": ("fused.in_place", {}),
    "nn._watch": ("fused.watch", {}),
    "nn.frozen": ("fused.frozen", {}),
    "nn.frozen_net": ("fused.frozen_net", {}),
    "nn.fused_bottleneck": (
        "fused.bottleneck",
        {"BottleneckRunner": "BottleneckBlock", "FusedBlock": "BottleneckBlock.behaviour"},
    ),
    "nn.fused_ghost_module": (
        "fused.ghost_module",
        {"FusedGhost": "GhostModuleBlock.behaviour", "GhostModuleRunner": "GhostModuleBlock"},
    ),
    "nn.fused_squeeze_excite": (
        "fused.squeeze_excite",
        {"FusedExcite": "SqueezeExciteBlock.behaviour", "SqueezeExciteRunner": "SqueezeExciteBlock"},
    ),
    "nn.graphed": ("fused.graphed", {}),
    "nn.parts": ("fused", {}),
}


def hand_on(owner: str, names: Mapping[str, str] | Iterable[str], target: str) -> Callable[[str], object]:
    """A module's ``__getattr__`` that hands names on to another module, with a DeprecationWarning.

    Args:
        owner: name of the module that the names moved from.
        names: old names, each with the new one where they are a mapping.
        target: name of the module that has them now.
    """
    renamed = dict(names) if isinstance(names, Mapping) else {name: name for name in names}

    def __getattr__(name: str) -> object:
        if name not in renamed:
            raise AttributeError(f"module {owner!r} has no attribute {name!r}")
        warnings.warn(f"{owner}.{name} is {target}.{renamed[name]} now", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(target), renamed[name])

    return __getattr__


class _OldModules(MetaPathFinder, Loader):
    """Imports an old module as one whose attributes are those of the new one."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in _MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        where, renamed = _MODULES[module.__name__.partition(".")[2]]
        target = importlib.import_module(f"{_PACKAGE}.{where}")
        module.__getattr__ = lambda name: attrgetter(renamed.get(name, name))(target)


sys.meta_path.append(_OldModules())
