"""`zoo build`, and how a build that is under way reads."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.cli.options import data_options
from zoo.cli.tables import say, say_begun, say_took


@click.command(epilog="\b\nzoo build digits_cnn_pruned_25 --out build/mine\nzoo build mine.toml --data ./photographs")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the repository.  [default: build/NAME]")
@click.option("--data", help="Another data set than the recipe's.")
@click.option("--steps", type=click.IntRange(1), help="Train for so many steps at most.  [default: the recipe's]")
@data_options
def build(name: str, out: Path | None, data: str | None, steps: int | None, skip_damaged: bool, labels: Any) -> None:
    """Make the model NAME by its recipe.

    NAME is of the list, or a file of recipes of your own, FILE.toml, of which all models are made: a [[model]] with
    name, base and recipe for each, what they share in [family], with the keys of the catalog; --out is then the folder
    of their folders.

    A build that was stopped goes on where it stopped; a model that is there already is made neither again nor replaced.
    """
    from zoo.verbs.recipes import at_most, read_as, recipes_in

    of_file = name.endswith(".toml")
    for entry in recipes_in(Path(name)) if of_file else [catalog.info(name)]:
        folder = (out or Path("build")) / entry.name if of_file or out is None else out
        made(at_most(read_as(entry, data, skip_damaged, labels), steps), folder)


def made(entry: Entry, out: Path) -> None:
    """Make the model of an entry, and print its folder."""
    from zoo.verbs.beginning import processes
    from zoo.verbs.building import make

    with saying() as tell:
        folder = make(entry, out, say=tell)
    if processes().is_main_process:
        say(str(folder))


@contextmanager
def saying() -> Iterator[Callable[[str], None]]:
    """What is said as each step begins, and how long the one before it took, on stderr."""
    begun: list[float] = []  # when the step under way began

    def tell(line: str) -> None:
        if begun:
            say_took(time.monotonic() - begun.pop())
        if not line[:1].isdigit():
            say(line, err=True)
            return
        say_begun(f"{line} ...")
        begun.append(time.monotonic())

    yield tell
