"""Fused modules called by several threads at a time, each in another mode of autograd or with another dtype."""

import threading

import pytest
import torch

from ghost_ops.fused import FusedGhostBottleneck, FusedGhostModule

from ..helpers import make_map, randomise

MADE = {
    "Ghost module": lambda: FusedGhostModule(8, 20),
    "bottleneck": lambda: FusedGhostBottleneck(8, 20, 12, stride=2, se_ratio=0.25),
}


@pytest.mark.parametrize("kind", MADE)
def test_every_thread_gets_what_it_would_get_alone(kind):
    module = randomise(MADE[kind]()).eval()
    maps = [make_map((2, 8, 9, 7)), make_map((2, 8, 9, 7)).requires_grad_(), make_map((2, 8, 5, 5)).double()]

    def call(number):
        x, grad = maps[number % 2], number % 3 == 0
        with torch.set_grad_enabled(grad):
            out = module(x)
        return out.detach(), out.requires_grad == grad

    expected, wrong = [call(number) for number in range(6)], []

    def work(number):
        for _ in range(150):
            out, as_asked = call(number % 6)
            if not (as_asked and torch.equal(out, expected[number % 6][0])):
                wrong.append(number)
            if number == 0:
                with pytest.raises(RuntimeError):  # PyTorch's error of two dtypes, in the midst of the others
                    module(maps[2])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
