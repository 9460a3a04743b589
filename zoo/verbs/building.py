"""Making models: base → compress → distil → evaluate → repository.

`build` reads from top to bottom like the recipe that it follows. Its steps leave what they made under `<out>.work`, so
that the same command continues where it was stopped.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs
from torch import nn

from zoo import atomic, catalog
from zoo.catalog.entry import Base, Entry, Recipe, reading
from zoo.catalog.report import Report, Row
from zoo.errors import StorageError
from zoo.files import read_json, write_json
from zoo.hub import repository
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.macs import measure
from zoo.structure.base import initialised
from zoo.structure.describing import describe
from zoo.structure.description import attach_
from zoo.structure.sources import is_base_id
from zoo.tasks import task_named
from zoo.tasks.evaluation import BESIDE
from zoo.tasks.task import Labels
from zoo.training.schedule import Machine
from zoo.verbs.beginning import (
    NOTE,
    Say,
    alone,
    beside,
    compressed,
    evaluated,
    opened,
    processes,
    ready,
    seen_as,
    word_of,
    work_of,
)
from zoo.verbs.distilling import distil
from zoo.verbs.loading import create, load, pretrained
from zoo.verbs.measuring import report_of
from zoo.verbs.recipes import declarations_of, distillation_of, finished, read_as, shown
from zoo.verbs.saving import save
from zoo.verbs.training_costs import learning_costs, training_costs
from zoo.verbs.verification import weights_of


def build(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | None = None,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    say: Say = lambda line: None,
    machine: Machine | None = None,
) -> Path:
    """Make a model of the catalog as its recipe says; the same call continues a build that was stopped, or was made.

    Args:
        name: of the catalog.
        out: the folder of the repository; None takes `build/<name>`.
        data: the data set, where it isn't the recipe's.
        skip_damaged: leave out images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        say: called with a line as each step begins, which starts with its number, and with what came of it all.
        machine: how training runs here.

    Returns:
        The repository's folder.

    Raises:
        RepositoryError: the folder holds another model, or one of another recipe.
        ZooError: whatever a step ran into.
    """
    entry = read_as(catalog.info(name), None, skip_damaged, labels)
    return make(entry, Path(out) if out is not None else Path("build") / name, data, say, machine)


def make(
    entry: Entry,
    folder: Path,
    data: str | None = None,
    say: Say = lambda line: None,
    machine: Machine | None = None,
    dense: Report | None = None,
) -> Path:
    """Make the model of an entry, in the catalog or not; arguments and errors are those of `build`.

    What was measured of its base just now can be said as `dense`, and isn't measured again. Started by `accelerate
    launch`, all processes compress, train and evaluate together, and the main one alone writes, to a file system that
    all of them see.
    """
    entry, here = read_as(entry, data=data), processes()
    say = say if here.is_main_process else lambda line: None
    if not finished(entry, folder):
        with alone(folder, say):
            if not finished(entry, folder):  # by another process, meanwhile
                return _made(entry, folder, say, machine or Machine(), dense)
    if here.is_main_process:  # it may have been stopped at the very end
        _tidy(folder)
    say(f"made already: {folder}")
    return folder


def _made(entry: Entry, folder: Path, say: Say, machine: Machine, dense: Report | None) -> Path:
    """Make the model, and say how it fares."""
    recipe, here = entry.recipe, processes()
    trains = distillation_of(recipe)[0].epochs > 0
    teachers = [pretrained(Base(teacher)) for teacher in recipe.teachers] if trains else []
    base = opened(entry, folder, say, teachers)
    step = 2
    if recipe.method and dense is None:
        dense, step = evaluated(base, entry, folder, say), 3
    work = compressed(base, entry, folder, say, machine, step)
    model = load(work / "start").to(here.device)
    if trains:
        step += 1
        say(f"{step} {training_costs(model, teachers, recipe, machine, here)}")
        _train_(model, teachers, entry, work / "training.safetensors", machine)
    say(f"{step + 1} evaluate on {recipe.data}")
    attach_(model, replace(describe(model), name=entry.name, recipe=shown(entry, describe(base)), source=""))
    report = _report(model, base.to(here.device) if dense else None, entry)
    say(f"{step + 2} write {folder}")
    if here.is_main_process:
        save(model.cpu(), folder, report=report, dense=dense)
        _tidy(folder)
    here.wait_for_everyone()
    say(_figures(report, dense, task_named(entry.task).leading.figure, word_of(base)))
    return folder


def _tidy(folder: Path) -> None:
    """Remove what only a build that goes on would need, as far as the disk lets."""
    with contextlib.suppress(StorageError):
        if (beside(folder) / NOTE).is_file():
            atomic.discard(beside(folder))
        atomic.sweep(folder.parent)


def plan(
    entry: Entry,
    folder: Path,
    data: str | None = None,
    say: Say = lambda line: None,
    machine: Machine | None = None,
) -> tuple[Path | None, list[Row]]:
    """Compress as a recipe says, train nothing, and say what training would cost: `make` goes on from there.

    Args:
        entry: the recipe.
        folder: of the repository that `make` would write.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins, and with what training would cost.
        machine: how training would run here.

    Returns:
        The plan's file, `<folder>.plan.json`, and its params and costs beside those that the source reports; None and
        no rows of a method that learns its plan and hasn't yet.

    Raises:
        ZooError: whatever a step ran into.
    """
    entry, machine = read_as(entry, data=data), machine or Machine()
    (dense, _), (work, _) = ready(entry, folder), work_of(entry, folder)
    if declarations_of(entry.recipe)[1] and not (work / "start").is_dir():
        model = seen_as(entry, initialised(dense) if is_base_id(dense.id) else create(dense.id))
        costs = learning_costs(model, entry.recipe, machine, processes())
        say(f"{costs}; it learns the plan, which isn't known before")
        _say_training(entry.recipe, model, say, machine, "then, at most: ")
        return None, []
    file = folder.with_name(f"{folder.name}.plan.json")
    with alone(folder, say):
        compressed(opened(entry, folder, say), entry, folder, say, machine)
        model = load(work / "start")
        _say_training(entry.recipe, model, say, machine, "then: ")
        if processes().is_main_process:
            write_json(file, {"name": entry.name, **read_json(work / "start" / repository.CONFIG)["zoo"]})
    return file, _compared(model, entry)


def _train_(model: nn.Module, teachers: Sequence[nn.Module], entry: Entry, state: Path, machine: Machine) -> None:
    """Train as a recipe says, and where a tracker logs evaluate after each epoch."""
    recipe, leading = entry.recipe, task_named(entry.task).leading.figure
    schedule, how = distillation_of(recipe)

    def watched() -> dict[str, float]:
        return {leading: report_of(model, recipe.data, **reading(recipe)).measured[leading]}

    distil(
        model,
        teachers,
        recipe.data,
        how=how,
        schedule=schedule,
        augment=recipe.augment,
        **reading(recipe),
        seed=recipe.seed,
        state=state,
        machine=machine,
        evaluate=watched if machine.log_with else None,
    )


def _report(model: nn.Module, base: nn.Module | None, entry: Entry) -> Report:
    """What was measured of a model, beside its base where there is one."""
    report = report_of(model, entry.recipe.data, against=base, **reading(entry.recipe))
    if weights := weights_of(entry.base.id if entry.base else ""):
        report = structs.replace(report, data={**report.data, "against_sha256": weights})
    return report


def _compared(model: nn.Module, entry: Entry) -> list[Row]:
    """The params and costs of a structure beside those that the source reports."""
    counts = measure(model)
    rows = [Row("params_m", None, counts.params / 1e6), Row("macs_m", None, counts.macs / 1e6)]
    for claim in entry.reported:
        side = claim.input or entry.input[-1]
        if "params_m" in claim.figures:
            rows[0] = Row("params_m", claim.figures["params_m"], counts.params / 1e6, 0.02 * counts.params / 1e6)
        if "kmapp" in claim.figures and claim.counting:
            counted = COUNTINGS[claim.counting](model, (entry.input[0], side, side))
            rows.append(Row(f"kmapp ({claim.counting})", claim.figures["kmapp"], counted, 0.02 * counted))
    return rows


def _say_training(recipe: Recipe, model: nn.Module, say: Say, machine: Machine, when: str) -> None:
    """Say what training would cost, with teachers of random weights, which cost as much."""
    if distillation_of(recipe)[0].epochs:
        teachers = [create(teacher) for teacher in recipe.teachers]
        say(f"{when}{training_costs(model, teachers, recipe, machine, processes())}")


def _figures(report: Report, dense: Report | None, leading: str, word: str) -> str:
    """What came of it, beside the base where there is one."""
    now, then = report.measured, dense.measured if dense else {}
    parts = [
        f"{key} {now[key]:,}" + (f" ({now[key] / then[key]:.1%} of {then[key]:,})" if then else "")
        for key in ("macs", "params")
    ]
    if leading in now and leading not in BESIDE:
        parts.append(f"{leading} {now[leading]:.4f}" + (f" ({word} {then[leading]:.4f})" if then else ""))
    if dense is not None:
        parts.append(f"agreement {now['agreement']:.4f}, kl {now['kl']:.4f} nats")
    return ", ".join(parts)
