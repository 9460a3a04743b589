"""The command line: arguments in, functions called, results printed. Nothing else prints or sets an exit code."""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from zoo import catalog
from zoo.catalog.entry import METHODS, STATUSES, Budget, Entry, Reported
from zoo.errors import ZooError
from zoo.files import read_json
from zoo.report import Verification
from zoo.version import __version__

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 (an error or a figure that differs), 2 (usage) or 130 (Ctrl-C)."""
    try:
        code = cli.main(args=arguments, prog_name="zoo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: nothing half-written was left; the same command goes on where it stopped", err=True)
        code = 130
    except ZooError as error:
        click.echo(f"error: {error}", err=True)
        code = 1
    except OSError as error:
        click.echo(f"error: {error.filename or 'the disk'}: {error.strerror or error}", err=True)
        code = 1
    sys.exit(code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="zoo %(version)s")
def cli() -> None:
    """Compressed vision models: find, load, make, publish, verify."""


class Count(click.ParamType):  # type: ignore[type-arg]
    """A number that may end in k, M or G."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`1.5G` → 1.5e9."""
        number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "")
        try:
            return float(number) * UNITS[unit]
        except ValueError:
            self.fail(f"{value!r} isn't a number such as 300M or 1.5G", param, ctx)


@cli.command("list")
@click.argument("pattern", default="*")
@click.option("--method", type=click.Choice(METHODS), help="Only models compressed by this method.")
@click.option("--task", help="Only models for this task, e.g. image-classification.")
@click.option("--base", metavar="PATTERN", help="Only models made from such a base, e.g. resnet50d.")
@click.option("--project", help="Only models of this project, e.g. torch-dag.")
@click.option("--status", type=click.Choice(STATUSES), help="Only models of this status.")
@click.option("--max-macs", type=Count(), help="Only models with at most so many macs, e.g. 1.5G.")
@click.option("--max-params", type=Count(), help="Only models with at most so many parameters, e.g. 10M.")
@click.option("--sort", type=click.Choice(catalog.ORDERS), default="name", show_default=True, help="The order.")
@click.option("--all", "everything", is_flag=True, help="Also models that aren't built yet.")
@as_json
def list_models(pattern: str, everything: bool, as_json: bool, **wanted: Any) -> None:
    """List the models of the catalog.

    PATTERN is a part of the name, or a pattern with * and ?. Figures that a source reports and we haven't measured
    are marked so.
    """
    entries = [catalog.info(name) for name in catalog.names(pattern, all=everything, **wanted)]
    if as_json:
        click.echo(json.dumps({"counts": _counts(entries), "models": [_listed(entry) for entry in entries]}, indent=2))
        return
    head = ["name", "method", "macs kept", "params", "macs", "accuracy", "figures", "status"]
    _table(head, [_row(entry) for entry in entries])
    left = 0 if everything else len(catalog.names(pattern, all=True, **wanted)) - len(entries)
    counts = Counter(entry.status for entry in entries)
    parts = [f"{count} {status}" for status, count in counts.items()] + [f"{left} more with --all"] * bool(left)
    click.echo(f"{len(entries)} models: {', '.join(parts)}" if parts else "no model fits")


