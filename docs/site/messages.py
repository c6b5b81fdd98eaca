"""The page of messages: every error, warning and reason of the source, under its cure in docs/messages.md.

The page is written by hand but for the tables. Before each stands a comment with regular expressions, one a line:
``<!-- messages: ... -->``. A message belongs to the first section that has one which is found in it; ``in FILE``
takes all of a file. ``python docs/site/messages.py`` makes the tables again and names the messages that no section
takes; a test does the same.

What is computed at run time is ``…`` here. Three kinds of messages are collected from ghost_ops/ and setup.py, by their
syntax: what is raised; what is warned of; and reasons, which ``explain`` and some warnings print: the strings that
functions return which say in a sentence why not (``-> str | None``), and objections to a forward. Of csrc/ it is
what the kernels throw.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "messages.md"
SECTION = re.compile(r"<!-- messages:\n(?P<patterns>.*?)\n-->\n(?:\n?\|[^\n]*\n)*", re.DOTALL)
REASONS = {"Unfusable", "NotNow", "NotTrainable", "Refused", "Untraceable", "Unavailable"}
COMMAND = {"ClickException", "UsageError", "BadParameter"}
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
THROWS = re.compile(r"\b(fail|refuse|runtime_error)\(")
PREFIXES = {"fail": "ghost_ops: ", "refuse": "ghost_ops.program: steps: expected a list that ghost_ops wrote: "}
GAP, WORD = "…", re.compile(r"[A-Za-z]{2,}")


class Message(NamedTuple):
    """What is said, as what, and where in the source."""

    text: str
    kind: str
    file: str


def _joined(texts: list[list[str]]) -> list[str]:
    return ["".join(parts) for parts in product(*texts)]


class _Reader:
    """Reads the texts that an expression can have, from a file's syntax tree."""

    def __init__(self, tree: ast.Module) -> None:
        constants = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
        self.constants = {node.targets[0].id: node.value for node in constants}
        self.variables: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=value)
                    | ast.AugAssign(target=ast.Name(id=name), value=value)
                    | ast.NamedExpr(target=ast.Name(id=name), value=value)
                ) if name not in self.constants:
                    self.variables.setdefault(name, []).append(value)

    def messages(self, argument: ast.expr) -> list[str]:
        """The texts of an argument, and those that variables in it may have."""
        names = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
        found = [text for name in sorted(names) for value in self.variables.get(name, ()) for text in self.texts(value)]
        found = [*self.texts(argument), *(text for text in found if len(WORD.findall(text)) + text.count(GAP) > 3)]
        return [re.sub(r"\{\w+(![rs])?\}", GAP, text) for text in found]  # what .format fills

    def texts(self, node: ast.AST | None) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return _joined([self._parts(value) for value in values])
            case ast.FormattedValue(value=ast.Name(id=name)):
                constant = self.constants.get(name)
                return self.texts(constant) if isinstance(constant, (ast.Constant, ast.JoinedStr)) else [GAP]
            case ast.Name(id=name) if name in self.constants:
                return self.texts(self.constants[name])
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return _joined([self._parts(left), self._parts(right)])
            case ast.IfExp(body=body, orelse=orelse):
                return self.texts(body) + self.texts(orelse)
            case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.Dict(values=values):
                return [text for value in values for text in self.texts(value)]
            case (
                ast.Subscript(value=ast.Name() as inner)
                | ast.Call(func=ast.Attribute(attr="fromkeys"), args=[_, inner])
            ):
                return self.texts(inner)
            case ast.Call(func=ast.Attribute(value=value, attr="format" | "partition" | "removesuffix")):
                return self.texts(value)
            case _:
                return [GAP]

    def _parts(self, node: ast.expr) -> list[str]:
        """The texts of a part of a text, of which what may be empty is a gap."""
        found = self.texts(node)
        return [GAP] if "" in found else found


