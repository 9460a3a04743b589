"""What training minimises, as pure functions of logits."""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from zoo.measurement.divergence import as_one, kl, symmetric_kl
from zoo.measurement.divergence import divergence as distance

DivergenceName = Literal["kl", "symmetric"]


def distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    divergence: DivergenceName = "kl",
) -> Tensor:
    """α·T²·D(teacher, student) + (1 − α)·cross-entropy with the labels.

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        labels: classes [B].
        alpha: share of the teacher, 0..1.
        temperature: T of the teacher's term; its factor T² keeps gradients alike for every T.
        divergence: D.

    Returns:
        The mean over the batch.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    D = {"kl": kl, "symmetric": symmetric_kl}[divergence]
    taught = temperature**2 * D(student, teacher, temperature).mean()
    return alpha * taught + (1 - alpha) * F.cross_entropy(student.float(), labels)


def imitation(student: Any, teacher: Any, *_: Any) -> Tensor:
    """The noise to signal of a student's outputs, whatever they are, to its teacher's; the mean over the batch."""
    return distance(as_one(student).float(), as_one(teacher).float()).mean()
