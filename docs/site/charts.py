"""Charts as SVG: bars in panels, and a roofline. They are plain text, so that a test can compare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from drawings import FAINT, PAPER, READ, TEXT, WIDTH, WRITTEN, text

OURS, OTHER, LOSS = WRITTEN, READ, "#a3203a"
NAMES, BAR, LEFT = 210, 20, 20


class Bar(NamedTuple):
    """A line of a panel: its name, its length, what stands behind it, and its colour."""

    name: str
    value: float
    label: str
    color: str = OTHER


class Panel(NamedTuple):
    """Bars that share a scale; at ``line``, where it is not None, is a dashed line."""

    title: str
    bars: Sequence[Bar]
    line: float | None = None


def _frame(title: str, height: float, parts: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        'font-family="system-ui, sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="{PAPER}"/>',
        text(LEFT, 30, title, size=16, more='font-weight="bold"'),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def bars(title: str, panels: Sequence[Panel], note: str) -> str:
    """Panels below each other, each with horizontal bars from zero; the note is below."""
    parts, y, room = [], 56.0, WIDTH - NAMES - LEFT - 124
    for panel in panels:
        parts.append(text(LEFT, y, panel.title, more='font-weight="bold"'))
        most = max(bar.value for bar in panel.bars)
        top = y + 10
        for bar in panel.bars:
            y += BAR
            width = max(1.0, room * bar.value / most)
            parts += [
                text(LEFT, y + 5, bar.name, size=12),
                f'<rect x="{LEFT + NAMES}" y="{y - 7:g}" width="{width:.1f}" height="15" rx="2" fill="{bar.color}" '
                'fill-opacity="0.75"/>',
                text(round(LEFT + NAMES + width + 6, 1), y + 5, bar.label, FAINT, 12),
            ]
        if panel.line is not None:
            x = LEFT + NAMES + room * panel.line / most
            parts.append(
                f'<line x1="{x:.1f}" y1="{top:g}" x2="{x:.1f}" y2="{y + 11:g}" stroke="{TEXT}" stroke-dasharray="3 3"/>'
            )
        y += 38
    parts.append(text(LEFT, y - 6, note, FAINT, 12))
    return _frame(title, y + 10, parts)


class Point(NamedTuple):
    """A result beside the roofline: FLOPs a byte, GFLOP/s."""

    intensity: float
    speed: float
    color: str


def roofline(title: str, points: Sequence[Point], peak: float, bandwidths: dict[str, float], note: str) -> str:
    """Points on logarithmic axes, below the peak in GFLOP/s and the bandwidths in GB/s."""
    left, right, top, bottom = 62, WIDTH - 24, 58, 330
    low = math.floor(math.log2(min(p.intensity for p in points)))
    high = math.ceil(math.log2(max(p.intensity for p in points)))
    least = math.floor(math.log2(min(p.speed for p in points)))
    most = math.ceil(math.log2(peak))

    def place(intensity: float, speed: float) -> tuple[float, float]:
        x = left + (right - left) * (math.log2(intensity) - low) / (high - low)
        return round(x, 1), round(bottom - (bottom - top) * (math.log2(speed) - least) / (most - least), 1)

    parts = []
    for power in range(low, high + 1):
        x = place(2.0**power, 2.0**least)[0]
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="{FAINT}" stroke-opacity="0.2"/>')
        parts.append(text(x, bottom + 18, f"{2.0**power:g}", FAINT, 12, 'text-anchor="middle"'))
    for power in range(least, most + 1):
        y = place(2.0**low, 2.0**power)[1]
        parts.append(f'<line x1="{left}" y1="{y}" x2="{right}" y2="{y}" stroke="{FAINT}" stroke-opacity="0.2"/>')
        parts.append(text(left - 8, y + 4, f"{2.0**power:g}", FAINT, 12, 'text-anchor="end"'))
    x, y = place(2.0**low, peak)
    parts.append(f'<line x1="{x}" y1="{y}" x2="{right}" y2="{y}" stroke="{TEXT}" stroke-width="1.5"/>')
    parts.append(text(right, y - 5, f"peak {peak:.0f}", size=12, more='text-anchor="end"'))
    for name, bandwidth in bandwidths.items():
        first, last = max(2.0**low, 2.0**least / bandwidth), min(peak / bandwidth, 2.0**high)
        if first >= last:
            continue
        (x1, y1), (x2, y2) = place(first, first * bandwidth), place(last, last * bandwidth)
        parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{TEXT}" stroke-dasharray="5 3"/>')
        parts.append(text(x1 + 18, y1 + 5, f"{name} {bandwidth:.0f} GB/s", size=12))
    for point in points:
        x, y = place(point.intensity, point.speed)
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{point.color}" fill-opacity="0.7"/>')
    parts.append(text(left, bottom + 38, "FLOPs for each byte that must move; upwards GFLOP/s", FAINT, 12))
    parts.append(text(left, bottom + 56, note, FAINT, 12))
    return _frame(title, bottom + 72, parts)
