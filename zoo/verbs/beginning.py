"""The steps of a build before training: base → compressed, kept under `<out>.work` so that they aren't done twice."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import nn

from zoo import atomic
from zoo.catalog.entry import Base, Entry, Recipe, reading
from zoo.catalog.report import Report
from zoo.compression import refinement
from zoo.errors import RepositoryError, StorageError, UnknownName, ZooError, require
from zoo.files import free, read_json, write_json
from zoo.hub import repository
from zoo.printable import logger
from zoo.structure.base import initialised
from zoo.structure.describing import describe
from zoo.structure.description import Description, attach_, config_of, configure_
from zoo.structure.graph.certificate import check_floats
from zoo.structure.sources import is_base_id
from zoo.tasks import task_named, task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.draws import check_whole
from zoo.tasks.evaluation import BESIDE
from zoo.tasks.folders import SPLITS
from zoo.training.schedule import Machine, check_shares
from zoo.verbs.compressing import compress
from zoo.verbs.distilling import training_images, training_of
from zoo.verbs.loading import folder_of, pretrained
from zoo.verbs.measuring import identity_of, report_of
from zoo.verbs.recipes import check_recipe, declarations_of, distillation_of, plain
from zoo.verbs.training_costs import learning_costs
from zoo.verbs.verification import weights_of

NOTE = "recipe.json"
STATE = "compression"  # of what the method has found so far
EVALUATED = "base.json"  # what the base is good for
CHANCE, FEW = 1.2, 5  # times what guessing one of the classes gives; images of a class that tell it
Say = Callable[[str], None]

log = logger(__name__)


def opened(entry: Entry, folder: Path, say: Say, teachers: Sequence[nn.Module] = ()) -> nn.Module:
    """The first step: load the base, and check whatever can be known before anything long begins.

    Args:
        entry: the recipe.
        folder: of the repository that shall be made.
        say: called with a line as each step begins.
        teachers: of the training that follows, which must fit.

    Returns:
        The dense base.

    Raises:
        ZooError: whatever a step ran into.
    """
    (dense, data), recipe = ready(entry, folder), entry.recipe
    images = [dataset(data, split, skip_damaged=recipe.skip_damaged) for split in SPLITS]  # none is missed later
    work_of(entry, folder)
    say(f"1 load the base {dense.id}")
    base = _base(entry, dense)
    check_floats(base, "compressed or trained")
    for each in images:
        task_of(base).matched(each, base, data, recipe.labels)
        check_whole(each, data)
    _check_training(base, teachers, recipe)
    return base


def evaluated(base: nn.Module, entry: Entry, folder: Path, say: Say) -> Report:
    """The second step: what the base is good for, kept so that it is measured once, as long as the images are the same.

    Arguments are those of `opened`, and the base.
    """
    (work, follows), here, recipe = work_of(entry, folder), processes(), entry.recipe
    say(f"2 evaluate the base on {recipe.data}")
    kept = work / EVALUATED
    report = Report.from_json(read_json(kept), str(kept)) if kept.is_file() else None
    if report is None or report.data.get("sha256") != identity_of(base, recipe.data, **reading(recipe)):
        report = alone_of(report_of(base.to(here.device), recipe.data, against=base, **reading(recipe)))
        if here.is_main_process:
            _note(work, follows)
            write_json(kept, report.to_json())
    here.wait_for_everyone()
    say_how_good(base, report, entry, say)
    return report


def alone_of(report: Report) -> Report:
    """A base's report without how it compares with itself."""
    return structs.replace(report, measured={k: value for k, value in report.measured.items() if k not in BESIDE})


