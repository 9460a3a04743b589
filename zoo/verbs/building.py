"""Making models: base → compress → distil → evaluate → repository.

`build` reads from top to bottom like the recipe that it follows. Its steps leave what they made under `<out>.work`, so
that the same command continues where it was stopped.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import nn

from zoo import catalog
from zoo.catalog.entry import Base, Entry, Recipe, reading
from zoo.catalog.report import Report, Row
from zoo.errors import RepositoryError, UnknownName, ZooError, require
from zoo.files import free, read_json, write_json
from zoo.hub import repository
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.macs import measure
from zoo.structure.base import initialised
from zoo.structure.describing import describe
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.tasks import task_named, task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.draws import check_whole
from zoo.tasks.folders import SPLITS
from zoo.tasks.task import Labels
from zoo.training.distillation import Distil
from zoo.training.schedule import Machine, Schedule, check_shares
from zoo.verbs.compressing import compress, declared
from zoo.verbs.distilling import distil, training_images, training_of
from zoo.verbs.loading import create, load, pretrained
from zoo.verbs.measuring import report_of
from zoo.verbs.recipes import check, declarations_of, finished, plain, read_as
from zoo.verbs.saving import save
from zoo.verbs.training_costs import learning_costs, training_costs
from zoo.verbs.verification import weights_of

NOTE = "recipe.json"
STATE = "compression"  # of what the method has found so far
Say = Callable[[str], None]


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
    entry = read_as(catalog.info(name), skip_damaged, labels)
    return make(entry, Path(out) if out is not None else Path("build") / name, data, say, machine)


def make(
    entry: Entry,
    folder: Path,
    data: str | None = None,
    say: Say = lambda line: None,
    machine: Machine | None = None,
) -> Path:
    """Make the model of an entry, in the catalog or not; arguments and errors are those of `build`.

    Started by `accelerate launch`, all processes compress, train and evaluate together, and the main one alone writes,
    to a file system that all of them see.
    """
    recipe = structs.replace(entry.recipe, data=data or entry.recipe.data)
    leading = task_named(entry.task).leading.figure
    here, machine, read = processes(), machine or Machine(), reading(recipe)
    say = say if here.is_main_process else lambda line: None
    if finished(entry, folder, data):
        if here.is_main_process and (_beside(folder) / NOTE).is_file():  # it was stopped at the very end
            shutil.rmtree(_beside(folder), ignore_errors=True)
        say(f"made already: {folder}")
        return folder
    schedule, how = declared(Schedule, recipe.schedule, "schedule"), declared(Distil, recipe.distil, "distil")
    teachers = [pretrained(Base(teacher)) for teacher in recipe.teachers] if schedule.epochs else []
    base, work, data = begin(entry, folder, data, say, machine, teachers)
    model = load(work / "start").to(here.device)

    def watched() -> dict[str, float]:
        return {leading: report_of(model, data, **read).measured[leading]}

    if schedule.epochs:
        say(f"3 {training_costs(model, teachers, recipe, data, machine, here)}")
        distil(
            model,
            teachers,
            data,
            how=how,
            schedule=schedule,
            augment=recipe.augment,
            **read,
            seed=recipe.seed,
            state=work / "training.safetensors",
            machine=machine,
            evaluate=watched if machine.log_with else None,
        )
    step = 4 if schedule.epochs else 3
    say(f"{step} evaluate on {data}")
    attach_(model, replace(describe(model), name=entry.name, recipe=plain(recipe)))
    dense = base.to(here.device) if recipe.method else None
    report = report_of(model, data, against=dense, **read)
    beside = report_of(dense, data, **read) if dense else None
    if weights := weights_of(entry.base.id if entry.base else ""):
        report = structs.replace(report, data={**report.data, "against_sha256": weights})
    say(f"{step + 1} write {folder}")
    if here.is_main_process:
        save(model.cpu(), folder, report=report, dense=beside)
        shutil.rmtree(work, ignore_errors=True)
    here.wait_for_everyone()
    say(_figures(report, beside, leading))
    return folder


def begin(
    entry: Entry,
    folder: Path,
    data: str | None,
    say: Say,
    machine: Machine | None = None,
    teachers: Sequence[nn.Module] = (),
) -> tuple[nn.Module, Path, str]:
    """The steps before training: load the base, compress it, and keep what came of it as a repository.

    Args:
        entry: the recipe.
        folder: of the repository that shall be made; `<folder>.work/start` holds the compressed model.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins.
        machine: how a method that trains runs here.
        teachers: of the training that follows, which must fit.

    Returns:
        The dense base, the folder of what is kept until the build ends, and the data set.

    Raises:
        ZooError: whatever a step ran into.
    """
    recipe, data, here = entry.recipe, _ready(entry, folder, data), processes()
    assert entry.base is not None  # or it isn't ready
    skip = recipe.skip_damaged
    images = [dataset(data, split, skip_damaged=skip) for split in SPLITS]  # the last had better be missed first
    work, follows = _work(folder, entry, data)
    say(f"1 load the base {entry.base.id}")
    base = _base(entry, entry.base)
    for each in images:
        task_of(base).matched(each, base, data, recipe.labels)
        check_whole(each, data)
    _check_training(base, teachers, recipe, data)
    begun = (work / "start").is_dir()
    here.wait_for_everyone()
    if not begun:
        machine = machine or Machine()
        say(f"2 {learning_costs(base, recipe, data, machine, here)}")
        there = next(parent for parent in work.parents if parent.exists())
        if here.is_main_process:
            write_json(work / NOTE, follows)  # first, as compression leaves its state beside it
        here.wait_for_everyone()
        try:
            # by every process, as some methods train
            start = _start(base.to(here.device), recipe, data, work / STATE, machine)
            if here.is_main_process:
                repository.write(work / "start", start, describe(start), {})
        except ZooError:
            if here.is_main_process and not (work / STATE).exists():
                shutil.rmtree(work)
                with contextlib.suppress(OSError):  # another build began there meanwhile
                    for made in itertools.takewhile(lambda parent: parent != there, work.parents):
                        made.rmdir()
            raise
        here.wait_for_everyone()
    return base, work, data


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
    data, machine = _ready(entry, folder, data), machine or Machine()
    assert entry.base is not None  # or it isn't ready
    work, _ = _work(folder, entry, data)
    if declarations_of(entry.recipe)[1] and not (work / "start").is_dir():
        bare = initialised(entry.base) if entry.base.id.startswith("timm/") else create(entry.base.id)
        model = _for(entry, bare)
        found = learning_costs(model, entry.recipe, data, machine, processes())
        say(f"{found}; it learns the plan, which isn't known before")
        _say_training(entry.recipe, model, data, say, machine, "then, at most: ")
        return None, []
    begin(entry, folder, data, say, machine)
    model = create(work / "start")
    _say_training(entry.recipe, model, data, say, machine, "then: ")
    counts = measure(model)
    rows = [Row("params_m", None, counts.params / 1e6), Row("macs_m", None, counts.macs / 1e6)]
    for claim in entry.reported:
        side = claim.input or entry.input[-1]
        if "params_m" in claim.figures:
            rows[0] = Row("params_m", claim.figures["params_m"], counts.params / 1e6, 0.02 * counts.params / 1e6)
        if "kmapp" in claim.figures and claim.counting:
            counted = COUNTINGS[claim.counting](model, (entry.input[0], side, side))
            rows.append(Row(f"kmapp ({claim.counting})", claim.figures["kmapp"], counted, 0.02 * counted))
    file = folder.with_name(f"{folder.name}.plan.json")
    if processes().is_main_process:
        write_json(file, {"name": entry.name, **read_json(work / "start" / repository.CONFIG)["zoo"]})
    return file, rows


def _check_training(base: nn.Module, teachers: Sequence[nn.Module], recipe: Recipe, data: str) -> None:
    """Check what can be known of a recipe's trainings before anything long begins."""
    schedule, how = declared(Schedule, recipe.schedule, "schedule"), declared(Distil, recipe.distil, "distil")
    schedules = []
    if schedule.epochs:
        training = training_of(
            base, teachers, data, how=how, schedule=schedule, augment=recipe.augment, **reading(recipe)
        )
        schedules.append(training.schedule)
    if own := declarations_of(recipe)[1]:
        task_of(base).training_transform(config_of(base), recipe.augment)
        schedules.append(training_images(base, data, own, **reading(recipe))[1])
    for each in schedules:
        check_shares(each, processes().num_processes)


