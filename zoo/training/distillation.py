"""Hierarchy: teachers that take over from one another, smaller to larger, while the student learns (HKD).

The source names the idea and the teachers but not when they change: the shares are the recipe's. A teacher sees what
the student sees, but as it was trained to see it: at its own size, and normalised as it was. The loader makes a view of
the same crop for each size that differs; images that come as tensors are resized.

Source: torch-dag, resources/pruning_results.md, "HKD".
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.declarations import Positive, validate
from zoo.errors import DataError
from zoo.structure.description import config_of
from zoo.training.losses import DivergenceName, distillation
from zoo.training.weighed import Weighed

Batch = tuple[Any, Tensor]
SHARES = "one above 0 for each teacher, together 1"
Step = Callable[[nn.Module, Batch, float], Tensor | Weighed]
Loss = Callable[[Tensor, Tensor, Tensor, float, float, DivergenceName], Tensor | Weighed]
"""Outputs, the teacher's, targets, and of the declaration alpha, temperature and divergence → the mean loss."""


@dataclass(frozen=True)
class Distil:
    """How a student learns from its teachers.

    Args:
        alpha: share of the teacher in the loss, 0..1; the labels have the rest.
        temperature: of the teacher's term.
        shares: of the training that each teacher has, in their order, together 1; None gives them equal shares.
        divergence: the teacher's term: `kl`, or `symmetric`, the larger of both directions.
    """

    alpha: Annotated[float, Meta(ge=0, le=1)] = 0.9
    temperature: Positive = 2.0
    shares: Annotated[Sequence[Positive], Meta(description=SHARES)] | None = None
    divergence: DivergenceName = "kl"

    def __post_init__(self) -> None:
        validate(self, "distil", DataError)
        if self.shares is not None and abs(sum(self.shares) - 1) > 1e-6:
            raise DataError(f"distil: shares is {self.shares!r}, expected {SHARES}")


def teacher_at(progress: float, shares: Sequence[float]) -> int:
    """Which teacher teaches at a point of the training, 0..1: the first i with progress < s₀ + ... + sᵢ.

    >>> [teacher_at(p, (0.5, 0.25, 0.25)) for p in (0.0, 0.49, 0.5, 0.75, 1.0)]
    [0, 0, 1, 2, 2]
    """
    return min(bisect_right(list(accumulate(shares)), progress), len(shares) - 1)


def shares_of(teachers: int, how: Distil) -> Sequence[float]:
    """Each teacher's share of the training.

    Raises:
        DataError: the declaration has shares for another number of teachers.
    """
    shares = how.shares or [1 / teachers] * teachers
    if len(shares) != teachers:
        raise DataError(f"distil: {len(shares)} shares for {teachers} teachers; expected one for each")
    return shares


def distil_step(
    teachers: Sequence[nn.Module],
    how: Distil,
    student: Mapping[str, Any] | None = None,
    views: Sequence[int] | None = None,
    loss: Loss = distillation,
) -> Step:
    """The training step that distils.

    Args:
        teachers: from smaller to larger, in eval mode; they follow the images' device.
        how: the declaration.
        student: its `pretrained_cfg`, which says how the images are normalised; None gives them to teachers as they
            are.
        views: which of a batch's images each teacher is given; 0, which all have if None, are the student's, which are
            made the teacher's by `renormalised`.
        loss: what is minimised.

    Returns:
        (student, (images [B, C, H, W] or a list of such views, targets [B, ...]), progress 0..1) → loss.

    Raises:
        DataError: the shares aren't those of so many teachers.
    """
    shares = shares_of(len(teachers), how)

    def step(model: nn.Module, batch: Batch, progress: float) -> Tensor | Weighed:
        images, targets = batch
        every = images if isinstance(images, list | tuple) else [images]
        index = teacher_at(progress, shares)
        teacher, view = teachers[index].to(every[0].device), views[index] if views else 0
        with torch.no_grad():
            given = every[view]
            if view == 0 and student:
                given = renormalised(given, student, config_of(teacher))
            target = teacher(given)
        return loss(model(every[0]), target, targets, how.alpha, how.temperature, how.divergence)

    return step


def renormalised(images: Tensor, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> Tensor:
    """The student's images as a teacher takes them: (x·σ + μ - μ')/σ', and resized where its size is another.

    Args:
        images: [B, C, H, W], normalised with the student's mean μ and standard deviation σ.
        student: timm's keys: mean, std.
        teacher: timm's keys: mean, std, input_size.

    Returns:
        [B, C, H', W'].
    """
    (mean, std), (its_mean, its_std) = ((tuple(c["mean"]), tuple(c["std"])) for c in (student, teacher))
    if (mean, std) != (its_mean, its_std):
        old_mean, old_std, new_mean, new_std = (
            images.new_tensor(values).view(-1, 1, 1) for values in (mean, std, its_mean, its_std)
        )
        images = (images * old_std + old_mean - new_mean) / new_std
    size = tuple(teacher["input_size"][1:])
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bicubic", antialias=True)
    return images


def untaught_step(model: nn.Module, batch: Batch, progress: float) -> Tensor:
    """The training step of a model that has no labels to learn from.

    Raises:
        DataError: always; it needs a teacher.
    """
    raise DataError("the model's outputs aren't logits, so no labels teach it: distil it from a teacher")


def task_step(model: nn.Module, batch: Batch, progress: float) -> Tensor:
    """The training step of a model without teachers: cross-entropy with the labels."""
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels)
