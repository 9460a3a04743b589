"""Accuracy of a family against what its models cost: what a source reports hollow, what was measured filled."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo import catalog
from zoo.catalog.dense import dense
from zoo.catalog.entry import Entry, Reported
from zoo.catalog.report import Report
from zoo.pages import style
from zoo.printable import printable
from zoo.tasks import TASKS

FEWEST = 3  # points, below which a table says it as well
EVALUATED = {"ILSVRC/imagenet-1k": 50_000}  # images of the split that sources evaluate on
COSTS = {
    "macs": ("macs of one image", 1e6, "M"),
    "params": ("parameters", 1e6, "M"),
    "latency_ms": ("latency", 1, "ms"),
}
TICKS = (1, 1.5, 2, 3, 4, 6, 8)  # of a decade, those that bear a number
Point = tuple[str, bool, bool, float, int | None, Mapping[str, float]]
"""Name, whether it is compressed, whether we measured it, its accuracy (0..1), of how many images, and its costs."""


def points(entry: Entry, report: Report | None) -> list[Point]:
    """The points of an entry's family, its own first, of accuracies on the same data.

    Args:
        entry: of the catalog.
        report: what was measured of it; None where nothing was.
    """
    names = (name for name in catalog.names("*", all=True, task=entry.task) if name != entry.name)
    others = [other for other in map(catalog.info, names) if (other.family, other.project) == _place(entry)]
    figure = TASKS[entry.task].leading.figure if entry.task in TASKS else "top1"
    data = report.data if report and figure in report.measured else None
    found = {} if report is None else {entry.name: {"measured": report.measured, "data": report.data}}
    every: list[Point] = []
    for each in (entry, *others):
        results = found.get(each.name) or catalog.results(each)
        every += [*_measured(each, results, figure, data), *_reported(each, results, figure, data)]
    return [point for place, point in enumerate(every) if point not in every[:place]]


def _place(entry: Entry) -> tuple[str, str]:
    return entry.family, entry.project


def _measured(entry: Entry, results: Mapping[str, Any], figure: str, data: Mapping[str, Any] | None) -> Iterator[Point]:
    measured, where = results.get("measured", {}), results.get("data", {})
    if figure in measured and data is not None and where.get("sha256") == data.get("sha256"):
        method = entry.recipe.method is not None
        yield entry.name, method, True, measured[figure], _images(figure, where.get("images")), _costs(measured)


def _reported(entry: Entry, results: Mapping[str, Any], figure: str, data: Mapping[str, Any] | None) -> Iterator[Point]:
    if data is not None and data.get("dataset") != entry.dataset:
        return
    for row in (*entry.reported, *entry.baselines):
        if figure not in row.figures or row.runtime:
            continue
        costs = _claimed(row, entry)
        if row.of is None and row.input in (None, entry.input[-1]):
            costs |= _costs(results.get("measured", {}))
        name, images = row.of or entry.name, row.images or EVALUATED.get(entry.dataset or "")
        if costs.keys() & {"macs", "params"}:
            method = entry.recipe.method is not None and row.of is None
            yield name, method, False, row.figures[figure], _images(figure, images), costs


def _costs(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: figures[key] for key in COSTS if key in figures}


def _claimed(row: Reported, entry: Entry) -> dict[str, float]:
    """Costs that a source reports, and of a dense model of timm's what it was counted to have."""
    costs = {"latency_ms": row.figures["latency_ms"]} if "latency_ms" in row.figures else {}
    if "params_m" in row.figures:
        costs["params"] = 1e6 * row.figures["params_m"]
    if "kmapp" in row.figures:
        costs["macs"] = row.figures["kmapp"] * catalog.DIVISORS[row.counting] * entry.input[1] * entry.input[2] / 2
    known = (each for each in dense() if row.of == f"timm/{each.id}" and each.side == row.input)
    return {**{key: getattr(each, key) for each in known for key in ("macs", "params")}, **costs}


