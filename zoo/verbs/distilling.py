"""`distil`: a model in, a better model out."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.catalog.data_names import data_name
from zoo.errors import DataError
from zoo.measurement.macs import unwrapped
from zoo.printable import logger
from zoo.structure.describing import describe
from zoo.structure.description import config_of
from zoo.structure.graph.certificate import check_floats
from zoo.structure.plan import Mask
from zoo.tasks import task_of
from zoo.tasks.columns import HIDDEN, class_kind, labels_of, numbers_of
from zoo.tasks.lengths import training_set
from zoo.tasks.loader import Transform, workers_for
from zoo.tasks.streams import Stream
from zoo.tasks.task import Labels, Task
from zoo.training import Steps, frozen_zeros, steps_of
from zoo.training import checkpoint as states
from zoo.training.distillation import Distil, shares_of
from zoo.training.schedule import Machine, Schedule, steps_of_epochs
from zoo.training.trainer import train

log = logger(__name__)


@dataclass(frozen=True)
class Training:
    """What a training is made of, found to fit together.

    Args:
        images: to train on, with a length, their labels the numbers of the model's classes.
        schedule: whose batches are no larger than the data.
        transform: of an image, for the model and, where they see it otherwise, its teachers.
        views: which of the transform's views each teacher sees; 0 is the model's own.
        how: the declaration of the loss.
        steps: what is minimised, with teachers and without.
    """

    images: Any
    schedule: Schedule
    transform: Transform
    views: Sequence[int]
    how: Distil
    steps: Steps


@torch.inference_mode(False)
def distil(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    data: Any,
    *,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    how: Distil | None = None,
    schedule: Schedule | None = None,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
    state: Path | None = None,
    machine: Machine | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
) -> nn.Module:
    """Train a model in place: from its teachers, or from the labels alone where there are none.

    Args:
        model: from `compress`, `create` or `load`; what of it doesn't require gradients stays as it is.
        teachers: from smaller to larger. Each sees the crops that the model sees, at its own size, with its own
            channels and normalised as it was.
        data: a data set as `--data` takes it, of which the train split is used, or an object as
            `zoo.tasks.objects.opened` takes it; images that are tensors, as in a list of batches (images [B, C, H, W]
            as the model takes them, labels [B]), aren't augmented.
        skip_damaged: leave out images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        how: the declaration of the loss.
        schedule: how long and how fast. Batches that are larger than the data are made smaller.
        augment: keyword arguments of timm's training transform; of a detector's, the fields of
            `zoo.tasks.detection.transforms.Augment`.
        seed: of order and augmentation.
        state: a file to resume from; one of another model, other teachers, data, augmentation or schedule is refused.
        machine: how it runs here.
        evaluate: called after each epoch; its figures are shown and logged.

    Returns:
        The same model, in the wrapper that it came in, in eval mode.

    Raises:
        UnknownName, DataError: the data, the augmentation or the state can't be used, or the loss isn't finite.
        MissingExtra: accelerate or datasets isn't installed.
        StorageError: the state can't be written.

    >>> zoo.distil(student, [teacher], "digits", schedule=Schedule(epochs=2), how=Distil(alpha=0.5))  # doctest: +SKIP
    """
    machine, given = machine or Machine(), model
    check_floats(unwrapped(model), "trained")
    model, teachers = unwrapped(model), [unwrapped(teacher).eval() for teacher in teachers]
    reading: dict[str, Any] = {"skip_damaged": skip_damaged, "labels": labels}
    training = training_of(model, teachers, data, how=how, schedule=schedule, augment=augment, **reading)
    task, steps = task_of(model), training.steps
    task.name_(model, training.images)
    step = steps.distil(teachers, training.how, config_of(model), training.views) if teachers else steps.train
    about = {"data": _identity(data, training.images, reading), "augment": dict(augment or {})} if state else {}
    about |= _taught(training.how, teachers) if state and teachers else {}
    batches = epochs(task, training.images, training.transform, training.schedule, seed, machine)
    running: dict[str, Any] = {"seed": seed, "state": state, "about": about, "evaluate": evaluate, "machine": machine}
    zeros = [path for edit in describe(model).plan.edits if isinstance(edit, Mask) for path in edit.paths]
    with frozen_zeros.zeros_held(model, zeros):
        train(model, step, batches, training.schedule, progress="distil" if teachers else "train", **running)
    return given.eval()


def training_of(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    data: Any,
    *,
    how: Distil | None = None,
    schedule: Schedule | None = None,
    augment: Mapping[str, Any] | None = None,
    skip_damaged: bool = False,
    labels: Labels | None = None,
) -> Training:
    """Check what can be checked before the first step; arguments and errors are those of `distil`."""
    task, steps, how = task_of(model), steps_of(describe(model).task), how or Distil()
    if teachers:
        shares_of(len(teachers), how)
    images, schedule = training_images(model, data, schedule or Schedule(), skip_damaged=skip_damaged, labels=labels)
    for teacher in teachers:
        task.check_same(model, teacher, f"the teacher {describe(teacher).name}")
    ready = len(images) > 0 and _is_tensor(images)
    own, *others = (config_of(network) for network in (model, *teachers))
    transforms = [task.training_transform(own, augment or {})]
    seen: list[Mapping[str, Any]] = [own]
    views = []
    for config in others:
        if ready and config["input_size"][0] != own["input_size"][0]:
            raise DataError(
                f"distil: images that are tensors have {own['input_size'][0]} channels, a teacher takes "
                f"{config['input_size'][0]}: pass images that aren't preprocessed, or another teacher"
            )
        same = (index for index, each in enumerate(seen) if _same_view(config, each, index))
        index = 0 if ready else next(same, len(seen))
        if index == len(seen):
            seen.append(config)
            transforms.append(task.training_transform(config, augment or {}))
        views.append(index)
    transform = task.views(transforms) if len(transforms) > 1 else transforms[0]
    return Training(images, schedule, transform, views, how, steps)


def training_images(
    model: nn.Module, data: Any, schedule: Schedule, *, skip_damaged: bool = False, labels: Labels | None = None
) -> tuple[Any, Schedule]:
    """The images to train a model on, and the schedule with batches that are no larger than they are many.

    Args:
        model: with `num_classes`.
        data: as `distil` takes it.
        schedule: its steps say how long a stream of unknown length lasts.
        skip_damaged: as for `distil`.
        labels: as for `distil`.

    Returns:
        A data set with a length, whose targets are what the model's outputs mean; the schedule, of which the batch
        is the largest power of two that fits where the data is smaller.

    Raises:
        UnknownName, DataError: the data can't be used, or there are no images.
    """
    steps, batch_size = schedule.steps, schedule.batch_size
    images = training_set(data, steps=steps, batch_size=batch_size, skip_damaged=skip_damaged)
    name, matched = data_name(data), task_of(model).matched
    if isinstance(images, Stream):
        images = replace(images, data=matched(images.data, model, name, labels))
    else:
        images = matched(images, model, name, labels)
    if len(images) == 0:
        raise DataError(f"{name} has no images to train on")
    known = None if isinstance(images, Stream) else labels_of(images)
    if known is not None and (known == HIDDEN).any():
        raise DataError(f"{name}: expected labels from 0, found {HIDDEN}: they are hidden in this split; use another")
    if len(images) < schedule.batch_size:
        fits = 2 ** (len(images).bit_length() - 1)
        log.warning("%s has %d images: batches are of %d, not %d", name, len(images), fits, schedule.batch_size)
        schedule = replace(schedule, batch_size=fits)
    return images, schedule


def epochs(
    task: Task, images: Any, transform: Transform, schedule: Schedule, seed: int, machine: Machine
) -> Callable[[int], Any]:
    """Epoch → its loader."""
    workers = workers_for(images) if machine.workers is None else machine.workers

    per_epoch = max(1, len(images) // schedule.batch_size)
    begun = math.ceil(steps_of_epochs(schedule, per_epoch) / per_epoch)

    def epoch(number: int) -> Any:
        seen = task.in_epoch(transform, begun - number)
        return task.loader(images, seen, schedule.batch_size, seed=seed, epoch=number, workers=workers)

    return epoch


def _same_view(config: Mapping[str, Any], seen: Mapping[str, Any], index: int) -> bool:
    """Whether a network can be given what another one sees; the model's own view is normalised anew for a teacher."""
    keys = ("input_size",) if index == 0 else ("input_size", "mean", "std", "interpolation")
    return all(_plain(config.get(key)) == _plain(seen.get(key)) for key in keys)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _is_tensor(images: Any) -> bool:
    return not isinstance(images, Stream) and isinstance(images[0]["image"], torch.Tensor)


def _taught(how: Distil, teachers: Sequence[nn.Module]) -> dict[str, Any]:
    """What tells a distillation from one of another declaration or other teachers."""
    return {"distil": asdict(how), "teachers": [states.digest("teacher", "", teacher) for teacher in teachers]}


def _identity(data: Any, images: Any, reading: Mapping[str, Any]) -> list[Any]:
    """What tells data from other data without reading its images: name, length, classes, and labels if at hand.

    Of labels that are mapped, as stored and mapped; of how it is read, what differs from the defaults.
    """
    labels = None if isinstance(images, Stream) else labels_of(images)
    known = None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest()
    mapped = [] if isinstance(images, Stream) else [list(each.items()) for each in numbers_of(images)]
    further = [each for each in (mapped, {key: value for key, value in reading.items() if value}) if each]
    names = getattr(class_kind(images), "names", None)
    return [data if isinstance(data, str) else type(data).__name__, len(images), names, known, *further]
