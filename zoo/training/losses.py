"""What training minimises, as pure functions of logits."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Literal["kl", "symmetric"]
DIVERGENCES: tuple[str, ...] = get_args(Divergence)


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from teacher to student, T²·KL(p_t ‖ p_s), p = softmax(logits/T).

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        temperature: T; the factor T² keeps gradients alike for every T.

    Returns:
        The mean over the batch, in nats (at T = 1).

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.
    """
    log_s, log_t = _log_p(student, temperature), _log_p(teacher, temperature)
    return temperature**2 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def symmetric_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The larger divergence of the two directions for each image, T²·max(KL(p_t ‖ p_s), KL(p_s ‖ p_t)).

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        temperature: T, as in `kl`.

    Returns:
        The mean over the batch, in nats (at T = 1); finite for saturated logits.

    Source: ptdeco, `ptdeco.utils.losses_primitives`, the loss of its fine-tuning and of falor's criterion.
    """
    log_s, log_t = _log_p(student, temperature), _log_p(teacher, temperature)
    each = [F.kl_div(q, p, log_target=True, reduction="none").sum(-1) for q, p in ((log_s, log_t), (log_t, log_s))]
    return temperature**2 * torch.maximum(*each).mean()


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide / temperature, -1)


def distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: float,
    temperature: float,
    divergence: Divergence = "kl",
) -> Tensor:
    """α·D(teacher, student) + (1 − α)·cross-entropy with the labels.

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        labels: classes [B].
        alpha: share of the teacher, 0..1.
        temperature: of the teacher's term.
        divergence: D.

    Returns:
        The mean over the batch.
    """
    D = {"kl": kl, "symmetric": symmetric_kl}[divergence]
    return alpha * D(student, teacher, temperature) + (1 - alpha) * F.cross_entropy(student.float(), labels)
