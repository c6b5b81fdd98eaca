"""``ghost-ops convert``: a checkpoint of another project for a net of ours."""

from __future__ import annotations

from pathlib import Path

import click

from .console import echo_json, failing, progress
from .options import json_flag
from .outputs import check_output, placed
from .targets import WEIGHTS, close_to


@click.command("convert")
@click.argument("source", metavar="INPUT")
@click.argument("output", metavar="OUTPUT")
@click.option("--model", required=True, metavar="NAME", help="A net of ghost_ops.models.")
@click.option("--force", is_flag=True, help="Overwrite what exists.")
@json_flag
def command(source: str, output: str, model: str, force: bool, as_json: bool) -> None:
    """Give the weights in INPUT, a checkpoint of another project, the keys and shapes of a net of ghost_ops.models.

    INPUT and OUTPUT end in .safetensors, .pth, .pt, .bin or .tar. Of pickles only tensors are read. OUTPUT loads with
    strict=True into ghost_ops.models.MODELS[NAME](); the other commands take it with --model NAME.

    \b
    Examples:
      ghost-ops convert state_dict_73.98.pth ghostnet.safetensors --model ghostnet_100
      ghost-ops profile ghostnet.safetensors --model ghostnet_100
    """
    from .. import models

    if model not in models.MODELS:
        raise click.ClickException(f"unknown model {model!r}: ghost_ops.models has no such net"
                                   f"{close_to(model, models.MODELS)}")  # fmt: skip
    path = Path(output)
    check_output(path, force, *WEIGHTS)
    if not Path(source).is_file():
        raise click.ClickException(f"{source} does not exist, or is not a file")
    with progress(3) as steps, failing(f"{source} cannot be converted"):
        try:
            steps.begin(f"reading {source}")
            state = models.load_checkpoint(source)
            steps.begin("converting")
            made = models.convert_state_dict(state, model=model)
            steps.begin(f"writing {output}")
            with placed(path, force) as file:
                models.save_checkpoint(made, file)
        except models.CheckpointError as error:
            raise click.ClickException(str(error).partition(": ")[2]) from error  # without the function's name
    found = {"output": output, "model": model, "tensors": len(made), "read": len(state),
             "bytes": path.stat().st_size}  # fmt: skip
    if as_json:
        echo_json(found)
    else:
        click.echo(f"wrote {output} ({found['bytes'] / 1e6:.1f} MB): {len(made)} tensors of {model}, from {len(state)}")
