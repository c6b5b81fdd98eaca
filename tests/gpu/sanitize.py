"""A small set of calls for compute-sanitizer: every operator, forward and backward, on maps with halos and odd ends."""

from __future__ import annotations

import torch

from ghost_ops import functional
from ghost_ops.backends import cuda, reference
from tests.cuda.programs import draw_block
from tests.gpu.test_operators import KINDS, drawn, moved, results


def main() -> None:
    for seed in (1, 2, 5):
        for kind in KINDS:
            results(kind, moved(drawn(kind, seed), torch.float16), False, 1)
    x = torch.randn(2, 24, 56, 56, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
    w1, w2 = torch.randn(36, 24, 1, 1, device="cuda").half(), torch.randn(36, 1, 3, 3, device="cuda").half()
    functional.ghost_module(x, w1, None, w2, None)
    if cuda.available():
        for seed in range(16):
            p, images = draw_block(seed)
            for dtype in (torch.float16, torch.float32):
                packed = reference.program_pack(p.parameters, p.code).cuda()
                cuda.load("program")(images.to("cuda", dtype), packed, p.code)
        cuda.load("ghost_module")(x, w1, None, w2, *[None] * 5, 72, 1, 1, 0.0, 0.0, True)
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
