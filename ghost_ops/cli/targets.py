"""What MODEL names: a net of timm's or of ours, a factory, or a file of weights."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import click
import torch
from torch import nn

from ..surgery.freeze.compare import Arguments, drawn
from .console import failing, one_line

WEIGHTS = (".pth", ".pt", ".bin", ".tar", ".safetensors")
PROGRAMS = (".pt2", ".onnx", ".xml")
SIDE = 224
_COUNTER = "num_batches_tracked"  # inference does not need it, and old files do not have it


def make_net(model: str, of: str | None = None, pretrained: bool = False) -> nn.Module:
    """The net that MODEL names, in eval mode.

    Args:
        model: a name, ``package.module:factory``, or a file.
        of: which net the weights in the file are of: a name or a factory.
        pretrained: load timm's weights, which may be downloaded.

    Raises:
        ClickException: there is no such net, in one line that says what to do.
    """
    path = Path(model)
    if not _is_file(path):
        if of is not None:
            raise click.UsageError("--model is for a file of weights, to say of which net they are")
        return _made(model, pretrained).eval()
    if pretrained:
        raise click.UsageError("--pretrained is for names of timm's: a file has its own weights")
    if not path.is_file():
        raise click.ClickException(f"{model} does not exist, or is not a file")
    if path.suffix in PROGRAMS:
        raise click.ClickException(
            f"{model} is an exported program, which cannot be taken apart: name the net that it was made from"
        )
    if of is None:
        raise click.ClickException(
            f"{model} holds weights only: say of which net, by --model NAME or --model package.module:factory"
        )
    from ..models import load_checkpoint

    with failing(f"{model} cannot be read", OSError):
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            raise click.ClickException(" ".join(str(error).removeprefix("load_checkpoint: ").split())) from error
    net = _made(of)
    options = {} if ":" in of else _counts(net, state)
    if options:
        net = _made(of, **options)
    _load(net, state, model, of)
    return net.eval()


def example_of(net: nn.Module, batch: int, size: tuple[int, int] | None) -> Arguments:
    """Drawn images that the net takes, of the size that it says it is for where none is given.

    Raises:
        ClickException: it does not take them.
    """
    size = size or _size_of(net)
    with failing(f"{batch} images of {size[0]} x {size[1]} pixels cannot be drawn", RuntimeError):  # no memory
        call = drawn(net, batch, size)
    if call is None:
        raise click.ClickException("the net has no convolution that says how many channels an image has: in Python, "
                                   "ghost_ops.explain, profile and freeze take an example")  # fmt: skip
    with failing(f"the net does not take {str(call)[1:-1]}; is --size right?"), torch.no_grad():
        net(*call.args, **call.kwargs)
    return call


def close_to(name: str, names: Iterable[str]) -> str:
    """A sentence that offers names like this one; empty where there are none."""
    found = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _is_file(path: Path) -> bool:
    return path.suffix in (*WEIGHTS, *PROGRAMS) or os.sep in str(path) or (":" not in str(path) and path.is_file())


def _size_of(net: nn.Module) -> tuple[int, int]:
    """The size that a net of timm's names."""
    config = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    given = config.get("input_size") if isinstance(config, dict) else None
    return tuple(given[-2:]) if given else (SIDE, SIDE)


def _made(name: str, pretrained: bool = False, **options: int) -> nn.Module:
    """A net by name or factory; drawn parameters are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _of_factory(name, pretrained) if ":" in name else _of_name(name, pretrained, options)


def _of_name(name: str, pretrained: bool, options: dict[str, int]) -> nn.Module:
    from ..models import MODELS

    timm, missing = _timm()
    if timm is not None and timm.is_model(name):
        with failing(f"timm cannot make {name}"):
            return timm.create_model(name, pretrained=pretrained, **options)
    if name in MODELS:
        if pretrained:
            raise click.ClickException(missing or f"{name} has no weights to download")
        return MODELS[name](**options)
    known = [*MODELS, *(timm.list_models() if timm is not None else ())]
    where = "neither timm nor ghost_ops.models has such a net"
    if timm is None:
        where = f"ghost_ops.models has no such net, and {missing}"
    raise click.ClickException(f"unknown model {name!r}: {where}{close_to(name, known)}")


def _timm() -> tuple[ModuleType | None, str]:
    """timm, or why there is none."""
    try:
        return importlib.import_module("timm"), ""
    except ModuleNotFoundError as error:
        if error.name == "timm":
            return None, "timm is not installed: pip install timm"
        return None, f"timm cannot be imported: {one_line(error)}"
    except Exception as error:  # such as a torchvision that was built for another torch
        return None, f"timm cannot be imported: {one_line(error)}"


def _of_factory(text: str, pretrained: bool) -> nn.Module:
    if pretrained:
        raise click.UsageError("--pretrained is for names of timm's: a factory makes its own weights")
    name, _, attribute = text.partition(":")
    if not all(word.isidentifier() for word in (*name.split("."), *attribute.split("."))):
        raise click.ClickException(f"{text!r}: expected a factory such as package.module:factory")
    factory: object = _imported(name)
    for word in attribute.split("."):
        if not hasattr(factory, word):
            raise click.ClickException(f"{name} has no {attribute!r}{close_to(word, dir(factory))}")
        factory = getattr(factory, word)
    if isinstance(factory, nn.Module) or not callable(factory):
        kind = type(factory).__name__
        raise click.ClickException(f"{text} is a {kind}: expected a function or class that returns a torch.nn.Module")
    try:
        net = factory()
    except (Exception, SystemExit) as error:
        raise click.ClickException(f"{text}() raised {one_line(error)}") from error
    if not isinstance(net, nn.Module):
        raise click.ClickException(f"{text}() returned a {type(net).__name__}: expected a torch.nn.Module")
    return net


def _imported(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise click.ClickException(f"importing {name} raised {one_line(error)}") from error
        raise click.ClickException(f"there is no module {error.name!r}, here or installed") from error
    except (Exception, SystemExit) as error:
        raise click.ClickException(f"importing {name} raised {one_line(error)}") from error


def _counts(net: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, int]:
    """The numbers of classes and of channels of an image that weights are for, where they are not those of the net."""
    own = {name: value for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    stem = next((name for name, value in own.items() if value.dim() == 4), None)
    head = next((name for name, value in reversed(own.items()) if value.dim() == 2), None)
    found = {}
    if head in state and state[head].dim() == 2 and len(state[head]) != len(own[head]):
        found["num_classes"] = len(state[head])
    if stem in state and state[stem].dim() == 4 and state[stem].shape[1] != own[stem].shape[1]:
        found["in_chans"] = state[stem].shape[1]
    return found


def _load(net: nn.Module, state: dict[str, torch.Tensor], path: str, name: str) -> None:
    """Load a state_dict; fails with the first keys that differ."""
    from ..models.checkpoint import differences

    own = {key: value for key, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    counters = {key for key in own if key.endswith(_COUNTER) and key not in state}
    found = differences(state, {key: value.shape for key, value in own.items() if key not in counters})
    if found:
        raise click.ClickException(f"{path} is not a state_dict of {name}: {found}")
    net.load_state_dict(state, strict=False)