def processes() -> Any:
    """Those that work on this build together: accelerate's `PartialState`."""
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs; without
    # a timeout of its own, half an hour apart would be an error.
    cpu = not torch.accelerator.is_available()
    return require("accelerate", "eval").PartialState(cpu=cpu, timeout=timedelta(days=1))


def _base(entry: Entry, base: Base) -> nn.Module:
    """The dense model that an entry starts from; with random weights where the entry itself is dense."""
    if entry.recipe.method is not None:
        return _for(entry, pretrained(base))
    model = initialised(base, entry.recipe.seed)
    attach_(model, Description(entry.name, base, task=entry.task))
    former = config_of(model)
    scaled = (0.5,) * entry.input[0]  # what we train from scratch sees its images scaled to -1..1
    config: dict[str, Any] = {
        "input_size": entry.input,
        "mean": scaled,
        "std": scaled,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "num_classes": model.num_classes,
        "license": entry.license,
        **{key: former[key] for key in ("first_conv", "classifier") if key in former},
    }
    configure_(model, config)
    return model


def _for(entry: Entry, base: nn.Module) -> nn.Module:
    """The base, preprocessing as the entry does: timm's size is the one that it was trained at."""
    config: dict[str, Any] = {**config_of(base), **entry.preprocessing, "input_size": entry.input}
    configure_(base, config)
    attach_(base, replace(describe(base), task=entry.task))
    return base


