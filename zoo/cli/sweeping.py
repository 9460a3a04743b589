"""What a sweep of `zoo compress` prints: a row for each model, and which one is marked."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from zoo.catalog.entry import Entry
from zoo.cli.building import saying
from zoo.cli.tables import say, say_json, table


def swept(
    at: Callable[[float], Entry], shares: list[float] | None, lost: float | None, out: Path, as_json: bool
) -> None:
    """Make models of several budgets, and print what each is good for.

    Args:
        at: a budget's entry.
        shares: the budgets.
        lost: points that the smallest may lose, in place of budgets.
        out: folder of the repositories and the plot.
        as_json: print JSON.
    """
    from zoo.verbs.sweeping import figures_of, kept, knee, plot, smallest, sweep

    with saying() as tell:
        points = sweep(at, shares or (), out, tell) if lost is None else smallest(at, lost / 100, out, tell)
    named = knee(points) if lost is None else kept(points, lost / 100)
    plot(points, named, out / "sweep.png")
    mark = named.name if named else None
    if as_json:
        say_json({"points": to_builtins(points), "knee" if lost is None else "smallest": mark})
        return
    head = ["model", "budget", "macs", "params", *figures_of(points[0]), ""]
    word = "the knee" if lost is None else f"loses at most {lost:g} points"
    table(head, [[*_cells(point, figures_of(point).values()), word if point.name == mark else ""] for point in points])
    say(f"plot: {out / 'sweep.png'}", err=True)


def _cells(point: Any, figures: Iterable[float | None]) -> list[str]:
    counts = f"{point.budget:g}", f"{point.macs:,.0f}", f"{point.params:,.0f}"
    return [point.name, *counts, *("-" if value is None else f"{value:.4f}" for value in figures)]
