"""Making models: base → compress → distil → evaluate → repository.

`build` reads from top to bottom like the recipe that it follows. Its steps leave what they made under `<out>.work`, so
that the same command continues where it was stopped.
"""

import copy
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import catalog
from zoo.cards.card import eval_results, render
from zoo.catalog.entry import Base, Budget, Entry, Recipe
from zoo.compressing import check_method, compress, declared, distil
from zoo.converting import converted
from zoo.errors import RepositoryError, StructureError, UnknownName, require
from zoo.files import free, read_json, write_json, writing_folder
from zoo.hub import remote, repository
from zoo.hub.repository import Description, describe
from zoo.loading import create, folder_of, load, origin_of, pretrained
from zoo.report import Report
from zoo.structure.base import initialised
from zoo.tasks.datasets import check_classes, dataset
from zoo.training.hierarchy import Distil
from zoo.training.trainer import Schedule
from zoo.verification import report_of, results_of

NOTE = "recipe.json"
Say = Callable[[str], None]


def build(
    name: str, out: str | os.PathLike[str] | None = None, *, data: str | None = None, say: Say = lambda line: None
) -> Path:
    """Make a model of the catalog as its recipe says; the same call continues a build that was stopped.

    Args:
        name: of the catalog.
        out: the folder of the repository; None takes `build/<name>`.
        data: the data set, where it isn't the recipe's.
        say: called with a line as each step begins.

    Returns:
        The repository's folder.

    Raises:
        ZooError: whatever a step ran into.
    """
    return make(catalog.info(name), Path(out) if out is not None else Path("build") / name, data, say)


def make(entry: Entry, folder: Path, data: str | None = None, say: Say = lambda line: None) -> Path:
    """Make the model of an entry, in the catalog or not; arguments and errors are those of `build`."""
    recipe, data = entry.recipe, data or entry.recipe.data
    if data is None or entry.base is None:
        what = "data set is named: pass --data" if entry.base else "base is named: it can't be built"
        raise UnknownName(f"{entry.name}: no {what}")
    if recipe.method is not None:
        check_method(recipe.method)
    free(folder)
    require("jinja2", "build")  # the card comes last; its template had better be missed first
    work, follows = _work(folder, entry, data)
    schedule, how = declared(Schedule, recipe.schedule, "schedule"), declared(Distil, recipe.distil, "distil")

    say(f"1 load the base {entry.base.id}")
    base = _base(entry, entry.base)
    check_classes(dataset(data, "train"), getattr(base, "num_classes", None), data)
    if not (work / "start").is_dir():
        say(f"2 {recipe.method or 'initialise'}")
        start = _start(base, recipe, data)
        write_json(work / NOTE, follows)
        repository.write(work / "start", start, describe(start), {})
    model = load(work / "start")
    if schedule.epochs:
        teachers = [pretrained(Base(teacher)) for teacher in recipe.teachers]
        doing = f"distil from {', '.join(recipe.teachers)}" if teachers else "train"
        say(f"3 {doing}, {schedule.epochs} epochs of {data}{_cost(model, teachers, schedule, data)}")
        state = work / "training.safetensors"
        distil(model, teachers, data, how=how, schedule=schedule, augment=recipe.augment, seed=recipe.seed, state=state)
    say(f"4 evaluate on {data}")
    made = replace(recipe, data=data)
    model.zoo_entry = replace(describe(model), name=entry.name, recipe=_plain(made))  # type: ignore[assignment]
    dense = base if recipe.method else None
    report = report_of(model, data, against=dense)
    say(f"5 write {folder}")
    save(model, folder, report=report, dense=report_of(dense, data) if dense else None)
    shutil.rmtree(work, ignore_errors=True)
    return folder


