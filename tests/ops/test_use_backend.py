"""``use_backend("reference")`` reaches every operator, however it is called."""

from __future__ import annotations

import pytest
import torch

import ghost_ops
from ghost_ops import functional
from ghost_ops.activations import ACTIVATIONS, GATES, NONE, PRELU, RELU
from ghost_ops.backends import native, reference
from ghost_ops.backends.registry import SCHEMAS
from ghost_ops.fused.frozen import FrozenProgram
from ghost_ops.ops._library import overload
from tests.helpers import LAYOUTS
from tests.program.drawn import draw_program
from tests.toolchains import nets

HARD_SIGMOID, SIGMOID = map(GATES.index, ("hard_sigmoid", "sigmoid"))
SILU = ACTIVATIONS.index("silu")

pytestmark = pytest.mark.skipif(not native.available(), reason="without the library the reference is all there is")

N, C, M, H, W = 2, 12, 10, 9, 11
OUT = M + 2 * M - 3  # channels that are kept of a Ghost module


def r(*shape):
    return torch.randn(shape)


def halves():
    """Primary and cheap weight with biases, and what follows them in several schemas."""
    return r(M, C, 1, 1), r(M), r(2 * M, 1, 3, 3), r(2 * M)


def statistics(channels):
    return r(channels), torch.rand(channels) + 0.5


def ghost_module_eval(x):
    w1, b1, w2, b2 = halves()
    one, two = (r(M), r(M), *statistics(M)), (r(2 * M), r(2 * M), *statistics(2 * M))
    return (
        x,
        w1,
        b1,
        *one,
        w2,
        b2,
        *two,
        r(N, C),
        r(N, OUT, H, W),
        r(M),
        None,
        OUT,
        PRELU,
        SILU,
        0.1,
        0.1,
        1e-5,
        1e-3,
        True,
    )


def train_backward(x):
    w1, _, w2, _ = halves()
    z = (r(M), r(M)), (r(2 * M), r(2 * M))
    means = (*statistics(M), *statistics(2 * M))
    return r(N, OUT, H, W), x, w1, *z[0], w2, *z[1], None, r(1), *means, None, OUT, RELU, PRELU, 0.1, 0.1, 1e-5, 1e-3


def gated(x):
    args = CALLS["ghost_module_train"](x)
    return x, r(N, OUT, 3, 2), *args[1:-1]


def gated_backward(x):
    grad, x, *args = train_backward(x)
    return grad, x, r(N, OUT, 3, 2), *args[:12], *args[13:]


def tail(z):
    return z, r(C), r(C), r(C), r(C, 1, 3, 3), None, r(C), r(C), None, None, 2 * C - 1, SILU, RELU, 0.1, 0.1, 1e-5, 1e-3


def tail_eval(z):
    one, two = (r(C), r(C), r(C), *statistics(C)), (r(C), r(C), r(C), *statistics(C))
    codes = 2 * C - 1, PRELU, SILU, 0.1, 0.1, 1e-5, 1e-3, True
    return z, *one, r(C, 1, 3, 3), *two, r(N, 2 * C - 1, H, W), r(C), None, *codes


def tail_backward(z):
    z, _, *args = tail(z)
    means = (*statistics(C), *statistics(C))
    return r(N, 2 * C - 1, H, W), z, *args[:3], *args[4:8], *means, *args[8:]


def dfc_gate(x):
    return x, r(M, C, 1, 1), r(M), r(M), r(M, 1, 1, 5), r(M), None, r(M, 1, 3, 1), None, r(M), SIGMOID, 1e-5, 1e-3, 1e-4


