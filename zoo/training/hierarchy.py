"""Hierarchy: teachers that take over from one another, smaller to larger, while the student learns (HKD).

Of n teachers the i-th teaches while progress lies in [i/n, (i+1)/n). The source names the idea and the teachers but not
when they change; equal shares are ours.

Source: torch-dag, resources/pruning_results.md, "HKD".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import DataError
from zoo.training.losses import distillation

Batch = tuple[Tensor, Tensor]
Step = Callable[[nn.Module, Batch, float], Tensor]


@dataclass(frozen=True)
class Distil:
    """How a student learns from its teachers.

    Args:
        alpha: share of the teacher in the loss, 0..1; the labels have the rest.
        temperature: of the teacher's term.
    """

    alpha: float = 0.9
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, int | float) or not 0 <= self.alpha <= 1:
            raise DataError(f"distil: alpha is {self.alpha!r}, expected 0 to 1")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < float("inf"):
            raise DataError(f"distil: temperature is {self.temperature!r}, expected more than 0")


def teacher_at(progress: float, teachers: int) -> int:
    """Which teacher teaches at a share of the training, 0..1.

    >>> [teacher_at(p, 3) for p in (0.0, 0.3, 0.34, 0.99, 1.0)]
    [0, 0, 1, 2, 2]
    """
    return min(int(progress * teachers), teachers - 1)


def distil_step(teachers: Sequence[nn.Module], how: Distil) -> Step:
    """The training step that distils.

    Args:
        teachers: from smaller to larger, in eval mode; they follow the images' device.
        how: the declaration.

    Returns:
        (student, (images [B, C, H, W], labels [B]), progress 0..1) → loss.
    """

    def step(student: nn.Module, batch: Batch, progress: float) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            target = teachers[teacher_at(progress, len(teachers))].to(images.device)(images)
        return distillation(student(images), target, labels, how.alpha, how.temperature)

    return step


def task_step(model: nn.Module, batch: Batch, progress: float) -> Tensor:
    """The training step of a model without teachers: cross-entropy with the labels."""
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels)
