"""``ghost-ops freeze``: a net frozen, in a file."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from .console import echo_json, failing, progress
from .options import dtype_option, json_flag, net_options, output_options, with_model_help
from .outputs import check_output

FORMATS = {".pt2": "pt2", ".pt": "pickle"}


@click.command("freeze")
@net_options(batch=2)
@output_options
@dtype_option
@json_flag
@with_model_help
def command(
    model: str,
    of: str | None,
    pretrained: bool,
    size: tuple[int, int] | None,
    batch: int,
    output: str,
    force: bool,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Freeze MODEL for inference and write it: BatchNorms folded, weights packed, whole parts in one call.

    OUT ends in .pt2 or .pt. A .pt2 file, by torch.export.save, holds programs and weights, and no class: loading it
    needs torch and ghost_ops, but not the code of the net. Write that where torch.export takes the net. A .pt file is a
    pickle of the whole object, by torch.save, with its class and methods: loading it needs the code of the net and runs
    code from the file, so it is for files that you trust.

    The file is loaded again and compared; in float32 with the plain net, in bfloat16 with the frozen one. {MODEL}

    \b
    Examples:
      ghost-ops freeze ghostnet_100 --pretrained -o ghostnet.pt2
      ghost-ops freeze net.pth --model ghostnet_100 --dtype bfloat16 -o net.pt2
      ghost-ops freeze my_package.nets:make_net --size 320 -o net.pt2 --force
    """
    import torch

    from ..fused import FrozenProgram
    from ..surgery import freeze
    from .formats import FORMATS as ALL
    from .formats import SIZES
    from .targets import example_of, make_net
    from .writing import STEPS, write_net

    path = Path(output)
    check_output(path, force, *FORMATS)
    with progress(2 + STEPS) as steps:
        steps.begin(f"making {model}")
        net = make_net(model, of, pretrained).requires_grad_(False)
        call = example_of(net, max(batch, 2), size)  # one image alone would fix the batch
        steps.begin("freezing")
        kind = None if dtype is None else getattr(torch, dtype)
        with warnings.catch_warnings(record=True) as caught, failing(f"{model} cannot be frozen"):
            warnings.simplefilter("always", UserWarning)
            made = freeze(net, kind, example=call.args)
        if not any(isinstance(module, FrozenProgram) for module in made.modules()):
            why = next((str(one.message).removeprefix("freeze: ") for one in caught), "it holds no convolution")
            raise click.ClickException(f"nothing of {model} can be frozen: {why}")
        given = call if kind is None else call.copied(kind)
        reference = made if given.args[0].dtype is torch.bfloat16 else net
        form, hint = (
            ALL[FORMATS[path.suffix]],
            " (write it to a name that ends in .pt)" if path.suffix == ".pt2" else "",
        )
        written = write_net(made, reference, given, path, form, SIZES, force, steps, hint)
    if as_json:
        echo_json(written.as_dict())
    else:
        click.echo(str(written))