@cli.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show what is known of the model NAME.

    What it is made from and how, what is claimed and what was measured of it, and how to load it.
    """
    entry = catalog.info(name)
    measured = catalog.results(entry)
    obstacle = catalog.obstacle(entry)
    load = {"load": None if obstacle else f'zoo.load("{name}")', "obstacle": obstacle}
    if as_json:
        click.echo(json.dumps({**asdict(entry), **load, "measured": measured or None}, indent=2))
        return
    recipe = entry.recipe
    facts = {
        "name": entry.name,
        "base": entry.base.id if entry.base else None,
        "task": entry.task,
        "input": " x ".join(map(str, entry.input)),
        "status": entry.status,
        "load": load["load"] or f"not yet: {obstacle}",
        "structure": _structure(entry),
        "made by": ", ".join([recipe.method or "training from scratch", *_pairs(recipe.options)]),
        "budget": ", ".join(f"{v:.1%} of the {k}" for k, v in asdict(recipe.budget).items() if v)
        if recipe.budget
        else "",
        "teachers": ", ".join(recipe.teachers),
        "training": ", ".join([*_pairs(recipe.schedule), *_pairs(recipe.distil), *_pairs(recipe.augment)]),
        "data": recipe.data or entry.dataset,
        "licence": entry.license or "of the weights that it will be made from",
        "origin": f"{entry.origin.repo} ({entry.origin.format})" if entry.origin else None,
        "source": entry.source,
        "note": entry.note,
    }
    _table(["", ""], [[key, value] for key, value in facts.items() if value])
    rows = [["measured here", _pairs(measured["measured"]), _pairs(measured["data"])]] if measured else []
    rows += [
        [row.of or "reported", _pairs(row.figures), _conditions(row)] for row in (*entry.reported, *entry.baselines)
    ]
    if rows:
        _table(["figures of", "", "for"], [[who, ", ".join(what), ", ".join(where)] for who, what, where in rows])


@cli.command()
@click.argument("base")
@click.option("--method", type=click.Choice(["prune"]), default="prune", show_default=True, help="How.")
@click.option("--budget", type=float, required=True, metavar="SHARE", help="Share of the macs that stays, 0..1.")
@click.option("--params", type=float, metavar="SHARE", help="Share of the params that stays, if that matters too.")
@click.option("--data", required=True, help="digits, digit_pairs, a folder of class folders, or a Hub id ORG/NAME.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the new repository.")
@click.option("--epochs", type=click.IntRange(0), default=0, show_default=True, help="Distil from BASE so long.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Option of the method, e.g. round_to=16.")
def compress(
    base: str,
    method: str,
    budget: float,
    params: float | None,
    data: str,
    out: Path,
    epochs: int,
    settings: tuple[str, ...],
) -> None:
    """Compress the model BASE.

    BASE is a model of the list, a repository's folder, or a timm id such as timm/resnet18.a1_in1k. A command that was
    stopped goes on where it stopped.
    """
    from zoo.building import recipe_for

    entry = recipe_for(base, method, Budget(budget, params), data, epochs, _settings(settings))
    _build(entry, out, None)


@cli.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the repository.  [default: build/NAME]")
@click.option("--data", help="Another data set than the recipe's.")
def build(name: str, out: Path | None, data: str | None) -> None:
    """Make the model NAME by its recipe.

    A build that was stopped goes on where it stopped.
    """
    _build(catalog.info(name), out or Path("build") / name, data)


def _build(entry: Entry, out: Path, data: str | None) -> None:
    from zoo.building import make

    started = [time.monotonic()]

    def say(line: str) -> None:
        now = time.monotonic()
        seconds = f"  {now - started[-1]:.1f} s" if len(started) > 1 else ""
        started.append(now)
        click.echo(f"{seconds}\n{line} ..." if seconds else f"{line} ...", nl=False, err=True)

    try:
        folder = make(entry, out, data, say)
    except ZooError:
        if len(started) > 1:
            click.echo(err=True)  # the error stands on a line of its own
        raise
    click.echo(f"  {time.monotonic() - started[-1]:.1f} s", err=True)
    click.echo(str(folder))


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("to", type=click.Path(path_type=Path))
def push(folder: Path, to: Path) -> None:
    """Publish the repository FOLDER to the folder TO."""
    from zoo.building import push

    click.echo(str(push(folder, to)))


@cli.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--data", help="Data set to evaluate on.  [default: the one that the results name]")
@click.option("--structure", is_flag=True, help="Only params and macs; needs no data.")
@as_json
def verify(names: tuple[str, ...], data: str | None, structure: bool, as_json: bool) -> None:
    """Measure the models NAMES again.

    What is measured is compared with what is claimed; the exit code is 1 if a figure differs.
    """
    from zoo.verification import verify

    found = [verify(name, data=data, structure_only=structure) for name in names]
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=2))
    elif len(found) == 1:
        rows = [
            [row.figure, _figure(row.reported), _figure(row.measured), _figure(row.difference), row.verdict]
            for row in found[0].rows
        ]
        _table([found[0].name, "claimed", "measured", "difference", "verdict"], rows)
    else:
        figures = list(dict.fromkeys(row.figure for each in found for row in each.rows))
        _table(["name", *figures, "verdict"], [_summary(each, figures) for each in found])
    if not all(each.passed for each in found):
        raise SystemExit(1)


def _summary(found: Verification, figures: list[str]) -> list[str]:
    """One model in one row: what was measured, and what differs from the claim."""
    measured = {row.figure: _figure(row.measured) for row in found.rows}
    wrong = [
        f"{row.figure} {row.verdict}, claimed {_figure(row.reported)}"
        for row in found.rows
        if row.verdict not in ("agrees", "measured")
    ]
    claimed = any(row.verdict == "agrees" for row in found.rows)
    verdict = "; ".join(wrong) or ("agrees" if claimed else "nothing claimed")
    return [found.name, *(measured.get(figure, "-") for figure in figures), verdict]


def _counts(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Project → status → models."""
    projects = sorted({entry.project for entry in entries})
    return {project: dict(Counter(e.status for e in entries if e.project == project)) for project in projects}


