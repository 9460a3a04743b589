"""Making models: base → compress → distil → evaluate → repository.

`build` reads from top to bottom like the recipe that it follows. Its steps leave what they made under `<out>.work`, so
that the same command continues where it was stopped.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import catalog
from zoo.catalog.entry import Base, Budget, Entry, Recipe
from zoo.compressing import BY_BUDGET, SUFFIXES, check_method, compress, declared, distil
from zoo.costs import cost
from zoo.counting import COUNTINGS
from zoo.errors import BudgetError, RepositoryError, UnknownName, ZooError, require
from zoo.files import free, read_json, write_json
from zoo.hub import repository
from zoo.hub.repository import Description, describe
from zoo.loading import create, folder_of, load, pretrained
from zoo.measurement import measure
from zoo.report import Row
from zoo.saving import convert as convert
from zoo.saving import push as push
from zoo.saving import save
from zoo.structure.base import initialised
from zoo.tasks.classification import training_transform
from zoo.tasks.datasets import check_classes, dataset
from zoo.training.hierarchy import Distil
from zoo.training.schedule import Machine, Schedule
from zoo.verification import report_of

NOTE = "recipe.json"
STATE = "compression"  # of what the method has found so far
Say = Callable[[str], None]


def build(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    data: str | None = None,
    say: Say = lambda line: None,
    machine: Machine | None = None,
) -> Path:
    """Make a model of the catalog as its recipe says; the same call continues a build that was stopped.

    Args:
        name: of the catalog.
        out: the folder of the repository; None takes `build/<name>`.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins.
        machine: how training runs here.

    Returns:
        The repository's folder.

    Raises:
        ZooError: whatever a step ran into.
    """
    return make(catalog.info(name), Path(out) if out is not None else Path("build") / name, data, say, machine)


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
    recipe = replace(entry.recipe, data=data or entry.recipe.data)
    here, machine = processes(), machine or Machine()
    say = say if here.is_main_process else lambda line: None
    schedule, how = declared(Schedule, recipe.schedule, "schedule"), declared(Distil, recipe.distil, "distil")
    base, work, data = begin(entry, folder, data, say, machine)
    check_classes(dataset(data, "train"), getattr(base, "num_classes", None), data)
    model = load(work / "start").to(here.device)
    if schedule.epochs:
        teachers = [pretrained(Base(teacher)) for teacher in recipe.teachers]
        doing = f"distil from {', '.join(recipe.teachers)}" if teachers else "train"
        transform = training_transform(_config(model), recipe.augment)
        costs = cost(
            model,
            teachers,
            dataset(data, "train"),
            transform,
            schedule,
            how=how,
            machine=machine,
            processes=here.num_processes,
            device=here.device,
        )
        say(f"3 {doing}, {schedule.epochs} epochs of {data}{f': {costs}' if costs else ''}")
        distil(
            model,
            teachers,
            data,
            how=how,
            schedule=schedule,
            augment=recipe.augment,
            seed=recipe.seed,
            state=work / "training.safetensors",
            machine=machine,
            evaluate=(lambda: {"top1": report_of(model, data).measured["top1"]}) if machine.log_with else None,
        )
    say(f"4 evaluate on {data}")
    model.zoo_entry = replace(describe(model), name=entry.name, recipe=_plain(recipe))  # type: ignore[assignment]
    dense = base.to(here.device) if recipe.method else None
    report = report_of(model, data, against=dense)
    beside = report_of(dense, data) if dense else None
    say(f"5 write {folder}")
    if here.is_main_process:
        save(model.cpu(), folder, report=report, dense=beside)
        shutil.rmtree(work, ignore_errors=True)
    here.wait_for_everyone()
    return folder


def begin(
    entry: Entry, folder: Path, data: str | None, say: Say, machine: Machine | None = None
) -> tuple[nn.Module, Path, str]:
    """The steps before training: load the base, compress it, and keep what came of it as a repository.

    Args:
        entry: the recipe.
        folder: of the repository that shall be made; `<folder>.work/start` holds the compressed model.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins.
        machine: how a method that trains runs here.

    Returns:
        The dense base, the folder of what is kept until the build ends, and the data set.

    Raises:
        ZooError: whatever a step ran into.
    """
    recipe, data, here = entry.recipe, data or entry.recipe.data, processes()
    if data is None or entry.base is None:
        what = "data set is named: pass --data" if entry.base else "base is named: it can't be built"
        raise UnknownName(f"{entry.name}: no {what}")
    _check(entry.name, recipe)
    free(folder)
    require("jinja2", "build")  # the card comes last; its template had better be missed first
    work, follows = _work(folder, entry, data)
    say(f"1 load the base {entry.base.id}")
    base = _base(entry, entry.base)
    begun = (work / "start").is_dir()
    here.wait_for_everyone()
    if not begun:
        say(f"2 {recipe.method or 'initialise'}")
        there = next(parent for parent in work.parents if parent.exists())
        if here.is_main_process:
            write_json(work / NOTE, follows)  # first, as compression leaves its state beside it
        here.wait_for_everyone()
        try:
            # by every process, as some methods train
            start = _start(base.to(here.device), recipe, data, work / STATE, machine or Machine())
        except ZooError:
            if here.is_main_process and not (work / STATE).exists():
                shutil.rmtree(work)
                for made in itertools.takewhile(lambda parent: parent != there, work.parents):
                    made.rmdir()
            raise
        if here.is_main_process:
            repository.write(work / "start", start, describe(start), {})
        here.wait_for_everyone()
    return base, work, data


def plan(entry: Entry, folder: Path, data: str | None = None, say: Say = lambda line: None) -> tuple[Path, list[Row]]:
    """Compress as a recipe says and train nothing: `make` goes on from there.

    Args:
        entry: the recipe.
        folder: of the repository that `make` would write.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins.

    Returns:
        The plan's file, `<folder>.plan.json`, and its params and costs beside those that the source reports.

    Raises:
        ZooError: whatever a step ran into.
    """
    _, work, _ = begin(entry, folder, data, say)
    model = create(work / "start")
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


def built(entry: Entry, folder: Path, data: str | None = None) -> bool:
    """Whether a folder holds the model of an entry, made by this very recipe; arguments are those of `make`."""
    if not (folder / repository.CONFIG).is_file():
        return False
    recipe = _plain(replace(entry.recipe, data=data or entry.recipe.data))
    made = read_json(folder / repository.CONFIG).get("zoo", {})
    then, now = ({**each, "note": None} for each in (made.get("recipe", {}), json.loads(json.dumps(recipe))))
    return bool(made.get("name") == entry.name and then == now)


def processes() -> Any:
    """Those that work on this build together: accelerate's `PartialState`."""
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs; without
    # a timeout of its own, half an hour apart would be an error.
    cpu = not torch.accelerator.is_available()
    return require("accelerate", "eval").PartialState(cpu=cpu, timeout=timedelta(days=1))


