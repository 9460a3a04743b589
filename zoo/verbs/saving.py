"""Repositories out of models: `save`, `convert` and `push`."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog.entry import Base, Input
from zoo.catalog.report import Report
from zoo.declarations import Finite, ModelName, Name, Positive, validated
from zoo.errors import RepositoryError, StructureError
from zoo.files import REPOSITORY, free, read_json, writing_folder
from zoo.hub import remote, repository
from zoo.measurement.macs import unwrapped
from zoo.pages.card import published
from zoo.pages.front_matter import eval_results
from zoo.structure.base import skeleton
from zoo.structure.describing import described
from zoo.structure.description import DEFAULT_TASK, config_of, configure_, description_of
from zoo.structure.tensors import tensors_of
from zoo.verbs import cards, licences
from zoo.verbs.converting import converted
from zoo.verbs.loading import origin_of
from zoo.verbs.measuring import report_of
from zoo.verbs.verification import results_of


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    base: Base | str | None = None,
    license: str | None = None,
    labels: Sequence[str] | None = None,
    input: Sequence[int] | None = None,
    example: Sequence[int] | Tensor | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: Any = None,
    report: Report | None = None,
    dense: Report | None = None,
) -> Path:
    """Write a repository: config.json, model.safetensors, README.md with its pictures, and results.json.

    Args:
        model: from `compress` or `load`, a dense model of timm, or any module that `torch.export` takes: that is saved
            as a graph.
        folder: where; an earlier repository there is replaced.
        name: of the model; None takes the one that it carries.
        base: the dense architecture; None reads it from what `compress`, `load` or timm left on the model.
        license: of the weights, by the Hub's id of it. None takes that of what was loaded, which stays through training
            and compression, and of weights that are those of a tag of timm's; of others none is claimed. Where
            another is named, the card notes that of the weights they come from.
        labels: names of the model's classes in order.
        input: channels, height and width of its images; None takes what `model.pretrained_cfg` says.
        example: what it is traced with where it becomes a graph, such a size or images [B, C, H, W]; None takes input.
        mean: of each channel of 0..1, or of all; None takes what `model.pretrained_cfg` says.
        std: the same of the standard deviation.
        data: the data set to evaluate on, as `--data` takes it; None counts params and macs.
        report: what was measured, in place of that.
        dense: what was measured of the dense base, to stand beside it on the card.

    Returns:
        The folder.

    Raises:
        StructureError: the base isn't known or isn't this model's, or the model was changed since it was built; input,
            labels, mean or std aren't its own.
        DataError: the data can't be used.
        RepositoryError: something else lies at that place, or the report says what none may.
        StorageError: the disk is full or refuses.
    """
    base, model = Base(base) if isinstance(base, str) else base, unwrapped(model)
    carried = description_of(model) is not None
    validated(Name | None, license, "license", StructureError)
    free(Path(folder))
    former = config_of(model) or (config_of(skeleton(base)) if base else {})
    if not former and input and (mean is not None or std is not None):
        former = {"mean": (0.0,) * input[0], "std": (1.0,) * input[0], "crop_pct": 1.0, "interpolation": "bicubic"}
    if former:  # images of the new size are what the model is compared on
        configure_(model, seen_as(former, input, mean, std))
    model, description = described(model, base, input if example is None else example)
    if name is not None:
        description = replace(description, name=name)
    config = named(seen_as(config_of(model), input, mean, std), labels, getattr(model, "num_classes", None))
    description, held = licences.judged(model, description, said=base is not None or carried)
    config = licences.claims(config, held, carried)
    config = licences.relicensed(config, license, description.base) if license else config
    if description.recipe and not held:
        description = replace(description, recipe={**description.recipe, "altered": True})
    with _carrying(model, config):
        report = report or report_of(model, data, name=description.name)
        results = json.dumps(report.to_json(), indent=2) + "\n"
        Report.from_json(json.loads(results), repository.RESULTS)  # or nobody could read it
        known = cards.facts(
            description,
            report,
            config,
            held,
            repository.fingerprint_of(description),
            {path: tensor.shape for path, tensor in tensors_of(model).items()},
            dense or cards.dense_of(description),
        )
        files = {**known.files(), repository.RESULTS: results}
        repository.write_repository(Path(folder), model, description, files)
    return Path(folder)


@contextlib.contextmanager
def _carrying(model: nn.Module, config: Mapping[str, Any]) -> Iterator[None]:
    """A model that carries another `pretrained_cfg` for as long as the context is open."""
    former = config_of(model)
    configure_(model, config)
    try:
        yield
    finally:
        configure_(model, former)


def seen_as(
    config: Mapping[str, Any],
    input: Sequence[int] | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> dict[str, Any]:
    """`pretrained_cfg` of images of another size, mean or standard deviation.

    Raises:
        StructureError: they aren't sizes, or aren't numbers for each channel.
    """
    config = dict(config)
    if input is not None:
        config["input_size"] = validated(Input, list(input), "input", StructureError)
    channels = config["input_size"][0] if config.get("input_size") else len(config.get("mean") or ())
    for key, said, kind in (("mean", mean, list[Finite]), ("std", std, list[Positive])):
        if said is not None and channels:
            values = [*said] if isinstance(said, Sequence) else [said]
            values = values * channels if len(values) == 1 else values
            if len(values) != channels:
                raise StructureError(f"{key} has {len(values)} numbers, expected one, or {channels}: one a channel")
            config[key] = tuple(validated(kind, values, key, StructureError))
        elif input is not None and len(config.get(key) or ()) not in (0, channels):
            config[key] = tuple(config[key][i % len(config[key])] for i in range(channels))
    return config


def named(config: Mapping[str, Any], labels: Sequence[str] | None, classes: int | None) -> dict[str, Any]:
    """`pretrained_cfg` with these names of the classes.

    Raises:
        StructureError: there are more or fewer than classes.
    """
    if labels is None:
        return dict(config)
    names = validated(list[Name], list(labels), "labels", StructureError)
    if classes is not None and len(names) != classes:
        raise StructureError(f"labels has {len(names)} names, the model has {classes} classes: name each, in order")
    return {**config, "label_names": tuple(names)}


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
    for name in sorted(REPOSITORY):
        if (source / name).is_symlink():
            raise RepositoryError(f"{source / name} is a link, expected a file: it would publish what it points to")
    if (source / repository.CONFIG).is_file() and "zoo" not in read_json(source / repository.CONFIG):
        raise RepositoryError(f"{source} isn't written by zoo: zoo.save(zoo.load({str(source)!r}), FOLDER), push that")
    if (source / repository.CONFIG).is_file() and not (source / repository.WEIGHTS).is_file():
        raise RepositoryError(f"{source} has no {repository.WEIGHTS}: save the repository again")
    repository.check_sha256(source)
    if isinstance(to, str) and not remote.ID.fullmatch(to) and not to.startswith((".", "~", os.sep)):
        raise RepositoryError(f"{to} is neither ORG/NAME on the Hub nor a folder: for a folder say ./{to}")
    if isinstance(to, str) and remote.ID.fullmatch(to):
        if Path(to).exists():
            raise RepositoryError(f"{to} is a folder here and a name on the Hub: for the folder say ./{to}")
        task = repository.read_config(source)["zoo"].get("task", DEFAULT_TASK)
        files = eval_results(results_of(source), task)
        if (source / repository.CARD).is_file():
            files |= {repository.CARD: published((source / repository.CARD).read_text(encoding="utf-8"), to)}
        return remote.publish(source, to, private=private, tag=tag, files=files)
    if private or tag:
        raise RepositoryError(f"{to} is a folder, which is neither private nor tagged: expected org/name on the Hub")
    with writing_folder(Path(to)) as new:
        for name in sorted(REPOSITORY):
            if (source / name).is_file():
                shutil.copy(source / name, new / name)
    return str(to)