def dfc_gate_backward(x):
    x, *args = dfc_gate(x)
    means = (*statistics(M), *statistics(M), *statistics(M))
    return r(N, M, H // 2, W // 2), x, *args[:9], *means, None, *args[9:]


def branched(x):
    gate, norms = r(N, 2 * M - 1, 3, 2), (r(4 * M), r(4 * M))
    numbers = (2, True, 2 * M - 1, SILU, RELU, 0.1, 0.1, 1e-5, 1e-3)
    return x, gate, r(2 * M, C, 1, 1), None, r(2 * M), r(2 * M, 1, 3, 3), r(M, 1, 1, 1), *norms, *numbers, True


def branched_backward(x):
    *args, _ = branched(x)
    means = (*statistics(2 * M), *statistics(4 * M))
    return r(N, 2 * M - 1, H, W), *args[:9], *means, None, *args[9:]


def program(kind):
    def make(x):
        drawn = draw_program(7)
        x = r(N, drawn.channels, 16, 16).to(memory_format=torch.channels_last)
        if kind in ("program", "program_maps"):
            return x, reference.program_pack(drawn.parameters, drawn.code), drawn.code
        return (
            (list(drawn.parameters), drawn.code) if kind == "program_pack" else (x, list(drawn.parameters), drawn.code)
        )

    return make


FOLDED = (OUT, SILU, RELU, 0.1, 0.1)
CALLS = {
    "ghost_module": lambda x: (x, *halves(), r(N, C), r(N, OUT, H, W), None, None, *FOLDED, True),
    "ghost_module_backward": lambda x: (r(N, OUT, H, W), x, *halves(), r(N, C), None, None, *FOLDED),
    "ghost_module_eval": ghost_module_eval,
    "cheap_concat_eval": tail_eval,
    "ghost_module_train": lambda x: (
        x, r(M, C, 1, 1), r(M), r(M), r(M), r(2 * M, 1, 3, 3), None, r(2 * M), r(2 * M), None, None, OUT, SILU, RELU,
        0.1, 0.1, 1e-5, 1e-3, True,
    ),
    "ghost_module_train_backward": train_backward,
    "ghost_module_train_gated": gated,
    "ghost_module_train_gated_backward": gated_backward,
    "dfc_gate_train": dfc_gate,
    "dfc_gate_train_backward": dfc_gate_backward,
    "branched_module_train": branched,
    "branched_module_train_backward": branched_backward,
    "cheap_concat": lambda z: (z, r(C, 1, 5, 5), r(C), None, None, None, 2 * C - 1, NONE, SILU, 0.1, 0.1, True),
    "cheap_concat_backward": lambda z: (
        r(N, 2 * C - 1, H, W), z, r(C, 1, 5, 5), r(C), None, None, 2 * C - 1, NONE, SILU, 0.1, 0.1,
    ),
    "cheap_concat_train": tail,
    "cheap_concat_train_backward": tail_backward,
    "batch_norm_act_train": lambda z: (z, r(C), r(C), r(1), PRELU, 0.1, 1e-3),
    "batch_norm_act_train_backward": lambda z: (
        r(N, C, H, W), z, r(C), r(C), r(1), *statistics(C), PRELU, 0.1, 1e-3,
    ),
    "squeeze_excite": lambda x: (x, r(5, C), r(5), r(C, 5), r(C), SILU, HARD_SIGMOID),
    "excite": lambda x: (r(N, C), r(5, C), r(5), r(C, 5), r(C), SILU, HARD_SIGMOID),
    "squeeze_excite_backward": lambda x: (
        r(N, C, H, W), x, r(N, C), r(N, 5), r(N, C), r(5, C), r(5), r(C, 5), r(C), SILU, HARD_SIGMOID,
    ),
    "depthwise": lambda x: (x, r(C, 1, 5, 5), r(C), 2),
    "depthwise_backward": lambda x: (r(N, C, 5, 6), x, r(C, 1, 5, 5), r(C), 2, True, True),
    "program": program("program"),
    "program_maps": program("program_maps"),
    "program_pack": program("program_pack"),
    "program_eval": program("program_eval"),
}  # fmt: skip


def tensors(results) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else list(results)


def same(results, expected) -> bool:
    pairs = zip(tensors(results), tensors(expected), strict=True)
    return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in pairs)


