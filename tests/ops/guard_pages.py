"""Calls whose arguments begin or end where memory does: an access before or past one of them ends the process.

Run as a module, with the name of a case. With ``guard_malloc.c`` in front of it (``preloaded``), results and the memory
that kernels work in lie so, too.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import hypothesis
import torch

from ghost_ops import FusedGhostModule
from ghost_ops.functional import batch_norm_act_train, cheap_concat_train, squeeze_excite
from ghost_ops.ops.program import program, program_eval, program_pack
from ghost_ops.program import BFLOAT16, FLOAT32, Depthwise, Layer, Load, Store, with_precision
from tests.fuzz import operators
from tests.helpers import make_map
from tests.ops.cases import Case
from tests.program.cases import make_program
from tests.program.drawn import draw_call

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
SOURCE = Path(__file__).with_name("guard_malloc.c")
_turns = count()


def guarded(t: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, with its strides, between two pages that must not be touched: in turns, its last element is
    the last before a page, or its first one the first behind a page."""
    if not t.numel():
        return t
    elements = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    size, page = elements * t.element_size(), mmap.PAGESIZE
    length = -(-size // page) * page
    begin = LIBC.mmap(
        None, length + 2 * page, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    assert LIBC.mprotect(begin, page, 0) == 0 and LIBC.mprotect(begin + page + length, page, 0) == 0
    first = begin + page + (length - size if next(_turns) % 2 == 0 else 0)
    memory = (ctypes.c_char * size).from_address(first)
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, t.stride()).copy_(t)


def preloaded(folder: Path) -> dict[str, str]:
    """What a process needs in its environment so that whatever torch and the kernels allocate lies so too. Compiles
    ``guard_malloc.c`` into the folder."""
    library = folder / "guard_malloc.so"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return {"LD_PRELOAD": str(library)}


def each_drawn(examples: int, call: Callable[[Case], None], draw: Callable) -> None:
    """So many calls with what ``draw`` draws, the same ones in every run."""
    options = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    drawn = hypothesis.given(hypothesis.strategies.data())(lambda data: call(draw(data.draw)))
    hypothesis.seed(examples)(options(drawn))()


def one_call(name: str, case: Case) -> None:
    torch.set_num_threads(case.threads)
    gradients = name in operators.GRADIENTS
    operator = (operators.GRADIENTS if gradients else operators.VALUES)[name][0]
    tensors = {
        key: None if t is None else guarded(t.detach()).requires_grad_(gradients) for key, t in case.tensors.items()
    }
    out = operator(**tensors, **case.options)
    first = out if isinstance(out, torch.Tensor) else out[0]
    if gradients:
        first.backward(guarded(torch.randn_like(first)))


def every_operator(examples: int = 4) -> None:
    """Drawn calls of every operator, and where it has a gradient, of its backward."""
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, -1))  # with any limit, maps are not taken from a pool
    for name, draw in operators.DRAWS.items():
        each_drawn(examples, lambda case, name=name: one_call(name, case), draw)


def drawn(threads: int, precision: int = FLOAT32) -> None:
    """Arguments of valid calls, each in turn."""
    torch.set_num_threads(threads)
    for seed in range(40):
        for dtype in (torch.float32, torch.bfloat16):
            call = draw_call(seed, dtype, threads)
            code, parameters = with_precision(call.program.code, precision), list(call.program.parameters)
            packed = program_pack([guarded(t) for t in parameters], code)
            for memory_format in (torch.contiguous_format, torch.channels_last):
                program(guarded(call.x.contiguous(memory_format=memory_format)), guarded(packed), code)


def load_by_channels() -> None:
    """A map is read by whole vectors though its load says that none does: refused, or read to its end only."""
    p = make_program(Load(0, 12, False), Depthwise.same(0, 1, False, 12, 3, 1, Layer()), Store(1))
    with suppress(RuntimeError):
        program_eval(guarded(make_map((1, 12, 5, 5), layout="channels_last")), list(p.parameters), p.code)


def matrix_for_taps() -> None:
    """A weight that holds one tap of nine is refused (``tests/program/test_bad_input.py``), not read past its end."""
    p = make_program(Load(0, 512, True), Depthwise.same(0, 1, False, 512, 3, 1, Layer()), Store(1))
    with suppress(RuntimeError):
        program_pack([guarded(p.parameters[0][:, :, 1, 1].contiguous())], p.code)


def training() -> None:
    """Ghost modules, their tails and squeeze-and-excite, forward and backward; the wide ones keep z1."""
    for c, out, side in ((64, 16, 8), (20, 24, 9), (16, 48, 12), (96, 20, 7)):
        for dtype in (torch.float32, torch.bfloat16):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                torch.set_num_threads(1 + side % 2)
                x = guarded(make_map((5, c, side, side)).to(dtype).contiguous(memory_format=memory_format))
                module = FusedGhostModule(c, out).to(dtype).train()
                y = module(x.requires_grad_())
                y.backward(guarded(torch.randn_like(y)))
                w = guarded(torch.randn(c, 1, 3, 3, dtype=dtype)).requires_grad_()
                y = cheap_concat_train(x, None, None, None, w, None, None, None).out
                y.backward(guarded(torch.randn_like(y)))
                y = batch_norm_act_train(x, None, None, act="silu").out
                y.backward(guarded(torch.randn_like(y)))
                weights = [guarded(torch.randn(s, dtype=dtype)) for s in ((9, c), (9,), (c, 9), (c,))]
                y = squeeze_excite(x, *(w.requires_grad_() for w in weights))
                y.backward(guarded(torch.randn_like(y)))


CASES = {
    "every operator": every_operator,
    "training": training,
    "drawn, one thread": lambda: drawn(1),
    "drawn, three threads": lambda: drawn(3),
    "drawn in bfloat16, one thread": lambda: drawn(1, BFLOAT16),
    "drawn in bfloat16, three threads": lambda: drawn(3, BFLOAT16),
    "load by channels": load_by_channels,
    "matrix for taps": matrix_for_taps,
}

if __name__ == "__main__":
    CASES[sys.argv[1]]()
