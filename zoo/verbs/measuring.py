"""Reports: what a model costs and what it is good for, measured here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.catalog.data_names import data_name, told
from zoo.catalog.report import Forgotten, Report
from zoo.deadline import deadline
from zoo.errors import ZooError, require
from zoo.hub.repository import versions
from zoo.measurement.latency import processor
from zoo.measurement.macs import Counts, forward_on_meta, measure, unwrapped, weights_of
from zoo.structure.describing import describe
from zoo.structure.description import config_of, description_of
from zoo.structure.plan import Mask
from zoo.structure.tensors import computable, tensors_of
from zoo.tasks import task_of
from zoo.tasks.classification.classes import label_names
from zoo.tasks.columns import is_stream
from zoo.tasks.datasets import dataset
from zoo.tasks.draws import undamaged
from zoo.tasks.evaluation import Seen, evaluate_together
from zoo.tasks.identity import Identified, identity, with_targets
from zoo.tasks.loader import Transform, workers_for
from zoo.tasks.outputs import AS_IT_IS, Computing
from zoo.tasks.task import Labels, Meaning

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

MAX_BATCH = 2**28  # numbers in one batch of images, a gigabyte


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Args:
        model: from `load`, `compress` or timm.
        against: the dense model that the outputs are compared with (`kl`, in nats, and `agreement`, 0..1).
        name: of the model; empty takes the one that it carries.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
    """

    model: nn.Module
    against: nn.Module | None = None
    name: str = ""
    labels: Labels | None = None


def report_of(
    model: nn.Module,
    data: Any = None,
    *,
    labels: Labels | None = None,
    against: nn.Module | None = None,
    name: str | None = None,
    **how: Any,
) -> Report:
    """Measure a model.

    Args:
        model: from `load`, `compress` or timm.
        data: the data set, as `zoo.tasks.datasets.dataset` takes it; its test split is evaluated. None counts params
            and macs only.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        against: the dense model that the outputs are compared with (`kl`, in nats, and `agreement`, 0..1).
        name: of the model; None takes the one that it carries.
        how: as for `reports_of`: `skip_damaged`, `images`, `workers`, `batch_size`, `size`, `crop_pct`, `computing`.

    Returns:
        The figures, with the data, preprocessing, versions and machine that they hold for; of a task that tells classes
        apart also those of each class. `weights_bytes` are the bytes of the tensors that a file holds; `nonzero`, where
        weights are masked, the params that aren't zero.
    """
    report: Report
    (report,) = reports_of([Subject(model, against, name or "", labels)], data, **how)
    return report


def reports_of(
    subjects: Sequence[Subject],
    data: Any = None,
    *,
    skip_damaged: bool = False,
    images: int | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    crop_pct: float | None = None,
    computing: Computing = AS_IT_IS,
    refused: Callable[[int, ZooError], None] | None = None,
) -> list[Any]:
    """Measure models, those that agree on what a batch is in one pass over the images, each as it would be alone.

    Args:
        subjects: the models.
        data: as for `report_of`.
        skip_damaged: leave out images that can't be decoded.
        images: evaluate on at most so many.
        workers: processes that load images; None takes a core each where it is worth it.
        batch_size: images of one batch, of which a CPU computes some at a time; None takes 32 there, else 256, and
            fewer of large images.
        size: side in pixels of the square images to evaluate on; None takes the model's own.
        crop_pct: share of the shorter side that is cropped, 0..1; None takes the model's own.
        computing: how outputs are computed.
        refused: is told the number of a model that the data or a size doesn't fit, and why; None raises it.

    Returns:
        The Report of each; None of those that were refused.
    """
    subjects = [replace(each, model=unwrapped(each.model)) for each in subjects]
    rows, left_out = (None, None) if data is None else _opened(data, images, skip_damaged)
    passes: dict[Any, _Pass] = {}
    counted: dict[int, Counts] = {}
    configs: dict[int, dict[str, Any]] = {}
    found: dict[int, dict[str, Any]] = {}
    where: dict[int, dict[str, Any]] = {}
    for number, one in enumerate(subjects):
        try:
            counted[number] = _counted(one.model)
            if rows is not None:
                configs[number] = _config(one.model, counted[number], size, crop_pct)
                _join(passes, number, one, configs[number], rows, data_name(data), batch_size)
        except ZooError as error:
            if refused is None:
                raise
            counted.pop(number, None)
            refused(number, error)
    for group in passes.values():
        for number, measured in zip(group.members, group.evaluated(subjects, workers, computing), strict=True):
            one, found[number] = subjects[number], measured
            there = _where(data, configs[number], measured.pop("images"), skip_damaged, left_out, one.labels)
            there |= {"sha256": measured.pop("sha256")}
            there |= {"classes": len(group.subset)} if group.subset else {}
            there |= {"precision": computing.precision} if computing.precision else {}
            where[number] = there | ({"against": describe(one.against).name} if one.against is not None else {})
    return [
        _report(one, counted[number], found.get(number, {}), where.get(number, {})) if number in counted else None
        for number, one in enumerate(subjects)
    ]