def _images(figure: str, images: int | None) -> int | None:
    """Of how many independent trials a figure is the share; a mean average precision is none of any."""
    return images if figure.startswith("top") else None


def drawable(found: Sequence[Point]) -> bool:
    """Whether points are worth a picture: enough of them, dense and compressed, have one of the costs."""
    return bool(_labels(found))


def alt(found: Sequence[Point], name: str) -> str:
    """The picture in words."""
    own = next((point for point in found if point[0] == name), None)
    count = len({point[0] for point in found})
    words = f", {name} among them at {100 * own[3]:.4g} %" if own else ""
    against = " and ".join(_labels(found))
    return f"Accuracy of {count} dense and compressed models of one family against {against}{words}."


def _labels(found: Sequence[Point]) -> list[str]:
    """The costs that are worth a panel."""
    kinds = {key: [compressed for _, compressed, *_, costs in found if key in costs] for key in COSTS}
    return [COSTS[key][0] for key, each in kinds.items() if len(each) >= FEWEST and len({*each}) == 2]


def draw(found: Sequence[Point], name: str, label: str) -> Any:
    """A figure of a family's accuracies against each of its costs.

    Args:
        found: from `points`; an interval of 95 % stands where the number of images is known.
        name: of the model to point out.
        label: of the accuracy.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    from matplotlib import ticker

    keys = [key for key, (words, _, _) in COSTS.items() if words in _labels(found)]
    figure, axes = style.figure(3.4, 1, len(keys), sharey=True)
    found = sorted(found, key=lambda point: point[1])  # dense ones first, or they would hide others
    for axis, key in zip(axes[0], keys, strict=True):
        words, unit, short = COSTS[key]
        for point in found:
            if key in point[-1]:
                mark(axis, point, point[-1][key] / unit, point[0] == name)
        axis.set_xscale("log", subs=())
        axis.set_xlabel(f"{words}, {short}", fontsize=9)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=TICKS))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(f"{label}, %", fontsize=9)
    handles, labels = legend(found)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def mark(axis: Any, point: Point, cost: float, this: bool, size: int = 7) -> None:
    """Draw a point: dense ones square, compressed ones round, measured ones filled, with its interval.

    Args:
        axis: where.
        point: from `points`.
        cost: at which it stands.
        this: the model that is pointed out.
        size: of the mark.
    """
    _, compressed, measured, share, images, _ = point
    colour = style.COMPRESSED if compressed else style.DENSE
    ends = style.interval(share, images) if images else (share, share)
    errors = [[100 * (share - ends[0])], [100 * (ends[1] - share)]]
    look = {
        "color": colour,
        "mfc": colour if measured else "white",
        "ms": size if compressed else size + 2,
        "elinewidth": 1,
        "capsize": 2,
    }
    axis.errorbar(cost, 100 * share, errors if images else None, fmt="o" if compressed else "s", zorder=3, **look)
    if this:
        at = {"xy": (cost, 100 * share), "xytext": (6, 6), "textcoords": "offset points"}
        axis.annotate("this", fontsize=8, fontweight="bold", **at)


def legend(found: Sequence[Point]) -> tuple[list[Any], list[str]]:
    """The marks of these points, and what each means."""
    from matplotlib.lines import Line2D

    kinds = sorted({(compressed, measured) for _, compressed, measured, *_ in found})
    handles, labels = [], []
    for compressed, measured in kinds:
        colour, marker = (style.COMPRESSED, "o") if compressed else (style.DENSE, "s")
        handles.append(Line2D([], [], ls="", marker=marker, color=colour, mfc=colour if measured else "white"))
        labels.append(f"{'compressed' if compressed else 'dense'}, {'measured' if measured else 'reported'}")
    counts = {images for *_, images, _ in found if images}
    if counts:
        handles.append(Line2D([], [], ls="", marker="|", ms=10, color=style.GREY))
        labels.append(f"95 % interval of {min(counts):,} images" if len(counts) == 1 else "95 % interval")
    return handles, [printable(label) for label in labels]
