"""Every operator: C++ starts the very launches that Triton's own launcher starts."""

from __future__ import annotations

import importlib
import random
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from torch.utils._python_dispatch import TorchDispatchMode

import ghost_ops
from ghost_ops.backends.triton import launch_cache, launch_native, program_train
from ghost_ops.dispatch import plain
from ghost_ops.fused.behaviour import block_of
from tests.triton import calls
from tests.triton.stub_driver import needs_native, under_triton

pytestmark = [needs_native, pytest.mark.usefixtures("driver")]
FOLDER = Path(launch_cache.__file__).parent
CACHED = {file.stem: re.findall(r"@cached_launches\ndef (\w+)", file.read_text()) for file in FOLDER.glob("*.py")}


def collected(call):
    """The operators that a call runs, each with its arguments."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for file, names in CACHED.items():
            for name in names:
                module = importlib.import_module(f"ghost_ops.backends.triton.{file}")
                function = getattr(module, name)

                def note(*args, _function=function):
                    found.append((_function, args))
                    return _function(*args)

                patch.setattr(module, name, note)
        call()
    return found


class Keeping(TorchDispatchMode):
    """Keeps all allocations, so that no two have the same address."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.kept.append(func(*args, **(kwargs or {})))
        return self.kept[-1]


def storages(tensors):
    return [(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors]


def flat(args):
    found = []
    for a in args:
        found += flat(a) if isinstance(a, (list, tuple)) else [a] if isinstance(a, torch.Tensor) else []
    return found


def started(driver, function, args):
    """What the function starts: with each address as the argument, the result or the scratch memory that it is in."""
    driver.library.stub_reset()
    results = function(*args)
    places = [(kind, i, *found) for kind, tensors in (("argument", flat(args)), ("result", flat([results])))
              for i, found in enumerate(storages(tensors))]  # fmt: skip
    rows, scratch = [], []
    for one in driver.launches():
        kernel, types = driver.functions[one.function]
        row = [kernel.__name__, *one.grid, *one.block, one.shared, one.stream, one.attribute_count]
        for kind, value in zip([*types, "scratch", "scratch"], one.parameters(), strict=True):
            if kind.startswith("*"):
                place = next(
                    ((k, i, value - start) for k, i, start, size in places if start <= value < start + size), None
                )
                if place is None:
                    scratch.append(value)
                row.append(("scratch", value) if place is None else place)
            else:
                row.append(value)
        rows.append(row)
    base = min(scratch, default=0)
    rows = [[("scratch", v[1] - base) if isinstance(v, tuple) and v[0] == "scratch" else v for v in r] for r in rows]
    return rows, [(t.shape, t.stride(), t.dtype, t.storage_offset()) for t in flat([results])]


def without_scratch(rows):
    return [["scratch" if isinstance(v, tuple) and v[0] == "scratch" else v for v in row] for row in rows]


def compare(driver, monkeypatch, function, args):
    """Python and C++ start the same, which is what a full run starts. Returns how many kernels."""
    with monkeypatch.context() as patch, Keeping():
        patch.setattr(launch_cache, "_switched_off", lambda: True)
        full, forms = started(driver, function, args)
    found = {}
    for name, why in (("python", "the test asks for it"), ("c++", None)):
        with monkeypatch.context() as patch:
            patch.setattr(launch_native, "_state", lambda why=why: why)
            patch.setattr(launch_cache, "_launches", launches := {})
            patch.setattr(launch_cache, "_kinds", {})
            for _ in range(2):
                found[name] = started(driver, function, args)
            (entry,) = launches.values()
            if entry is None:  # computes in torch between its launches
                return 0
            assert (type(entry) is launch_native.Native) == (name == "c++"), launch_native._refusals
    assert found["python"] == found["c++"]
    assert without_scratch(full) == without_scratch(found["c++"][0]) and forms == found["c++"][1]
    return len(full)


def drawn(seed):
    """A call of drawn shapes."""
    draw = random.Random(seed)
    c, m, side, n = draw.randint(1, 70), draw.randint(1, 70), draw.randint(1, 40), draw.randint(1, 5)
    dtype = draw.choice([torch.float32, torch.float16, torch.bfloat16])
    layout = draw.choice([torch.channels_last, torch.contiguous_format])
    rest = {"layout": layout, "n": n, "d": draw.choice([1, 3, 5, 7]), "act": draw.randint(0, 5)}
    return draw.choice(
        [
            lambda: calls.training(c, m, side, dtype, multiplier=draw.randint(1, 3), **rest),
            lambda: calls.inference(c, m, side, dtype, more=draw.random() < 0.5, **rest),
            lambda: calls.folded(c, m, side, dtype, cheap=draw.random() < 0.7, **rest),
            lambda: calls.excitation(4 * c, side, dtype, layout=layout),
            lambda: calls.concatenation(m, side, dtype, d=rest["d"], layout=layout),
        ]
    )


def others():
    x, weight = torch.empty(2, 48, 20, 20, dtype=torch.float16), torch.empty(48, 1, 5, 5)
    calls.depthwise.depthwise(x.to(memory_format=torch.channels_last), weight, None, 2)
    calls.squeeze_excite.image_sums(x, None, True)


def block(memory, *arguments, side=14, dtype=torch.float16, **options):
    """A bottleneck in training: forward and backward in a recording each."""
    net = ghost_ops.FusedGhostBottleneck(*arguments, **options).train()
    x = torch.empty(2, arguments[0], side, side, dtype=dtype).to(memory_format=torch.channels_last)
    call = block_of(net)._training_call(net, x, plain())
    out, *saved = program_train.program_train(x, call.tensors, call.momenta, call.number, memory)
    tensors = [t if i in call.signature.parameters else None for i, t in enumerate(call.tensors)]
    program_train.program_train_backward(torch.empty_like(out), x, tensors, saved, call.number, memory)


BLOCKS = {
    "block": lambda: block("balanced", 24, 72, 24, dtype=torch.float32),
    "block, low": lambda: block("low", 16, 48, 24, 3, 2, dtype=torch.float32),
    "block, fast": lambda: block("fast", 40, 120, 40, 5, 1, 0.25, dtype=torch.float32),
}
NAMED = dict(calls.core(torch.float16) + calls.odd(torch.bfloat16)) | {"others": others} | BLOCKS


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has the driver of the device: tests/gpu compares there")
@pytest.mark.parametrize("case", [*NAMED, *range(12)])
def test_c_starts_what_tritons_launcher_starts(driver, monkeypatch, case):
    with under_triton(driver):
        operators = collected(NAMED[case] if case in NAMED else drawn(case))
        kernels = [compare(driver, monkeypatch, function, args) for function, args in operators]
    assert sum(kernels) > 0 or not operators  # calls.py has calls of kernels that no operator starts by itself


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has the driver of the device")
def test_every_operator_is_among_them(driver):
    with under_triton(driver):
        found = {function.__name__ for call in NAMED.values() for function, _ in collected(call)}
    assert found == {name for names in CACHED.values() for name in names} and len(found) >= 16
