"""`sweep`: a model made for several budgets, what each costs in accuracy, and the smallest that costs little enough."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from zoo.atomic import writing
from zoo.catalog.entry import Entry, reading
from zoo.catalog.report import Report
from zoo.errors import BudgetError, require
from zoo.tasks import task_named
from zoo.tasks.evaluation import BESIDE
from zoo.verbs.beginning import Say, alone_of, processes, say_how_good, seen_as
from zoo.verbs.building import make
from zoo.verbs.loading import pretrained
from zoo.verbs.measuring import report_of
from zoo.verbs.verification import results_of

STEPS = 100  # budgets that are told apart
At = Callable[[float], Entry]
"""A budget → the entry of the model that is made for it."""


class Point(Struct, frozen=True):
    """What one budget comes to.

    Args:
        budget: share of the macs that may stay; 1 of the dense model.
        name: of the model.
        macs: of one image.
        params: of the model.
        leading: name of the figure that is looked at: that which the task leads with, or of hidden targets `agreement`.
        figure: its value, 0..1.
        agreement: with the dense model, 0..1; None where results don't say.
        kl: mean divergence from the dense model, in nats.
    """

    budget: float
    name: str
    macs: float
    params: float
    leading: str
    figure: float
    agreement: float | None = None
    kl: float | None = None


def sweep(at: At, budgets: Sequence[float], folder: Path, say: Say) -> list[Point]:
    """Make a model for each budget, where it isn't made already.

    Args:
        at: a budget's entry.
        budgets: shares of the macs.
        folder: of the repositories, each by its name.
        say: called with a line as each step begins.

    Returns:
        A point of the dense model and one of each budget that can be met, from larger to smaller.

    Raises:
        BudgetError: two budgets are as good as one.
        ZooError: whatever a step ran into.
    """
    entries = {budget: at(budget) for budget in sorted({*budgets}, reverse=True)}
    for (one, entry), (other, next_entry) in itertools.pairwise(entries.items()):
        if entry.name == next_entry.name:
            raise BudgetError(f"sweep: {one:g} and {other:g} both are {entry.name}; leave one of them out")
    point, dense = dense_point(at(1.0), say)
    points = [point]
    for budget, entry in entries.items():
        try:
            points.append(_point(entry, budget, folder, say, dense))
        except BudgetError as error:
            say(str(error))
    return points


def dense_point(entry: Entry, say: Say) -> tuple[Point, Report]:
    """What the base of an entry costs and is good for, evaluated here once for all budgets; and its report alone."""
    assert entry.base is not None
    say(f"evaluate the base {entry.base.id} on {entry.recipe.data}")
    model = seen_as(entry, pretrained(entry.base)).to(processes().device)
    report = report_of(model, entry.recipe.data, against=model, **reading(entry.recipe))
    alone = alone_of(report)
    say_how_good(model, alone, entry, say)
    return _read(1.0, entry, report), alone


def _point(entry: Entry, budget: float, folder: Path, say: Say, dense: Report) -> Point:
    return _read(budget, entry, results_of(make(entry, folder / entry.name, say=say, dense=dense)))


def _read(budget: float, entry: Entry, report: Report) -> Point:
    found = report.measured
    beside = {key: found.get(key) for key in BESIDE}
    leading = task_named(entry.task).leading.figure
    leading = leading if leading in found else "agreement"
    return Point(budget, report.name, found["macs"], found["params"], leading, found[leading], **beside)


def smallest(at: At, lost: float, folder: Path, say: Say) -> list[Point]:
    """Look for the smallest budget that loses at most so much, by halving what is in question.

    Args:
        at: a budget's entry.
        lost: share of the task's figure, 0..1, that may be lost.
        folder: as for `sweep`.
        say: as for `sweep`.

    Returns:
        The points looked at, from larger to smaller; `kept` tells which one it is.

    Raises:
        ZooError: whatever a step ran into, but that a budget can't be met.
    """
    point, dense = dense_point(at(1.0), say)
    points = [point]
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        try:
            points.append(_point(at(middle / STEPS), middle / STEPS, folder, say, dense))
        except BudgetError as error:  # no model is as small
            say(str(error))
            low = middle
            continue
        low, high = (low, middle) if loses(points[0], points[-1]) <= lost else (middle, high)
    return sorted(points, key=lambda point: -point.budget)


def kept(points: Sequence[Point], lost: float) -> Point:
    """The smallest of points that loses at most so much of the first one's figure."""
    return [point for point in points if loses(points[0], point) <= lost][-1]


def loses(dense: Point, point: Point) -> float:
    """What a point loses of the figure, to nine digits: so many images in so many, not rounding."""
    return round(dense.figure - point.figure, 9)


def figures_of(point: Point) -> dict[str, Any]:
    """What a point is good for, by name."""
    return {point.leading: point.figure, "agreement": point.agreement, "kl": point.kl}


def knee(points: Sequence[Point]) -> Point | None:
    """The point that lies highest above the line from the first to the last one; None where none does.

    Source: Satopää et al., "Finding a 'Kneedle' in a Haystack: Detecting Knee Points in System Behavior" (2011).
    """
    first, last = points[0], points[-1]
    width = first.macs - last.macs

    def above(point: Point) -> float:
        return (point.figure - last.figure) * width - (first.figure - last.figure) * (point.macs - last.macs)

    found = max(points[1:-1], key=above, default=None)
    return found if found is not None and above(found) > 0 else None


def plot(points: Sequence[Point], marked: Point | None, file: Path) -> None:
    """Draw the figure that is looked at, and the agreement, over the macs, with one point marked.

    Raises:
        MissingExtra: matplotlib isn't installed.
        StorageError: the disk is full or refuses.
    """
    figure = require("matplotlib.figure", "build").Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    shares = {point.name: 100 * point.macs / points[0].macs for point in points}
    for label in dict.fromkeys(["agreement", points[0].leading]):
        axis.plot([*shares.values()], [figures_of(point)[label] for point in points], "o-", label=label)
    if marked is not None:
        axis.plot(shares[marked.name], marked.figure, "o", markersize=12, fillstyle="none", color="tab:red")
    axis.set(xlabel="macs kept, %", title=points[0].name)
    axis.legend()
    axis.grid(alpha=0.3)
    with writing(file) as out:
        figure.savefig(out, format="png", dpi=150)
