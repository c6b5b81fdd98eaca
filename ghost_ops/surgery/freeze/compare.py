"""A frozen net beside its source, on drawn inputs: what they return, and what a call leaves behind.

Both are private copies, so that nothing of the user's is called, counted or drawn from.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from ...fused.behaviour import Fused
from ...fused.errors import first_line
from ...fused.frozen_net import Frozen

TOLERANCE = 1e-3  # of the largest value
HALF_TOLERANCE = 0.5  # in half precision, where a deep net of drawn weights is easily off by a tenth
SIZES = (
    (64, 96), (97, 75), (224, 224), (32, 32), (28, 28), (112, 112), (160, 160), (256, 256), (112, 96), (128, 128),
    (192, 192), (299, 299), (384, 384), (512, 512), (640, 640),
)  # fmt: skip
BATCHES = (2, 1)
MOST_CALLS = 4  # of one module that is compared on its own
_HALVES = (torch.float16, torch.bfloat16)
_DEEPEST = 4  # objects in objects, when looking for what a call has changed
_PLAIN_VALUES = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, nn.Module, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_OURS = (Fused.state_name, Frozen.state_name)  # plans and programs, which a call may make
_OF_PYTORCH = frozenset(vars(nn.Module()))


class Arguments(NamedTuple):
    """The arguments of a call, whose tensors are never given to anybody but as copies."""

    args: tuple
    kwargs: dict

    @classmethod
    def of(cls, example: object) -> Arguments:
        """Those that ``explain`` too takes an example for: a tensor, a sequence of arguments, a mapping of keywords."""
        if isinstance(example, Mapping):
            return cls((), dict(example))
        return cls(tuple(example) if isinstance(example, (tuple, list)) else (example,), {})

    def __str__(self) -> str:
        named = (f"{name}={_kind(value)}" for name, value in self.kwargs.items())
        return f"({', '.join((*map(_kind, self.args), *named))})"

    def copied(self, dtype: torch.dtype | None = None) -> Arguments:
        """Another such, its half-precision tensors, or with ``dtype`` its floating-point ones, in another dtype."""

        def new(t: object) -> object:
            if not isinstance(t, torch.Tensor):
                return t
            return t.to(dtype, copy=True) if dtype is not None and t.is_floating_point() else t.detach().clone()

        return Arguments(*tree_map(new, tuple(self)))

    def channels_last(self) -> Arguments:
        """Another such, its maps laid out channels_last."""

        def new(t: object) -> object:
            is_map = isinstance(t, torch.Tensor) and t.dim() == 4
            return t.clone(memory_format=torch.channels_last) if is_map else t

        return Arguments(*tree_map(new, tuple(self)))


def _kind(value: object) -> str:
    """What an argument is, for people."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape)) or 'scalar'}"
    return _short(value)


def private(net: nn.Module) -> nn.Module:
    """A copy of which nothing reaches the user's objects, its half-precision parameters and buffers in float32.

    Hooks that are functions would be the very ones of ``net``: they are left out.
    """
    memo: dict[int, object] = {}
    for module in net.modules():
        for name, hooks in vars(module).items():
            if "_hooks" in name and isinstance(hooks, dict):
                kept = {key: hook for key, hook in hooks.items() if not isinstance(hook, types.FunctionType)}
                if len(kept) < len(hooks):
                    memo[id(hooks)] = OrderedDict(copy.deepcopy(kept))
    made = copy.deepcopy(net, memo)
    if any(t.dtype in _HALVES for t in (*made.parameters(), *made.buffers())):
        made._apply(lambda t: t.float() if t.dtype in _HALVES else t)
    return made


# Inputs


def draw(net: nn.Module) -> list[Arguments]:
    """Up to two inputs that a net accepts, of different batches, and of different sizes where it accepts such."""
    if drawn(net, 1, (1, 1)) is None:
        return []
    found: list[Arguments] = []
    sizes = list(SIZES)
    while sizes and len(found) < len(BATCHES):
        height, width = sizes.pop(0)
        for batch in BATCHES:
            if any(call.args[0].shape[0] == batch for call in found):
                continue
            call = drawn(net, batch, (height, width), len(found))
            if accepts(net, call):
                found.append(call)
                if len(found) == 1:  # a net whose last kernel is as large as its map accepts sizes a little apart
                    near = [(height + n, width + 2 * n) for n in (1, -1)]
                    sizes = [*sizes[:1], *near, *sizes[1:], (height, width)]
                break  # the next one is of another size
    return found


