"""Feature maps as a picture: the most similar pairs are joined, and cheap maps stand under what they are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..bench.machine import need
from .maps import MEASURE, FeatureMaps, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#e6194b", "#1f9bff", "#f58231", "#2ca02c", "#b544e0", "#00b3a4", "#c49a00", "#f032a6")
GAP, BAND = 0.22, 0.5  # between maps, and between bands of them, in widths of a map
EDGE = 0.24  # around all maps
SIDE, MARGIN, TITLE, LINE = 3.0, 0.15, 0.75, 0.19  # inches: the image, around all, above, and a line of text
LARGEST, WIDEST = 1.5, 13.0  # inches of a map, and of all side by side
NARROWEST = 8.5  # inches of the picture, for its title
LINK = 0.42  # between a map and what is made from it, where an arrow and a number stand


@dataclass
class _Layout:
    """Where maps stand: the left upper corner of each, and the size of the whole, in widths of a map."""

    height: float  # of a map
    corners: dict[int, tuple[float, float]] = field(default_factory=dict)
    size: tuple[float, float] = (0.0, 0.0)

    def centre(self, channel: int) -> tuple[float, float]:
        left, top = self.corners[channel]
        return left + 0.5, top + self.height / 2


def plot(
    found: FeatureMaps, path: str | Path, *, image: torch.Tensor, title: str, pairs: int = 3, most: int = 32
) -> int:
    """Write the picture; the path's ending names the format (.png, .svg, .pdf).

    Args:
        found: the maps.
        image: what the net has seen, H x W x 3 or H x W, values from 0 to 1.
        title: stands above.
        pairs: how many of the most similar pairs are joined, at most 8.
        most: at most about so many maps are drawn: those of the joined pairs, with what they are made from, then the
            first ones.

    Returns:
        Number of maps that were drawn.

    Raises:
        Unavailable: matplotlib is not installed.
        ValueError: matplotlib does not know the format, or pairs is not from 0 to 8.
    """
    need("matplotlib", "demo")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 0 <= pairs <= len(COLOURS):
        raise ValueError(f"plot: pairs: expected 0 to {len(COLOURS)}, got {pairs}")
    joined = found.pairs(pairs)
    groups = _groups(found, [channel for pair in joined for channel in (pair.first, pair.second)], most)
    layout = _placed(groups, found.maps.shape[1] / found.maps.shape[2])
    text = _text(found, joined, len(layout.corners))
    width, height = layout.size[0] + EDGE, layout.size[1] + EDGE
    scale = min(LARGEST, WIDEST / width)
    tall = SIDE * image.shape[0] / image.shape[1]
    broad = max(NARROWEST, 2 * MARGIN + SIDE + 0.3 + scale * width)
    inches = broad, TITLE + max(scale * height, tall + LINE * len(text)) + MARGIN
    figure = Figure(figsize=inches)
    FigureCanvasAgg(figure)

    def at(left: float, broad: float, high: float) -> Axes:
        """Axes of this size below the title, in inches."""
        box = left / inches[0], 1 - (TITLE + high) / inches[1], broad / inches[0], high / inches[1]
        return figure.add_axes(box)

    _side(at(MARGIN, SIDE, tall), image, text)
    axes = at(MARGIN + SIDE + 0.3, scale * width, scale * height)
    _maps(axes, found, layout)
    _links(axes, found, layout)
    for number, (pair, colour) in enumerate(zip(joined, COLOURS), 1):
        _join(axes, layout, pair.first, pair.second, number, colour)
    figure.text(MARGIN / inches[0], 1 - 0.1 / inches[1], title, va="top", fontsize=12)
    figure.savefig(path, dpi=110)
    return len(layout.corners)


def _groups(found: FeatureMaps, wanted: list[int], most: int) -> list[list[int]]:
    """The maps that are drawn, in order: each alone, or a primary one with those that are made from it."""
    if found.ghosts is None:
        groups = {channel: [channel] for channel in range(found.count)}
        owner = lambda channel: channel
    else:
        groups = {channel: [channel] for channel in range(min(found.ghosts.primary, found.count))}
        for link in found.links():
            groups[link.first].append(link.second)
        owner = lambda channel: channel if channel in groups else found.ghosts.source(channel)
    needed = dict.fromkeys(owner(channel) for channel in wanted)
    room = max(1, most // max(len(group) for group in groups.values()))
    chosen = list(dict.fromkeys([*needed, *groups]))[: max(room, len(needed))]
    return [groups[channel] for channel in sorted(chosen)]


def _placed(groups: list[list[int]], height: float) -> _Layout:
    """Groups side by side in bands; within a group one below the other."""
    tall = max(len(group) for group in groups)
    of_group = tall * height + (tall - 1) * LINK
    columns = max(1, min(len(groups), math.ceil(math.sqrt(len(groups) * (of_group + BAND) * 1.5))))
    layout = _Layout(height)
    band = of_group + (BAND if tall > 1 else GAP + 0.12)
    for place, group in enumerate(groups):
        row, column = divmod(place, columns)
        for below, channel in enumerate(group):
            layout.corners[channel] = column * (1 + GAP), row * band + below * (height + LINK)
    layout.size = columns * (1 + GAP), math.ceil(len(groups) / columns) * band
    return layout


def _maps(axes: Axes, found: FeatureMaps, layout: _Layout) -> None:
    for channel, (left, top) in layout.corners.items():
        values = found.maps[channel].nan_to_num(0, 0, 0)
        low, high = float(values.min()), float(values.max())
        extent = (left, left + 1, top + layout.height, top)
        axes.imshow(
            values.numpy(), cmap="gray", aspect="auto", extent=extent, vmin=low, vmax=high if high > low else low + 1
        )
        axes.text(left, top - 0.02, str(channel), fontsize=7.5, color="#555555", va="bottom")
    axes.set_xlim(-EDGE / 2, layout.size[0] + EDGE / 2)
    axes.set_ylim(layout.size[1], -EDGE)
    axes.axis("off")


def _links(axes: Axes, found: FeatureMaps, layout: _Layout) -> None:
    """An arrow with the similarity from each map to each that is made from it."""
    for link in found.links():
        if link.second not in layout.corners:
            continue
        x, end = layout.centre(link.second)[0], layout.corners[link.second][1]
        arrow = {"arrowstyle": "-|>", "color": "#777777", "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, end - 0.03), (x, end - LINK + 0.05), arrowprops=arrow)
        label = {"color": "#555555", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.6}, "zorder": 7}
        axes.text(x + 0.08, end - LINK / 2, f"{link.similarity:.2f}", fontsize=8, va="center", **label)


def _join(axes: Axes, layout: _Layout, first: int, second: int, number: int, colour: str) -> None:
    """Frames around two maps, a line between them, and the number of the pair at both."""
    from matplotlib.patches import FancyArrowPatch, Rectangle

    ends = layout.centre(first), layout.centre(second)
    line = {"arrowstyle": "-", "connectionstyle": "arc3,rad=0.16", "zorder": 4, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(*ends, color="white", linewidth=3.6, alpha=0.8, **line))
    axes.add_patch(FancyArrowPatch(*ends, color=colour, linewidth=1.8, **line))
    for channel in (first, second):
        left, top = layout.corners[channel]
        axes.add_patch(Rectangle((left, top), 1, layout.height, fill=False, edgecolor=colour, linewidth=3, zorder=5))
        badge = {"boxstyle": "circle,pad=0.2", "facecolor": colour, "edgecolor": "white"}
        where = {"ha": "center", "va": "center", "zorder": 6}
        axes.text(left + 0.97, top + 0.03, str(number), fontsize=8.5, color="white", weight="bold", bbox=badge, **where)


def _text(found: FeatureMaps, joined: list[Pair], drawn: int) -> list[str]:
    """The lines that say what the numbers, the arrows and the greys mean."""
    lines = [f"{drawn} of {found.count} maps," if drawn < found.count else f"{found.count} maps,"]
    lines += ["each in its own range of greys", ""]
    lines += ["Most similar pairs:"] * bool(joined)
    for number, pair in enumerate(joined, 1):
        lines.append(f"{number}:  {pair.first} and {pair.second}, {pair.similarity:.3f}")
    if found.links():
        lines += ["", "Arrows: the cheap operation,", "with the similarity of both ends"]
    return [*lines, "", "Similarity:", *MEASURE.replace(" maps ", " maps\n").split("\n")]


def _side(axes: Axes, image: torch.Tensor, lines: list[str]) -> None:
    """The image, and the lines below it."""
    axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, aspect="auto")
    axes.axis("off")
    axes.annotate("\n".join(lines), (0, 0), (0, -10), "axes fraction", "offset points", va="top", fontsize=9,
                  linespacing=1.35)  # fmt: skip
