"""Conflicts of the banks of shared memory, which the emulator counts: it knows the address of each lane."""

from __future__ import annotations

import torch

from ghost_ops.backends.cuda.program import program
from tests.cuda import emulate
from tests.cuda.test_plan import frozen

MOST = {  # cycles for each matrix of 8 x 8; where all are in different banks it is 1
    ("products.h", "load"): 1.1,
    ("products.h", "store"): 1.2,  # in a strip of 4 or 7 columns eight pixels are of two rows
    ("diagonal.h", "load"): 1.15,  # at stride 2 those of a kernel's last column are in four banks
    ("diagonal.h", "store"): 1.7,  # a strip has 4 or 7 of 8 columns: the results of the others go where these may be
    ("lanes.h", "load"): 1.25,  # beside the last pixels are zeros
}


def test_matrices_are_in_different_banks(one_thread):
    """Of GhostNet-100: products, depthwise convolutions and sums, what they read and write."""
    lib, net = emulate.library(), frozen("100")
    x = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)).half()
    x = x.contiguous(memory_format=torch.channels_last)
    with emulate.Emulator().running():
        lib.ghost_emulated_banks(1)
        program(x, net.packed, net.steps)
        said = lib.ghost_emulated_banks(0).decode()
    found = {}
    for line in said.splitlines():
        file, kind, matrices, cycles = line.split()
        found[file.rsplit("/", 1)[1], kind] = int(matrices), int(cycles)
    assert found.keys() == MOST.keys()
    for name, (matrices, cycles) in found.items():
        print(*name, matrices, f"{cycles / matrices:.3f}")
        assert matrices > 1000 and cycles <= MOST[name] * matrices, (name, matrices, cycles)
