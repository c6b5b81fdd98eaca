"""Definition and registration of the operators: what every ``ops/<op>.py`` builds on.

``schemas.inc`` has every schema once: the compiled library defines them where it is loaded, this module where it is
not. The compiled library's CPU kernels hand a configuration that they do not take to ``<op>_reference``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.autograd.function import once_differentiable

from ..backends import composed, native, reference
from ..backends.layout import memory_format
from ..backends.registry import BACKENDS, SCHEMAS
from ..dispatch import Decision, select
from .strides import restride

NAMESPACE = "ghost_ops"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def _arguments(name: str) -> list[tuple[str, str]]:
    """Type and name of each argument of an operator."""
    arguments = SCHEMAS[name].split("(", 1)[1].split(")")[0]
    return [tuple(argument.split()) for argument in arguments.split(", ")]


def _map_index(name: str) -> int:
    """The place of an operator's map among its arguments: behind the gradient in a backward that has the map."""
    return int(name.endswith("_backward") and _arguments(name)[1][0] == "Tensor")


def _as_operator(name: str, function: Callable) -> Callable:
    """A function adapted to the contract of operators: its results are dense and never alias an argument."""
    map_index = _map_index(name)

    def implementation(*args):
        results = function(*args)
        if isinstance(results, list):
            return _apart(results, args, memory_format(args[map_index]))
        single = isinstance(results, torch.Tensor)
        first, *rest = [results] if single else results
        layout = memory_format(args[map_index]) if first.dim() == 4 else torch.contiguous_format
        results = [first.contiguous(memory_format=layout), *(r.contiguous() for r in rest)]
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        dense = [r.clone() if _aliases(r, tensors) else r for r in results]
        return dense[0] if single else tuple(dense)

    return implementation


def _aliases(t: torch.Tensor, others: Iterable[torch.Tensor]) -> bool:
    return any(t is other or torch._C._is_alias_of(t, other) for other in others)


def _apart(results: list[torch.Tensor], args: tuple, layout: torch.memory_format) -> list[torch.Tensor]:
    """A list of results, maps in this layout, none an alias of an argument or of another."""
    taken = [a for a in args if isinstance(a, torch.Tensor)]
    for result in results:
        dense = result.contiguous(memory_format=layout if result.dim() == 4 else torch.contiguous_format)
        taken.append(dense.clone() if _aliases(dense, taken) else dense)
    return taken[-len(results) :]


def _kernel_size(weight: torch.Tensor) -> int:
    """The kernel size of a depthwise weight, C x 1 x size x size; 0, which no kernel takes, for any other shape."""
    return weight.shape[3] if weight.dim() == 4 and weight.shape[2] == weight.shape[3] else 0


def _by_decision(name: str) -> Callable:
    """An operator on a device for which several backends may have kernels: the one that ``select`` decides for."""
    names = [argument for _, argument in _arguments(name)]
    map_index = _map_index(name)
    weight_index = next((names.index(n) for n in ("cheap_weight", "weight") if n in names), None)

    def implementation(*args):
        x, weight = args[map_index], None if weight_index is None else args[weight_index]
        x = x if isinstance(x, torch.Tensor) else x[0]  # ``program_pack`` takes a list
        choice = select(name, x, None if weight is None else _kernel_size(weight))
        if choice.is_reference:
            return overload(f"{name}_reference")(*args)
        return BACKENDS[choice.backend].load(name)(*args)

    return implementation


def _composed(name: str) -> Callable:
    """An operator on the CPU that is composed of PyTorch's operators and native kernels."""
    function = _as_operator(name, composed.OPERATORS[name])

    def implementation(*args):
        if native.uses_reference():
            return overload(f"{name}_reference")(*args)
        return function(*args)

    return implementation


def _define() -> None:
    keys = {backend.dispatch_key for backend in BACKENDS.values()} - {None}
    for name, schema in SCHEMAS.items():
        function = _as_operator(name, getattr(reference, name))
        if not native.available():
            _library.define(schema)
        _library.define(schema.replace("(", "_reference(", 1))
        for operator in (name, f"{name}_reference"):
            _library.impl(operator, function, "CompositeExplicitAutograd")
        if native.available() and name in composed.OPERATORS:
            _library.impl(name, _composed(name), "CPU")
        for key in keys:
            _library.impl(name, _by_decision(name), key)


_define()


def overload(name: str) -> torch._ops.OpOverload:
    """The operator, to be called."""
    return getattr(torch.ops.ghost_ops, name).default


