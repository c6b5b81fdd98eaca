"""``freeze``: a net for inference only, what programs compute of its graph as one operator call each; ``thaw``."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import fx, nn

from ...backends import native
from ...dispatch import select
from ...fused.errors import first_line
from ...fused.frozen import FrozenProgram
from ...fused.frozen_net import Frozen, freeze_class, thaw_class
from ...fused.frozen_state import FrozenState, state_of
from ...fused.graphed import GraphedNet, Graphs
from ..fuse import fuse_blocks, revert, set_graphs
from . import compare
from .build import free_name, freeze_in_place, holds_programs
from .compare import Arguments
from .decide import FreezePlan, decide
from .fold import fold_batch_norms

__all__ = ["freeze", "thaw"]
_MOST_REASONS = 3  # in the warning that nothing was frozen


@torch.inference_mode(False)  # what is made within could not be used outside of it
@torch.no_grad()  # a copy of a scripted child has parameters that are results otherwise
def freeze(
    net: nn.Module, dtype: torch.dtype | None = None, *, cuda_graph: bool = False, example: object = None
) -> nn.Module:
    """A copy of ``net`` for inference: BatchNorms folded, weights packed, whole parts of it in one operator call each.

    The net is read as a graph. Fused blocks, convolutions with what follows them, pooling, concatenations, slices,
    sums, gates, upsampling, channel shuffles and the classifier become programs
    (:class:`ghost_ops.fused.FrozenProgram`), each as much as there is from one map on. What no step of a program
    computes stays as it is. The result takes every batch and image size that ``net`` takes, and many threads
    may call it at once. ``explain`` names the programs, and what was left as it is and why.

    The graph is a ``torch.fx`` trace, or that of ``torch.export`` where the forward cannot be traced. A forward that
    branches on sizes runs frozen on sizes that decide as those did that it was frozen on, else as its own.

    The copy keeps the class of ``net``, with its signature, methods and attributes: ``isinstance``, calls by keyword,
    ``forward_features`` and the like. Only its forward is another, and it has a child more, ``frozen_programs``, which
    ``children()`` leaves out. What is called past the forward runs through the copy's own children, in PyTorch, their
    Ghost modules fused.

    Before it is handed out it is compared with ``net``, both as private copies, on drawn inputs of two sizes and
    batches, with gradients enabled and without, in what it returns and in what a call changes. What would differ (a
    forward that draws noise, counts its calls, asks for the type of its input) goes back to PyTorch, piece by piece.

    Its weights are copies: a later change of ``net`` does not reach it. It cannot be trained, and what would make its
    programs and its parameters disagree raises an error: ``train()``, ``requires_grad_()``, a new child or parameter
    (timm's ``reset_classifier``), the state_dict of a plain net, and, at the next call, parameters that were changed in
    place and parameters, buffers and children that were replaced inside. It does not notice hooks that are registered
    on children afterwards.

    - ``next(net.parameters())`` gives device and dtype, as of any net; none needs a gradient.
    - A moving average (EMA) is updated in the plain net, which is frozen again when it is to be used.
    - ``state_dict`` has the keys of the plain net and the packed weights; it loads into a net that was frozen alike.
    - On a CUDA device what kernels read is made of the packed weights once, and again when these are changed in place
      or replaced; not when they are written past PyTorch's counter of versions, as through ``.data``.
    - :func:`thaw` gives the plain net back, to be trained, changed and frozen again.

    It can be saved with ``torch.save``, copied, exported with ``torch.export``, packed with AOTInductor and compiled;
    whoever loads it must have imported ghost_ops. ``torch.jit`` and ``torch.onnx.export`` record the plain net
    (``docs/toolchains.md``). Packed weights are the same on every processor. Inputs must have the
    dtype of the parameters; under autocast they are cast, and results have the dtype of autocast, as the plain net's.

    Args:
        net: any module in eval mode; it is not changed.
        dtype: torch.float32 or torch.bfloat16, on a CUDA device torch.float16 too, of weights, inputs and results; None
            keeps that of the parameters. On a CPU bfloat16 rounds weights, which then take half the memory, inputs and
            results; in between programs have maps and sums in float32, and round maps where the processor multiplies
            bfloat16 itself. On a CUDA device maps have this dtype throughout.
        cuda_graph: replay the whole net as a CUDA graph, one for each of the last few shapes of input; the net must be
            on a CUDA device.
        example: an input to compare on: a tensor, a tuple or list of arguments, or a mapping of keyword arguments. None
            draws inputs, which succeeds for nets of one image.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
        ValueError: net is in training mode, cannot be copied, or does not accept the example; a dtype that is not
            known; or ``cuda_graph`` of a net that is not on one CUDA device.

    Warns:
        UserWarning: nothing was found to freeze; the copy runs as ``net`` does.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"freeze: net: expected a torch.nn.Module, got {type(net).__name__}")
    devices = {t.device for t in (*net.parameters(), *net.buffers())}
    on_cuda = len(devices) == 1 and all(device.type == "cuda" for device in devices)
    if dtype not in (None, torch.float32, torch.bfloat16, *((torch.float16,) if on_cuda else ())):
        wanted = "None, torch.float32 or torch.bfloat16" + (" or torch.float16" if on_cuda else "")
        raise ValueError(f"freeze: dtype: expected {wanted}, got {dtype!r}")
    if cuda_graph and not on_cuda:
        where = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"freeze: cuda_graph: expected a net on one CUDA device, got one on {where}")
    if net.training:
        raise ValueError("freeze: net: expected a net in eval mode (net.eval()), got one in training mode")
    if isinstance(net, Frozen):
        if dtype is not None:
            return freeze(thaw(net), dtype, cuda_graph=cuda_graph, example=example)
        return _graphed(copy.deepcopy(net), cuda_graph)
    wanted = tuple(path for path, parameter in net.named_parameters() if parameter.requires_grad)
    reason = _no_kernels(net)
    with compare.undisturbed(net):  # tracing runs forwards too
        frozen, left = _frozen(net, dtype, example) if reason is None else (_copied(net, dtype), ())
    if not holds_programs(frozen):
        reasons = dict.fromkeys(f"{path}: {why}" if path else why for path, why in left)
        why = reason or "; ".join(list(reasons)[:_MOST_REASONS]) or "no convolution that a program computes was found"
        warnings.warn(f"freeze: nothing of this {type(net).__name__} was frozen: {why}", UserWarning, stacklevel=2)
        return GraphedNet(frozen) if cuda_graph else frozen
    if not isinstance(frozen, Frozen):
        if isinstance(frozen, (FrozenProgram, fx.GraphModule)):
            return GraphedNet(frozen) if cuda_graph else frozen
        freeze_class(frozen, FrozenState(free_name(frozen)), [])
    state = state_of(frozen)
    state.left, state.wanted = left, wanted
    return _graphed(frozen, cuda_graph)


