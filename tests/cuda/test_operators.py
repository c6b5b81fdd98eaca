"""The operators of ``_cuda.so`` on tensors of the CPU, run by the emulator: what lies between Python and kernels."""

from __future__ import annotations

import re
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import ghost_ops
from ghost_ops.activations import ACTIVATIONS, NONE
from ghost_ops.backends import cuda, reference
from ghost_ops.backends.cuda import elsewhere, launch, plan
from ghost_ops.backends.cuda.ghost_module import _block_of, ghost_module
from ghost_ops.backends.cuda.program import describe, program, summary
from ghost_ops.backends.cuda.weights import Block
from ghost_ops.program import BFLOAT16, FLOAT32, Conv, Depthwise, Layer, Linear, Load, Multiply, Store, with_precision
from tests.cuda import emulate
from tests.cuda.programs import draw_block, draw_chain
from tests.helpers import assert_as_accurate, make_map, poisoned_memory, randomise
from tests.ops.cases import Errors
from tests.program.cases import make_program
from tests.program.drawn import draw_program
from tests.triton.interpreted.drawn import draw

LEAKY_RELU = ACTIVATIONS.index("leaky_relu")

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _emulated(one_thread):
    """As on a machine with an H200: the very functions of the package, down to the dispatcher and C++."""
    with emulate.Emulator().running():
        yield


@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_programs(dtype, precision):
    for seed in range(12):
        p, x = draw_block(seed + 50) if seed % 2 else (draw_program(seed + 50), None)
        x = make_map((2, p.channels, 9, 8), dtype, "channels_last", seed) if x is None else x.to(dtype)
        code = with_precision(p.code, precision)
        packed = reference.program_pack([t.to(dtype).float() for t in p.parameters], code)
        plain, exact = (reference.program(v, packed, code) for v in (x, x.double()))
        with poisoned_memory():
            found = program(x, packed, code)
        # the largest error of a few hundred results is luck; test_emulated.py takes twice PyTorch's, over many cases
        assert_as_accurate(found, plain, exact, 4.0, what=f"{p.steps}", ulps=8)


def test_convolutions_that_do_not_keep_channels_last(monkeypatch):
    """As PyTorch's depthwise ones on a device: what comes next takes channels_last alone."""
    convolved, cases = F.conv2d, [draw_program(seed) for seed in range(60)]
    seen = []

    def conv2d(*args):
        seen.append(convolved(*args).contiguous())
        return seen[-1]

    for seed, p in enumerate(cases):
        x = make_map((2, p.channels, 9, 8), torch.float32, "channels_last", seed)
        packed = reference.program_pack(p.parameters, p.code)
        expected = program(x, packed, p.code)
        with monkeypatch.context() as patch:
            patch.setattr(F, "conv2d", conv2d)
            torch.testing.assert_close(program(x, packed, p.code), expected, rtol=1e-4, atol=1e-4)
    assert sum(not out.is_contiguous(memory_format=LAST) for out in seen) > 10


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_ghost_module(dtype):
    errors = Errors()
    for seed in range(20):
        case = draw("ghost_module", seed)
        tensors = {k: None if t is None else t.to(dtype) for k, t in case.tensors.items()}
        for name in ("x", "residual"):
            if tensors.get(name) is not None:
                tensors[name] = tensors[name].contiguous(memory_format=LAST)
        call = _arguments(tensors, case.options)
        found = ghost_module(*call)
        double = [t.double() if isinstance(t, torch.Tensor) else t for t in call]
        plain, exact = reference.ghost_module(*call), reference.ghost_module(*double)
        for what, ours, p, e in zip(("output", "squeeze"), found, plain, exact):
            if ours.numel():
                errors.add(what, ours, p, e)
                assert_as_accurate(ours, p, e, 4.0, what=f"{what} of {case}", ulps=8)
    errors.assert_within(2.0)