def register_fake(name: str, function: Callable) -> None:
    """Register the fake of an operator, which gives its results' shapes, for it and for ``<name>_reference``."""
    for operator in (name, f"{name}_reference"):
        torch.library.register_fake(f"{NAMESPACE}::{operator}", function, lib=_library)


def refuse_double_backward(name: str) -> Callable:
    """Make differentiating a backward operator an error; it would silently give zeros.

    Returns the function that calls it, which bypasses autograd where that is off.
    """
    operator = overload(name)

    def raise_(ctx, *grads):
        raise NotImplementedError(
            f"ghost_ops.{name} cannot be differentiated: for double backward run the reference backend "
            "(with ghost_ops.use_backend('reference'): ...)"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{name}", raise_, lib=_library)

    def call(*args):
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return operator(*args)
        return below_autograd(operator, args)

    return call


def without_gradients(name: str) -> Callable:
    """Make the backward of operator ``name``, which is for inference only, an error and not a gradient of nothing.

    Returns the function that calls it, which bypasses autograd where nothing needs a gradient.
    """
    operator, twin = overload(name), overload(f"{name}_reference")

    def raise_(ctx, *grads):
        raise NotImplementedError(f"ghost_ops.{name} is for inference: it has no gradients")

    for called in (name, f"{name}_reference"):
        torch.library.register_autograd(f"{NAMESPACE}::{called}", raise_, lib=_library)

    def call(*args):
        if torch.compiler.is_compiling():  # a compiled ``use_backend`` has no effect but on what is traced within it
            return (twin if native.uses_reference() else operator)(*args)
        if torch._C._are_functorch_transforms_active() or _need_gradients(args):
            return operator(*args)
        return below_autograd(operator, args)

    return call


def _need_gradients(args: tuple) -> bool:
    """Whether an argument needs a gradient; in lists too."""
    if not torch.is_grad_enabled():
        return False
    for a in args:
        if isinstance(a, torch.Tensor):
            if a.requires_grad:
                return True
        elif isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor) and _need_gradients(a):
            return True
    return False


def below_autograd(operator: torch._ops.OpOverload, args: tuple) -> object:
    """Call the operator below its autograd, which is written in Python and costs 10 us."""
    if torch.is_inference_mode_enabled():
        return operator(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def differentiable(name: str, setup_context: Callable, backward: Callable) -> Callable:
    """Make operator ``name`` differentiable on both routes.

    ``register_autograd`` serves compile, export and direct calls; a ``torch.autograd.Function`` is the eager fast path
    (a third of the overhead); where nothing needs a gradient the operator is called as it is.

    Returns:
        ``call(decision, *args)``: the operator by the route that serves, or, where the decision is the reference, the
        reference's function, which PyTorch differentiates.
    """
    operator, plain = overload(name), getattr(reference, name)
    weights = [i for i, (_, argument) in enumerate(_arguments(name)) if argument.endswith("weight")]

    def setup(ctx, inputs, output):
        setup_context(ctx, inputs, output)
        ctx.strides = strides = []
        for i in weights:
            if inputs[i] is not None:
                strides.append((i, inputs[i].stride()))

    def differentiate(ctx, *grads):
        """Gradients of weights get their weights' strides (:func:`restride`), as PyTorch's own have."""
        found = list(backward(ctx, *grads))
        for i, strides in ctx.strides:
            if found[i] is not None:
                found[i] = restride(found[i], strides)
        return tuple(found)

    torch.library.register_autograd(f"{NAMESPACE}::{name}", differentiate, setup_context=setup, lib=_library)

    class Fast(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with torch._C._AutoDispatchBelowAutograd():
                out = operator(*args)
            setup(ctx, args, out)
            return out

    Fast.backward = staticmethod(once_differentiable(differentiate))
    Fast.__name__ = Fast.__qualname__ = "".join(part.title() for part in name.split("_"))

    def call(decision: Decision, *args):
        if decision.backend == "reference":
            return plain(*args)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return operator(*args)
        if _need_gradients(args):
            return Fast.apply(*args)
        return below_autograd(operator, args)

    return call


def existing(gradients: Iterable[torch.Tensor], parameters: Iterable[torch.Tensor | None]) -> list:
    """The gradients as autograd wants them: None where there is no parameter, for which a backward returns an empty
    tensor."""
    return [None if p is None else g for g, p in zip(gradients, parameters, strict=True)]
