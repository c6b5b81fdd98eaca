"""What a node of a graph calls."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn


def first_argument(node: fx.Node) -> object:
    return node.args[0] if node.args else None


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two that a node adds or multiplies; None of another node."""
    if not is_called(node, ("add", "iadd", "add_", "mul", "imul", "mul_", "multiply")) or len(node.args) != 2:
        return None
    a, b = node.args
    return (a, b) if isinstance(a, fx.Node) and isinstance(b, fx.Node) and not node.kwargs else None


def is_called(node: fx.Node, names: Collection[str]) -> bool:
    """Whether a node calls a function or a method of one of these names, of PyTorch or of an operator."""
    if node.op == "call_method":
        return node.target in names
    if node.op != "call_function":
        return False
    module = getattr(node.target, "__module__", None) or "torch"
    known = module.split(".")[0] in ("torch", "_operator", "operator", "builtins")
    return known and getattr(node.target, "__name__", "") in names


def describe(node: fx.Node, module: nn.Module | None) -> str:
    if node.op == "call_module":
        kind = type(module).__name__ if module is not None else "module of several inputs"
        return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))
