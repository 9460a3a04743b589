"""The command line: arguments in, functions called, results printed. Nothing else prints or sets an exit code."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from zoo import catalog
from zoo.catalog.entry import METHODS, Budget, Entry
from zoo.errors import ZooError
from zoo.report import Verification
from zoo.version import __version__

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


@cli.command("list")
@click.argument("pattern", default="*")
@click.option("--method", type=click.Choice(METHODS), help="Only models compressed by this method.")
@click.option("--all", "everything", is_flag=True, help="Also models that aren't built yet.")
@as_json
def list_models(pattern: str, method: str | None, everything: bool, as_json: bool) -> None:
    """List the models of the catalog.

    PATTERN is a part of the name, or a pattern with * and ?.
    """
    entries = [catalog.info(name) for name in catalog.names(pattern, all=everything, method=method)]
    if as_json:
        click.echo(json.dumps([_listed(entry) for entry in entries], indent=2))
        return
    rows = [[entry.name, entry.recipe.method or "dense", _share(entry), entry.task, entry.status] for entry in entries]
    _table(["name", "method", "macs kept", "task", "status"], rows)


@cli.command()
@click.argument("name")
@as_json
def show(name: str, as_json: bool) -> None:
    """Show what is known of the model NAME.

    What it is made from and how, what is claimed of it, and how to load it.
    """
    entry = catalog.info(name)
    if as_json:
        click.echo(json.dumps(asdict(entry), indent=2))
        return
    recipe = {key: value for key, value in asdict(entry.recipe).items() if value not in (None, {}, (), 0)}
    facts = {
        "name": entry.name,
        "base": entry.base.id if entry.base else None,
        "task": entry.task,
        "input": " x ".join(map(str, entry.input)),
        "status": entry.status,
        "licence": entry.license,
        "recipe": json.dumps(recipe),
        "reported": "; ".join(json.dumps({k: v for k, v in asdict(row).items() if v}) for row in entry.reported),
        "source": entry.source,
        "note": entry.note,
        "load": f'zoo.load("{name}")' if entry.status != "recipe" else f"zoo build {name}",
    }
    _table(["", ""], [[key, value] for key, value in facts.items() if value])


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


def _listed(entry: Entry) -> dict[str, Any]:
    recipe = asdict(entry.recipe)
    plain = {"name": entry.name, "family": entry.family, "method": recipe["method"], "budget": recipe["budget"]}
    return {**plain, "task": entry.task, "status": entry.status, "license": entry.license}


def _share(entry: Entry) -> str:
    return f"{entry.recipe.budget.macs:.0%}" if entry.recipe.budget else ""


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
