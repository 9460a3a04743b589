"""What training minimises, as pure functions of logits."""

from torch import Tensor
from torch.nn import functional as F


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
    log_s, log_t = (F.log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
    """α·KL to the teacher + (1 − α)·cross-entropy with the labels.

    Args:
        student: logits [B, classes].
        teacher: logits [B, classes].
        labels: classes [B].
        alpha: share of the teacher, 0..1.
        temperature: of the teacher's term.

    Returns:
        The mean over the batch.
    """
    return alpha * kl(student, teacher, temperature) + (1 - alpha) * F.cross_entropy(student.float(), labels)
