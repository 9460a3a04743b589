"""`zoo compress`: smaller models, one or several."""

from pathlib import Path
from typing import Any

import click

from zoo.catalog.entry import Budget, Entry, Recipe
from zoo.catalog.methods import METHODS, available, budgeted, check_options
from zoo.cli.building import made
from zoo.cli.checks import check_base, check_data
from zoo.cli.method_help import Compress
from zoo.cli.options import SETTING, Range, Share, Shares, data_options, distillation, distillation_options
from zoo.cli.planning import planned
from zoo.cli.sweeping import swept
from zoo.cli.tables import as_json


@click.command(
    cls=Compress,
    epilog="\b\nzoo compress digits_vit --budget 0.5 --data digits --epochs 20 --out build/mine\n"
    "zoo compress timm/resnet18.a1_in1k --method lockd --set nsr_threshold=0.1 --data ./photographs --out build/mine\n",
)
@click.argument("base")
@click.option(
    "--method",
    type=click.Choice(available()),
    default="prune",
    show_default=True,
    help="How; --help lists its options.",
)
@click.option("--budget", type=Share(), help=f"{', '.join(budgeted())}: share of the macs that stays.")
@click.option("--params", type=Share(), help="Share of the params that stays, if that matters too.")
@click.option("--latency-ms", type=Range(0, min_open=True), help="Instead, ms that one image may take here.")
@click.option("--sweep", type=Shares(), help="Several budgets, e.g. 0.9,0.7,0.5: a table, a plot, the knee.")
@click.option("--lose-at-most", type=Range(0, 100), help="Smallest budget that loses so many points.")
@as_json
@click.option("--data", required=True, metavar="SPEC[:N]", help="digits, a folder, a Hub id ORG/NAME; [:N] takes N.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new repository.")
@click.option("--rounds", type=click.IntRange(1), help="Go to the budget in so many; seldom a gain.  [default: 1]")
@click.option("--plan-only", is_flag=True, help="Print what becomes of each layer, and train nothing.")
@click.option("--set", "settings", help="Option of the method, e.g. round_to=16.", **SETTING)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Layers that stay, e.g. head, stem, 'layer4.*'.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Layers that alone may change, e.g. 'blocks.*.mlp'.")
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
    latency_ms: float | None,
    sweep: list[float] | None,
    lose_at_most: float | None,
    as_json: bool,
    data: str,
    out: Path | None,
    rounds: int | None,
    plan_only: bool,
    settings: tuple[tuple[str, Any], ...],
    exclude: tuple[str, ...],
    only: tuple[str, ...],
    calibrate_steps: int | None,
    seed: int,
    skip_damaged: bool,
    labels: Any,
    **distilled: Any,
) -> None:
    """Compress the model BASE.

    BASE is a model of the list, ORG/NAME on the Hub, a repository's folder, or an id such as timm/resnet18.a1_in1k or
    torchvision/resnet18.IMAGENET1K_V1. Methods without a budget have thresholds, which --set sets. The widths that
    prune leaves and the ranks of low_rank are multiples of round_to, 8 unless --set says otherwise; where there are
    less than eight times as many, multiples of an eighth of them. A folder of data holds images in train/CLASS, to
    compress with, and in validation/CLASS, to evaluate on. PATTERN is a layer's path, which stands for all in it, a
    pattern of paths, or one of the words head and stem; where channels are pruned, --only names whole blocks.

    --latency-ms times rough cuts on this machine, batch 1, with as many threads as torch takes (OMP_NUM_THREADS), to
    find the share of the macs that is as fast, and what is made of it; it runs the method a second time where that
    misses. --rounds goes to a budget by equal shares, each on what the last one left; training follows the last. Right
    after compression three rounds were no better than one: 67.6 and 71.2 % of MobileNetV2 at 74 % of its macs.

    With --plan-only images are looked at as ever, since what they show decides widths and ranks, and a method that
    trains to find them says what that would cost. With --out too, a plot lies beside that folder, and the same command
    without --plan-only goes on from there.

    A command that was stopped goes on where it stopped; a model that is there already is made neither again nor
    replaced.
    """
    swept_over = sweep or lose_at_most is not None
    _check_asked(method, (budget, latency_ms, sweep, lose_at_most), params, latency_ms)
    own = {"calibrate_steps": calibrate_steps, "rounds": rounds, "latency_ms": latency_ms}
    options = _options(settings, exclude=list(exclude), only=list(only), **own)
    if out is None and not plan_only:
        raise click.UsageError("Missing option '--out': the folder of the new repository")
    if plan_only and swept_over:
        raise click.UsageError("--plan-only looks at one --budget: leave --sweep and --lose-at-most out")
    how = distillation(**distilled)
    check_options(method, options)
    check_base(base)
    check_data(data)
    from zoo.measurement.latency import processor
    from zoo.verbs.recipes import read_as, recipe_for

    options |= {"timed_on": processor()} if latency_ms else {}

    def at(share: float | None) -> Entry:
        kept = None if share is None else Budget(share, params)
        entry = recipe_for(base, method, kept, data, options=options, seed=seed, **how)
        _check_distils(entry.recipe, how)
        return read_as(entry, data, skip_damaged, labels)

    if plan_only:
        planned(at(budget), out, as_json)
    elif out is not None and swept_over:
        swept(at, sweep, lose_at_most, out, as_json)
    elif out is not None:
        made(at(budget), out)


def _check_asked(method: str, either: tuple[Any, ...], params: float | None, latency_ms: float | None) -> None:
    """Check that a size is asked for where the method works to one, and in one way alone."""
    asked, budgeted = [each for each in either if each is not None], METHODS[method].budgeted
    if budgeted and len(asked) != 1:
        instead = "--latency-ms, --sweep and --lose-at-most"
        raise click.UsageError(f"--method {method} needs --budget SHARE, or one of {instead} instead")
    if not budgeted and (asked or params is not None):
        raise click.UsageError(f"--method {method} has thresholds, which --set sets, and takes no --budget or --params")
    if latency_ms is not None and params is not None:
        raise click.UsageError("--latency-ms stands alone: leave --params out")


def _options(settings: tuple[tuple[str, Any], ...], **said: Any) -> dict[str, Any]:
    """A method's options, of which some have an option of the command's own."""
    options, own = dict(settings), {key: value for key, value in said.items() if value}
    if twice := options.keys() & own.keys():
        key = min(twice)
        raise click.UsageError(f"{key} is said twice: by --{key.replace('_', '-')} and by --set {key}=...")
    return {**options, **own}


def _check_distils(recipe: Recipe, how: dict[str, Any]) -> None:
    """Check that what is said of a distillation isn't in vain."""
    from zoo.verbs.recipes import declarations_of

    learns = declarations_of(recipe)[1] is not None
    said = how["schedule"] or how["distil"] or how["teachers"] or (how["augment"] and not learns)
    if said and not how["epochs"]:
        own = f"; {recipe.method}'s own training is set by --set 'schedule={{\"lr\": 0.1}}'" if learns else ""
        raise click.UsageError(f"nothing is distilled: say how long, by --epochs or --steps{own}")
