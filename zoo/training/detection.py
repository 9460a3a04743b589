"""Detection: what detectors minimise, as pure functions of heads and objects.

LOSSES has a row for each kind of heads. A model without teachers has its row's loss; one with teachers

    α · D(heads, teacher's heads) + (1 - α) · loss

with D what `zoo.models.likeness` measures, so that a box of the teacher's teaches as far as the teacher is sure of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo.measurement.macs import unwrapped
from zoo.models.likeness import unlike
from zoo.models.settings import Settings, settings_of
from zoo.models.targets import input_boxes
from zoo.structure.description import config_of
from zoo.training.cells import yolo3_loss
from zoo.training.distances import yolov8_loss
from zoo.training.distillation import Batch, Distil, Step, distil_step
from zoo.training.multibox import ssd_loss
from zoo.training.weighed import Weighed

LOSSES: dict[str, Callable[[Sequence[Tensor], Any, Tensor, Tensor], Weighed]] = {
    "yolov8": yolov8_loss,
    "ssd": ssd_loss,
    "yolo3": yolo3_loss,
}
"""By `decode` of a detector's settings: heads, settings, objects [B, M, 4] and their labels [B, M] → the loss."""


def detector_step(model: nn.Module, batch: Batch, progress: float) -> Weighed:
    """The training step of a detector without teachers."""
    images, targets = batch
    return _loss(model(images), settings_of(config_of(unwrapped(model))["detector"]), targets)


def detector_distil_step(
    teachers: Sequence[nn.Module], how: Distil, student: Mapping[str, Any], views: Sequence[int] | None = None
) -> Step:
    """The training step of a detector that learns from others; arguments as for `distil_step`."""
    return distil_step(teachers, how, student, views, partial(_taught, settings_of(student["detector"])))


def _taught(
    settings: Settings, heads: Sequence[Tensor], target: Sequence[Tensor], targets: Tensor, alpha: float, *_: Any
) -> Tensor | Weighed:
    taught = unlike(heads, target, settings).mean()
    if alpha == 1:
        return taught
    return replace(_loss(heads, settings, targets), mean=alpha * taught, factor=1 - alpha)


def _loss(heads: Sequence[Tensor], settings: Settings, targets: Tensor) -> Weighed:
    return LOSSES[settings.decode](heads, settings, *input_boxes(targets))