def _report(one: Subject, counts: Counts, measured: dict[str, Any], where: Mapping[str, Any]) -> Report:
    tensors, computed = tensors_of(one.model), computable(one.model)
    figures: dict[str, float] = {"params": counts.params, **_nonzero(one.model)}
    figures |= {"macs": counts.macs, "kmapp": round(counts.kmapp, 4)}
    figures["weights_bytes"] = sum(each.nbytes for path, each in tensors.items() if path not in computed)
    classes = _by_name(measured.pop("classes", ()), one.model)
    lost = [_named(row, one.model) for row in measured.pop("forgotten", ())] or None
    name, machine = one.name or describe(one.model).name, processor(_device(one.model))
    return Report(name, figures | measured, where, versions(), machine, classes=classes, forgotten=lost)


def _counted(model: nn.Module) -> Counts:
    with deadline("counting its macs"):
        return measure(model)


def _device(model: nn.Module) -> torch.device:
    return next((held.device for held in tensors_of(model).values()), torch.device("cpu"))


def _config(model: nn.Module, counts: Counts, size: int | None, crop_pct: float | None) -> dict[str, Any]:
    """The preprocessing that a model is evaluated with."""
    config = config_of(model)
    config["input_size"] = (counts.input[0], *2 * (size,)) if size else counts.input
    config |= {"crop_pct": crop_pct} if crop_pct else {}
    forward_on_meta(model, config["input_size"])  # it may refuse another size
    return config


@dataclass(frozen=True)
class _Pass:
    """One pass over images: the same task, classes and batches, so that each figure is that of a pass of its own."""

    rows: "Data"
    batch_size: int
    members: list[int]
    transforms: dict[str, Transform]
    views: list[int]
    subset: Sequence[int] = ()

    def evaluated(self, subjects: Sequence[Subject], workers: int | None, computing: Computing) -> list[dict[str, Any]]:
        """The figures of each member."""
        ours = [subjects[number] for number in self.members]
        task, workers = task_of(ours[0].model), workers_for(self.rows) if workers is None else workers
        if self.subset and task.of_subset is not None:
            task = replace(task, meaning=partial(_meant, task.of_subset(self.subset)))
        first, *others = self.transforms.values()
        batches = task.loader(self.rows, Identified(first, tuple(others)), self.batch_size, workers=workers)
        seen = [Seen(each.model, each.against, view) for each, view in zip(ours, self.views, strict=True)]
        what = "evaluate" if len(seen) == 1 else f"evaluate {len(seen)} models"
        return evaluate_together(seen, batches, task=task, computing=computing, progress=what)


def _meant(meaning: Meaning, model: nn.Module, size: Sequence[int]) -> Meaning:
    return meaning


