"""Reports: what a model costs and what it is good for, measured here."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.catalog.data_names import data_name, told
from zoo.catalog.report import Report
from zoo.deadline import deadline
from zoo.hub.repository import versions
from zoo.measurement.latency import processor
from zoo.measurement.macs import forward_on_meta, measure, unwrapped, weights_of
from zoo.structure.describing import describe
from zoo.structure.description import config_of, description_of
from zoo.structure.plan import Mask
from zoo.structure.tensors import computable, tensors_of
from zoo.tasks import task_of
from zoo.tasks.classification.classes import label_names
from zoo.tasks.columns import is_stream
from zoo.tasks.datasets import dataset
from zoo.tasks.draws import undamaged
from zoo.tasks.evaluation import evaluate
from zoo.tasks.identity import Identified, identity, with_targets
from zoo.tasks.loader import workers_for
from zoo.tasks.task import Labels

if TYPE_CHECKING:
    from zoo.tasks.columns import Data

MAX_BATCH = 2**28  # numbers in one batch of images, a gigabyte


def report_of(
    model: nn.Module,
    data: Any = None,
    *,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    against: nn.Module | None = None,
    name: str | None = None,
    images: int | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    size: int | None = None,
    crop_pct: float | None = None,
) -> Report:
    """Measure a model.

    Args:
        model: from `load`, `compress` or timm.
        data: the data set, as `zoo.tasks.datasets.dataset` takes it; its test split is evaluated. None counts params
            and macs only.
        skip_damaged: leave out images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        against: the dense model that the outputs are compared with (`kl`, in nats, and `agreement`, 0..1).
        name: of the model; None takes the one that it carries.
        images: evaluate on at most so many.
        workers: processes that load images; None takes a core each where it is worth it.
        batch_size: images of one batch, of which a CPU computes some at a time; None takes 32 there, else 256, and
            fewer of large images.
        size: side in pixels of the square images to evaluate on; None takes the model's own.
        crop_pct: share of the shorter side that is cropped, 0..1; None takes the model's own.

    Returns:
        The figures, with the data, preprocessing, versions and machine that they hold for; of a task that tells classes
        apart also those of each class. `weights_bytes` are the bytes of the tensors that a file holds; `nonzero`, where
        weights are masked, the params that aren't zero.
    """
    model = unwrapped(model)
    with deadline("counting its macs"):
        counts = measure(model)
    figures: dict[str, float] = {"params": counts.params, **_nonzero(model)}
    figures |= {"macs": counts.macs, "kmapp": round(counts.kmapp, 4)}
    tensors, computed = tensors_of(model), computable(model)
    figures["weights_bytes"] = sum(each.nbytes for path, each in tensors.items() if path not in computed)
    where: dict[str, Any] = {}
    classes: Mapping[str, Mapping[str, float]] = {}
    device = next((held.device for held in tensors.values()), torch.device("cpu"))
    if data is not None:
        config = config_of(model)
        config["input_size"] = (counts.input[0], *2 * (size,)) if size else counts.input
        config |= {"crop_pct": crop_pct} if crop_pct else {}
        forward_on_meta(model, config["input_size"])  # it may refuse another size
        task = task_of(model)
        rows, left_out = _opened(data, images, skip_damaged)
        rows = task.matched(rows, model, data_name(data), labels)
        workers = workers_for(rows) if workers is None else workers
        batch_size = batch_size or _batch(device, config["input_size"])
        batches = task.loader(rows, Identified(task.evaluation_transform(config)), batch_size, workers=workers)
        measured = evaluate(model, batches, task=task, against=against, progress="evaluate")
        where = _where(data, config, measured.pop("images"), skip_damaged, left_out, labels)
        where |= {"sha256": measured.pop("sha256")}
        where |= {"against": describe(against).name} if against is not None else {}
        classes = _by_name(measured.pop("classes", ()), model)
        figures.update(measured)
    return Report(name or describe(model).name, figures, where, versions(), processor(device), classes=classes)


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
