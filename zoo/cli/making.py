"""The commands that make, publish and serve models."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from zoo import catalog
from zoo.catalog.entry import Budget, Entry
from zoo.catalog.methods import METHODS, available, budgeted
from zoo.cli.data import data_options
from zoo.cli.tables import as_json, table
from zoo.errors import ZooError

LOSS = ("alpha", "temperature", "divergence")  # of the options, those of the loss


class Share(click.FloatRange):
    """A share above 0 and at most 1."""

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`0.5` → 0.5; the range alone would let nan through."""
        share: float = super().convert(value, param, ctx)
        return share if share == share else self.fail(f"{value} is not a share above 0, at most 1.", param, ctx)


@click.command(
    epilog="\b\nzoo compress digits_vit --budget 0.5 --data digits --epochs 20 --out build/mine\n"
    "zoo compress timm/resnet18.a1_in1k --method lockd --set nsr_threshold=0.1 --data ./photographs --out build/mine\n",
)
@click.argument("base")
@click.option("--method", type=click.Choice(available()), default="prune", show_default=True, help="How.")
@click.option("--budget", type=Share(), metavar="SHARE", help=f"{', '.join(budgeted())}: share of the macs that stays.")
@click.option("--params", type=Share(), metavar="SHARE", help="Share of the params that stays, if that matters too.")
@click.option("--sweep", metavar="SHARES", help="Several budgets, e.g. 0.9,0.7,0.5: a table, a plot, the knee.")
@click.option("--lose-at-most", type=click.FloatRange(0, 100), help="Smallest budget that loses so many points.")
@as_json
@click.option("--data", required=True, help="digits, digit_pairs, a folder, or a Hub id ORG/NAME.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new repository.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Option of the method, e.g. round_to=16.")
@click.option(
    "--calibrate-steps", type=click.IntRange(0), help="Then bring it nearer to BASE without labels.  [default: 0]"
)
@click.option("--epochs", type=click.IntRange(0), help="Distil for so many passes over the data.  [default: 0]")
@click.option("--steps", type=click.IntRange(1), help="Distil for so many steps at most, or without --epochs.")
@click.option("--batch-size", type=click.IntRange(1), help="Images of a step, over all processes.  [default: 64]")
@click.option("--lr", type=float, help="Highest learning rate of AdamW.  [default: 0.001]")
@click.option("--weight-decay", type=float, help="Of tensors with two or more dimensions.  [default: 0.05]")
@click.option("--ema", type=float, help="Decay of the average of the weights, e.g. 0.999.  [default: 0, none]")
@click.option(
    "--teacher", "teachers", multiple=True, metavar="NAME", help="Distil from it; several take turns.  [BASE]"
)
@click.option("--alpha", type=float, help="The teacher's share of the loss; the labels have the rest.  [default: 0.9]")
@click.option("--temperature", type=float, help="Of the teacher's term.  [default: 2]")
@click.option("--divergence", type=click.Choice(("kl", "symmetric")), help="The teacher's term.  [default: kl]")
@click.option("--augment", multiple=True, metavar="KEY=VALUE", help="Of timm's training transform, e.g. hflip=0.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of order and augmentation.")
@data_options
def compress(
    base: str,
    method: str,
    budget: float | None,
    params: float | None,
    sweep: str | None,
    lose_at_most: float | None,
    as_json: bool,
    data: str,
    out: Path,
    settings: tuple[str, ...],
    calibrate_steps: int | None,
    epochs: int | None,
    steps: int | None,
    teachers: tuple[str, ...],
    augment: tuple[str, ...],
    seed: int,
    skip_damaged: bool,
    labels: Any,
    **fields: Any,
) -> None:
    """Compress the model BASE.

    BASE is a model of the list, a repository's folder, or a timm id such as timm/resnet18.a1_in1k. Methods without a
    budget have thresholds, which --set sets. The widths that prune leaves and the ranks of low_rank are multiples of
    round_to, 8 unless --set says otherwise; where there are less than eight times as many, multiples of an eighth of
    them. A folder of data holds images in train/CLASS, to compress with, and in validation/CLASS, to evaluate on.

    A command that was stopped goes on where it stopped; a model that is there already is made neither again nor
    replaced.
    """
    from zoo.verbs.recipes import declarations_of, read_as, recipe_for

    asked = [each for each in (budget, sweep, lose_at_most) if each is not None]
    if METHODS[method].budgeted and len(asked) != 1:
        raise click.UsageError(f"--method {method} needs --budget SHARE, or one of --sweep and --lose-at-most instead")
    if not METHODS[method].budgeted and (asked or params is not None):
        raise click.UsageError(f"--method {method} has thresholds, which --set sets, and takes no --budget or --params")
    said = {key: value for key, value in {"steps": steps, **fields}.items() if value is not None}
    options = _settings(settings, "--set") | ({"calibrate_steps": calibrate_steps} if calibrate_steps else {})
    augmented = _settings(augment, "--augment")

    def at(kept: float | None) -> Entry:
        entry = recipe_for(
            base,
            method,
            None if kept is None else Budget(kept, params),
            data,
            (steps or 0) if epochs is None else epochs,  # an epoch has a step at least
            options,
            teachers=teachers,
            schedule={key: value for key, value in said.items() if key not in LOSS},
            distil={key: value for key, value in said.items() if key in LOSS},
            augment=augmented,
            seed=seed,
        )
        return read_as(entry, data, skip_damaged, labels)

    shares = [Share().convert(each, None, None) for each in (sweep or "").split(",") if sweep]
    entry = at(budget or (shares or [1.0])[0] if METHODS[method].budgeted else None)
    learns = declarations_of(entry.recipe)[1] is not None
    if not entry.recipe.schedule["epochs"] and (said or teachers or (augment and not learns)):
        own = f"; {method}'s own training is set by --set 'schedule={{\"lr\": 0.1}}'" if learns else ""
        raise click.UsageError(f"nothing is distilled: say how long, by --epochs or --steps{own}")
    if shares or lose_at_most is not None:
        _swept(at, shares, lose_at_most, out, as_json)
    else:
        _build(entry, out)


