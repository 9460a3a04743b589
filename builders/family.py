"""What all families have in common: entries in, repositories out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from builders.smoke import mark_, stand_in
from zoo import catalog
from zoo.catalog.entry import Entry, Recipe
from zoo.catalog.report import Row
from zoo.cluster import Task
from zoo.errors import RepositoryError, UnknownName
from zoo.tasks import task_named
from zoo.training.schedule import Machine
from zoo.verbs.beginning import processes
from zoo.verbs.building import make, plan
from zoo.verbs.recipes import at_most, declarations_of, distillation_of, recipes_in
from zoo.verbs.saving import push
from zoo.verbs.verification import results_of, verify


def _unsaid(line: str) -> None:
    """Nobody listens; no lambda, as a run is pickled."""


@dataclass(frozen=True)
class Run:
    """What a command asks for.

    Args:
        models: names of the family's; none for all.
        data: a folder of class folders or a Hub id; None takes the recipe's.
        steps: of each training at most; None takes the recipe's.
        out: the folder of the repositories; None takes the family's own.
        organisation: on the Hub, to publish them at.
        smoke: a stand-in of each, in seconds.
        plan_only: the structure of each, without training.
        machine: how training runs here.
        say: called with each line for the reader.
        note: called with each model and its folder in place of making it.
    """

    models: tuple[str, ...] = ()
    data: str | None = None
    steps: int | None = None
    out: Path | None = None
    organisation: str | None = None
    smoke: bool = False
    plan_only: bool = False
    machine: Machine | None = None
    say: Callable[[str], None] = _unsaid
    note: Callable[[Entry, Path], None] | None = None

    def to(self, default: Path) -> Path:
        """The folder of the repositories; smoke tests never go where the real ones lie by default."""
        return self.out or (Path("build") if self.smoke else default)


def entries(*families: str) -> list[Entry]:
    """The models of some families, as the catalog lists them, project after project."""
    every = (catalog.info(name) for name in catalog.names(all=True))
    return sorted((entry for entry in every if entry.family in families), key=lambda entry: entry.project)


def builds(name: str, run: Run) -> Iterator[Path]:
    """Make the models of a script, or of a file of recipes, FILE.toml; the rest is as `build` has it."""
    if name.endswith(".toml"):
        return build(recipes_in(Path(name)), run)
    made: Iterator[Path] = import_module(f"builders.{name}").build(run)
    return made


def noted(name: str, run: Run) -> list[Entry]:
    """The models that a run would make of a script or file, in its order."""
    found: list[Entry] = []
    for _ in builds(name, replace(run, note=lambda entry, folder: found.append(entry))):
        pass
    return found


def tasks(names: list[str], run: Run) -> list[Task]:
    """The models that a run would make of scripts or files, each as a task of its own for a cluster."""
    return [
        Task(entry.name, partial(_made, name, replace(run, models=(entry.name,))), trains(entry.recipe))
        for name in names
        for entry in noted(name, run)
    ]


def trains(recipe: Recipe) -> bool:
    """Whether a recipe trains, so that a GPU is worth it."""
    learns = declarations_of(recipe)[1]
    return distillation_of(recipe)[0].epochs > 0 or bool(learns and learns.epochs)


def _made(name: str, run: Run, say: Callable[[str], None]) -> list[Path]:
    return [*builds(name, replace(run, say=say))]


def build(family: list[Entry], run: Run, out: Path = Path("build")) -> Iterator[Path]:
    """Make the models of a family, one after the other; what is made already is left alone.

    Args:
        family: its entries, in the order to make them in.
        run: what is asked for.
        out: the folder of the repositories, where the run names none.

    Yields:
        Each repository's folder, or the file of each plan that is known without training.

    Raises:
        UnknownName: the family has no such model.
        ZooError: whatever a step ran into.
    """
    names = [entry.name for entry in family]
    for name in run.models:
        if name not in names:
            raise UnknownName(f"no model {name!r} here, there are: {', '.join(names)}")
    for entry in family:
        if run.models and entry.name not in run.models:
            continue
        if run.note:
            run.note(entry, run.to(out))
        else:
            made = one(entry, run, run.to(out))
            if made is not None:
                yield made


def one(entry: Entry, run: Run, out: Path) -> Path | None:
    """Make one model, check that what was written rebuilds as it says, and publish it if that is asked for.

    Of a plan that must be learned first there is no file: None.
    """
    main = processes().is_main_process
    entry = stand_in(entry, out / "stand-ins", small=not run.plan_only) if run.smoke else at_most(entry, run.steps)
    data = None if run.smoke else run.data
    folder = out / entry.name
    leading = task_named(entry.task).leading.figure
    goal = _goal(entry, leading)
    run.say(f"{entry.name}, which should reach {goal:.2%}" if goal else entry.name)
    if run.plan_only:
        file, rows = plan(entry, folder, data, run.say, run.machine)
        for row in rows:
            run.say(_line(row))
        return file
    make(entry, folder, data, run.say, run.machine)
    if main:
        if run.smoke:
            mark_(folder)
        found = verify(folder, structure_only=True)
        if not found.passed:
            raise RepositoryError(f"{folder} doesn't rebuild as its results say: {'; '.join(map(_line, found.rows))}")
        row = Row(leading, goal, results_of(folder).measured.get(leading), 0.001)
        for each in (*found.rows, row):
            run.say(_line(each))
        if run.organisation:
            run.say(push(folder, f"{run.organisation}/{entry.name}"))
    processes().wait_for_everyone()
    return folder


def _goal(entry: Entry, figure: str) -> float | None:
    """What the source reports at the size that the entry is evaluated at."""
    rows = [row for row in entry.reported if figure in row.figures and row.input in (None, entry.input[-1])]
    return rows[0].figures[figure] if rows else None


def _line(row: Row) -> str:
    reported, measured = (f"{value:,.6g}" if value is not None else "-" for value in (row.reported, row.measured))
    return f"  {row.figure:18} reported {reported:>12}  measured {measured:>15}  {row.verdict}"
