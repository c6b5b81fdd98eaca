"""Lines of Markdown that a script has written."""

from __future__ import annotations

import re
import textwrap


def wrapped(page: str) -> str:
    """The page in lines of at most 120 columns, where lines may be broken: not in tables, headings and pictures."""
    fill = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False)
    lines = []
    for line in page.splitlines():
        fill.subsequent_indent = "  " * line.startswith("- ")
        lines.append(line if re.match(r"[|#!]", line) or not line else fill.fill(line))
    return "\n".join(lines) + "\n"
