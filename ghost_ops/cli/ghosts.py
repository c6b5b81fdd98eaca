"""``ghost-ops ghosts``: the feature maps of a layer, and which of them are alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import Steps, console, echo_json, failing, need, progress
from .options import json_flag, net_options, with_model_help
from .outputs import check_output, placed

if TYPE_CHECKING:
    from torch import nn

DIGITS, SIDE = "digits", 32  # a MODEL of this command, and the size of its images
FORMATS = (".png", ".svg", ".pdf")


@click.command("ghosts")
@net_options(batch=None)
@click.argument("image", metavar="[IMAGE]", required=False)
@click.option("--layer", metavar="NAME", help="Default: the first Ghost module, or else the first convolution.")
@click.option("--pairs", type=click.IntRange(0, 8), default=3, show_default=True, help="Similar pairs to join.")
@click.option("--maps", type=click.IntRange(2, 256), default=32, show_default=True, help="Maps to draw, at most.")
@click.option("-o", "--output", default="ghosts.png", show_default=True, metavar="OUT", help=".png, .svg or .pdf.")
@click.option("--force", is_flag=True, help="Overwrite what exists.")
@json_flag
@with_model_help
def command(
    model: str,
    of: str | None,
    pretrained: bool,
    size: tuple[int, int] | None,
    image: str | None,
    layer: str | None,
    pairs: int,
    maps: int,
    output: str,
    force: bool,
    as_json: bool,
) -> None:
    """Draw the feature maps of a layer for an image: the most similar pairs joined, and what made each ghost.

    It is the first figure of the GhostNet paper, for any net. Where the layer is a Ghost module, an arrow goes from
    each map to those that the cheap operation makes from it. The similarity of two maps is the absolute cosine of both
    less their means. IMAGE is a file, china or flower (scikit-learn's photographs; the first where none is given), or a
    number for a handwritten digit. MODEL may be "digits" too: a small GhostNet, which learns the digits first. {MODEL}

    \b
    Examples:
      ghost-ops ghosts digits
      ghost-ops ghosts ghostnet_100 photo.jpg --pretrained --layer blocks.1.0.ghost1 -o ghosts.svg
      ghost-ops ghosts resnet50 flower --layer layer1.0 --pairs 5 --maps 64 --json
    """
    from ..feature_maps import feature_maps, shapes_of
    from ..feature_maps.plot import plot
    from .images import make_picture, normalised
    from .targets import example_of

    path = Path(output)
    check_output(path, force, *FORMATS)
    need("matplotlib", "demo")
    is_digits = model == DIGITS
    if is_digits and (of or pretrained):
        raise click.UsageError('"digits" is trained here: it takes neither --model nor --pretrained')
    picture = make_picture(image or ("0" if is_digits else "china"))
    with progress(_steps(is_digits)) as steps:
        net, weights = _digits(steps) if is_digits else _made(model, of, pretrained, steps)
        steps.begin("running")
        like = example_of(net, 1, size or ((SIDE, SIDE) if is_digits else None)).args[0]
        channels = like.shape[1]
        if channels not in (1, 3):
            raise click.ClickException(f"{model} takes images of {channels} channels: expected a net for 1 or 3")
        fitted = picture.fitted(channels, tuple(like.shape[2:]))
        x = normalised(net, fitted).to(like)
        if layer is not None:
            _check_layer(net, layer, shapes_of(net, x))
        with failing(f"the maps of {model} cannot be looked at"):
            found = feature_maps(net, x, layer)
        steps.begin(f"drawing {output}")
        title = f"{model} ({weights}), {picture.name}\n{found.layer}: {found.kind}"
        pixels = fitted.permute(1, 2, 0) if channels == 3 else fitted[0]
        with placed(path, force) as file, failing(f"{output} cannot be drawn"):
            drawn = plot(found, file, image=pixels, title=title, pairs=pairs, most=maps)
    if as_json:
        about = {"model": model, "weights": weights, "image": picture.name, "input": list(x.shape)}
        echo_json({"output": output, "drawn": drawn, **about, **found.as_dict(pairs)})
        return
    shown = console()
    say = lambda text: shown.print(text, markup=False, highlight=False, soft_wrap=True)
    say(f"{model} ({weights}), {picture.name}, {found.layer}: {found.kind}")
    for number, pair in enumerate(found.pairs(pairs), 1):
        say(f"{number}: maps {pair.first} and {pair.second}, similarity {pair.similarity:.3f}")
    if found.ghosts is not None:
        made, first = len(found.ghosts.made()), found.ghosts.primary
        say(f"the cheap operation makes {made} maps from {first}")
    elif found.note:
        say(f"not taken for a Ghost module: {found.note}")
    say(f"{found.alike} of {found.count} maps are like another (0.9 or more), {len(found.constant)} are constant")
    say(f"wrote {output}, with {drawn} maps")


def _steps(is_digits: bool) -> int:
    if not is_digits:
        return 3
    from ..demo.digits import EPOCHS, STEPS_PER_EPOCH

    return 2 + EPOCHS * STEPS_PER_EPOCH


def _made(model: str, of: str | None, pretrained: bool, steps: Steps) -> tuple[nn.Module, str]:
    """The net that MODEL names, and what its weights are."""
    from .targets import make_net

    steps.begin(f"making {model}")
    net = make_net(model, of, pretrained)
    if pretrained:
        return net, "timm's weights"
    if of is not None:
        return net, f"weights of a file, for {of}"
    return net, "as the factory makes it" if ":" in model else "drawn weights, not trained"


def _digits(steps: Steps) -> tuple[nn.Module, str]:
    need("sklearn", "demo")
    from ..demo import digits

    steps.tell("learning digits")
    net, accuracy = digits.trained_net(SIDE, on_step=steps.advance)
    return net, f"trained, {accuracy:.1%} right in the test set"


def _check_layer(net: nn.Module, layer: str, shapes: dict) -> None:
    """Fail in one line, with names like this one, where the net has no such layer, or it has no maps to compare."""
    from .targets import close_to

    usable = [name for name, shape in shapes.items() if name and shape[1] > 1]
    if layer in usable:
        return
    if layer not in dict(net.named_modules()):
        what = f"the net has no layer {layer!r}"
    elif layer in shapes:
        what = f"{layer!r} returns a single map: nothing is there to compare it with"
    else:
        what = f"{layer!r} returns no maps N x C x H x W"
    offered = close_to(layer, usable) or (f"; layers are for example {', '.join(usable[:3])}" if usable else "")
    raise click.ClickException(f"{what}{offered}")