def _graphed(frozen: Frozen, cuda_graph: bool) -> Frozen:
    if cuda_graph:
        state_of(frozen).graphs = Graphs()
        state_of(frozen).attach(frozen)
    return frozen


@torch.no_grad()
def thaw(net: nn.Module, *, fold: bool = False) -> nn.Module:
    """A plain copy of a frozen net: its own class, without programs, its modules plain PyTorch ones.

    Parameters need a gradient where they did before; the copy is in eval mode. In a net that was frozen in another
    dtype they have this dtype.

    Args:
        net: what :func:`freeze` returned, or a net that holds such; it is not changed.
        fold: also fold each BatchNorm into the convolution before it, in float64, and put an ``Identity`` in its place,
            for tools that export or quantise. BatchNorms of other places stay.

    Warns:
        UserWarning: with ``fold``, that nothing was folded, since the net would not compute the same.

    Raises:
        TypeError: net is not a ``torch.nn.Module``.
        ValueError: nothing in it was frozen by :func:`freeze` as it is today.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"thaw: net: expected a torch.nn.Module, got {type(net).__name__}")
    if not any(isinstance(module, Frozen) for module in net.modules()):
        raise ValueError("thaw: net: expected a frozen net, got one that keeps no plain modules")
    plain = copy.deepcopy(net)
    for module in reversed(list(plain.modules())):  # a net's gradients are known to the outermost
        if isinstance(module, Frozen):
            thaw_class(module)
    plain = revert(plain)
    why = fold_batch_norms(plain) if fold else None
    if why is not None:
        warnings.warn(
            f"thaw: fold: nothing of this {type(plain).__name__} was folded: {why}", UserWarning, stacklevel=3
        )
    return plain


def _no_kernels(net: nn.Module) -> str | None:
    """Why no program of this net would run faster than its modules."""
    example = next((t for t in net.parameters() if t.is_cuda), None)
    if example is None:
        return None if native.available() else f"its kernels are not there: {native.reason()}"
    decision = select("program", example)
    return f"its kernels do not run there: {decision.why}" if decision.is_reference else None


def _copied(net: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A fused copy that needs no gradient."""
    try:
        made = copy.deepcopy(net)
    except Exception as error:
        raise ValueError(f"freeze: net: it cannot be copied: {_what_to_call(net, error)}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fuse_blocks(made)
        set_graphs(made.requires_grad_(False), False)  # a frozen net has graphs of its own
    return made if dtype is None else made.to(dtype)


def _what_to_call(net: nn.Module, error: Exception) -> str:
    """What to do about a module with a tensor that a gradient has gone through, which PyTorch does not copy."""
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                where = f"{path}.{name}" if path else name
                if f"{name}_orig" in module._parameters:
                    first = f"call torch.nn.utils.prune.remove(module, {name!r})"
                elif f"{name}_g" in module._parameters:
                    first = f"call torch.nn.utils.remove_weight_norm(module, {name!r})"
                else:
                    first = "call the net once within torch.no_grad()"
                return f"{where} was computed from other parameters with gradients: {first} first"
    return first_line(error)


def _frozen(
    net: nn.Module, dtype: torch.dtype | None, example: object
) -> tuple[nn.Module, tuple[tuple[str, str], ...]]:
    """The copy, frozen where that is right, and what was left with the reasons."""
    made = _copied(net, None)
    if isinstance(made, FrozenProgram) or not any(t.is_floating_point() for t in made.parameters()):
        return made if dtype is None else made.to(dtype), ()
    source = compare.private(net)
    calls = [] if example is None else [Arguments.of(example).copied(_dtype_of(source))]
    error = compare.refusal(source, calls[0]) if calls else None
    if error is not None:
        wanted = f"expected arguments that this {type(net).__name__} accepts"
        raise ValueError(f"freeze: example: {wanted}, got {calls[0]}: {error}")
    if calls:
        calls += compare.draw(source)[:1]
    plan = decide(source, compare.private(made), calls)
    built = freeze_in_place(made if dtype is None else made.to(dtype), plan.ways)
    left = (*plan.left, *((left.path, left.why) for left in built.left))
    why = _wrong_in_half(built.module, source, plan)
    if why is not None:
        return _copied(net, dtype), (*left, ("", why))
    return built.module, left


def _wrong_in_half(frozen: nn.Module, source: nn.Module, plan: FreezePlan) -> str | None:
    dtype = _dtype_of(frozen)
    if not plan.calls or dtype not in (torch.float16, torch.bfloat16) or not holds_programs(frozen):
        return None
    return compare.unlike(frozen, source, plan.calls[0], dtype)


def _dtype_of(net: nn.Module) -> torch.dtype:
    return next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)
