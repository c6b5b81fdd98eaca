"""``ghost-ops explain``: what of a net is fused and frozen, and what is not and why."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict

import click

from .console import console, echo_json, progress
from .options import dtype_option, json_flag, net_options, with_model_help

TITLES = {"plain": "As it is", "fused": "After ghost_ops.fuse", "frozen": "After ghost_ops.freeze"}


@click.command("explain")
@net_options()
@dtype_option
@json_flag
@with_model_help
def command(
    model: str,
    of: str | None,
    pretrained: bool,
    size: tuple[int, int] | None,
    batch: int,
    dtype: str | None,
    as_json: bool,
) -> None:
    """What runs for each module of MODEL as it is, fused and frozen, and why nothing faster does.

    {MODEL}

    \b
    Examples:
      ghost-ops explain ghostnet_100
      ghost-ops explain my_package.nets:make_net --size 320 --batch 8
      ghost-ops explain net.pth --model ghostnet_100 --json
    """
    import torch

    from ..surgery import explain, freeze, fuse
    from .targets import example_of, make_net

    with progress(4) as steps:
        steps.begin(f"making {model}")
        net = make_net(model, of, pretrained)
        call = example_of(net, batch, size)
        kind = None if dtype is None else getattr(torch, dtype)
        found, notes = {}, {}
        made_by = {
            "plain": lambda: copy.deepcopy(net).to(kind),
            "fused": lambda: fuse(copy.deepcopy(net).to(kind)),
            "frozen": lambda: freeze(net, kind, example=call.args),
        }
        for way, make in made_by.items():
            steps.begin(TITLES[way])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                found[way] = explain(make(), call.copied(kind).args)
            notes[way] = list(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))
    if as_json:
        ways = {
            way: {"rows": [asdict(row) for row in report.rows], "tally": str(report.tally or ""), "notes": notes[way]}
            for way, report in found.items()
        }
        echo_json({"model": model, "class": type(net).__name__, "input": str(call)[1:-1], **ways})
        return
    shown = console()
    for way, report in found.items():
        shown.rule(f"{TITLES[way]}: {type(net).__name__}, {str(call)[1:-1]}", style="default")
        shown.print(report if report.rows else "No Ghost module, nor anything that looks like one, was found.")
        for note in notes[way]:
            shown.print(note, markup=False, highlight=False)