def recipe_for(base: str, method: str, budget: Budget, data: str, epochs: int, options: Mapping[str, Any]) -> Entry:
    """The entry of a model that isn't in the catalog: `base` compressed, then distilled from `base` itself."""
    dense = create(base)
    description = describe(dense)
    assert description.base is not None  # create refuses graphs
    config: dict[str, Any] = dense.pretrained_cfg  # type: ignore[assignment]
    channels, height, width = config["input_size"]
    recipe = Recipe(
        method=method,
        budget=budget,
        options=options,
        data=data,
        teachers=(base,) if epochs else (),
        schedule={"epochs": epochs},
    )
    return Entry(
        name=f"{description.name}_{method}d_{round(100 * budget.macs)}",
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


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    base: Base | str | None = None,
    report: Report | None = None,
    dense: Report | None = None,
) -> Path:
    """Write a repository: config.json, model.safetensors, README.md and results.json.

    Args:
        model: from `compress` or `load`, or any dense timm model.
        folder: where; an earlier repository there is replaced.
        base: the dense architecture; None reads it from what `compress`, `load` or timm left on the model.
        report: what was measured; None counts params and macs.
        dense: what was measured of the dense base, to stand beside it on the card.

    Returns:
        The folder.

    Raises:
        StructureError: the base isn't known or isn't this model's.
        RepositoryError: something else lies at that place.
        StorageError: the disk is full or refuses.
    """
    base = Base(base) if isinstance(base, str) else base
    description = describe(model) if base is None else Description(base.architecture, base)
    report = report or report_of(model, name=description.name)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    card = render(_entry(description, config), description, report, config, dense)
    results = json.dumps(report.to_json(), indent=2) + "\n"
    repository.write(Path(folder), model, description, {repository.CARD: card, repository.RESULTS: results})
    return Path(folder)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    size: int | None = None,
    probabilities: bool = False,
) -> Path:
    """Make a repository of another project's checkpoint; nothing that it holds is run.

    Args:
        source: a folder with the checkpoint, a model of the catalog, or `org/name` on the Hub.
        folder: the new repository.
        name: of the model; None takes the catalog's, or the source's own.
        size: side of its square input in pixels, where the catalog can't say.
        probabilities: keep a softmax at the end where there is one; else the model gives logits.

    Returns:
        The new repository's folder.

    Raises:
        CheckpointError: the checkpoint is damaged, dangerous or not understood.
        StructureError: it refuses an input of that size.
        UnknownName, HubError, RepositoryError, StorageError: as for `load` and `save`.
    """
    free(Path(folder))
    entry, checkpoint = origin_of(source)
    model = converted(
        checkpoint, name or (entry.name if entry else checkpoint.name), entry, probabilities=probabilities
    )
    if size is not None:
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        model.pretrained_cfg = {**config, "input_size": (3, size, size)}  # type: ignore[assignment]
    try:
        return save(model, folder)
    except StructureError as error:
        raise StructureError(f"{error}; --input SIZE says what it takes") from None


def push(
    folder: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    private: bool = False,
    tag: str | None = None,
) -> str:
    """Publish a repository, whole or not at all; one that is there already is left alone.

    Args:
        folder: the repository.
        to: `org/name` on the Hub, or a folder (`./folder`).
        private: on the Hub, make it so that only its owner sees it.
        tag: on the Hub, the name of this commit.

    Returns:
        Its page on the Hub, or the folder.

    Raises:
        RepositoryError, WeightsError: the repository can't be read back, or something else lies at that place.
        HubError, UnknownName: the Hub can't be reached, or refuses.
        StorageError: the disk is full or refuses.
    """
    source = Path(folder)
    for name in repository.FILES:
        if (source / name).is_symlink():
            raise RepositoryError(f"{source / name} is a link, expected a file: it would publish what it points to")
    if (source / repository.CONFIG).is_file() and not (source / repository.WEIGHTS).is_file():
        raise RepositoryError(f"{source} has no {repository.WEIGHTS}: save the repository again")
    repository.check_sha256(source)
    if isinstance(to, str) and re.fullmatch(r"[\w-]+", to):
        raise RepositoryError(f"{to} is neither ORG/NAME on the Hub nor a folder: for a folder say ./{to}")
    if isinstance(to, str) and remote.ID.fullmatch(to):
        if Path(to).exists():
            raise RepositoryError(f"{to} is a folder here and a name on the Hub: for the folder say ./{to}")
        return remote.push(source, to, private=private, tag=tag, files=eval_results(results_of(source)))
    if private or tag:
        raise RepositoryError(f"{to} is a folder, which is neither private nor tagged: expected org/name on the Hub")
    with writing_folder(Path(to)) as new:
        for name in repository.FILES:
            if (source / name).is_file():
                shutil.copy(source / name, new / name)
    return str(to)


