"""Drawings: of the passes, what each reads from memory and writes to it, eager beside fused; of a program; of how a
module is recognised.

``python docs/site/drawings.py`` writes docs/drawings/*.svg; a test compares them with what this file makes. What is
counted is in ``INFERENCE``, ``FORWARD`` and ``BACKWARD``: for each pass the maps that it reads and writes, twice where
it goes over a map twice. A map has the size of y1, half of the output, but x and its gradient, which have
r times that.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parents[1] / "drawings"
TEXT, FAINT, PAPER, READ, WRITTEN = "#1d2433", "#68718a", "#f7f8fb", "#2f6db3", "#b3541e"
OF_INPUT = "x", "∂x"
LINE, CELL, NAMES, WIDTH = 27, 44, 168, 540


class Pass(NamedTuple):
    name: str
    reads: str
    writes: str = ""


class Side(NamedTuple):
    title: str
    passes: tuple[Pass, ...]

    def total(self) -> tuple[int, int]:
        """Maps moved: how many of y1's size, and how many of x's."""
        maps = [name for one in self.passes for name in (*one.reads.split(), *one.writes.split())]
        of_input = sum(name in OF_INPUT for name in maps)
        return len(maps) - of_input, of_input


class Drawing(NamedTuple):
    title: str
    eager: Side
    fused: Side


INFERENCE = Drawing(
    "A Ghost module in inference",
    Side(
        "PyTorch: seven operators",
        (
            Pass("1x1 convolution", "x", "z1"),
            Pass("BatchNorm", "z1", "a1"),
            Pass("ReLU", "a1", "y1"),
            Pass("depthwise convolution", "y1", "z2"),
            Pass("BatchNorm", "z2", "a2"),
            Pass("ReLU", "a2", "y2"),
            Pass("concatenation", "y1 y2", "y1 y2"),
        ),
    ),
    Side("ghost_ops: one pass", (Pass("all of it, tile by tile", "x", "y1 y2"),)),
)
FORWARD = Drawing(
    "A Ghost module in training, forward",
    Side(
        "PyTorch: BatchNorm goes over its input twice",
        (
            Pass("1x1 convolution", "x", "z1"),
            Pass("BatchNorm", "z1 z1", "a1"),
            Pass("ReLU", "a1", "y1"),
            Pass("depthwise convolution", "y1", "z2"),
            Pass("BatchNorm", "z2 z2", "a2"),
            Pass("ReLU", "a2", "y2"),
            Pass("concatenation", "y1 y2", "y1 y2"),
        ),
    ),
    Side(
        "ghost_ops: three passes",
        (
            Pass("F1: statistics of z1", "x"),
            Pass("F2: y1, statistics of z2", "x", "y1"),
            Pass("F3: y2", "y1", "y2"),
        ),
    ),
)
BACKWARD = Drawing(
    "A Ghost module in training, backward",
    Side(
        "PyTorch",
        (
            Pass("ReLU", "∂y2 y2", "∂a2"),
            Pass("BatchNorm: sums", "∂a2 z2"),
            Pass("BatchNorm", "∂a2 z2", "∂z2"),
            Pass("depthwise: its weight", "∂z2 y1"),
            Pass("depthwise: its input", "∂z2", "∂y1"),
            Pass("sum of both ways to y1", "∂y1 ∂y1", "∂y1"),
            Pass("ReLU", "∂y1 y1", "∂a1"),
            Pass("BatchNorm: sums", "∂a1 z1"),
            Pass("BatchNorm", "∂a1 z1", "∂z1"),
            Pass("1x1: its weight", "∂z1 x"),
            Pass("1x1: its input", "∂z1", "∂x"),
        ),
    ),
    Side(
        "ghost_ops: three passes, z1, y1 and z2 recomputed",
        (
            Pass("B1: sums of BatchNorm 2", "x ∂y2"),
            Pass("B2: ∂W2, sums of BatchNorm 1", "x ∂y1 ∂y2", "g1"),
            Pass("B3: ∂W1 and ∂x", "x g1", "∂x"),
        ),
    ),
)
DRAWINGS = {"inference": INFERENCE, "forward": FORWARD, "backward": BACKWARD}


def text(x: float, y: float, said: str, color: str = TEXT, size: int = 13, more: str = "") -> str:
    """A line of text, from x on, with its base at y."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" {more}>{escape(said)}</text>'


def _cell(x: float, y: float, name: str, color: str) -> list[str]:
    edge = ' stroke-dasharray="3 2"' if name in OF_INPUT else ""
    return [
        f'<rect x="{x}" y="{y - 15}" width="{CELL - 6}" height="21" rx="3" fill="{color}" fill-opacity="0.16" '
        f'stroke="{color}"{edge}/>',
        text(x + (CELL - 6) / 2, y, name, color, 12, 'text-anchor="middle"'),
    ]


def _side(side: Side, left: float, top: float) -> list[str]:
    halves, of_input = side.total()
    moved = f"moves {halves} + {'r' if of_input == 1 else f'{of_input} r'} maps"
    parts = [
        text(left, top, side.title, more='font-weight="bold"'),
        text(left, top + 20, moved, FAINT),
        text(left + NAMES + 28, top + 42, "reads", READ, 12),
        text(left + NAMES + 28 + 3 * CELL + 14, top + 42, "writes", WRITTEN, 12),
    ]
    for line, (name, reads, writes) in enumerate(side.passes):
        y = top + 66 + line * LINE
        parts.append(text(left, y, name))
        for column, read in enumerate(reads.split()):
            parts += _cell(left + NAMES + 28 + column * CELL, y, read, READ)
        for column, written in enumerate(writes.split()):
            parts += _cell(left + NAMES + 28 + 3 * CELL + 14 + column * CELL, y, written, WRITTEN)
    return parts


