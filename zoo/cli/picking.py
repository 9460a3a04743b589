"""`zoo pick`: the model to take, chosen before any weights are fetched."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.catalog.dense import DATA
from zoo.cli.benching import BACKENDS, CLOCKS, DTYPES, busy
from zoo.cli.listing import Count
from zoo.cli.options import Range, Share
from zoo.cli.tables import as_json, say, say_json, table, three_digits

if TYPE_CHECKING:
    from zoo.verbs.picking import Choice, Pick

ABOVE = Range(0, min_open=True)
EVEN = 0.05  # points below which accuracies are the same


@click.command(
    epilog="\b\nzoo pick --max-latency-ms 8\n"
    "zoo pick --max-latency-ms 20 --license apache-2.0 --max-params 15M --threads 1 --plot pick.png\n"
    "zoo pick --min-top1 0.8 --backend onnxruntime\n",
)
@click.option("--max-latency-ms", type=ABOVE, help="Milliseconds of one call.  [none: the fastest of --min-top1]")
@click.option("--max-params", type=Count(), help="Only models with at most so many parameters, e.g. 10M.")
@click.option("--max-macs", type=Count(), help="Only models with at most so many macs, e.g. 1.5G.")
@click.option("--min-top1", type=Share(), help="Only models at least as accurate, e.g. 0.8.")
@click.option(
    "--max-memory-mb", type=ABOVE, help="Only models whose weights, in single precision, take at most so much."
)
@click.option("--license", "licenses", multiple=True, metavar="ID", help="Only models of this licence, or several.")
@click.option("--dataset", default=DATA, show_default=True, help="That accuracies are of.")
@click.option("--task", default="image-classification", show_default=True, help="What the model is for.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images of a call.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [as many as torch takes]")
@click.option("--backend", type=click.Choice(BACKENDS), default="eager", show_default=True, help="What computes.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the floats.  [each model's own]")
@click.option("--clock", type=click.Choice(CLOCKS), default="wall", show_default=True, help="cpu: this process alone.")
@click.option("--seconds", type=ABOVE, default=60, show_default=True, help="After which no other model is looked at.")
@click.option("--fresh", is_flag=True, help="Time again what was timed on this machine before.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw accuracy against latency: a PNG.")
@as_json
def pick(as_json: bool, plot: Path | None, dtype: str | None, max_latency_ms: float | None, **options: Any) -> None:
    """Pick the most accurate model that is fast enough on this machine.

    No weights are fetched: structure is what takes time. Contenders are the models of the catalog and timm's dense
    ones, by accuracy that their source reports on one data set. Those that are expected to be fast enough get a glance,
    and those that a glance can't tell apart take turns, as for zoo bench. What was timed is kept, so a second pick on
    this machine costs little; Ctrl-C loses none of it.
    """
    from zoo.errors import require

    if plot:
        require("matplotlib", "build")  # before what takes time
    import torch

    from zoo.verbs.picking import pick

    kind = getattr(torch, dtype) if dtype else None
    found = pick(max_latency_ms, dtype=kind, **options)
    if as_json:
        say_json(found.to_json())
    else:
        _print(found, max_latency_ms)
    if plot:  # where it can't be written the table was told all the same
        from zoo.pages.front_plot import draw

        title = ", ".join(f"{found.conditions[key]}" for key in ("machine", "backend")) + f", batch {options['batch']}"
        title += ", CPU time" * (options["clock"] == "cpu")
        draw(
            title, [_point(each) for each in found.timed], [_point(each) for each in found.front], max_latency_ms, plot
        )
        say(f"plot: {plot}", err=True)


def _point(choice: "Choice") -> tuple[str, float, float, bool]:
    return choice.name, choice.ms, choice.top1, choice.compressed


def _print(found: "Pick", limit: float | None) -> None:
    where = found.conditions
    say(
        f"{where['machine']}; {where['device']}, {where['backend']}, batch {where['batch']}, torch "
        f"{where['versions']['torch']}; {len(found.timed)} of {found.contenders} structures timed, "
        f"{found.seconds:.0f} s"
    )
    ms = "ms" if where["clock"] == "wall" else "CPU ms"
    heads = ["model", "top1", "by", ms, "interval", "params", "licence", ""]
    table(heads, [_cells(each, found) for each in found.front])
    for line in _lines(found, limit):
        say(line)


def _cells(choice: "Choice", found: "Pick") -> list[str]:
    interval = "a glance" if choice.low is None else f"{choice.low:.3g} to {choice.high:.3g}"
    mark = "picked" if choice.name == found.winner.name else "compressed" if choice.compressed else ""
    mark += ", stand-in" * choice.stand_in
    by = "its source" if choice.reported else "zoo"
    figures = [f"{choice.top1:.2%}", by, f"{choice.ms:.3g}", interval, three_digits(choice.params)]
    return [choice.name, *figures, choice.license or "not known", mark]


def _lines(found: "Pick", limit: float | None) -> list[str]:
    """How the winner is loaded, and what else is to be known."""
    winner = found.winner
    lines = [f"{winner.name}: {' or '.join(winner.load)}", _against(found.compressed, found.dense, limit)]
    if found.ties:
        lines.append(f"within noise, as good a choice may be: {', '.join(found.ties)}; a free machine tells more")
    if winner.stand_in:
        lines.append(
            f"{winner.name} was timed with widths that stand in for the published ones, of equal macs and params"
        )
    if found.open:
        lines.append(f"{found.open} that may be better weren't looked at for want of time: --seconds gives more")
    if said := busy(found.waited, found.conditions["clock"]):
        lines.append(said)
    left = [f"{count} {reason}" for reason, count in found.left_out.items()]
    lines += [f"left out: {'; '.join(left)}"] if left else []
    lines += [f"not timed: {name}: {why}" for name, why in found.refused.items()]
    return lines


def _against(smaller: "Choice | None", dense: "Choice | None", limit: float | None) -> str:
    """Whether compression pays."""
    if smaller is None or dense is None:
        return f"of those that were timed, no {'compressed' if smaller is None else 'dense'} model is as asked"
    one, other = map(_figures, (smaller, dense))
    if limit is None:
        return f"the fastest compressed model is {one}, the fastest dense one {other}"
    points = 100 * (smaller.top1 - dense.top1)
    verb = "is as accurate as" if abs(points) < EVEN else "beats" if points > 0 else "loses to"
    by = f" by {abs(points):.1f} points" if abs(points) >= EVEN else ""
    return f"at {limit:g} ms the best compressed model, {one}, {verb} the best dense one, {other}{by}"


def _figures(choice: "Choice") -> str:
    stand_in = ", of stand-in widths" * choice.stand_in
    return f"{choice.name} ({choice.top1:.1%}, {choice.ms:.3g} ms{stand_in})"