def _swept(at: Callable[[float], Entry], shares: list[float], lost: float | None, out: Path, as_json: bool) -> None:
    from zoo.verbs.sweeping import figures_of, kept, knee, plot, smallest, sweep

    with _saying() as say:
        points = sweep(at, shares, out, say) if lost is None else smallest(at, lost / 100, out, say)
    named = knee(points) if lost is None else kept(points, lost / 100)
    plot(points, named, out / "sweep.png")
    mark = named.name if named else None
    if as_json:
        click.echo(json.dumps({"points": to_builtins(points), "knee" if lost is None else "smallest": mark}, indent=2))
        return
    head = ["model", "budget", "macs", "params", *figures_of(points[0]), ""]
    word = "the knee" if lost is None else f"loses at most {lost:g} points"
    table(head, [[*_cells(point, figures_of(point).values()), word if point.name == mark else ""] for point in points])
    click.echo(f"plot: {out / 'sweep.png'}", err=True)


def _cells(point: Any, figures: Iterable[float | None]) -> list[str]:
    counts = f"{point.budget:g}", f"{point.macs:,.0f}", f"{point.params:,.0f}"
    return [point.name, *counts, *("-" if value is None else f"{value:.4f}" for value in figures)]


@click.command(epilog="\b\nzoo build digits_cnn_pruned_25 --out build/mine")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the repository.  [default: build/NAME]")
@click.option("--data", help="Another data set than the recipe's.")
@click.option("--steps", type=click.IntRange(1), help="Train for so many steps at most.  [default: the recipe's]")
@data_options
def build(name: str, out: Path | None, data: str | None, steps: int | None, skip_damaged: bool, labels: Any) -> None:
    """Make the model NAME by its recipe.

    A build that was stopped goes on where it stopped; a model that is there already is made neither again nor replaced.
    """
    from zoo.verbs.recipes import at_most, read_as

    entry = at_most(read_as(catalog.info(name), data, skip_damaged, labels), steps)
    _build(entry, out or Path("build") / name)


def _build(entry: Entry, out: Path) -> None:
    from zoo.verbs.beginning import processes
    from zoo.verbs.building import make

    with _saying() as say:
        folder = make(entry, out, say=say)
    if processes().is_main_process:
        click.echo(str(folder))


@contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """What is said as each step begins, and how long the one before it took, on stderr."""
    begun: list[float] = []  # when the step under way began

    def say(line: str) -> None:
        if begun:
            click.echo(f"  {time.monotonic() - begun.pop():.1f} s", err=True)
        step = line[:1].isdigit()
        click.echo(f"{line} ..." if step else line, nl=not step, err=True)
        if step:
            begun.append(time.monotonic())

    try:
        yield say
    except ZooError:
        if begun:
            click.echo(err=True)  # the error stands on a line of its own
        raise


@click.command(epilog="\b\nzoo push build/mine me/digits_vit_half --tag v1")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("to")
@click.option("--private", is_flag=True, help="On the Hub, make it so that only you see it.")
@click.option("--tag", help="On the Hub, name this version, e.g. v1.")
def push(folder: Path, to: str, private: bool, tag: str | None) -> None:
    """Publish the repository FOLDER.

    TO is ORG/NAME on the Hub, or a folder such as ./models/NAME. What is there already is replaced whole or not at
    all; the same folder again changes nothing.
    """
    from zoo.verbs.saving import push

    click.echo(push(folder, to, private=private, tag=tag))


@click.command(epilog="\b\nzoo serve ./hub --port 8080")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option("--token", envvar="ZOO_SERVE_TOKEN", help="What clients must present to write. [env: ZOO_SERVE_TOKEN]")
def serve(folder: Path, port: int, token: str | None) -> None:
    """Serve FOLDER as a Hub on this machine, until Ctrl-C.

    Clients find it by HF_ENDPOINT; they need HF_HUB_DISABLE_XET=1.
    """
    from zoo.server import serve

    serve(folder, port=port, token=token, say=_serving)


def _settings(settings: tuple[str, ...], option: str) -> dict[str, Any]:
    pairs = [setting.partition("=") for setting in settings]
    for key, equals, _ in pairs:
        if not equals:
            raise click.BadParameter(f"{key!r} isn't KEY=VALUE", param_hint=option)
    return {key: _value(value) for key, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _serving(address: str) -> None:
    click.echo(f"{address}  (clients: HF_ENDPOINT={address} HF_HUB_DISABLE_XET=1; Ctrl-C ends it)", err=True)