def _listed(entry: Entry) -> dict[str, Any]:
    keys = ("name", "project", "family", "task", "status", "license", "source")
    recipe, base = asdict(entry.recipe), entry.base.id if entry.base else None
    plain = {**{key: getattr(entry, key) for key in keys}, "base": base}
    return {**plain, "method": recipe["method"], "budget": recipe["budget"], **asdict(catalog.size(entry))}


def _row(entry: Entry) -> list[str]:
    size = catalog.size(entry)
    share = f"{entry.recipe.budget.macs:.0%}" if entry.recipe.budget else ""
    accuracy = f"{size.top1:.2%}" if size.top1 else f"{size.map:.1%} mAP" if size.map else "-"
    known = {key for key in ("params", "macs", "top1", "map") if getattr(size, key) is not None}
    figures = (
        "reported" if known == set(size.reported) else ", ".join(size.reported) + " reported" * bool(size.reported)
    )
    costs = [_count(size.params), _count(size.macs), accuracy, (figures or "measured") if known else ""]
    return [entry.name, entry.recipe.method or "dense", share, *costs, entry.status]


def _structure(entry: Entry) -> str:
    """What is known of the layers without building them."""
    if entry.status == "embedded":
        plan = read_json(catalog.EMBEDDED / entry.name / "config.json")["zoo"]["plan"]
        edits = [f"{edit.pop('edit')} of {sum(len(items) for items in edit.values())} modules" for edit in plan]
        return ", ".join(edits) or "that of the base"
    if entry.origin is not None:
        return f"as the {entry.origin.format} checkpoint has it"
    return "known once it is built"


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {_figure(value) if isinstance(value, float) else value}" for key, value in values.items()]


def _conditions(row: Reported) -> list[str]:
    known = {key: value for key, value in asdict(row).items() if key not in ("figures", "of") and value is not None}
    return _pairs(known)


def _count(count: float | None) -> str:
    if count is None:
        return "-"
    unit, size = next((unit, size) for unit, size in reversed(UNITS.items()) if count >= size or not unit)
    return f"{count / size:.3g}{unit}"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.4f}"


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    pairs = [setting.partition("=") for setting in settings]
    for key, equals, _ in pairs:
        if not equals:
            raise click.BadParameter(f"{key!r} isn't KEY=VALUE", param_hint="--set")
    return {key: _value(value) for key, _, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _table(head: list[str], rows: list[list[Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=box.SIMPLE, show_header=any(head), pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
