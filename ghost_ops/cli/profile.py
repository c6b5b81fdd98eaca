"""``ghost-ops profile``: how long each module of a net takes, plain, fused and frozen."""

from __future__ import annotations

import click

from .console import console, failing, need, progress, write_json
from .options import dtype_option, net_options, threads_option, with_model_help
from .outputs import check_folder


@click.command("profile")
@net_options()
@threads_option
@dtype_option
@click.option("--channels-last", is_flag=True, help="Net and images in channels_last, which is faster.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Samples that a median is of.")
@click.option("--top", type=click.IntRange(1), help="Only so many modules: those that take most time as they are.")
@click.option("--json", "json_path", metavar="PATH", help='Write JSON; "-" is standard output.')
@click.option("--plot", "plot_path", metavar="PATH", help="Write a picture; needs matplotlib.")
@with_model_help
def command(
    model: str,
    of: str | None,
    pretrained: bool,
    size: tuple[int, int] | None,
    batch: int,
    threads: int | None,
    dtype: str | None,
    channels_last: bool,
    rounds: int,
    top: int | None,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Each module's time, bytes, multiply-adds and share of the roofline, plain, fused and frozen.

    Also what was not fused or frozen, and why. A frozen net is one program: beside its whole time, each module is timed
    as a program of its own. {MODEL}

    \b
    Examples:
      ghost-ops profile ghostnet_100
      ghost-ops profile ghostnetv2_100 --batch 8 --threads 2 --channels-last --top 10
      ghost-ops profile my_package.nets:make_net --size 320 --json profile.json --plot profile.png
    """
    import torch

    from ..profiling import STEPS, profile
    from ..profiling.plot import plot
    from .targets import example_of, make_net

    if plot_path:
        need("matplotlib")
    for path in (json_path, plot_path):
        if path and path != "-":
            check_folder(path)
    with progress(len(STEPS) + 1) as steps:
        steps.begin(f"making {model}")
        net = make_net(model, of, pretrained)
        call = example_of(net, batch, size)
        if channels_last:
            net, call = net.to(memory_format=torch.channels_last), call.channels_last()
        kind = None if dtype is None else getattr(torch, dtype)
        with failing(f"{model} cannot be profiled"):
            found = profile(net, call.args, dtype=kind, threads=threads, rounds=rounds, on_step=steps.begin)
    if json_path != "-":
        console().print(found.render(top))
    if json_path:
        write_json(found.as_dict(), json_path)
    if plot_path:
        with failing(f"{plot_path} cannot be written", (OSError, ValueError)):
            plot(found, plot_path, top)