def test_a_ghost_module_is_few_launches():
    """Its parameters one after the other, the gather, the kernel; and the slope of a LeakyReLU is not rounded to the
    maps' dtype."""
    x = make_map((2, 16, 5, 6), torch.bfloat16, "channels_last")
    w, bias, cheap = (torch.randn(shape).bfloat16() for shape in ((8, 16, 1, 1), (8,), (8, 1, 3, 3)))
    seen, vectors = [], []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name().split("::")[1])
            if func.name() == "ghost_ops::_cuda_module":
                vectors.append(args[2])
            return func(*args, **(kwargs or {}))

    for _ in range(2):
        seen.clear()
        with Record():
            ghost_module(x, w, bias, cheap, None, *[None] * 4, 16, LEAKY_RELU, NONE, 0.01, 0.0, False)
    assert [name for name in seen if "view" not in name] == ["full", "cat", "_cuda_gather", "_cuda_module"]
    assert (vectors[0] == torch.tensor(0.01)).sum() == 8


def _arguments(tensors: dict, options: dict) -> tuple:
    """As the public function hands them to the operator."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        from ghost_ops.ops import ghost_module as public

        def record(decision, x, *args):
            seen.append((x, *args))
            return x, x

        patch.setattr(public, "call_ghost_module", record)
        public.ghost_module(**tensors, **options)
    return seen[0]


def test_a_whole_net_at_its_own_size():
    """GhostNet-050 at 64 x 64, frozen: one call from the image to the logits, as it comes."""
    net = randomise(ghost_ops.models.ghostnet_050()).eval()
    frozen = next(m for m in ghost_ops.freeze(net).modules() if isinstance(m, ghost_ops.fused.FrozenProgram))
    x = make_map((1, 3, 64, 64), torch.float32)
    ((names, found),) = describe(x, frozen.packed, frozen.steps)
    assert sum(name.startswith("bottleneck") for name in names) == 16 and len(names) == 20
    assert isinstance(found, plan.Plan)
    said = summary(x, frozen.packed, frozen.steps)
    counts = r"16 bottlenecks and 4 other blocks in \d+ launches move [\d.]+ MB"
    assert re.match(counts + r", by module it would be [\d.]+ MB", said)
    seen = []
    with torch.no_grad():
        with Record(seen):
            out = program(x, frozen.packed, frozen.steps)
        weights = {"_cuda_gather", "new_empty", "view", "cat"}  # made again where a mode watches
        assert [name for name in seen if name not in weights | {"slice", "detach"}] == ["_cuda_chain"]
        last = x.contiguous(memory_format=LAST)
        assert torch.equal(program(last, frozen.packed, frozen.steps), out)
        # a unit in the last place of each of its 64 convolutions: PyTorch's are summed in another order
        assert_as_accurate(out, net(x), net.double()(x.double()), ulps=64, what="the net")


class Record(TorchDispatchMode):
    """The names of operators that run."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name().split("::")[1].split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", emulate.DTYPES)