def svg(drawing: Drawing) -> str:
    """The drawing: PyTorch above, ghost_ops below, so that it can be read on a narrow screen."""
    below = 64 + 84 + len(drawing.eager.passes) * LINE
    height = below + 66 + len(drawing.fused.passes) * LINE + 22
    note = "r: channels of x over channels of y1. Dashed: a map of r times the size."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        f"<title>{escape(drawing.title)}: maps read and written, eager and fused</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>',
        text(20, 30, drawing.title, size=16, more='font-weight="bold"'),
        *_side(drawing.eager, 20, 64),
        *_side(drawing.fused, 20, below),
        text(20, height - 14, note, FAINT, 12),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


ROWS, SHOWN, STEPS = 12, 6, (("input", 1), ("1x1, expand", 1), ("depthwise 3x3", 3), ("1x1, project", 1))


def rows_of_program() -> str:
    """Rows that are in cache while one row of a program's last step is made, from the heights of the kernels."""
    held, needed = [], 1
    for _, kernel in reversed(STEPS):
        held.append(needed)
        needed += kernel - 1
    width, height, top = WIDTH, 64 + ROWS * 17 + 50, 64
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>A program makes rows: which rows of each map are in cache</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>',
        text(20, 30, "A program, while it makes one row of its result", size=16, more='font-weight="bold"'),
    ]
    for column, ((name, _), rows) in enumerate(zip(STEPS, reversed(held))):
        left = 20 + column * 130
        parts.append(text(left, top - 10, name, more='font-weight="bold"'))
        for row in range(ROWS):
            in_use = abs(row - SHOWN) <= rows // 2
            whole = column in (0, len(STEPS) - 1)
            color, opacity = (WRITTEN, 0.55) if in_use else (READ, 0.16)
            line = f'stroke="{FAINT}"' + ("" if whole or in_use else ' stroke-dasharray="2 3"')
            fill = f'fill="{color}" fill-opacity="{opacity if whole or in_use else 0}"'
            parts.append(f'<rect x="{left}" y="{top + row * 17}" width="100" height="14" rx="2" {fill} {line}/>')
    parts += [
        text(20, height - 30, "Filled: rows in use. Dashed: rows that are never in memory;", FAINT, 12),
        text(20, height - 14, "of the maps between, only the rows in use exist, in cache.", FAINT, 12),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


QUESTIONS = (
    ("Has it the pieces?", "two convolutions, the second depthwise,", "each with BatchNorm and activation or none"),
    (
        "Does a copy compute it?",
        "drawn parameters, float64 and float32: values,",
        "gradients, sizes, NaN, autocast, train and eval",
    ),
    ("Does its forward do nothing else?", "no hook, no detach, no branch on a size,", "no counter, no random numbers"),
    (
        "Does this call need its children?",
        "hooks, parametrisations, tracers, transforms,",
        "tensor subclasses: asked on every call",
    ),
)
ANSWERS = "it is left as it is", "it is left as it is", "it is left as it is", "its children run"


def recognition() -> str:
    """The questions that a module must answer before it runs fused, and what happens where one is not."""
    box, step, left, top = 300, 92, 20, 56
    height = top + len(QUESTIONS) * step + 78
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>How a module is recognised: four questions, and what happens where the answer is no</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{PAPER}"/>',
        text(left, 30, "How fuse recognises a module", size=16, more='font-weight="bold"'),
    ]
    for number, ((question, *said), answer) in enumerate(zip(QUESTIONS, ANSWERS)):
        y, last = top + number * step, number == len(QUESTIONS) - 1
        parts += [
            f'<rect x="{left}" y="{y}" width="{box}" height="68" rx="5" fill="{READ}" fill-opacity="0.12" '
            f'stroke="{READ}"/>',
            text(left + 12, y + 22, f"{number + 1}. {question}", more='font-weight="bold"'),
            *(text(left + 12, y + 41 + 17 * line, words, FAINT, 12) for line, words in enumerate(said)),
            *_arrow(left + box, y + 34, left + box + 52, y + 34, WRITTEN),
            text(left + box + 16, y + 28, "yes" if last else "no", WRITTEN, 12),
            text(left + box + 60, y + 38, answer, size=12),
            *_arrow(left + 40, y + 68, left + 40, y + step, READ),
            text(left + 50, y + 85, "no" if last else "yes", READ, 12),
        ]
    y = top + len(QUESTIONS) * step
    parts += [
        f'<rect x="{left}" y="{y}" width="{box}" height="34" rx="5" fill="{WRITTEN}" fill-opacity="0.16" '
        f'stroke="{WRITTEN}"/>',
        text(left + 12, y + 22, "one operator, or one program", more='font-weight="bold"'),
        text(
            left,
            height - 16,
            "explain prints the answer that decided. 1 to 3 are asked once, 4 on every call.",
            FAINT,
            12,
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _arrow(x1: float, y1: float, x2: float, y2: float, color: str) -> list[str]:
    """A line to the right or downwards, with a head."""
    along = x2 > x1
    head = [(x2, y2), (x2 - 8, y2 - 5), (x2 - 8, y2 + 5)] if along else [(x2, y2), (x2 - 5, y2 - 8), (x2 + 5, y2 - 8)]
    points = " ".join(f"{x},{y}" for x, y in head)
    return [
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}"/>',
        f'<polygon points="{points}" fill="{color}"/>',
    ]


def drawings() -> dict[str, str]:
    """Name and text of every file."""
    passes = {f"{name}.svg": svg(drawing) for name, drawing in DRAWINGS.items()}
    return passes | {"program.svg": rows_of_program(), "recognition.svg": recognition()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in drawings().items():
        (FOLDER / name).write_text(text)
