"""What a net returns, as one tensor: detectors return several maps, in tuples, lists or dictionaries."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def tensors_of(out: object) -> Iterator[torch.Tensor]:
    """Every tensor in an output, in its order."""
    if isinstance(out, torch.Tensor):
        yield out
    else:
        for item in out.values() if isinstance(out, dict) else out:
            yield from tensors_of(item)


def as_one(out: object) -> torch.Tensor:
    """A tensor as it is; of several, each flattened to N x elements, all side by side."""
    return out if isinstance(out, torch.Tensor) else torch.cat([t.flatten(1) for t in tensors_of(out)], 1)