def test_maps_that_begin_anywhere(dtype):
    """Views, whose first element no vector of 16 bytes begins at."""
    for seed in (s for s in range(200) if draw_block(s)[0].channels % 8 == 0):
        p, x = draw_block(seed)
        packed = reference.program_pack(p.parameters, p.code)
        x = x.to(dtype).contiguous(memory_format=LAST)
        memory = torch.full((x.numel() + 64,), torch.nan, dtype=dtype)
        view = memory.as_strided(x.shape, x.stride(), 33 - memory.data_ptr() // dtype.itemsize % 32).copy_(x)
        assert view.data_ptr() % 16 != 0
        assert torch.equal(program(view, packed, p.code), program(x, packed, p.code))
        if seed > 20:
            break


def test_parameters_in_half_precision():
    """A frozen net that was converted itself, ``frozen.half()``."""
    p, x = draw_block(3)
    x, packed = x.half(), reference.program_pack(p.parameters, p.code).half()
    assert torch.equal(program(x, packed, p.code), program(x, packed.float(), p.code))


def test_no_images():
    p, x = draw_block(3)
    packed = reference.program_pack(p.parameters, p.code)
    assert program(x[:0], packed, p.code).shape[0] == 0


def test_what_does_not_fit_runs_elsewhere(monkeypatch):
    """First the modules of a bottleneck one by one, then all on the next backend."""
    seed = next(s for s in range(100) if len(draw_block(s)[0].steps) == 7 and draw_block(s)[0].channels > 16)
    p, x = draw_block(seed)
    packed = reference.program_pack(p.parameters, p.code)
    expected = program(x, packed, p.code)
    assert kinds_of(describe(x, packed, p.code)) == ("bottleneck",)
    (_, whole) = describe(x, packed, p.code)[0]
    seen = set()
    for shared in range(whole.shared, 0, -256):
        monkeypatch.setattr(plan, "limits", lambda device, shared=shared: (132, shared))
        emulate.clear()
        found = describe(x, packed, p.code)
        kinds = None if found is None else kinds_of(found)
        if kinds not in seen:
            seen.add(kinds)
            if kinds is None or len(kinds) > 1:
                out = reference.program(x, packed, p.code) if kinds is None else _by_step(x, packed, p.code, found)
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert None in seen and any(kinds and len(kinds) > 1 for kinds in seen)
    assert summary(x, packed, p.code) == "in fact on the next backend, since no part of a Ghost module fits the device"
    torch.testing.assert_close(program(x, packed, p.code), expected, rtol=1e-4, atol=1e-4)
    w, cheap = torch.randn(4, 3, 1, 1), torch.randn(4, 1, 3, 3)
    x = make_map((1, 3, 5, 5), layout="channels_last")
    arguments = (x, w, None, cheap, None, None, None, None, None, 8, 1, 1, 0.0, 0.0, False)
    torch.testing.assert_close(ghost_module(*arguments)[0], reference.ghost_module(*arguments)[0])


def test_the_indices_of_single_modules_are_few(monkeypatch):
    """Their weights may be folded anew for every call, so that the index goes by use; what a CUDA graph reads stays."""
    _block_of.cache_clear()
    captured, module = set(), sys.modules[ghost_module.__module__]
    monkeypatch.setattr(module, "_captured", captured)
    x = make_map((1, 3, 5, 5), layout="channels_last")
    cheap = torch.randn(4, 1, 3, 3)

    def run():
        arguments = (x, torch.randn(4, 3, 1, 1), None, cheap, None, None, None, None, None, 8, 1, 1, 0.0, 0.0, False)
        torch.testing.assert_close(ghost_module(*arguments)[0], reference.ghost_module(*arguments)[0])

    run(), run()
    found = _block_of.cache_info()
    assert (found.hits, found.misses, found.maxsize) == (1, 1, 128) and not captured
    with monkeypatch.context() as patch:
        patch.setattr(module, "_is_captured", lambda index: True)
        run(), run()
    assert len(captured) == 1


def test_depthwise_convolutions_that_are_in_no_block(monkeypatch):
    """Along rows or columns, as in the gate of DFC attention: Triton's kernels where they run."""
    steps = (
        Load(0, 8, True), Depthwise(0, 1, False, 8, (1, 5), (1, 1), (0, 2), (1, 1), Layer()),
        Depthwise(1, 2, True, 8, (5, 1), (1, 1), (2, 0), (1, 1), Layer()), Multiply(0, 2, 3, False, 8), Store(3),
    )  # fmt: skip
    p = make_program(*steps)
    packed, x, seen = reference.program_pack(p.parameters, p.code), make_map((2, 8, 5, 6), layout="channels_last"), []
    expected = reference.program(x, packed, p.code)
    torch.testing.assert_close(program(x, packed, p.code), expected)
    assert "no kernel here computes 2 Depthwise, 1 Multiply" in summary(x, packed, p.code)

    def depthwise(self, step, folded):
        seen.append(step.kernel)
        step.run(self, folded)

    monkeypatch.setattr(elsewhere.triton, "refuse_device", lambda device: None)
    fake = types.SimpleNamespace(TritonInterpreter=types.SimpleNamespace(depthwise=depthwise))
    monkeypatch.setitem(sys.modules, "ghost_ops.backends.triton.program", fake)
    torch.testing.assert_close(program(x, packed, p.code), expected)
    assert seen == [(1, 5), (5, 1)]


def kinds_of(described) -> tuple[str, ...]:
    """Of what there are kernels for."""
    return tuple(name.split()[0] for names, found in described if found is not None for name in names)


def _by_step(x, packed, code, found):
    """The kernels themselves plan for an H200: what matters here is which of them are called."""
    assert "bottleneck" not in kinds_of(found)
    return program(x, packed, code)


def test_bad_input_is_an_error_before_a_kernel_runs():
    """The private operators, called with what the package would never hand them."""
    p, x = draw_block(4)
    packed = reference.program_pack(p.parameters, p.code)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch_chain", lambda *args: seen.append(args) or args[0])
        program(x, packed, p.code)
    ((x, matrices, vectors, numbers),) = seen
    (block,) = emulate.blocks_of(numbers)
    call = lambda *arguments: torch.ops.ghost_ops._cuda_chain(*arguments, [])

    def changed(**fields: object) -> list[int]:
        values = {**vars(block), "height": x.shape[2], "width": x.shape[3], **fields}
        return Block(**values).numbers(values["height"], values["width"])

    call(x, matrices, vectors, numbers)
    for arguments, message in (
        ((x.contiguous() if x.numel() > x.shape[1] else x.double(), matrices, vectors, numbers), "x: a map|expected a"),
        ((x, matrices.half(), vectors, numbers), "matrices: as dense as x, in its dtype"),
        ((x, matrices, vectors.double(), numbers), "vectors: dense float32"),
        ((x, torch.cat([matrices[:1], matrices])[1:], vectors, numbers), "parameters that begin at 16 bytes"),
        ((x, matrices, torch.cat([vectors[:1], vectors])[1:], numbers), "parameters that begin at 16 bytes"),
        ((x, matrices[:-1], vectors, numbers), "parameters outside of their buffers"),
        ((x, matrices, vectors[:-16], numbers), "parameters outside of their buffers"),
        ((x, matrices, vectors, numbers[:-1]), "blocks that ghost_ops wrote"),
        ((x, matrices, vectors, [2**40, *numbers[1:]]), "32 bits"),
        ((x, matrices, vectors, changed(height=0)), "a map of no pixels"),
        ((x, matrices, vectors, changed(height=x.shape[2] + 1)), "x: a map of the block's sizes"),
        ((x, matrices, vectors, changed(cheap_kernel=2)), "a kernel"),
        ((x, matrices, vectors, changed(kernel=0, stride=2)), "a stride without a convolution"),
        ((x, matrices, vectors, changed(kept2=10**4)), "the channels kept"),
        ((x, matrices, vectors, changed(primary=0, kernel=3)), "more than a module|a bottleneck"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)


def test_blocks_that_do_not_follow_each_other():
    """As the package would never hand them over, either: a convolution of an image, bottlenecks, linear layers."""
    cases = (draw_chain(seed) for seed in range(200))
    p, x, _ = next(
        c for c in cases if isinstance(c[0].steps[0], Conv) and isinstance(c[0].steps[-2], Linear) and c[2] > 4
    )
    packed, seen = reference.program_pack(p.parameters, p.code), []
    with pytest.MonkeyPatch.context() as patch:
        own = launch.launch_chain
        patch.setattr(launch, "launch_chain", lambda *args: seen.append(args) or own(*args))
        program(x, packed, p.code)
    ((x, matrices, vectors, numbers),) = seen
    count = len(emulate.blocks_of(numbers))

    def call(order=range(count), at=0, **fields: object):
        blocks = [emulate.blocks_of(numbers)[i] for i in order]
        vars(blocks[at]).update(fields)
        flat = [n for b in blocks for n in b.numbers(b.height, b.width, (b.image_height, b.image_width))]
        return torch.ops.ghost_ops._cuda_chain(x, matrices, vectors, flat, [])

    assert call().shape[0] >= x.shape[0]
    for arguments, message in (
        ({"order": [0] * 65}, "more than 64"),
        ({"order": [*range(1, count)]}, "x: a map"),
        ({"order": [count - 1]}, "a linear layer without a block before it"),
        ({"order": [0, 0]}, "windows of a map that is not the image"),
        ({"order": [0, count - 1]}, "does not have the channels"),
        ({"at": 1, "height": 1000}, "does not have the map"),
        ({"at": -1, "linear": 3}, "a linear layer that is none"),
        ({"at": -1, "linear": 1}, "means of what is no 1x1 convolution"),
        ({"at": -2, "linear": 2}, "a linear layer without features"),
        ({"window": 0}, "x: a map"),
        ({"window": 64}, "an image or its windows"),
        ({"window_padding": 1000}, "an image or its windows"),
        ({"image_height": 5000}, "windows that do not make this map"),
        (
            {"at": 1, "window": 1},
            "a window in a block that is not a convolution|windows of a map that is not the image",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(**arguments)


def test_the_loader_says_why():
    if torch.version.cuda is None:
        assert not cuda.could_load() and not cuda.available()
        assert cuda.reason() == "this PyTorch was built without CUDA"
    assert cuda.refuse_device(torch.device("cpu")) == "its kernels run on CUDA devices, the input is on cpu"
