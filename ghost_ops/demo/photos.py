"""GhostNet-100, plain and fused, on the photographs that scikit-learn ships: do the logits agree, how fast is it?"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from rich.progress import Progress
from torch import nn

from .. import models, surgery
from ..bench.timing import Timing, interleave

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as timm and torchvision normalise
EAGER, EAGER_CL, COMPILED = "eager, NCHW", "eager, channels_last", "torch.compile, channels_last"
FUSED_NCHW, FUSED_CL = "ghost_ops, NCHW", "ghost_ops, channels_last"
ROUTES = (EAGER, EAGER_CL, COMPILED, FUSED_NCHW, FUSED_CL)
TOLERANCE = 1e-4  # relative to the largest logit; rounding gives some 1e-6
TIMING_SECONDS = 12.0  # about, for each batch size
COMPILE_SECONDS = 75.0  # once compilation has taken this long, further batch sizes go without


@dataclass(frozen=True)
class Agreement:
    """How far the logits of the fused net are from those of the plain one.

    Attributes:
        images: how many photographs' crops were looked at.
        difference: largest difference over the largest logit, channels_last fused against NCHW plain.
        plain_error, fused_error: the same, each against the plain net in float64.
        top1: share of the images with the same first class.
        top5: share of the images with the same five first classes, in the same order.
    """

    images: int
    difference: float
    plain_error: float
    fused_error: float
    top1: float
    top5: float


@dataclass
class Photos:
    """Agreement, times by batch size and route, and why a route has no times."""

    agreement: Agreement
    timings: dict[int, dict[str, Timing]] = field(default_factory=dict)
    missing: dict[tuple[int, str], str] = field(default_factory=dict)
    compile_seconds: float = 0.0


def crops(count: int) -> torch.Tensor:
    """``count`` (at most 16) crops of 224 x 224 pixels of the two photographs, normalised: N x 3 x 224 x 224."""
    from sklearn.datasets import load_sample_images

    tiles = []
    for photo in load_sample_images().images:
        rows, columns = (np.linspace(0, size - SIDE, n).astype(int) for size, n in zip(photo.shape, (2, 4)))
        tiles.append([photo[r : r + SIDE, c : c + SIDE] for r in rows for c in columns])
    images = np.stack([tile for pair in zip(*tiles) for tile in pair])[:count]  # the photographs in turn
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return ((x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).contiguous()


def calibrated_net(images: torch.Tensor) -> nn.Module:
    """GhostNet-100 with seeded weights, in eval; its BatchNorms' running statistics are those of ``images``."""
    torch.manual_seed(0)
    net = models.ghostnet_100()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain average, here of one batch
    with torch.no_grad():
        net.train()(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return net.eval()


def agreement(plain: nn.Module, fused: nn.Module, images: torch.Tensor) -> Agreement:
    """Both nets' logits, compared with each other and with float64."""
    with torch.inference_mode():
        ours, theirs = fused(images.to(memory_format=torch.channels_last)), plain(images)
        exact_net = copy.deepcopy(plain).double()
        exact = torch.cat([exact_net(part) for part in images.double().split(4)])

    same = ours.topk(5).indices == theirs.topk(5).indices
    return Agreement(
        images=len(images),
        difference=_distance(ours, theirs),
        plain_error=_distance(theirs, exact),
        fused_error=_distance(ours, exact),
        top1=float(same[:, 0].float().mean()),
        top5=float(same.all(1).float().mean()),
    )


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest element of b."""
    return float((a.double() - b.double()).abs().max() / b.abs().max())


def compare(quick: bool, progress: Progress) -> Photos:
    """The whole comparison; ``quick``: few images, few repetitions, without torch.compile."""
    task = progress.add_task("photographs: logits", total=2)
    images = crops(4 if quick else 16)
    plain = calibrated_net(images)
    fused = surgery.fuse(copy.deepcopy(plain))
    progress.advance(task)
    photos = Photos(agreement(plain, fused, images))
    progress.advance(task)

    plain_cl, fused_cl = (copy.deepcopy(net).to(memory_format=torch.channels_last) for net in (plain, fused))
    compiled = torch.compile(plain_cl, dynamic=False)
    for batch in (1, 2) if quick else (1, 16):
        x = images[:batch]
        x_cl = x.to(memory_format=torch.channels_last)
        routes = {
            EAGER: partial(plain, x),
            EAGER_CL: partial(plain_cl, x_cl),
            COMPILED: partial(compiled, x_cl),
            FUSED_NCHW: partial(fused, x),
            FUSED_CL: partial(fused_cl, x_cl),
        }
        with torch.inference_mode():
            why = "left out of the quick demo" if quick else _compile(routes[COMPILED], batch, photos, progress)
            if why is not None:
                photos.missing[batch, COMPILED] = why
                del routes[COMPILED]
            _drop_wrong(routes, batch, photos)
            rounds = 3 if quick else _rounds(routes)
            task = progress.add_task(f"photographs: batch {batch}", total=rounds * len(routes))
            photos.timings[batch] = interleave(
                routes, rounds=rounds, threads=torch.get_num_threads(), on_sample=lambda _, t=task: progress.advance(t)
            )
    return photos


def _drop_wrong(routes: dict[str, Callable[[], torch.Tensor]], batch: int, photos: Photos) -> None:
    """No time is shown for a result that is wrong: a peer is left out then, and ours ends the demo."""
    expected = routes[EAGER]()
    for route, run in list(routes.items()):
        distance = _distance(run(), expected)
        if distance <= TOLERANCE:
            continue
        why = f"its logits are off by {distance:.1e} of the largest"
        if route in (FUSED_NCHW, FUSED_CL):
            raise RuntimeError(f"{route}, batch {batch}: {why}")
        photos.missing[batch, route] = why
        del routes[route]


def _rounds(routes: dict[str, Callable[[], torch.Tensor]]) -> int:
    """As many as fill some seconds, on a fast machine or a slow one."""
    start = time.perf_counter()
    for run in routes.values():
        run()
    return max(5, min(60, int(TIMING_SECONDS / (time.perf_counter() - start))))


def _compile(run: Callable[[], torch.Tensor], batch: int, photos: Photos, progress: Progress) -> str | None:
    """Compile for this batch size by a first call; returns why there is no compiled net, if there is none."""
    if photos.compile_seconds > COMPILE_SECONDS:
        return f"left out, since compiling has taken {photos.compile_seconds:.0f} s already"
    task = progress.add_task(f"photographs: torch.compile, batch {batch}", total=None)
    start = time.perf_counter()
    try:
        run()
    except Exception as error:  # whatever a compiler may run into must not end the demo
        return f"failed with {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    finally:
        photos.compile_seconds += time.perf_counter() - start
        progress.update(task, total=1, completed=1)
    return None