def compressed(base: nn.Module, entry: Entry, folder: Path, say: Say, machine: Machine, step: int = 2) -> Path:
    """The step that follows: compress the base, and keep what came of it as a repository.

    Args:
        base: from `opened`.
        entry: the recipe.
        folder: of the repository that shall be made; `<folder>.work/start` holds the compressed model.
        say: called with a line as each step begins.
        machine: how a method that trains runs here.
        step: its number.

    Returns:
        The folder of what is kept until the build ends.

    Raises:
        ZooError: whatever a step ran into.
    """
    (work, follows), recipe, here = work_of(entry, folder), entry.recipe, processes()
    begun = (work / "start").is_dir()
    here.wait_for_everyone()
    if not begun:
        say(f"{step} {learning_costs(base, recipe, machine, here)}")
        _start(base.to(here.device), recipe, work, follows, machine)
    return work


def word_of(base: nn.Module) -> str:
    """What a base is called beside what is made of it: dense, unless it was compressed itself."""
    description = describe(base)
    return "base" if description.plan.edits or description.recipe.get("method") else "dense"


def say_how_good(base: nn.Module, report: Report, entry: Entry, say: Say) -> None:
    """Say what a base is good for, and where that is little what may be wrong."""
    leading, data = task_named(entry.task).leading.figure, entry.recipe.data
    if leading not in report.measured:
        why = "nothing is told of outputs like its own" if leading in BESIDE else f"the labels of {data} are hidden"
        say(f"{word_of(base)}: {why}, so models are compared with it by their outputs alone")
        return
    value, images, classes = report.measured[leading], report.data["images"], getattr(base, "num_classes", 0) or 0
    say(f"{word_of(base)}: {leading} {value:.4f} on {data}, {images:,} images")
    if value * classes < CHANCE and images >= FEW * classes > 0:
        log.warning(
            "%s: guessing would be as good: are the %d classes in the model's order? --labels FILE says which is which",
            data,
            classes,
        )


def ready(entry: Entry, folder: Path) -> tuple[Base, str]:
    """The base and the data set of a build that can begin."""
    if entry.recipe.data is None or entry.base is None:
        what = "data set is named: pass --data" if entry.base else "base is named: it can't be built"
        raise UnknownName(f"{entry.name}: no {what}")
    check_recipe(entry.name, entry.recipe)
    task_named(entry.task)
    free(folder)
    require("jinja2", "build")  # the card comes last; its template had better be missed first
    return entry.base, entry.recipe.data


@contextlib.contextmanager
def alone(folder: Path, say: Say) -> Iterator[None]:
    """Let the processes of one build alone work on a folder; those of another wait, and say so."""
    here = processes()
    with contextlib.ExitStack() as stack:
        if here.is_main_process:
            waits = f"another process makes {folder}: waiting until it is done"
            stack.enter_context(atomic.alone(folder, lambda: say(waits)))
        here.wait_for_everyone()
        yield


def beside(folder: Path) -> Path:
    """Where the steps leave what they made."""
    return folder.with_name(f"{folder.name}.work")


def work_of(entry: Entry, folder: Path) -> tuple[Path, dict[str, str]]:
    """The folder `beside`, emptied when its steps followed another recipe, and the note of what they follow."""
    work = beside(folder)
    dense = {name: _state_of(name) for name in (entry.base.id if entry.base else "", *entry.recipe.teachers)}
    says = {**plain(entry.recipe), "note": None}  # what is claimed and noted elsewhere may be mended
    what = [entry.name, entry.base and structs.asdict(entry.base), entry.input, dict(entry.preprocessing), says, dense]
    follows = {"recipe": hashlib.sha256(json.dumps([*what, repository.versions()]).encode()).hexdigest()}
    note, here = work / NOTE, processes()
    if work.exists() and not note.is_file() and (work.is_file() or any(work.glob("[!.]*"))):
        raise RepositoryError(f"{work} exists and isn't of a build: choose another folder or remove it")
    another = not note.is_file() or read_json(note) != follows
    here.wait_for_everyone()
    if another and here.is_main_process:
        atomic.discard(work)
    here.wait_for_everyone()
    return work, follows


