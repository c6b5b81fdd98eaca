"""Train a GhostNet: on a folder of images, or on the digits that come with scikit-learn.

    python examples/train.py                                         # a small GhostNet learns digits, in a minute
    python examples/train.py --data imagenet --arch ghostnet_100 --amp bfloat16 --ema 0.9998
    torchrun --nproc-per-node 2 examples/train.py --sync-bn          # several processes: GPUs by NCCL, else gloo
    python examples/train.py --plain --out plain                     # the unfused net, for comparison

A resumed run gives the bits of an uninterrupted one, on the same machine with the same number of threads.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import Dataset
from training import data as images
from training import parallel
from training.parallel import World
from training.ready import check_folder, check_packages, check_pictures
from training.record import Place, Run, draw_curves, write_log

import ghost_ops
from ghost_ops.demo.digits import SmallGhostNet
from ghost_ops.models import ghostnet_050, ghostnet_100, ghostnet_130
from ghost_ops.surgery.fuse import MEMORY

ARCHITECTURES = {
    "small": SmallGhostNet,
    "ghostnet_050": ghostnet_050,
    "ghostnet_100": ghostnet_100,
    "ghostnet_130": ghostnet_130,
}
AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
RESULTS = "checkpoint.pt", "log.csv", "curves.png"
WITHOUT_EFFECT = {"out", "data", "resume", "workers", "stop_after", "checkpoint_every", "check"}  # on the numbers


class Finite(click.FloatRange):
    """Numbers of a range; click lets NaN and infinity pass."""

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> float:
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, context)
        return number


def build(options: dict, classes: int, channels: int, steps: int, world: World) -> Run:
    """The net, fused, wrapped for the processes, with optimizer and schedule."""
    torch.manual_seed(options["seed"])
    net = ARCHITECTURES[options["arch"]](num_classes=classes, in_chans=channels)
    if not options["plain"]:
        net = ghost_ops.fuse(net, memory=options["memory"], cuda_graph=options["cuda_graph"])
    if options["sync_bn"]:
        net = parallel.synchronise_norms(net, world)
    layout = torch.contiguous_format if options["fsdp"] else torch.channels_last  # FSDP shards no other parameters
    net = net.to(world.device, memory_format=layout)
    average = None
    if options["ema"]:
        average = parallel.average(net, options["ema"])
    if options["fsdp"]:
        model = parallel.shard(net)
        if average is not None:
            parallel.shard(average.module)
    else:
        model = parallel.replicate(net, world)

    decayed, others = ([p for p in net.parameters() if (p.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=options["lr"], momentum=0.9, nesterov=True)
    warmup, total = round(options["warmup"] * steps), options["epochs"] * steps
    schedule = schedule_of(optimizer, warmup, total)
    scaler = torch.amp.GradScaler(world.device.type, enabled=options["amp"] == "float16")
    torch.manual_seed(options["seed"] + 1 + world.rank)  # dropout: another in each process
    return Run(net, model, average, optimizer, schedule, scaler, Place())


def schedule_of(optimizer: torch.optim.Optimizer, warmup: int, total: int) -> LRScheduler:
    """Learning rates by step: a line over the warm-up's steps, then a cosine that ends at 0 after ``total`` steps."""
    cosine = CosineAnnealingLR(optimizer, max(1, total - warmup))
    if not warmup:
        return cosine
    line = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [line, cosine], [warmup])


def autocast(options: dict, world: World):
    dtype = AMP[options["amp"]]
    return nullcontext() if dtype is None else torch.autocast(world.device.type, dtype)


