"""Accuracy against latency: the models that were timed, the line of the best, and the limit."""

from collections.abc import Sequence
from pathlib import Path

from zoo.atomic import writing
from zoo.errors import require
from zoo.pages.style import COMPRESSED, DENSE, DPI, GREY
from zoo.printable import printable

AROUND = 1.6  # times the ends of what is looked at
Point = tuple[str, float, float, bool]
"""Name, milliseconds, accuracy (0..1), whether it is compressed."""


def draw(title: str, points: Sequence[Point], front: Sequence[Point], limit: float | None, file: Path) -> None:
    """Draw points, compressed ones filled and dense ones hollow, with a line through the front.

    Args:
        title: what holds for all of them.
        points: all that were timed.
        front: those that are named and joined.
        limit: milliseconds; None draws none.
        file: a PNG; it appears whole or not at all.

    Raises:
        MissingExtra: matplotlib isn't installed.
        StorageError: the disk is full or refuses.
    """
    figure = require("matplotlib.figure", "build").Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    best = sorted(front, key=lambda point: point[1])
    axis.step([ms for _, ms, _, _ in best], [100 * top1 for _, _, top1, _ in best], where="post", color="black", lw=1)
    for compressed, colour, word, marker in ((True, COMPRESSED, "compressed", "o"), (False, DENSE, "dense", "s")):
        found = [point for point in points if point[3] is compressed]
        filled = colour if compressed else "none"
        places = [ms for _, ms, _, _ in found], [100 * top1 for _, _, top1, _ in found]
        axis.scatter(*places, s=24, marker=marker, color=filled, edgecolors=colour, label=word, zorder=3)
    for number, (_, ms, top1, _) in enumerate(best, 1):
        axis.annotate(str(number), (ms, 100 * top1), (-3, 4), textcoords="offset points", ha="right", fontsize=8)
    names = [f"{number}  {printable(name, 50)}" for number, (name, *_) in enumerate(best, 1)]
    axis.text(1.02, 1, "\n".join(names[::-1]), transform=axis.transAxes, va="top", fontsize=7, linespacing=1.6)
    if limit is not None:
        axis.axvline(limit, color=GREY, ls="--", label=f"{limit:g} ms")
    first, last = best[0][1] / AROUND, AROUND * max(limit or 0, best[-1][1])
    seen = [100 * top1 for _, ms, top1, _ in points if first <= ms <= last]
    axis.set(xscale="log", xlabel="ms of one call", ylabel="top-1 accuracy, %")
    axis.set(xlim=(first, last), ylim=(min(seen) - 1, max(seen) + 1))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="x", which="both", labelsize=7)
    axis.set_title(printable(title, 120), fontsize=9)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3, which="both")
    with writing(file) as out:
        figure.savefig(out, format="png", dpi=DPI)