def _say_training(recipe: Recipe, model: nn.Module, data: str, say: Say, machine: Machine, when: str) -> None:
    """Say what training would cost, with teachers of random weights, which cost as much."""
    if declared(Schedule, recipe.schedule, "schedule").epochs:
        teachers = [create(teacher) for teacher in recipe.teachers]
        say(f"{when}{training_costs(model, teachers, recipe, data, machine, processes())}")


def _start(base: nn.Module, recipe: Recipe, data: str, state: Path, machine: Machine) -> nn.Module:
    """The model that training starts from."""
    if recipe.method is None:
        return base
    own = {"seed": recipe.seed, "augment": recipe.augment, **reading(recipe), **recipe.options}
    return compress(base, budget=recipe.budget, data=data, method=recipe.method, state=state, machine=machine, **own)


def _ready(entry: Entry, folder: Path, data: str | None) -> str:
    """The data set of a build that can begin."""
    data = data or entry.recipe.data
    if data is None or entry.base is None:
        what = "data set is named: pass --data" if entry.base else "base is named: it can't be built"
        raise UnknownName(f"{entry.name}: no {what}")
    check(entry.name, entry.recipe)
    task_named(entry.task)
    free(folder)
    require("jinja2", "build")  # the card comes last; its template had better be missed first
    return data


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.work")


def _work(folder: Path, entry: Entry, data: str) -> tuple[Path, dict[str, str]]:
    """Where the steps leave what they made, and the note of what they follow; emptied when another recipe was."""
    work = _beside(folder)
    dense = {name: weights_of(name) for name in (entry.base.id if entry.base else "", *entry.recipe.teachers)}
    says = {**plain(entry.recipe), "data": data, "note": None}  # what is claimed and noted elsewhere may be mended
    what = [entry.name, entry.base and structs.asdict(entry.base), entry.input, dict(entry.preprocessing), says, dense]
    follows = {"recipe": hashlib.sha256(json.dumps([*what, repository.versions()]).encode()).hexdigest()}
    note, here = work / NOTE, processes()
    if work.exists() and not note.is_file() and (work.is_file() or any(work.glob("[!.]*"))):
        raise RepositoryError(f"{work} exists and isn't of a build: choose another folder or remove it")
    another = not note.is_file() or read_json(note) != follows
    here.wait_for_everyone()
    if another and here.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
    here.wait_for_everyone()
    return work, follows


def _figures(report: Report, dense: Report | None, leading: str) -> str:
    """What came of it, beside the dense base where there is one."""
    now, then = report.measured, dense.measured if dense else {}
    parts = [
        f"{key} {now[key]:,}" + (f" ({now[key] / then[key]:.1%} of {then[key]:,})" if then else "")
        for key in ("macs", "params")
    ]
    parts.append(f"{leading} {now[leading]:.4f}" + (f" (dense {then[leading]:.4f})" if then else ""))
    if "kl" in now:
        parts.append(f"kl {now['kl']:.4f} nats")
    return ", ".join(parts)