def _base(entry: Entry, base: Base) -> nn.Module:
    """The dense model that an entry starts from; with random weights where the entry itself is dense."""
    if entry.recipe.method is not None:
        return pretrained(base)
    model = initialised(base, entry.recipe.seed)
    model.zoo_entry = Description(entry.name, base)  # type: ignore[assignment]
    former: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
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
    model.pretrained_cfg = config  # type: ignore[assignment]
    return model


def _start(base: nn.Module, recipe: Recipe, data: str) -> nn.Module:
    """The model that training starts from."""
    if recipe.method is None:
        return base
    if recipe.budget is None:
        raise StructureError(f"{describe(base).name}: the recipe's method {recipe.method} has no budget")
    return compress(base, budget=recipe.budget, data=data, method=recipe.method, **recipe.options)


def _cost(model: nn.Module, teachers: Sequence[nn.Module], schedule: Schedule, data: str) -> str:
    """What training will take on this machine, from one batch."""
    images = dataset(data, "train")
    steps = schedule.epochs * (len(images) // schedule.batch_size) if hasattr(images, "__len__") else 0
    steps = min(steps, schedule.steps or steps)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    batch = torch.zeros(schedule.batch_size, *config["input_size"])
    student = copy.deepcopy(model)
    for _ in range(2):  # the first call pays for what is set up once
        started = time.perf_counter()
        student(batch).sum().backward()
        with torch.no_grad():
            for teacher in teachers:
                teacher(batch)
        seconds = time.perf_counter() - started
    return f": {steps:,} steps, about {1.5 * steps * seconds:,.0f} s here" if steps else ""


def _work(folder: Path, entry: Entry, data: str) -> tuple[Path, dict[str, str]]:
    """Where the steps leave what they made, and the note of what they follow; emptied when another recipe was."""
    work = folder.with_name(f"{folder.name}.work")
    dense = {name: _weights_of(name) for name in (entry.base.id if entry.base else "", *entry.recipe.teachers)}
    recipe = json.dumps([asdict(entry), data, dense, repository.versions()])
    follows = {"recipe": hashlib.sha256(recipe.encode()).hexdigest()}
    note = work / NOTE
    if work.exists() and not note.is_file() and (work.is_file() or any(work.glob("[!.]*"))):
        raise RepositoryError(f"{work} exists and isn't of a build: choose another folder or remove it")
    if not note.is_file() or read_json(note) != follows:
        shutil.rmtree(work, ignore_errors=True)
    return work, follows


def _weights_of(name: str) -> str:
    """The sha256 of a model's weights, where they are at hand."""
    if name == "" or name.startswith("timm/"):
        return ""
    return str(repository.read(folder_of(name))["zoo"]["weights_sha256"])


def _plain(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: what differs from the defaults."""
    default = asdict(Recipe())
    return {key: value for key, value in asdict(recipe).items() if value != default[key]}


def _entry(description: Description, config: Mapping[str, Any]) -> Entry:
    """The catalog's entry, or what can be said of a model that isn't in it."""
    try:
        return catalog.info(description.name)
    except UnknownName:
        channels, height, width = config["input_size"]
        architecture = description.base.architecture if description.base else description.name
        return Entry(
            name=description.name,
            project="own",
            family=architecture,
            architecture=architecture,
            task="image-classification",
            status="recipe",
            base=description.base,
            license=config.get("license"),
            input=(channels, height, width),
        )