def _join(
    passes: dict[Any, _Pass],
    number: int,
    one: Subject,
    config: Mapping[str, Any],
    rows: "Data",
    spec: str,
    batch_size: int | None,
) -> None:
    """Let a model take part in the pass of others that see the same rows in the same batches, or in one of its own."""
    task = task_of(one.model)
    mine = task.matched(rows, one.model, spec, one.labels)
    transform = task.evaluation_transform(config)
    seen = require("datasets", "eval").fingerprint.Hasher.hash(transform)
    size = batch_size or _batch(_device(one.model), config["input_size"])
    classes = None if mine is rows else (one.model.num_classes, label_names(one.model), one.labels)
    alone = seen if hasattr(transform, "boxed") else None  # boxes move with the image
    some = () if mine is rows else task.subset(rows, one.model, spec, one.labels)
    group = passes.setdefault((id(task), size, repr(classes), alone), _Pass(mine, size, [], {}, [], some))
    group.members.append(number)
    group.transforms.setdefault(seen, transform)
    group.views.append([*group.transforms].index(seen))


def _nonzero(model: nn.Module) -> dict[str, int]:
    """The params that aren't zero, of a model whose zeros are its method's."""
    description = description_of(model)
    if description is None or not any(isinstance(edit, Mask) for edit in description.plan.edits):
        return {}
    return {"nonzero": sum(int(held.count_nonzero()) for held in weights_of(model).values())}


def identity_of(model: nn.Module, data: Any, *, skip_damaged: bool = False, labels: Labels | None = None) -> str:
    """The hash of the images and classes that `report_of` would measure a model on; arguments as there."""
    task = task_of(model)
    rows = task.matched(_opened(data, None, skip_damaged)[0], model, data_name(data), labels)
    batches = task.loader(rows, Identified(task.evaluation_transform(config_of(model))), 256, workers=workers_for(rows))
    return identity(torch.cat([with_targets(digests, targets) for (_, digests), targets in batches]))


def _by_name(rows: Sequence[Mapping[str, float]], model: nn.Module) -> dict[str, Mapping[str, float]]:
    """Figures of each class by its name, or by its number where the names don't tell the classes apart."""
    names = label_names(model) or []
    if len({*names}) != len(rows):
        names = [str(number) for number in range(len(rows))]
    return dict(zip(names, rows, strict=True))


def _named(row: Mapping[str, Any], model: nn.Module) -> Forgotten:
    """A class that was forgotten, and those it is taken for, by name."""
    names = label_names(model) or []

    def told(number: int) -> str:
        return names[number] if number < len(names) and names.count(names[number]) == 1 else str(number)

    taken_for = {told(other): count for other, count in row["taken_for"]}
    counts = {key: row[key] for key in ("images", "before", "lost", "won")}
    return Forgotten(told(row["class"]), **counts, taken_for=taken_for)


def _batch(device: torch.device, input: Sequence[int]) -> int:
    """How many images a batch has where nobody says it."""
    return max(1, min(32 if device.type == "cpu" else 256, MAX_BATCH // math.prod(input)))


def _opened(data: Any, limit: int | None, skip_damaged: bool) -> tuple["Data", int | None]:
    """What is evaluated, and how many images were left out, where that is known."""
    rows = dataset(data, "test", limit=limit)
    if not skip_damaged:
        return rows, None
    if is_stream(rows):
        return dataset(data, "test", limit=limit, skip_damaged=True), None
    whole = undamaged(rows, data_name(data))
    return whole, len(rows) - len(whole)


def _where(
    data: Any, config: Mapping[str, Any], images: int, skip_damaged: bool, left_out: int | None, labels: Labels | None
) -> dict[str, Any]:
    """What figures hold for: the data, how it was read, and the preprocessing."""
    named = {"dataset": told(data), "split": "test"} if isinstance(data, str) else {}
    where: dict[str, Any] = {**named, "images": images, "input": list(config["input_size"])}
    where |= {key: config[key] for key in ("interpolation", "crop_pct", "mean", "std") if key in config}
    where |= {"skip_damaged": True} if skip_damaged else {}
    where |= {"left_out": left_out} if left_out is not None else {}
    return where | ({"labels": dict(labels) if isinstance(labels, Mapping) else list(labels)} if labels else {})
