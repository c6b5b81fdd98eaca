"""Arguments and options that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable

import click
from click.shell_completion import CompletionItem


class Size(click.ParamType):
    """Height and width of an image: ``224``, or ``224x320``."""

    name = "HEIGHTxWIDTH"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        if found is None or 0 in (height := int(found[1]), width := int(found[2] or found[1])):
            self.fail(f"expected pixels such as 224 or 224x320, got {value!r}", param, context)
        return height, width


def _names(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers for MODEL: nets of ghost_ops.models, and files."""
    from ..models import MODELS

    found = [CompletionItem(name) for name in sorted(MODELS) if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="file")]


def net_options(batch: int | None = 1) -> Callable[[Callable], Callable]:
    """A decorator: MODEL, how it is made, and the images that it gets.

    Args:
        batch: how many by default; None: the command has no such option.
    """
    numbers = click.option(
        "--batch", type=click.IntRange(1), default=batch, show_default=True, help="Number of images."
    )

    def add(command: Callable) -> Callable:
        for decorate in reversed(
            (
                click.argument("model", metavar="MODEL", shell_complete=_names),
                click.option("--model", "of", metavar="NET", help="Of which net the weights in a file are."),
                click.option("--pretrained", is_flag=True, help="timm's weights, which are downloaded."),
                click.option("--size", type=Size(), help="Pixels of an image. Default: what the net says, or 224."),
                *([] if batch is None else [numbers]),
            )
        ):
            command = decorate(command)
        return command

    return add


def output_options(command: Callable) -> Callable:
    """A decorator: the file that a command writes."""
    command = click.option("--force", is_flag=True, help="Overwrite what exists.")(command)
    return click.option("-o", "--output", required=True, metavar="OUT", help="The file to write.")(command)


json_flag = click.option("--json", "as_json", is_flag=True, help="For programs.")
dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Default: that of the net's parameters."
)
threads_option = click.option("--threads", type=click.IntRange(1), help="PyTorch's threads. Default: PyTorch's.")

MODEL_HELP = """MODEL is a name of timm's or of ghost_ops.models (ghostnet_100), a factory (package.module:factory; the
    current directory is on the path, and it is called without arguments), or a file of weights (.pth, .pt,
    .safetensors), of which --model says the net."""


def with_model_help(command: Callable) -> Callable:
    """A decorator: put what MODEL may be into the help."""
    command.__doc__ = (command.__doc__ or "").replace("{MODEL}", MODEL_HELP)  # Python may leave out docstrings
    return command
