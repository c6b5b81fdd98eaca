"""Does fused training stay within what rounding does to plain training? A small GhostNet on scikit-learn's digits.

Two float32 trainings that add the same numbers in another order drift apart: a rounding flips a ReLU, and the flip
moves every weight. So fused training cannot equal plain training step for step, and need not: it must be as near to
plain trainings as these are to each other. Other orders of summation come from permuting the images within each batch,
which changes no sum but its order, by the memory format and by the number of threads.

Measures, of two runs a and b from the same start w0 over the same batches:

- curve: the root mean square, over the steps, of the difference of their losses;
- early: the same over the first ten steps, while differences still grow;
- weights: |w_a - w_b| / |w_b - w0| at the end, over all parameters.

(a) A run's place is its median distance to the plain runs other than itself. Fused training is within the spread if
    its place is no worse than that of the farthest plain run.
(b) Over several seeds, test accuracy: the mean of the differences fused - plain, against two standard errors of such a
    mean, from the deviation s of plain runs of one seed that differ in order: 2 s sqrt(2 / seeds).
(c) The same fused training twice, at fixed threads, gives the same bits.

    pip install "ghost-ops[demo]"
    python benchmarks/training_spread.py --json spread.json
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ghost_ops import fuse
from ghost_ops.bench import machine
from ghost_ops.bench.timing import torch_threads
from ghost_ops.demo.digits import BATCH, Data, SmallGhostNet, load


@dataclass(frozen=True)
class Order:
    """One way to add the same numbers. ``permutation`` 0 leaves the batches as they are drawn."""

    name: str
    permutation: int = 0
    layout: torch.memory_format = torch.contiguous_format
    threads: int | None = None


@dataclass(frozen=True)
class Run:
    """Losses of every step, all parameters before and after, share of right answers in the test set."""

    losses: torch.Tensor
    start: torch.Tensor
    weights: torch.Tensor
    accuracy: float

    def same(self, other: Run) -> bool:
        return torch.equal(self.losses, other.losses) and torch.equal(self.weights, other.weights)


def train(
    data: Data, seed: int, order: Order, *, fused: bool, steps: int, threads: int, dtype: torch.dtype = torch.float32
) -> Run:
    """SGD with momentum under a one-cycle schedule; weights and batches depend only on ``seed``."""
    torch.manual_seed(seed)
    net = SmallGhostNet().to(dtype).to(memory_format=order.layout).train()
    net = fuse(net) if fused else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    draw, shuffle = (torch.Generator().manual_seed(s) for s in (seed, 1000 * seed + order.permutation))
    start, losses, batches = _flat(net), [], []
    with torch_threads(order.threads or threads):
        for _ in range(steps):
            batches = batches or list(torch.randperm(len(data.train), generator=draw).split(BATCH))[:-1]
            batch = batches.pop()
            if order.permutation:
                batch = batch[torch.randperm(BATCH, generator=shuffle)]
            x = data.train[batch].to(dtype).contiguous(memory_format=order.layout)
            loss = F.cross_entropy(net(x), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        with torch.inference_mode():
            right = net.eval()(data.test.to(dtype)).argmax(1) == data.test_labels
    return Run(torch.stack(losses).double(), start, _flat(net), float(right.double().mean()))


def _flat(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


EARLY = 10  # steps
MEASURES = {
    "curve": lambda a, b: float((a.losses - b.losses).square().mean().sqrt()),
    "early": lambda a, b: float((a.losses - b.losses)[:EARLY].square().mean().sqrt()),
    "weights": lambda a, b: float((a.weights - b.weights).norm() / (b.weights - b.start).norm()),
}


def orders(permutations: int, threads: int) -> list[Order]:
    """The plain runs of (a): as drawn, permuted, in the other layout, at another number of threads."""
    permuted = [Order(f"permuted {i}", i) for i in range(1, permutations + 1)]
    other = 1 if threads > 1 else 2
    last = Order("channels_last", layout=torch.channels_last), Order(f"threads {other}", threads=other)
    return [Order("as drawn"), *permuted, *last]


def spread(plain: dict[str, Run], fused: dict[str, Run], exact: Run) -> dict[str, object]:
    """Part (a)."""
    found = {}
    for name, distance in MEASURES.items():
        between = [distance(a, b) for a, b in combinations(plain.values(), 2)]
        places = {n: statistics.median(distance(r, o) for o in plain.values() if o is not r) for n, r in plain.items()}
        fused_places = {n: statistics.median(distance(r, o) for o in plain.values()) for n, r in fused.items()}
        found[name] = {
            "plain_to_plain": {"median": statistics.median(between), "largest": max(between)},
            "plain_places": places,
            "fused_places": fused_places,
            "fused_to_fused": [distance(a, b) for a, b in combinations(fused.values(), 2)],
            "to_float64": {
                "plain": statistics.median(distance(r, exact) for r in plain.values()),
                "fused": statistics.median(distance(r, exact) for r in fused.values()),
            },
            "within": next(iter(fused_places.values())) <= max(places.values()),
        }
    return found


def accuracies(plain: dict[int, list[Run]], fused: dict[int, Run]) -> dict[str, object]:
    """Part (b): the first plain run of each seed is the one that the fused run is paired with."""
    seeds = len(plain)
    differences = [fused[seed].accuracy - runs[0].accuracy for seed, runs in plain.items()]
    deviation = statistics.mean(statistics.variance(r.accuracy for r in runs) for runs in plain.values()) ** 0.5
    allowed = 2 * deviation * (2 / seeds) ** 0.5
    return {
        "plain": {seed: [r.accuracy for r in runs] for seed, runs in plain.items()},
        "fused": {seed: run.accuracy for seed, run in fused.items()},
        "differences": differences,
        "mean_difference": statistics.mean(differences),
        "plain_deviation": deviation,
        "allowed": allowed,
        "within": abs(statistics.mean(differences)) <= allowed,
    }


def measure(steps: int, seeds: int, permutations: int, side: int, threads: int, progress: Progress) -> dict:
    """All three parts, ready for JSON."""
    data, ways = load(side), orders(permutations, threads)
    few = ways[:4]  # for every seed but the first
    task = progress.add_task("training", total=len(ways) + 4 + 1 + (seeds - 1) * (len(few) + 1) + 4)

    def run(seed: int, order: Order, fused: bool, dtype: torch.dtype = torch.float32) -> Run:
        progress.update(task, description=f"seed {seed}, {'fused' if fused else 'plain'}, {order.name}")
        result = train(data, seed, order, fused=fused, steps=steps, threads=threads, dtype=dtype)
        progress.advance(task)
        return result

    plain = {order.name: run(0, order, False) for order in ways}
    fused = {order.name: run(0, order, True) for order in few}
    exact = run(0, ways[0], False, torch.float64)
    plain_of, fused_of = {0: [plain[order.name] for order in few]}, {0: fused[few[0].name]}
    for seed in range(1, seeds):
        plain_of[seed] = [run(seed, order, False) for order in few]
        fused_of[seed] = run(seed, few[0], True)
    repeats = {}
    for count in (1, 2):
        order = Order(f"threads {count}", threads=count)
        repeats[count] = run(0, order, True).same(run(0, order, True))
    return {
        "settings": {"steps": steps, "seeds": seeds, "permutations": permutations, "side": side, "threads": threads},
        "spread": spread(plain, fused, exact),
        "accuracy": accuracies(plain_of, fused_of),
        "repeats_to_the_bit": repeats,
    }


def show(found: dict, console: Console) -> None:
    table = Table("measure", "plain to plain", "farthest plain", "fused", "to float64: plain", "fused", "within")
    for name, row in found["spread"].items():
        places, exact = (list(row[f"{kind}_places"].values()) for kind in ("plain", "fused")), row["to_float64"]
        farthest, fused = max(next(places)), next(places)[0]
        numbers = row["plain_to_plain"]["median"], farthest, fused, exact["plain"], exact["fused"]
        table.add_row(name, *(f"{n:.3g}" for n in numbers), "yes" if row["within"] else "NO")
    console.print(table)
    accuracy = found["accuracy"]
    console.print(
        f"accuracy, fused - plain: {accuracy['mean_difference']:+.2%} in the mean of {len(accuracy['fused'])} seeds, "
        f"allowed {accuracy['allowed']:.2%}: {'within' if accuracy['within'] else 'NOT WITHIN'}"
    )
    for threads, same in found["repeats_to_the_bit"].items():
        console.print(f"repeated at {threads} threads: {'the same bits' if same else 'OTHER BITS'}")


@click.command(help=__doc__.splitlines()[0])
@click.option("--steps", type=click.IntRange(2), default=300, show_default=True)
@click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--permutations", type=click.IntRange(3), default=8, show_default=True, help="Plain runs of part (a).")
@click.option("--side", type=click.IntRange(8), default=16, show_default=True, help="Pixels of an image.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "path", metavar="PATH", help='Write JSON; "-" is standard output.')
def main(steps: int, seeds: int, permutations: int, side: int, threads: int, path: str | None) -> None:
    console = Console(stderr=path == "-")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        found = {"machine": machine.describe(), **measure(steps, seeds, permutations, side, threads, progress)}
    show(found, console)
    text = json.dumps(found, indent=1)
    if path == "-":
        click.echo(text)
    elif path:
        Path(path).write_text(text + "\n")
    right = all(row["within"] for row in found["spread"].values()) and found["accuracy"]["within"]
    raise SystemExit(0 if right and all(found["repeats_to_the_bit"].values()) else 1)


if __name__ == "__main__":
    main()