def train_epoch(run: Run, forward, dataset: Dataset, options: dict, world: World, after_step) -> bool:
    """The rest of an epoch; False where ``after_step`` says to stop."""
    place, accumulate = run.place, options["accumulate"]
    batches = images.train_batches(
        len(dataset), options["batch_size"], accumulate, seed=options["seed"], epoch=place.epoch, rank=world.rank,
        world=world.size,
    )  # fmt: skip
    dataset.epoch = place.epoch
    run.model.train()
    for x, labels in images.batches_of(dataset, batches[place.batch :], options["workers"]):
        x = x.to(world.device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(world.device, non_blocking=True)
        last = (place.batch + 1) % accumulate == 0
        parallel.reduce_gradients(run.model, last)
        with autocast(options, world):
            loss = F.cross_entropy(forward(x), labels, label_smoothing=options["label_smoothing"])
        run.scaler.scale(loss / accumulate).backward()
        place.batch += 1
        place.loss += loss.item() * len(labels)
        place.images += len(labels)
        if not last:
            continue
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.optimizer.zero_grad()
        run.schedule.step()
        if run.average is not None:
            run.average.update_parameters(run.net)
        place.step += 1
        if not after_step():
            return False
    return True


@torch.no_grad()
def evaluate(net: nn.Module, dataset: Dataset, options: dict, world: World) -> tuple[float, float]:
    """Mean loss and share of right answers."""
    net.eval()
    count, loss, right = len(dataset), 0.0, 0
    batches = images.val_batches(count, options["batch_size"], rank=world.rank, world=world.size)
    loader = images.batches_of(dataset, [[i % count for i in batch] for batch in batches], options["workers"])
    for positions, (x, labels) in zip(batches, loader, strict=True):
        with autocast(options, world):
            logits = net(x.to(world.device, memory_format=torch.channels_last)).float().cpu()
        own = torch.tensor(positions) < count
        loss += float(F.cross_entropy(logits[own], labels[own], reduction="sum")) if own.any() else 0.0
        right += int((logits.argmax(1) == labels)[own].sum())
    loss, right = world.total(loss, right)
    return loss / count, right / count


def finish_epoch(run: Run, val: Dataset, options: dict, world: World) -> dict[str, float]:
    """Validate, and turn to the next epoch; returns the line of the log."""
    place = run.place
    loss, seen = world.total(place.loss, place.images)
    if not math.isfinite(loss):
        raise click.ClickException(f"the loss of epoch {place.epoch + 1} is {loss}: try a lower --lr, or --amp off")
    row = {"epoch": place.epoch + 1, "step": place.step, "lr": run.schedule.get_last_lr()[0], "train_loss": loss / seen}
    for net, names in ((run.net, ("val_loss", "val_accuracy")), (run.average, ("average_loss", "average_accuracy"))):
        if net is not None:
            parallel.share_buffers(net, world)
            row |= dict(zip(names, evaluate(net, val, options, world), strict=True))
    run.place = Place(place.epoch + 1, 0, place.step, log=[*place.log, row])
    return row


class Writer:
    """Writes what a run leaves behind. A full disk ends no run: what was there stays, and the next writing is tried."""

    def __init__(self, out: Path, console: Console) -> None:
        self.out, self.console, self.failed = out, console, {}

    def write(self, name: str, how: Callable[[Path], None]) -> None:
        try:
            how(self.out / name)
            self.failed.pop(name, None)
        except OSError as error:
            self.failed[name] = error.strerror
            self.console.print(f"{name} could not be written: {error.strerror}; the training goes on")

    def close(self) -> None:
        """Raises ClickException where the last writing of a file has failed."""
        if self.failed:
            what = "; ".join(f"{name} could not be written: {why}" for name, why in self.failed.items())
            raise click.ClickException(f"{what}; what {self.out} had before is still there")


def train(options: dict, world: World, console: Console) -> None:
    out, resume = options["out"], options["resume"]
    check_packages(options["data"], console)
    train_set, val_set, classes, channels = images.load(options["data"], options["side"], options["seed"])
    steps = len(train_set) // (options["batch_size"] * options["accumulate"] * world.size)
    if not steps:
        raise click.BadParameter(
            f"expected no more than the {len(train_set)} images in one step, got {options['batch_size']} a batch, "
            f"times {options['accumulate']} batches, times {world.size} processes", param_hint="--batch-size",
        )  # fmt: skip
    if options["check"]:
        check_pictures((train_set, val_set), world, console)
    run = build(options, classes, channels, steps, world)
    settings = {k: v for k, v in options.items() if k not in WITHOUT_EFFECT} | {"processes": world.size}
    if resume:
        run.load(out / "checkpoint.pt", settings, world)
    check_folder(run, out, world)
    forward = torch.compile(run.model) if options["compile"] else run.model
    writer = Writer(out, console)
    if run.place.log:
        write_results(run.place.log, writer, world)  # a run may have been killed between its checkpoint and these

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not world.first, transient=True) as progress:
        task = progress.add_task("training", total=options["epochs"] * steps, completed=run.place.step)

        def save() -> None:
            writer.write("checkpoint.pt", lambda path: run.save(path, settings, world))

        def after_step() -> bool:
            progress.advance(task)
            stop = run.place.step == options["stop_after"]
            every = options["checkpoint_every"]
            if stop or (every and run.place.step % every == 0):
                save()
            return not stop

        while run.place.epoch < options["epochs"]:
            if not train_epoch(run, forward, train_set, options, world, after_step):
                writer.close()
                console.print(f"stopped after step {run.place.step}; go on with --resume")
                return
            row = finish_epoch(run, val_set, options, world)
            save()
            write_results(run.place.log, writer, world)
            console.print("  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    writer.close()
    console.print(f"written to {out}: {', '.join(name for name in RESULTS if (out / name).exists())}")


def write_results(log: list[dict[str, float]], writer: Writer, world: World) -> None:
    if world.first:
        writer.write("log.csv", lambda path: write_log(log, path))
        if importlib.util.find_spec("matplotlib"):
            writer.write("curves.png", lambda path: draw_curves(log, path))


@click.command(help=__doc__.splitlines()[0], context_settings={"show_default": True})
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Holds train/CLASS/IMAGE and val/CLASS/IMAGE. Without it: digits.")  # fmt: skip
@click.option("--arch", type=click.Choice(list(ARCHITECTURES)), default="small")
@click.option("--side", type=click.IntRange(8), help="Pixels. Default: 224, of digits 16.")
@click.option("--epochs", type=click.IntRange(1), default=10)
@click.option("--batch-size", type=click.IntRange(2), default=64, help="Images a batch, in each process.")
@click.option("--accumulate", type=click.IntRange(1), default=1, metavar="N", help="Batches a step.")
@click.option("--lr", type=Finite(0, min_open=True), default=0.1, help="At its highest.")
@click.option("--warmup", type=Finite(0), default=1.0, help="Epochs, linear; then a cosine to 0.")
@click.option("--weight-decay", type=Finite(0), default=4e-5, help="Of convolutions and classifier.")
@click.option("--label-smoothing", type=Finite(0, 1), default=0.0)
@click.option("--amp", type=click.Choice(list(AMP)), default="off", help="float16 scales gradients; GPUs only.")
@click.option("--ema", type=Finite(0, 1, min_open=True, max_open=True), metavar="DECAY",
              help="Average the weights over the steps.")  # fmt: skip
@click.option("--sync-bn", is_flag=True, help="BatchNorm over the batches of all processes.")
@click.option("--fsdp", is_flag=True, help="Shard each bottleneck (FSDP2) instead of DDP.")
@click.option("--compile", is_flag=True, help="torch.compile.")
@click.option("--plain", is_flag=True, help="The unfused net.")
@click.option("--memory", type=click.Choice(MEMORY), help="What fused blocks keep for the backward.")
@click.option("--cuda-graph", is_flag=True, help="Replay blocks as CUDA graphs, on a GPU.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Processes that load images.")
@click.option("--check/--no-check", default=True, help="Decode every picture of --data before the first step.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="runs", help="Folder of the results.")
@click.option("--resume", is_flag=True, help="Go on from OUT/checkpoint.pt.")
@click.option("--checkpoint-every", type=click.IntRange(1), metavar="STEPS", help="Beside the end of every epoch.")
@click.option("--stop-after", type=click.IntRange(1), metavar="STEPS", help="Counted from the first; to be resumed.")
def main(**options) -> None:
    if options["plain"] and options["memory"]:
        raise click.UsageError("--memory is of fused nets: leave out --plain or --memory")
    if options["plain"] and options["cuda_graph"]:
        raise click.UsageError("--cuda-graph is of fused nets: leave out --plain or --cuda-graph")
    if options["amp"] == "float16" and not torch.cuda.is_available():
        raise click.BadParameter("float16 needs a GPU; on the CPU take bfloat16", param_hint="--amp")
    if options["warmup"] > options["epochs"]:
        raise click.BadParameter(f"expected at most the {options['epochs']} epochs", param_hint="--warmup")
    with parallel.join(options["fsdp"]) as world:
        train(options, world, Console(quiet=not world.first))


if __name__ == "__main__":
    main()
