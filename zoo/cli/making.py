"""`zoo compress`: smaller models, one or several."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from zoo.catalog.entry import Budget, Entry, Recipe
from zoo.catalog.methods import METHODS, available, budgeted
from zoo.cli.building import made, saying
from zoo.cli.options import SETTING, Range, Share, Shares, data_options, distillation, distillation_options
from zoo.cli.tables import as_json, say, say_json, table


@click.command(
    epilog="\b\nzoo compress digits_vit --budget 0.5 --data digits --epochs 20 --out build/mine\n"
    "zoo compress timm/resnet18.a1_in1k --method lockd --set nsr_threshold=0.1 --data ./photographs --out build/mine\n",
)
@click.argument("base")
@click.option("--method", type=click.Choice(available()), default="prune", show_default=True, help="How.")
@click.option("--budget", type=Share(), help=f"{', '.join(budgeted())}: share of the macs that stays.")
@click.option("--params", type=Share(), help="Share of the params that stays, if that matters too.")
@click.option("--sweep", type=Shares(), help="Several budgets, e.g. 0.9,0.7,0.5: a table, a plot, the knee.")
@click.option("--lose-at-most", type=Range(0, 100), help="Smallest budget that loses so many points.")
@as_json
@click.option("--data", required=True, help="digits, digit_pairs, a folder, or a Hub id ORG/NAME.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new repository.")
@click.option("--set", "settings", help="Option of the method, e.g. round_to=16.", **SETTING)
@click.option(
    "--calibrate-steps", type=click.IntRange(0), help="Then bring it nearer to BASE without labels.  [default: 0]"
)
@distillation_options
@click.option("--seed", type=int, default=0, show_default=True, help="Of calibration images, order, augmentation.")
@data_options
def compress(
    base: str,
    method: str,
    budget: float | None,
    params: float | None,
    sweep: list[float] | None,
    lose_at_most: float | None,
    as_json: bool,
    data: str,
    out: Path,
    settings: tuple[tuple[str, Any], ...],
    calibrate_steps: int | None,
    seed: int,
    skip_damaged: bool,
    labels: Any,
    **distilled: Any,
) -> None:
    """Compress the model BASE.

    BASE is a model of the list, a repository's folder, or a timm id such as timm/resnet18.a1_in1k. Methods without a
    budget have thresholds, which --set sets. The widths that prune leaves and the ranks of low_rank are multiples of
    round_to, 8 unless --set says otherwise; where there are less than eight times as many, multiples of an eighth of
    them. A folder of data holds images in train/CLASS, to compress with, and in validation/CLASS, to evaluate on.

    A command that was stopped goes on where it stopped; a model that is there already is made neither again nor
    replaced.
    """
    from zoo.verbs.recipes import read_as, recipe_for

    asked = [each for each in (budget, sweep, lose_at_most) if each is not None]
    if METHODS[method].budgeted and len(asked) != 1:
        raise click.UsageError(f"--method {method} needs --budget SHARE, or one of --sweep and --lose-at-most instead")
    if not METHODS[method].budgeted and (asked or params is not None):
        raise click.UsageError(f"--method {method} has thresholds, which --set sets, and takes no --budget or --params")
    options = dict(settings) | ({"calibrate_steps": calibrate_steps} if calibrate_steps else {})
    how = distillation(**distilled)

    def at(share: float | None) -> Entry:
        kept = None if share is None else Budget(share, params)
        entry = recipe_for(base, method, kept, data, options=options, seed=seed, **how)
        _check_distils(entry.recipe, how)
        return read_as(entry, data, skip_damaged, labels)

    if sweep or lose_at_most is not None:
        _swept(at, sweep, lose_at_most, out, as_json)
    else:
        made(at(budget), out)


def _check_distils(recipe: Recipe, how: dict[str, Any]) -> None:
    """Check that what is said of a distillation isn't in vain."""
    from zoo.verbs.recipes import declarations_of

    learns = declarations_of(recipe)[1] is not None
    said = how["schedule"] or how["distil"] or how["teachers"] or (how["augment"] and not learns)
    if said and not how["epochs"]:
        own = f"; {recipe.method}'s own training is set by --set 'schedule={{\"lr\": 0.1}}'" if learns else ""
        raise click.UsageError(f"nothing is distilled: say how long, by --epochs or --steps{own}")


def _swept(
    at: Callable[[float], Entry], shares: list[float] | None, lost: float | None, out: Path, as_json: bool
) -> None:
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
