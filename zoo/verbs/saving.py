"""Repositories out of models: `save`, `convert` and `push`."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo import catalog
from zoo.catalog.entry import Base, Entry, own
from zoo.catalog.report import Report
from zoo.declarations import ModelName, validated
from zoo.errors import RepositoryError, StructureError, UnknownName
from zoo.files import free, read_json, writing_folder
from zoo.hub import remote, repository
from zoo.pages.card import render
from zoo.pages.front_matter import eval_results
from zoo.structure.describing import described
from zoo.structure.description import DEFAULT_TASK, Description, config_of, configure_
from zoo.verbs.converting import converted
from zoo.verbs.loading import origin_of
from zoo.verbs.measuring import report_of
from zoo.verbs.verification import results_of


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    base: Base | str | None = None,
    report: Report | None = None,
    dense: Report | None = None,
    *,
    example: Sequence[int] | Tensor | None = None,
) -> Path:
    """Write a repository: config.json, model.safetensors, README.md and results.json.

    Args:
        model: from `compress` or `load`, a dense model of timm, or any module that `torch.export` takes: that is saved
            as a graph.
        folder: where; an earlier repository there is replaced.
        base: the dense architecture; None reads it from what `compress`, `load` or timm left on the model.
        report: what was measured; None counts params and macs.
        dense: what was measured of the dense base, to stand beside it on the card.
        example: channels, height, width of the images, or some of them [B, C, H, W]; None takes what
            `model.pretrained_cfg` says.

    Returns:
        The folder.

    Raises:
        StructureError: the base isn't known or isn't this model's, or the model was changed since it was built.
        RepositoryError: something else lies at that place, or the report says what none may.
        StorageError: the disk is full or refuses.
    """
    base = Base(base) if isinstance(base, str) else base
    model, description = described(model, base, example)
    report = report or report_of(model, name=description.name)
    config = config_of(model)
    card = render(_entry(description, config), description, report, config, dense)
    results = json.dumps(report.to_json(), indent=2) + "\n"
    Report.from_json(json.loads(results), repository.RESULTS)  # or nobody could read it
    repository.write_repository(Path(folder), model, description, {repository.CARD: card, repository.RESULTS: results})
    return Path(folder)


def convert(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    base: Base | str | None = None,
    size: int | None = None,
    probabilities: bool = False,
) -> Path:
    """Make a repository of another project's checkpoint; nothing that it holds is run.

    Args:
        source: a folder with the checkpoint, a model of the catalog, or `org/name` on the Hub.
        folder: the new repository.
        name: of the model; None takes the catalog's, or the source's own.
        base: the dense model that it was made from, where the catalog can't say; ptdeco's checkpoints don't.
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
    name = name or (entry.name if entry else checkpoint.name)
    validated(ModelName, name, "the model's name, which --name gives,", StructureError)  # a folder has any
    base = Base(base) if isinstance(base, str) else base
    model = converted(checkpoint, name, entry, base=base, probabilities=probabilities)
    if size is not None:
        config = config_of(model)
        configure_(model, {**config, "input_size": (3, size, size)})
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
    if (source / repository.CONFIG).is_file() and "zoo" not in read_json(source / repository.CONFIG):
        raise RepositoryError(f"{source} isn't written by zoo: zoo.save(zoo.load({str(source)!r}), FOLDER), push that")
    if (source / repository.CONFIG).is_file() and not (source / repository.WEIGHTS).is_file():
        raise RepositoryError(f"{source} has no {repository.WEIGHTS}: save the repository again")
    repository.check_sha256(source)
    if isinstance(to, str) and re.fullmatch(r"[\w-]+", to):
        raise RepositoryError(f"{to} is neither ORG/NAME on the Hub nor a folder: for a folder say ./{to}")
    if isinstance(to, str) and remote.ID.fullmatch(to):
        if Path(to).exists():
            raise RepositoryError(f"{to} is a folder here and a name on the Hub: for the folder say ./{to}")
        task = repository.read_config(source)["zoo"].get("task", DEFAULT_TASK)
        return remote.publish(source, to, private=private, tag=tag, files=eval_results(results_of(source), task))
    if private or tag:
        raise RepositoryError(f"{to} is a folder, which is neither private nor tagged: expected org/name on the Hub")
    with writing_folder(Path(to)) as new:
        for name in repository.FILES:
            if (source / name).is_file():
                shutil.copy(source / name, new / name)
    return str(to)


def _entry(description: Description, config: Mapping[str, Any]) -> Entry:
    """The catalog's entry, or what can be said of a model that isn't in it."""
    try:
        return catalog.info(description.name)
    except UnknownName:
        channels, height, width = config["input_size"]
        architecture = description.base.architecture if description.base else description.name
        more: dict[str, Any] = {"base": description.base, "license": config.get("license")}
        return own(description.name, architecture, description.task, input=(channels, height, width), **more)
