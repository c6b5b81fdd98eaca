"""``program``: the steps of ``ghost_ops/program`` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...program import FLOAT32, decode, only_result, weights_of
from ...program.interpreter import ProgramInterpreter
from ...program.packing import fold_parameters, pack, unpack


def program_eval(x: torch.Tensor, parameters: Sequence[torch.Tensor], steps: Sequence[int]) -> torch.Tensor:
    """The program's result on x, N x C x H x W, with parameters as they are in the net."""
    decoded, weights = decode(steps), weights_of(steps)
    if weights.precision != FLOAT32:
        got = f"{weights.precision} ({weights.name})"
        raise ValueError(f"program_eval: steps: expected those of precision 0 (float32), got those of precision {got}")
    return only_result(ProgramInterpreter(x).run_steps(decoded, fold_parameters(parameters, decoded)))


def program(x: torch.Tensor, packed: torch.Tensor, steps: Sequence[int]) -> torch.Tensor:
    """The same with packed parameters."""
    return only_result(program_maps(x, packed, steps))


def program_maps(x: torch.Tensor, packed: torch.Tensor, steps: Sequence[int]) -> list[torch.Tensor]:
    """The results of a program that may return several."""
    decoded, weights = decode(steps), weights_of(steps)
    return ProgramInterpreter(x).run_steps(decoded, unpack(weights.numbers(packed), decoded, weights))


def program_pack(parameters: Sequence[torch.Tensor], steps: Sequence[int]) -> torch.Tensor:
    """The packed form of a net's parameters."""
    return pack(parameters, decode(steps), weights_of(steps))