def _calls(tree: ast.Module) -> Iterator[tuple[str, list[ast.expr]]]:
    """Kind and arguments of every call that makes a message."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=func, args=args)) | ast.Return(value=ast.Call(func=func, args=args)):
                name = ast.unparse(func).rpartition(".")[2]
                if isinstance(node, ast.Raise) or name.endswith("Error"):
                    yield _kind(name), args
            case ast.Call(func=func, args=[text, *_]) if ast.unparse(func) == "warnings.warn":
                yield "warning", [text]
            case ast.Call(func=func, args=[text, *_]) if ast.unparse(func) == "sys.exit":
                yield "build", [text]
            case (
                ast.Call(func=ast.Attribute(attr="object" | "explain"), args=[reason, *_])
                | ast.Call(func=ast.Attribute(attr="confirm"), args=[_, reason, *_])
            ):
                yield "reason", [reason]
            case ast.FunctionDef(returns=ast.expr() as returns) if "str | None" in ast.unparse(returns):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield "reason", [inner.value]


def _kind(name: str) -> str:
    if name == "Unable":
        return "build"
    if name in COMMAND:
        return "command line"
    return "reason" if name in REASONS else name if name[0].isupper() else "ValueError"


def _says_something(text: str, kind: str) -> bool:
    """Whether it is a text of its own, and not only another one that it passes on."""
    words = WORD.findall(text)
    return len(words) > 2 - (kind == "warning") or "expected" in words


def of_python(code: str, file: str) -> Iterator[Message]:
    tree = ast.parse(code)
    reader = _Reader(tree)
    for kind, args in _calls(tree):
        for text in dict.fromkeys(text for arg in args for text in reader.messages(arg)):
            if _says_something(text, kind):
                yield Message(" ".join(text.split()), "build" if file == "setup.py" else kind, file)


def _argument(code: str, start: int) -> str:
    """What stands between the parenthesis before ``start`` and the one that closes it."""
    depth, at = 1, start
    while depth:
        quoted = LITERAL.match(code, at)
        depth += 0 if quoted else {"(": 1, ")": -1}.get(code[at], 0)
        at = quoted.end() if quoted else at + 1
    return code[start : at - 1]


def _text_of_cpp(expression: str) -> str:
    """Literals as they stand, and what stands between them as a gap."""
    pieces = LITERAL.split(expression)
    return "".join(text if at % 2 else GAP * bool(re.search(r"\w{3,}", text)) for at, text in enumerate(pieces))


def of_cpp(code: str, file: str) -> Iterator[Message]:
    code = re.sub(r"//[^\n]*", "", code)
    for found in THROWS.finditer(code):
        text = _text_of_cpp(re.sub(r"\bstd::string\b", "", _argument(code, found.end())))
        if _says_something(text, "RuntimeError"):
            yield Message(PREFIXES.get(found[1], "") + " ".join(text.split()), "RuntimeError", file)


def messages() -> list[Message]:
    """All of them, once each, in the order of the source."""
    cpp = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in (".h", ".cpp", ".cu") and "dev" not in p.parts]
    python = [*sorted((ROOT / "ghost_ops").rglob("*.py")), ROOT / "setup.py"]
    found = [
        message
        for paths, read in ((python, of_python), (cpp, of_cpp))
        for path in paths
        for message in read(path.read_text(), path.relative_to(ROOT).as_posix())
    ]
    return list({message.text: message for message in reversed(found)}.values())[::-1]


def _row(message: Message) -> str:
    text = message.text.replace("|", "\\|")
    return f"| `{text}` | {message.kind} |\n"


def _takes(pattern: str, message: Message) -> bool:
    return bool(re.search(pattern, message.text) or re.fullmatch(pattern, f"in {message.file}"))


def page(text: str, found: list[Message]) -> tuple[str, list[Message]]:
    """The page with its tables made again, and the messages that no section takes.

    Args:
        text: the page as it is.
        found: the messages of the source.
    """
    left = list(found)

    def fill(section: re.Match) -> str:
        patterns = section["patterns"].splitlines()
        taken = {pattern: [m for m in left if _takes(pattern, m)] for pattern in patterns}
        mine = {message for some in taken.values() for message in some}
        left[:] = [m for m in left if m not in mine]
        unused = [pattern for pattern, some in taken.items() if not some]
        if unused:
            raise ValueError(f"{PAGE.name}: no message of its section matches {unused}: take the pattern away")
        table = "".join(map(_row, sorted(mine, key=lambda m: (m.text.lstrip(GAP + ":. ").lower(), m.text))))
        return f"<!-- messages:\n{section['patterns']}\n-->\n\n| what it says | as |\n|---|---|\n{table}"

    return SECTION.sub(fill, text), left


if __name__ == "__main__":
    made, left = page(PAGE.read_text(), messages())
    PAGE.write_text(made)
    for message in left:
        print(f"{message.file}: no section of {PAGE.name} takes: {message.text}")
    sys.exit(bool(left))
