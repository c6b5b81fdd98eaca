"""``ghost-ops export``: a net for another toolchain."""

from __future__ import annotations

from pathlib import Path

import click

from .console import echo_json, failing, progress
from .options import json_flag, net_options, output_options, with_model_help
from .outputs import check_output

TOOLS = ("onnx", "openvino", "aoti", "pt2")
PLAIN = ("onnx", "openvino")  # take the plain net only


@click.command("export")
@net_options(batch=2)
@output_options
@click.option(
    "--to", "tool", type=click.Choice(TOOLS), help="The toolchain. Default: that of OUT's suffix; for .pt2 say which."
)
@click.option("--plain", is_flag=True, help="With aoti and pt2: the net as it is, not frozen.")
@click.option("--static", is_flag=True, help="Only this batch. Default: any batch, where the tool allows it.")
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
    tool: str | None,
    plain: bool,
    static: bool,
    as_json: bool,
) -> None:
    """Write MODEL for ONNX (.onnx), OpenVINO (.xml and .bin), AOTInductor (.pt2) or torch.export (.pt2).

    ONNX and OpenVINO get the plain net. AOTInductor and torch.export get the frozen net, whose programs run wherever
    ghost_ops is imported, unless --plain is given. The file is loaded again where its tool is installed, and compared
    with the plain net: a difference of more than 1e-5 of the largest element is an error, and nothing is written.
    {MODEL}

    \b
    Examples:
      ghost-ops export ghostnet_100 --pretrained -o ghostnet.onnx
      ghost-ops export net.pth --model ghostnet_100 -o net.xml --size 320 --static --batch 1
      ghost-ops export my_package.nets:make_net -o net.pt2 --to aoti
    """
    from ..surgery import freeze
    from .formats import BATCH, FORMATS
    from .targets import example_of, make_net
    from .writing import STEPS, write_net

    path = Path(output)
    tool = tool or _tool_of(path, {name: form.suffix for name, form in FORMATS.items()})
    form = FORMATS[tool]
    if plain and tool in PLAIN:
        raise click.UsageError(f"--plain is for aoti and pt2: {tool} gets the plain net")
    check_output(path, force, form.suffix)
    form.check_packages()
    is_frozen = not plain and tool not in PLAIN
    with progress(1 + is_frozen + STEPS) as steps:
        steps.begin(f"making {model}")
        net = make_net(model, of, pretrained).requires_grad_(False)
        call = example_of(net, batch if static else max(batch, 2), size)  # one image alone would fix the batch
        if is_frozen:
            steps.begin("freezing")
            with failing(f"{model} cannot be frozen"):
                made = freeze(net, example=call.args)
        written = write_net(made if is_frozen else net, net, call, path, form, () if static else BATCH, force, steps)
    if as_json:
        echo_json(written.as_dict())
    else:
        click.echo(str(written))


def _tool_of(path: Path, suffixes: dict[str, str]) -> str:
    """The one toolchain whose files end as this path does."""
    found = [name for name, suffix in suffixes.items() if suffix == path.suffix]
    if len(found) == 1:
        return found[0]
    if found:
        raise click.UsageError(
            f"several toolchains have files that end in {path.suffix}: --to {' or --to '.join(found)}"
        )
    known = ", ".join(dict.fromkeys(suffixes.values()))
    raise click.UsageError(f"{path}: expected one of the suffixes {known}, or --to with a toolchain")