def _state_of(name: str) -> list[Any]:
    """A model's weights and how it sees its images; nothing of a base id."""
    if name == "" or is_base_id(name):
        return []
    config = repository.read_config(folder_of(name))
    return [weights_of(name), config.get("pretrained_cfg"), config.get("label_names")]


def _note(work: Path, follows: Mapping[str, str]) -> None:
    """Say what is followed in a folder that `work_of` gave."""
    if not (work / NOTE).is_file():
        write_json(work / NOTE, follows)


def _check_training(base: nn.Module, teachers: Sequence[nn.Module], recipe: Recipe) -> None:
    """Check what can be known of a recipe's trainings before anything long begins."""
    schedule, how = distillation_of(recipe)
    read, augment, schedules = reading(recipe), recipe.augment, []
    if schedule.epochs:
        training = training_of(base, teachers, recipe.data, how=how, schedule=schedule, augment=augment, **read)
        schedules.append(training.schedule)
    if own := declarations_of(recipe)[1]:
        task_of(base).training_transform(config_of(base), augment)
        schedules.append(training_images(base, recipe.data, own, **read)[1])
    if recipe.options.get("calibrate_steps"):
        schedules.append(refinement.SCHEDULE)
    for each in schedules:
        check_shares(each, processes().num_processes)


def _base(entry: Entry, base: Base) -> nn.Module:
    """The dense model that an entry starts from; with random weights where the entry itself is dense."""
    if entry.recipe.method is not None:
        return seen_as(entry, pretrained(base))
    model = initialised(base, entry.recipe.seed)
    attach_(model, Description(entry.name, base, task=entry.task))
    former = config_of(model)
    scaled = (0.5,) * entry.input[0]  # a network of timm's that is trained from scratch sees images of -1..1
    timms: dict[str, Any] = {
        "mean": scaled,
        "std": scaled,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "num_classes": model.num_classes,
        **{key: former[key] for key in ("first_conv", "classifier") if key in former},
    }
    own = former if base.source == "zoo" else timms
    configure_(model, {**own, **entry.preprocessing, "input_size": entry.input, "license": entry.license})
    return model


def seen_as(entry: Entry, base: nn.Module) -> nn.Module:
    """The base, preprocessing as the entry does: timm's size is the one that it was trained at."""
    config: dict[str, Any] = {**config_of(base), **entry.preprocessing, "input_size": entry.input}
    configure_(base, config)
    attach_(base, replace(describe(base), task=entry.task))
    return base


def _start(base: nn.Module, recipe: Recipe, work: Path, follows: Mapping[str, str], machine: Machine) -> None:
    """Keep the model that training starts from; an error leaves nothing but a state that its method goes on from."""
    here = processes()
    if here.is_main_process:
        _note(work, follows)  # first, as compression leaves its state beside it
    here.wait_for_everyone()
    try:
        start = _compressed(base, recipe, work / STATE, machine)  # by every process, as some methods train
        if here.is_main_process:
            repository.write_repository(work / "start", start, describe(start), {})
    except ZooError:
        if here.is_main_process and not (work / STATE).exists():
            with contextlib.suppress(StorageError):
                atomic.discard(work)
        raise
    here.wait_for_everyone()


def _compressed(base: nn.Module, recipe: Recipe, state: Path, machine: Machine) -> nn.Module:
    if recipe.method is None:
        return base
    said = {"seed": recipe.seed, "augment": recipe.augment, **reading(recipe), **recipe.options}
    method, budget, data = recipe.method, recipe.budget, recipe.data
    return compress(base, method=method, budget=budget, data=data, state=state, machine=machine, **said)


def processes() -> Any:
    """Those that work on this build together: accelerate's `PartialState`."""
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs; without
    # a timeout of its own, half an hour apart would be an error.
    cpu = not torch.accelerator.is_available()
    return require("accelerate", "eval").PartialState(cpu=cpu, timeout=timedelta(days=1))