def test_every_operator_is_tried():
    assert set(CALLS) == set(SCHEMAS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_a_direct_call_gives_the_bits_of_the_reference(name, layout):
    args = CALLS[name](r(N, C, H, W).to(memory_format=LAYOUTS[layout]))
    with torch.no_grad():
        expected = overload(f"{name}_reference")(*args)
        natively = overload(name)(*args)
        with ghost_ops.use_backend("reference"):
            found = overload(name)(*args)
        again = overload(name)(*args)
    assert same(found, expected)
    assert same(again, natively)


def test_the_test_can_tell_the_backends_apart():
    """Of the operators that have CPU kernels; the packed form is the same bits by both."""
    apart = set()
    for name, make in CALLS.items():
        for seed in range(4):
            torch.manual_seed(seed)
            args = make(r(N, C, H, W).to(memory_format=torch.channels_last))
            if not same(overload(name)(*args), overload(f"{name}_reference")(*args)):
                apart.add(name)
    assert apart == CALLS.keys() - {"program_pack"}


def test_wrong_arguments_are_errors_of_the_reference():
    with ghost_ops.use_backend("reference"), pytest.raises(RuntimeError, match="depthwise_reference"):
        overload("depthwise")(r(N, C, H, W), r(C + 1, 1, 3, 3), None, 1)


def test_frozen_nets():
    frozen = ghost_ops.freeze(nets.make("parted"))
    programs, x, seen = [m for m in frozen.modules() if isinstance(m, FrozenProgram)], r(1, 3, 64, 64), []
    compiled = torch.compile(frozen, backend="aot_eager")
    with torch.no_grad():
        natively = frozen(x)
        assert torch.equal(compiled(x), natively)
        with ghost_ops.use_backend("reference"):
            assert torch.equal(compiled(x), frozen(x))
            for m in programs:
                m.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
            found = frozen(x)
        assert len(programs) > 1 and len(seen) == len(programs)
        for m, read, out in seen:
            assert torch.equal(out, overload("program_reference")(read, m.packed, m.steps))
        assert not torch.equal(found, natively)
        assert torch.equal(frozen(x), natively)


class Net(torch.nn.Module):
    """Operators that ask for their backend and operators that do not, with gradients."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(
            [r(M, C, 1, 1), r(M, 1, 3, 3), r(2 * M, 1, 3, 3), r(5, 2 * M), r(2 * M, 5)]
        )

    def forward(self, x):
        w1, w2, w3, w4, w5 = self.weights
        y = functional.ghost_module(x, w1, None, w2, None, act="silu")
        y = torch.ops.ghost_ops.depthwise(y, w3, None, 2)
        return functional.squeeze_excite(y, w4, None, w5, None)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_calls(backend):
    """Compiled before the reference is asked for, or within the block: either way forward and backward are its own."""
    net, x = Net(), r(N, C, H, W).requires_grad_()

    def run(f):
        out = f(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *net.parameters()])]

    natively = run(compiled := torch.compile(net, backend=backend, fullgraph=True))
    with ghost_ops.use_backend("reference"):
        expected = run(net)
        found = run(compiled)
    for a, b, c in zip(found, expected, natively, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))
        assert not torch.equal(a, c)
    assert same(run(compiled), natively)


def test_compiled_direct_calls_give_the_bits_of_the_reference():
    x, w = r(N, C, H, W), r(C, 1, 3, 3)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x):
        return torch.ops.ghost_ops.depthwise(x, w, None, 1)

    natively = run(x)
    with ghost_ops.use_backend("reference"):
        assert torch.equal(run(x), overload("depthwise_reference")(x, w, None, 1))
    assert torch.equal(run(x), natively)


def test_a_block_within_a_compiled_function():
    """Of the public functions, those for inference too."""
    args = CALLS["excite"](None)
    names = {"act": ACTIVATIONS[args[5]], "gate": GATES[args[6]]}

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(*tensors):
        with ghost_ops.use_backend("reference"):
            within = functional.excite(*tensors, **names)
        return within, functional.excite(*tensors, **names)

    with torch.no_grad():
        within, after = run(*args[:5])
    assert torch.equal(within, overload("excite_reference")(*args))
    assert torch.equal(after, overload("excite")(*args))
    assert not torch.equal(within, after)


def test_blocks_nest_and_end_with_exceptions():
    args = CALLS["excite"](None)
    natively, plain = (overload(name)(*args) for name in ("excite", "excite_reference"))
    assert not torch.equal(natively, plain)

    def is_plain():
        return torch.equal(overload("excite")(*args), plain)

    with ghost_ops.use_backend("reference"):
        assert is_plain()
        with ghost_ops.use_backend(None):
            assert not is_plain()
            with ghost_ops.use_backend("reference"):
                assert is_plain()
            assert not is_plain()
        assert is_plain()
        with pytest.raises(KeyError), ghost_ops.use_backend("triton"):
            assert not is_plain()
            raise KeyError
        assert is_plain()
    assert not is_plain()
    with pytest.raises(KeyError), ghost_ops.use_backend("reference"):
        raise KeyError
    assert not is_plain()
    with pytest.raises(ValueError, match="use_backend"), ghost_ops.use_backend("native"):
        pass
    assert not is_plain()
