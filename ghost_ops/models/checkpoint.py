"""Reading and writing checkpoints: only tensors are read, and no file is overwritten."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

SAFETENSORS, PICKLES = (".safetensors",), (".pth", ".pt", ".bin", ".tar")
# Where training scripts put the weights in what they save; the first that is there is taken.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


MANY = 3  # keys that an error names


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, converted or written. The message is one line."""


def load_checkpoint(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the state_dict in a file, with its tensors on the CPU.

    What training scripts save around a state_dict is taken off: dictionaries such as ``{"state_dict": ..., "epoch":
    ...}``, of which an average (``state_dict_ema``) is taken only where there is nothing else, and the prefixes of
    ``DistributedDataParallel`` and ``torch.compile``. Files of PyTorch are read with ``weights_only=True``, so that a
    file that names other classes is refused before anything of it is made.

    Args:
        path: a ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.bin`` or ``.tar`` file of ``torch.save``.

    Raises:
        CheckpointError: another suffix; a file that is truncated or of another format; objects besides tensors and
            plain values; or no state_dict inside.
        FileNotFoundError, PermissionError and the like: the file cannot be opened.
    """
    path = Path(path)
    read = _by_suffix("load_checkpoint", path, _read_safetensors, _read_pickle)
    with open(path, "rb"):  # errors of the file system are Python's own
        pass
    try:
        loaded = read(path)
    except CheckpointError:
        raise
    except Exception as error:  # of each format others: what they say is for its developers
        raise CheckpointError(
            f"load_checkpoint: {path}: the file is truncated, or not a {path.suffix} file ({_first_line(error)})"
        ) from error
    return _state_dict_in(loaded, path)


def differences(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Size], names: Mapping[str, str] | None = None
) -> str:
    """Say which keys and shapes of a state_dict differ from those of a net, three of them; empty where none do.

    Args:
        wanted: the shapes of the net's tensors by key.
        names: for people: what a key of the state was called in the file that it comes from.
    """
    called = {name: name for name in state} if names is None else names
    found = [
        *(f"{called[name]} is unexpected" for name in state if name not in wanted),
        *(f"{name} is missing" for name in wanted if name not in state),
        *(
            f"{called[name]} has shape {tuple(state[name].shape)}, expected {tuple(shape)}"
            for name, shape in wanted.items()
            if name in state and state[name].shape != shape
        ),
    ]
    return "; ".join(found[:MANY]) + (f"; and {len(found) - MANY} more" if len(found) > MANY else "")


def save_checkpoint(state_dict: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Write a state_dict to a new file, by ``safetensors`` or ``torch.save`` as the suffix says.

    Args:
        path: as of :func:`load_checkpoint`. A file that could not be written completely is removed.

    Raises:
        CheckpointError: another suffix, or the file exists.
        TypeError: state_dict is not a mapping of names to tensors.
        FileNotFoundError, PermissionError and the like: the file cannot be made.
    """
    path = Path(path)
    write = _by_suffix("save_checkpoint", path, _write_safetensors, torch.save)
    if not isinstance(state_dict, Mapping) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise TypeError(
            f"save_checkpoint: state_dict: expected a mapping of names to tensors, got {type(state_dict).__name__}"
        )
    state_dict = {name: value.detach().contiguous() for name, value in state_dict.items()}
    try:
        with open(path, "xb") as file:
            _write_whole(write, state_dict, file)
    except FileExistsError:
        raise CheckpointError(f"save_checkpoint: {path}: the file exists, and is not overwritten") from None


def _write_whole(write: Callable, state_dict: dict[str, torch.Tensor], file: BinaryIO) -> None:
    try:
        write(state_dict, file)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise


def _by_suffix(owner: str, path: Path, safetensors: Callable, pickled: Callable) -> Callable:
    if path.suffix in SAFETENSORS:
        return safetensors
    if path.suffix in PICKLES:
        return pickled
    known = ", ".join((*SAFETENSORS, *PICKLES))
    raise CheckpointError(f"{owner}: {path}: expected one of the suffixes {known}, got {path.suffix or 'none'!r}")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    return _safetensors("load_checkpoint", path).load_file(path)


def _write_safetensors(state_dict: dict[str, torch.Tensor], file: BinaryIO) -> None:
    # the format refuses tensors that share memory
    file.write(_safetensors("save_checkpoint", Path(file.name)).save({k: v.clone() for k, v in state_dict.items()}))


def _safetensors(owner: str, path: Path) -> object:
    try:
        import safetensors.torch
    except ImportError:
        raise CheckpointError(f"{owner}: {path}: needs safetensors: pip install safetensors") from None
    return safetensors.torch


def _read_pickle(path: Path) -> object:
    try:
        # timm's training script saves its options beside the weights; a Namespace only holds what it is given
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the version of the pickle's format
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"load_checkpoint: {path}: the file is truncated, or not a {path.suffix} file of tensors only; other "
            "objects are not loaded, since that could run code: save a state_dict, torch.save(net.state_dict(), path)"
        ) from error


def _state_dict_in(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(loaded, Mapping) and not _is_state_dict(loaded):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not _is_state_dict(loaded):
        what = f"a {type(loaded).__name__}"
        if isinstance(loaded, Mapping):
            what += f" of {', '.join(map(repr, list(loaded)[:3])) or 'nothing'}{', ...' if len(loaded) > 3 else ''}"
        raise CheckpointError(f"load_checkpoint: {path}: expected a state_dict, names and tensors, got {what}")
    state = dict(loaded)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _is_state_dict(value: Mapping) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines and " " in lines[0] else type(error).__name__
