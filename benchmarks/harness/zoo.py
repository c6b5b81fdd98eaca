"""``ghost-ops bench --zoo``: other people's nets, fused and frozen, beside what they run in now.

Inference: ours, eager channels_last, BatchNorms folded in eager, OpenVINO in float32. A training step: ours and eager.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse as fold_batch_norms
from torch.utils.flop_counter import FlopCounterMode

from .. import surgery
from ..fused import FrozenProgram
from .baselines import BASELINES, CHANNELS_LAST, FROZEN, FUSED, Baseline, Built, _without_grad
from .cases import FLOAT, NetCase, draw_map, randomise
from .machine import Unavailable
from .outputs import as_one, tensors_of
from .results import FAILED, MISSING, Result
from .roofline import Limits
from .run import run_case
from .training import STEPS, TrainCase, run_training


def _nets() -> ModuleType:
    """The package ``benchmarks/nets``. It is not a part of ghost_ops, so that its modules are treated as a user's."""
    name, path = "benchmarks.nets", Path(__file__).parents[1] / "nets"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, path / "__init__.py", submodule_search_locations=[str(path)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ZOO = _nets().ZOO
KIND, TRAIN_KIND = "zoo", "zoo_train"
NAMES = (FUSED, FROZEN, "eager", "folded", "openvino", "openvino_nhwc")
TRAIN_NAMES = (FUSED, "eager")
TRAIN_BATCH, TRAIN_THREADS, BATCHES = 16, 2, (1, 8)
QUICK_TRAIN_BATCH = 2
STATISTICS_OF = 4  # images


@dataclass(frozen=True)
class ZooCase(NetCase):
    """A net of the zoo in eval, on images of the size that it is made for."""

    kind: str = KIND

    @property
    def name(self) -> str:
        return f"{self.net}@{self.side}"

    def build(self) -> nn.Module:
        """Raises ``Unavailable`` where the library that has the net is missing."""
        net = randomise(ZOO[self.net].build()).requires_grad_(False)
        return take_statistics(net, draw_map(STATISTICS_OF, 3, self.side, seed=1)).eval()

    def flops(self, batch: int) -> int:
        return batch * _work(self.net, self.side)[0]

    def bytes(self, batch: int) -> int:
        _, parameters, outputs = _work(self.net, self.side)
        return FLOAT * (batch * (3 * self.side**2 + outputs) + parameters)


def take_statistics(net: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give BatchNorms the statistics of these images, as training does: over drawn ones a net whose layers are sums of
    branches grows to 1e11, where float32 has no digit left."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
    with torch.no_grad():
        net.train()(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return net


@cache
def _work(name: str, side: int) -> tuple[int, int, int]:
    """FLOPs for one image, number of parameters, number of outputs. On the CPU: not every net builds on ``meta``."""
    net = ZOO[name].build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = net(torch.zeros(1, 3, side, side))
    outputs = sum(t.numel() for t in tensors_of(out))
    return counter.get_total_flops(), sum(p.numel() for p in net.parameters()), outputs


@dataclass(frozen=True)
class ZooTrainCase(TrainCase):
    """A step of such a net: cross-entropy of a classifier, else the mean of its outputs times drawn numbers."""

    kind = TRAIN_KIND

    @property
    def name(self) -> str:
        return f"{self.net}@{self.side}"

    def build(self) -> nn.Module:
        net = randomise(ZOO[self.net].build()).train()
        for module in net.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
            if hasattr(module, "drop_rate"):  # timm's functional dropout before the classifier
                module.drop_rate = 0.0
        return net

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_map(size, 3, self.side), torch.arange(size)

    def loss(self, out: object, labels: torch.Tensor) -> torch.Tensor:
        if isinstance(out, torch.Tensor) and out.dim() == 2:
            return F.cross_entropy(out, labels * 37 % out.shape[1])
        out = as_one(out)
        drawn = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        return (out * drawn.to(out.dtype)).mean()


def zoo_cases(patterns: Sequence[str] = ()) -> list[ZooCase]:
    """The nets whose name contains one of the patterns; without patterns, all."""
    cases = [ZooCase(name, net.side) for name, net in ZOO.items()]
    return [case for case in cases if not patterns or any(pattern in case.name for pattern in patterns)]


def _fused(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it leaves is in the note
        fused = surgery.fuse(copy.deepcopy(module).to(memory_format=CHANNELS_LAST))
    return Built(_without_grad(fused, x), note=str(surgery.tally(fused)))


def _frozen(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        frozen = surgery.freeze(module)
    programs = sum(isinstance(part, FrozenProgram) for part in frozen.modules())
    if not programs:
        raise Unavailable("; ".join(str(w.message) for w in caught) or "freeze found nothing to freeze")
    return Built(_without_grad(frozen, x), note=f"{programs} program{'s' if programs > 1 else ''}")


def _folded(module: nn.Module, x: torch.Tensor, threads: int) -> Built:
    """Every BatchNorm folded that follows a convolution; by the net's own ``fuse`` where it cannot be traced."""
    net = copy.deepcopy(module)
    try:
        net = fold_batch_norms(net)
    except Exception as error:
        if not hasattr(net, "is_fused"):
            raise Unavailable(f"torch.fx cannot trace it: {type(error).__name__}") from error
        net.fuse(verbose=False)
    left = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())
    return Built(_without_grad(net.to(memory_format=CHANNELS_LAST), x), note=f"{left} BatchNorms left" if left else "")


_OWN = {FUSED: _fused, FROZEN: _frozen, "folded": _folded}


def zoo_baselines(wanted: Callable[[str], bool], quick: bool = False) -> list[Baseline]:
    """What runs a net; a quick run leaves out what takes long to build.

    Args:
        wanted: says by its name whether a baseline runs.
    """
    names = [name for name in NAMES if wanted(name) and not (quick and BASELINES[name].group == "engine")]
    return [replace(BASELINES[name], build=_OWN.get(name, BASELINES[name].build)) for name in names]


def run_zoo_case(
    case: ZooCase,
    batch: int,
    threads: int,
    baselines: Sequence[Baseline],
    *,
    rounds: int,
    limits: Limits | None = None,
    min_seconds: float = 0.02,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Results of one net; one that cannot even be run plainly is a failed row, not the end of the run."""
    options = {"rounds": rounds, "limits": limits, "min_seconds": min_seconds, "on_step": on_step}
    try:
        return run_case(case, batch, threads, baselines, **options)
    except Exception as error:
        reason, rows = _reason(error), []
        for baseline in baselines:
            row = Result(case.kind, case.name, batch, threads, 1, baseline.name, baseline.label, baseline.group)
            row.refuse(FAILED, reason)
            rows.append(row)
        return rows


def run_zoo_training(
    case: ZooCase,
    batch: int,
    threads: int,
    wanted: Callable[[str], bool],
    *,
    rounds: int,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Result]:
    """Results of a training step, ours and eager; none of a net that is not in its training form."""
    net, side = ZOO[case.net], ZOO[case.net].train_side
    names = {name for name in TRAIN_NAMES if wanted(name)}
    if not net.trains or not names:
        return []
    trained = ZooTrainCase(case.net, side)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return run_training(trained, batch, threads, names, rounds=rounds, on_step=on_step)
    except Exception as error:
        status, reason = (MISSING, str(error)) if isinstance(error, Unavailable) else (FAILED, _reason(error))
        rows = []
        for step in STEPS:
            if step.name in names:
                row = Result(TRAIN_KIND, trained.name, batch, threads, 1, step.name, step.label, step.group)
                row.refuse(status, reason)
                rows.append(row)
        return rows


def _reason(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.name}: {error}"[:300]
