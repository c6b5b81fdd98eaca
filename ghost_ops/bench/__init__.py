"""What ``ghost-ops bench`` runs: cases, PyTorch baselines, interleaved timing, roofline, reports.

Other engines, other models, the parts of a frozen net, peak memory and pictures are not in the wheel. In a checkout,
``benchmarks/harness`` belongs to this package too, and ``extend`` imports the engines and models.
"""

import importlib
import warnings
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[2] / "benchmarks" / "harness"

if (HARNESS / "engines.py").is_file():
    __path__.append(str(HARNESS))


def extend() -> bool:
    """Import the engines and models of a checkout, which register themselves; False where there is no checkout."""
    if str(HARNESS) not in __path__:
        return False
    for name in ("engines", "other_models"):
        importlib.import_module(f"{__name__}.{name}")
    return True


def __getattr__(name: str) -> object:
    if name == "verify":
        warnings.warn("ghost_ops.bench.verify is now ghost_ops.verify", DeprecationWarning, stacklevel=2)
        return importlib.import_module("ghost_ops.verify")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
