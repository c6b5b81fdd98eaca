"""``FrozenProgram``: part of a net, or all of it, as one operator call over packed parameters."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import torch
from torch import fx, nn

from ..backends import native, reference
from ..dispatch import Decision, describe_program, recorder, select
from ..ops.checks import autocast
from ..ops.program import program, program_maps, program_pack
from ..program import BFLOAT16, FLOAT32, decode, returning, weights_of, with_precision
from .block import Route, _observers, observed
from .compiled_program import CompiledProgram
from .errors import Unfusable

FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))

HUGE_PAGE = 2 << 20  # bytes


class FrozenProgram(nn.Module):
    """What ``ghost_ops.freeze`` puts in the place of a run of modules: inference only, with weights of its own.

    Its only state is the buffer ``packed``, in a form that is the same on every processor, and the list of ``steps``
    (``ghost_ops/program``). It may be called by many threads at once.

    Of bfloat16 parameters the weights of products (all but depthwise ones) are packed as bfloat16, half as many bytes,
    rounded once after the BatchNorms are folded in; sums are float32, and so is all between the steps. Where the
    processor multiplies bfloat16 itself, the maps are rounded on their way into a product. Such a form keeps its
    precision through ``.to(dtype)``, and takes inputs of every floating-point dtype. Others take inputs of the dtype
    that they were packed for, which ``.to(dtype)`` changes. Under autocast the input is cast as autocast casts it.

    Args:
        packed: the packed parameters: float32, or int32 where the steps' precision is bfloat16.
        steps: what to do with them.
        parts: for people: the modules that it stands for.
        dtype: of its inputs; None for that of ``packed``.

    Attributes:
        input_name: how error messages call the input: the class of the net and the parameter of its forward.

    Shape: N x C x H x W, float32 or bfloat16 (on a CUDA device float16 too), NCHW or channels_last, of any N, H and W
    that the net takes, to a map in the input's dtype and memory format, or to N x features. A program of several
    results returns a list of maps.
    """

    def __init__(
        self,
        packed: torch.Tensor,
        steps: list[int],
        parts: tuple[str, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(packed, torch.Tensor):
            raise TypeError(f"FrozenProgram: packed: expected a tensor, got {type(packed).__name__}")
        self.register_buffer("packed", packed)
        self.steps = list(steps)
        self.parts = parts
        self.input_name = "FrozenProgram: x"
        self.training = False
        self._expect(dtype or packed.dtype)

    def _expect(self, dtype: torch.dtype | None) -> None:
        """Remember what an input must be; None stands for every floating-point dtype."""
        self.dtype = dtype if weights_of(self.steps).dtype.is_floating_point else None
        self._dtypes = FLOATING if self.dtype is None else frozenset((self.dtype,))
        steps = decode(self.steps)
        self._channels = steps[0].channels
        self._returns_maps = len(returning(steps)) > 1

    @classmethod
    def of(cls, built: CompiledProgram, parts: tuple[str, ...] = (), dtype: torch.dtype | None = None) -> FrozenProgram:
        """Packs copies of the parameters, as they are now; rounded to ``dtype`` first, which with bfloat16 is also what
        products keep their weights in."""
        tensors = [t.detach() for source in built.sources for t in source.tensors() if t is not None]
        kept, device = dtype or tensors[0].dtype, tensors[0].device
        if any(not t.is_floating_point() or t.dtype is torch.float64 for t in tensors):
            raise Unfusable("the kernels take float32 and half-precision parameters")
        if any(t.device != device for t in tensors):
            raise Unfusable("its parameters are on several devices")
        if device.type not in ("cpu", "cuda"):
            raise Unfusable(f"the kernels run on the CPU and on CUDA devices, its parameters are on {device}")
        if kept is torch.float16 and device.type == "cpu":
            raise Unfusable("the kernels take float32 and bfloat16 parameters")
        rounded = [t.to(kept).float().cpu() for t in tensors]  # packed on the CPU: the form is the same everywhere
        code = with_precision(built.code, BFLOAT16 if kept is torch.bfloat16 else FLOAT32)
        with torch.no_grad():
            return cls(_in_fresh_pages(program_pack(rounded, code).to(device)), code, parts, kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        operator = program_maps if self._returns_maps else program
        if recorder() is not None:  # what stands for plain modules elsewhere is of its own here
            operator = reference.program_maps if self._returns_maps else reference.program
            return operator(x, self.packed, self.steps)
        if torch.compiler.is_compiling():
            if torch.is_autocast_enabled(x.device.type):
                x = autocast(x)[0]
        elif isinstance(x, fx.Proxy):
            return operator(x, self.packed, self.steps)
        elif not isinstance(x, torch.Tensor) or x.dtype not in self._dtypes or torch._C._is_any_autocast_enabled():
            x = self._cast(x)
        if x.dim() != 4 or x.size(1) != self._channels:
            self._refuse(x)
        if _observers and not torch.compiler.is_compiling():
            return observed(self, x, lambda: Route(self.decide(x), lambda: operator(x, self.packed, self.steps)))
        return operator(x, self._buffers["packed"], self.steps)  # a module's own lookup costs as much as the operator

    def decide(self, x: torch.Tensor) -> Decision:
        """What runs it on an input such as x, and why nothing faster does."""
        name = "program_maps" if self._returns_maps else "program"
        return describe_program(select(name, x), x, self.packed, self.steps)

    def _cast(self, x: object) -> torch.Tensor:
        """The input in the dtype that autocast asks for, as a convolution would read it.

        Raises:
            TypeError: x is not a tensor of a dtype that the program takes.
        """
        if not isinstance(x, torch.Tensor):
            self._refuse(x)
        follows = torch.is_autocast_enabled(x.device.type)
        if x.dtype not in (FLOATING if follows else self._dtypes):
            self._refuse(x)
        return autocast(x)[0]

    def _refuse(self, x: object) -> None:
        kind = "floating-point" if self.dtype is None else str(self.dtype)
        expected = f"{self.input_name}: expected a {kind} tensor N x {self._channels} x H x W"
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{expected}, got {type(x).__name__}")
        got = f"{expected}, got {x.dtype} of shape {tuple(x.shape)}"
        if x.dim() != 4 or x.size(1) != self._channels:
            raise ValueError(got)
        raise TypeError(got)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FrozenProgram:
        device = self.packed.device
        super()._apply(fn, recurse)
        if self.dtype is not None:  # what is packed need not have this dtype, and the function is all that is known
            self._expect(fn(torch.empty(0, dtype=self.dtype, device=device)).dtype)
        return self

    def scratch_bytes(self, x: torch.Tensor) -> int:
        """Memory that each thread of PyTorch's keeps for calls on inputs such as x, beside input and output."""
        if not x.is_cpu:
            return 0
        images, _, height, width = x.shape
        return native.program_scratch(self.steps, -(-images // torch.get_num_threads()), height, width)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if "_dtypes" not in state:  # saved before programs knew the dtype of their inputs: every one was taken
            self.__dict__.update(input_name="FrozenProgram: x")
            self._expect(None)
        elif "_returns_maps" not in state:
            self._returns_maps = False
        self.packed = _in_fresh_pages(self.packed)  # a loaded tensor is in small pages, and slower to read

    def extra_repr(self) -> str:
        names = [type(step).__name__.lower() for step in decode(self.steps)]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        weights = weights_of(self.steps)
        precision = "" if weights.precision == FLOAT32 else f", weights in {weights.name}"
        return f"{self.packed.numel()} packed parameters{precision}; {counts}"

    def returns_map(self) -> bool:
        """Whether the results are N x C x H x W, not N x features."""
        return returning(decode(self.steps))[0].returns_map

    def result_count(self) -> int:
        """Number of maps that it returns; 1 where it returns features."""
        return len(returning(decode(self.steps)))


def _in_fresh_pages(t: torch.Tensor) -> torch.Tensor:
    """A copy of a CPU tensor in memory that nothing has used, which the system can give in huge pages.

    Memory that ``malloc`` hands out again, after other large tensors were freed, keeps the small pages that it has:
    a frozen net at batch 1 takes 5 % longer to read its weights from these.
    """
    size = t.numel() * t.element_size()
    if not t.is_cpu or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return native.in_huge_pages(t)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=t.dtype).view(t.shape).copy_(t)