def drawn(net: nn.Module, batch: int, size: tuple[int, int], seed: int = 0) -> Arguments | None:
    """So many images of this height and width; None where no convolution says how many channels one has, or no
    parameter on which device."""
    channels = input_channels(net)
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    if channels is None or like is None or like.is_meta:
        return None
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, channels, *size), dtype=torch.float32, device="cpu", generator=generator)
    return Arguments((x.to(like.device, like.dtype),), {})


def input_channels(net: nn.Module) -> int | None:
    """Number of channels of an image, which the first convolution says; None where there is none."""
    return next(filter(None, map(_input_channels, net.modules())), None)


def _input_channels(module: nn.Module) -> int | None:
    """Number of input channels of a convolution, a scripted or traced one too; None of another module."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    if isinstance(module, torch.jit.ScriptModule) and module.original_name == "Conv2d":
        return module.weight.shape[1] if getattr(module, "groups", 1) == 1 else None
    return None


def accepts(net: nn.Module, call: Arguments) -> bool:
    """Whether a net returns something of these arguments."""
    return refusal(net, call) is None


def refusal(net: nn.Module, call: Arguments) -> str | None:
    """The error that a net raises of these arguments, in a line; None where it returns something."""
    try:
        with undisturbed(net), torch.no_grad():
            _run(private(net), call, 0)
    except Exception as error:
        return first_line(error)
    return None


def why_none(net: nn.Module) -> str:
    """Why no input could be drawn, and what was tried."""
    why = "no input that it accepts could be drawn"
    channels = input_channels(net)
    if channels is None:
        return f"{why}: none of its convolutions says how many channels one has"
    calls = [drawn(net, BATCHES[0], size) for size in SIZES[:1]]
    if None in calls:
        return f"{why}: its parameters are on the meta device"
    sizes = ", ".join(f"{height} x {width}" for height, width in SIZES)
    error = "".join(f" ({refusal(net, call)})" for call in calls)
    return f"{why}: tensors of {channels} channels and of {sizes} pixels were tried{error}"


def observe(net: nn.Module, calls: Sequence[Arguments], paths: Collection[str]) -> dict[str, list[Arguments]]:
    """What the modules at these paths are called with while a copy of a net runs on these arguments, by path."""
    net, seen = private(net), {}
    for path, module in net.named_modules():
        if path and path in paths:
            module.register_forward_pre_hook(_noting(seen.setdefault(path, [])), with_kwargs=True)
    with undisturbed(net), torch.no_grad():
        for call in calls:
            _run(net, call, 0)
    return seen


def _noting(calls: list[Arguments]) -> Callable:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        if len(calls) < MOST_CALLS:
            calls.append(Arguments(args, kwargs).copied())

    return hook


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """Put random generators back afterwards, and let convolutions on a CUDA device keep the precision of float32.

    What the net warns of is for its own calls to say.
    """
    devices = {t.device for t in (*net.parameters(), *net.buffers()) if t.is_cuda}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        if devices:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with torch.random.fork_rng(devices=sorted(devices, key=str)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if devices:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)


# Differences


def difference(source: nn.Module, frozen: nn.Module, calls: Iterable[Arguments]) -> str | None:
    """How a frozen module differs from its source, in a sentence; None where it does not.

    Every call is made twice without gradients and twice with, once in inference mode at the end; random generators are
    seeded alike before the two, and differently from call to call.

    Args:
        source: ``private``; it is run.
        frozen: another such, frozen; it is run too.
        calls: what the source accepts.
    """
    calls, seed = list(calls), 0
    runs = [(call, mode) for call in calls for mode in (torch.no_grad, torch.enable_grad) for _ in range(2)]
    runs += [(call, torch.inference_mode) for call in calls[:1]]
    before = _state(source)
    with undisturbed(source):
        for call, mode in runs:
            seed += 1
            with mode():
                theirs, given = _run(source, call, seed)
                try:
                    ours, changed = _run(frozen, call, seed)
                except Exception as error:
                    return f"it fails where its source does not ({first_line(error)})"
                why = _different(ours, theirs) or _different(changed, given)
            if why is not None:
                how = {torch.no_grad: "", torch.enable_grad: " with gradients enabled"}
                return f"its result would not be that of its source{how.get(mode, ' in inference mode')}: {why}"
    return _left_behind(before, _state(source), _state(frozen))


def unlike(frozen: nn.Module, source: nn.Module, call: Arguments, dtype: torch.dtype) -> str | None:
    """What is wrong with a net frozen in half precision, of which rounding is allowed to change much."""
    with undisturbed(source), torch.no_grad():
        theirs = _run(private(source), call, 0)[0]
        try:
            ours = _run(frozen, call.copied(dtype), 0)[0]
        except Exception as error:
            return f"in {dtype} it fails ({first_line(error)})"
    why = _different(tree_map(_widened, ours), tree_map(_widened, theirs), tolerance=HALF_TOLERANCE)
    return None if why is None else f"its result in {dtype} is far from that of its source: {why}"


def _widened(t: object) -> object:
    return t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t


def _run(net: nn.Module, call: Arguments, seed: int) -> tuple[object, object]:
    """What a net returns, and its arguments afterwards."""
    call = call.copied()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every device
    for device in {p.device for p in net.parameters() if p.is_cuda}:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    kinds = {p.device.type for p in net.parameters()} | {"cpu"}
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        return net(*call.args, **call.kwargs), tuple(call)


def _different(ours: object, theirs: object, tolerance: float = TOLERANCE) -> str | None:
    a, structure = tree_flatten(ours)
    b, other = tree_flatten(theirs)
    if type(ours) is not type(theirs) or structure != other:
        return f"a {type(ours).__name__} instead of a {type(theirs).__name__}, or another structure"
    for x, y in zip(a, b, strict=True):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            why = _different_tensors(x, y, tolerance)
        else:
            alike = _same_value(_frozen_value(x, _DEEPEST), _frozen_value(y, _DEEPEST))
            why = None if alike else f"{_short(x)} instead of {_short(y)}"
        if why is not None:
            return why
    return None


def _different_tensors(x: torch.Tensor, y: torch.Tensor, tolerance: float) -> str | None:
    if (x.shape, x.dtype, x.device) != (y.shape, y.dtype, y.device):
        kinds = (f"{t.dtype} of shape {tuple(t.shape)} on {t.device}" for t in (x, y))
        return " instead of ".join(kinds)
    if not y.is_floating_point():
        return None if torch.equal(x, y) else "other values"
    x, y = x.detach(), y.detach()
    if not y.numel():
        return None
    wide = torch.promote_types(y.dtype, torch.float32)
    scale, error = _largest(y.to(wide)), _largest(x.to(wide) - y.to(wide))
    if math.isfinite(error):  # so are all values: an infinity or NaN of either would be in it
        return _too_far(error, scale, tolerance)
    x, y = x.double(), y.double()
    finite = y.isfinite()
    if not torch.equal(finite, x.isfinite()) or not torch.equal(y.isnan(), x.isnan()):
        return "values that are not finite in other places"
    if not finite.any():
        return None
    return _too_far(_largest((x - y)[finite]), _largest(y[finite]), tolerance)


def _too_far(error: float, scale: float, tolerance: float) -> str | None:
    if error <= tolerance * scale + torch.finfo(torch.float32).tiny:
        return None
    return f"off by {error:.2g}, where the largest value is {scale:.2g}"


def _largest(t: torch.Tensor) -> float:
    """The largest absolute value."""
    least, most = t.aminmax()
    return max(-float(least), float(most))


def _equal(a: object, b: object) -> bool:
    try:
        return bool(a == b) or (a != a and b != b)
    except Exception:
        return type(a) is type(b)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


# What a call leaves behind


def _state(net: nn.Module) -> dict[tuple[str, str], object]:
    """Attributes and buffers of a net's modules, by path and name, as values that later calls do not change."""
    found: dict[tuple[str, str], object] = {}
    for path, module in net.named_modules():
        values = {**vars(module), **module._buffers, **module._parameters}
        for name, value in values.items():
            if name not in _OF_PYTORCH and not isinstance(value, nn.Module) and name not in _OURS:
                found[path, name] = _frozen_value(value, _DEEPEST)
    return found


def _frozen_value(value: object, depth: int) -> object:
    if value is None or isinstance(value, _PLAIN_VALUES):
        return value
    if isinstance(value, torch.Tensor):
        return (value.detach().clone(),) if not value.is_meta else ()
    if depth == 0 or isinstance(value, _OPAQUE):
        return type(value).__name__
    if isinstance(value, Mapping):
        return {repr(key): _frozen_value(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [_frozen_value(item, depth - 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return {name: _frozen_value(item, depth - 1) for name, item in getattr(value, "__dict__", {}).items()}


def _left_behind(before: dict, theirs: dict, ours: dict) -> str | None:
    for (path, name), value in theirs.items():
        if (path, name) in before and _same_value(before[path, name], value):
            continue
        if (path, name) not in ours or not _same_value(ours[path, name], value):
            where = f"{path}.{name}" if path else name
            return f"a call changes {where!r}, which the frozen one would not"
    return None


def _same_value(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_value(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is not torch.Size:
        return len(a) == len(b) and all(map(_same_value, a, b))
    if isinstance(a, torch.Tensor):
        return _different_tensors(a, b, TOLERANCE) is None
    return _equal(a, b)
