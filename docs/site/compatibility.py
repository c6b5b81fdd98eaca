"""The table of operators by backend in docs/compatibility.md, from the registries.

``python docs/site/compatibility.py`` writes it behind the mark; a test compares it.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ghost_ops.backends import composed
from ghost_ops.backends.registry import BACKENDS, SCHEMAS, find

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
MARK = re.compile(r"(<!-- operators -->\n)(?:\n?\|[^\n]*\n)*")
DEVICES = ("triton", "cuda")


def _dtypes(dtypes: tuple[torch.dtype, ...] | None) -> str:
    return "every dtype" if dtypes is None else ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def native_operators() -> set[str]:
    """The operators that csrc/cpu registers."""
    text = "".join(path.read_text() for path in (ROOT / "csrc" / "cpu").rglob("*.cpp"))
    return set(re.findall(r"^GHOST_OPERATOR\((\w+)\);", text, re.MULTILINE))


def table() -> str:
    """A row for each operator."""
    native = native_operators()
    head = [f"{name} ({_dtypes(BACKENDS[name].dtypes)})" for name in ("native", *DEVICES)]
    lines = [f"| operator | {' | '.join(head)} |", "|---|---|---|---|"]
    for name in SCHEMAS:
        cells = ["kernel" if name in native else "composed" if name in composed.OPERATORS else "–"]
        cells += ["–" if find(f"ghost_ops.backends.{backend}", name) is None else "kernel" for backend in DEVICES]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its table made again."""
    return MARK.sub(lambda mark: f"{mark[1]}\n{table()}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
