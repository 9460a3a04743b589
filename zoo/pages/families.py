"""Accuracy against macs of whole families, each from its dense models down: what is gained and lost where."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from zoo.pages import style
from zoo.pages.family import Point, legend, mark
from zoo.printable import printable

Family = tuple[str, Sequence[Point]]
Panel = tuple[str, str, Sequence[Family]]
"""Its title, what accuracy is called, and the points of each family by its name."""
Box = tuple[float, float, float, float]
"""Left, right, lower and upper end, in points of the picture."""
LETTER = 4.6  # points that a letter of a family's name is wide, and half of its height
PLACES = (
    (9, 0, "left"),
    (-9, 0, "right"),
    (0, 12, "center"),
    (9, 7, "left"),
    (-9, 7, "right"),
    (9, -9, "left"),
    (0, -14, "center"),
)
ROOM = 2  # of the macs, for names


def draw(panels: Sequence[Panel]) -> Any:
    """A figure with a panel for each data set.

    Args:
        panels: families that were evaluated on the same images stand in one.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    from matplotlib import ticker

    heights = [max(2.6, 0.45 * len(families)) for *_, families in panels]
    figure, axes = style.figure(sum(heights) + 0.6, len(panels), height_ratios=heights)
    for axis, (title, label, families) in zip(axes[:, 0], panels, strict=True):
        axis.set_xscale("log", subs=())
        for _, points in families:
            _draw_family(axis, points)
        axis.set_xlim(right=ROOM * axis.get_xlim()[1])
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title(printable(title, 60), fontsize=9)
        axis.set_xlabel("macs of one image, M", fontsize=9)
        axis.set_ylabel(f"{label}, %", fontsize=9)
        axis.grid(alpha=0.25)
    handles, labels = legend([point for *_, families in panels for _, points in families for point in points])
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.draw_without_rendering()  # or nobody knows yet where a point lies
    for axis, (_, _, families) in zip(axes[:, 0], panels, strict=True):
        _name(axis, families, 72 / figure.dpi)
    return figure


def _draw_family(axis: Any, points: Sequence[Point]) -> None:
    joined = [point for point in points if point[1]] + [_dearest(points)]  # other dense ones are nobody's base here
    line = sorted(map(_place, joined))
    axis.plot([macs for macs, _ in line], [share for _, share in line], color=style.GREY, lw=1, zorder=1)
    for point in sorted(points, key=lambda point: point[1]):
        mark(axis, point, _place(point)[0], False, 5)


def _dearest(points: Sequence[Point]) -> Point:
    return max(points, key=lambda point: point[-1]["macs"])


def _place(point: Point) -> tuple[float, float]:
    return point[-1]["macs"] / 1e6, 100 * point[3]


def _name(axis: Any, families: Sequence[Family], scale: float) -> None:
    """Write each family's name, where it hides least, beside its model of the most macs."""
    taken = [(x - 5, x + 5, y - 9, y + 9) for _, points in families for x, y in _drawn(axis, points, scale)]
    taken.append((72 * style.WIDTH, math.inf, -math.inf, math.inf))  # what lies beyond the picture isn't seen
    for name, points in families:
        dearest = _dearest(points)
        ((x, y),) = _drawn(axis, [dearest], scale)
        boxes = [_box(x + right, y + up, LETTER * len(name), side) for right, up, side in PLACES]
        hidden = [sum(_meet(box, other) for other in taken) for box in boxes]
        right, up, side = PLACES[hidden.index(min(hidden))]
        taken.append(boxes[hidden.index(min(hidden))])
        at = {"xytext": (right, up), "textcoords": "offset points", "ha": side, "va": "center"}
        axis.annotate(printable(name, 30), _place(dearest), fontsize=7, **at).set_in_layout(False)


def _drawn(axis: Any, points: Sequence[Point], scale: float) -> Iterator[tuple[float, float]]:
    for x, y in axis.transData.transform([_place(point) for point in points]):
        yield x * scale, y * scale


def _box(x: float, y: float, width: float, side: str) -> Box:
    left = {"left": x, "right": x - width, "center": x - width / 2}[side]
    return left, left + width, y - LETTER, y + LETTER


def _meet(a: Box, b: Box) -> bool:
    return all(a[low] < b[low + 1] and b[low] < a[low + 1] for low in (0, 2))
