"""What a run leaves behind: checkpoint.pt, log.csv, curves.png; each is there whole, or as it was before."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from .parallel import World

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside it, through to the disk, and then in its place.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    unfinished = _write_beside(path, data)
    os.replace(unfinished, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)


def _write_beside(path: Path, data: bytes) -> Path:
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return unfinished


@dataclass
class Place:
    """Where a run is. ``batch`` counts the epoch's batches so far, ``loss`` and ``images`` are this process's sums."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Run:
    """All that changes while a net is trained. ``net`` is the one that ``model`` (DDP's, say) goes around."""

    net: nn.Module
    model: nn.Module
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    place: Place

    def save(self, path: Path, settings: dict[str, object], world: World) -> None:
        """One file, whole parameters; what differs between the processes once for each. All must call it.

        Raises:
            OSError: in the first process, where the file cannot be written. The checkpoint before stays.
        """
        place = vars(self.place)
        own = {
            "generator": torch.get_rng_state(),
            "device_generator": torch.cuda.get_rng_state() if world.device.type == "cuda" else None,
            "buffers": [b.detach().cpu() for b in self._buffers()],
            "loss": place["loss"],
        }
        state = {
            "settings": settings,
            "place": {k: v for k, v in place.items() if k != "loss"},
            "model": get_model_state_dict(self.net, options=WHOLE),
            "average": None if self.average is None else get_model_state_dict(self.average, options=WHOLE),
            "optimizer": get_optimizer_state_dict(self.net, self.optimizer, options=WHOLE),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "processes": world.gather(own),
        }
        if world.first:
            file = io.BytesIO()  # PyTorch's own writing ends in errors of many kinds where a disk is full
            torch.save(state, file)
            replace_file(path, file.getbuffer())

    def rehearse(self, path: Path) -> None:
        """Write as many bytes as a checkpoint has, and remove them. Raises OSError where that fails."""
        kept = [*self.net.parameters(), *self.net.parameters(), *self._buffers(), *self._buffers()]  # with momentum
        kept += [] if self.average is None else [*self.average.parameters()]
        _write_beside(path, bytes(sum(t.numel() * t.element_size() for t in kept))).unlink()

    def load(self, path: Path, settings: dict[str, object], world: World) -> None:
        if not path.is_file():
            raise click.BadParameter(f"expected a checkpoint to go on from, there is no {path}", param_hint="--resume")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["settings"]
        except Exception as error:  # PyTorch raises errors of many classes for files that it did not write
            raise click.BadParameter(f"{path} is not a checkpoint of this program", param_hint="--resume") from error
        differing = [k for k, v in settings.items() if state["settings"].get(k) != v]
        if differing:
            was = ", ".join(f"{k} {state['settings'].get(k)!r}, now {settings[k]!r}" for k in differing)
            raise click.BadParameter(f"expected the options of the run that is resumed: {was}", param_hint="--resume")
        set_model_state_dict(self.net, state["model"], options=WHOLE)
        if self.average is not None:
            set_model_state_dict(self.average, state["average"], options=WHOLE)
        set_optimizer_state_dict(self.net, self.optimizer, state["optimizer"], options=WHOLE)
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        own = state["processes"][world.rank]
        self.place = Place(**state["place"], loss=own["loss"])
        for buffer, value in zip(self._buffers(), own["buffers"], strict=True):
            buffer.copy_(value)
        torch.set_rng_state(own["generator"])
        if own["device_generator"] is not None:
            torch.cuda.set_rng_state(own["device_generator"])

    def _buffers(self) -> list[torch.Tensor]:
        return [*self.net.buffers(), *(() if self.average is None else self.average.buffers())]


def write_log(rows: list[dict[str, float]], path: Path) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    replace_file(path, file.getvalue().encode())


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axes, label, columns in (
        (left, "loss", {"train_loss": "training", "val_loss": "validation"}),
        (right, "accuracy", {"val_accuracy": "validation", "average_accuracy": "averaged weights"}),
    ):
        for column, name in columns.items():
            if column in rows[0]:
                axes.plot(epochs, [row[column] for row in rows], marker="o", markersize=3, label=name)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    replace_file(path, file.getbuffer())