def recipe_for(
    base: str, method: str, budget: Budget | None, data: str, epochs: int, options: Mapping[str, Any]
) -> Entry:
    """The entry of a model that isn't in the catalog: `base` compressed, then distilled from `base` itself."""
    dense = create(base)
    description = describe(dense)
    assert description.base is not None  # create refuses graphs
    config: dict[str, Any] = dense.pretrained_cfg  # type: ignore[assignment]
    channels, height, width = config["input_size"]
    share = f"_{round(100 * budget.macs)}" if budget else ""
    recipe = Recipe(
        method=method,
        budget=budget,
        options=options,
        data=data,
        teachers=(base,) if epochs else (),
        schedule={"epochs": epochs},
    )
    return Entry(
        name=f"{description.name}_{SUFFIXES.get(method, method)}{share}",
        project="own",
        family=description.base.architecture,
        architecture=description.base.architecture,
        task="image-classification",
        status="recipe",
        base=Base(base),
        license=config.get("license"),
        dataset=data,
        input=(channels, height, width),
        recipe=recipe,
    )


def _base(entry: Entry, base: Base) -> nn.Module:
    """The dense model that an entry starts from; with random weights where the entry itself is dense."""
    if entry.recipe.method is not None:
        model = pretrained(base)
        # timm's is the size that the base was trained at, which need not be the entry's.
        config = {**_config(model), **entry.preprocessing, "input_size": entry.input}
        model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]
        return model
    model = initialised(base, entry.recipe.seed)
    model.zoo_entry = Description(entry.name, base)  # type: ignore[assignment]
    former: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    scaled = (0.5,) * entry.input[0]  # what we train from scratch sees its images scaled to -1..1
    config = {
        "input_size": entry.input,
        "mean": scaled,
        "std": scaled,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "num_classes": model.num_classes,
        "license": entry.license,
        **{key: former[key] for key in ("first_conv", "classifier") if key in former},
    }
    model.pretrained_cfg = config  # type: ignore[assignment]
    return model


def _start(base: nn.Module, recipe: Recipe, data: str, state: Path, machine: Machine) -> nn.Module:
    """The model that training starts from."""
    if recipe.method is None:
        return base
    own = {"seed": recipe.seed, "augment": recipe.augment, **recipe.options}
    return compress(base, budget=recipe.budget, data=data, method=recipe.method, state=state, machine=machine, **own)


def _check(name: str, recipe: Recipe) -> None:
    """Check that a recipe's method is there, has a budget just where it needs one, and options that it may have."""
    if recipe.method is None:
        return
    check_method(recipe.method)
    if recipe.budget is None and recipe.method in BY_BUDGET:
        raise BudgetError(f"{name}: {recipe.method} needs a budget: the share of the macs that stays")
    if recipe.budget is not None and recipe.method not in BY_BUDGET:
        raise BudgetError(f"{name}: {recipe.method} takes no budget, as it has thresholds: set them by its options")
    for key in ("method", "budget", "data", "state"):
        if key in recipe.options:
            raise UnknownName(f"{name}: {key} is no option of {recipe.method}: it stands in the recipe itself")


def _work(folder: Path, entry: Entry, data: str) -> tuple[Path, dict[str, str]]:
    """Where the steps leave what they made, and the note of what they follow; emptied when another recipe was."""
    work = folder.with_name(f"{folder.name}.work")
    dense = {name: _weights_of(name) for name in (entry.base.id if entry.base else "", *entry.recipe.teachers)}
    says = {**asdict(entry.recipe), "data": data, "note": None}  # what is claimed and noted elsewhere may be mended
    what = [entry.name, entry.base and asdict(entry.base), entry.input, dict(entry.preprocessing), says, dense]
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


def _config(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return config


def _weights_of(name: str) -> str:
    """The sha256 of a model's weights, where they are at hand."""
    if name == "" or name.startswith("timm/"):
        return ""
    return str(repository.read(folder_of(name))["zoo"]["weights_sha256"])


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: what differs from the defaults."""
    default = asdict(Recipe())
    return {key: value for key, value in asdict(recipe).items() if value != default[key]}
