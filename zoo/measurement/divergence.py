"""Divergence: how far a model's outputs lie from another's, in nats.

Source: Kullback, Leibler, "On Information and Sufficiency" (1951).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of each image, KL(p ‖ q) = Σ_c p(c)·(log p(c) − log q(c)).

    Args:
        outputs: logits [B, classes], of q = softmax(logits/T).
        target: logits [B, classes], of p.
        temperature: T.

    Returns:
        [B], in nats, in single precision at least.

    >>> round(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]])).item(), 3)
    0.328
    """
    log_q, log_p = _log_p(outputs, temperature), _log_p(target, temperature)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def symmetric_kl(outputs: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """The larger divergence of the two directions for each image, max(KL(p ‖ q), KL(q ‖ p)); arguments as for `kl`.

    Source: ptdeco, `ptdeco.utils.losses_primitives`, the loss of its fine-tuning and of falor's criterion.
    """
    return torch.maximum(kl(outputs, target, temperature), kl(target, outputs, temperature))


def divergence(outputs: Tensor, target: Tensor) -> float:
    """The mean divergence `kl` of logits [B, classes]; of outputs that are none their noise to signal.

    Formula: of other outputs Σ (y − t)² / Σ (t − mean over the batch of t)².

    Args:
        outputs: y, of any shape that begins with the batch.
        target: t, of the same shape.
    """
    if target.ndim == 2:
        return float(kl(outputs, target).mean())
    return float((outputs - target).square().sum() / (target - target.mean(0)).square().sum().clamp(min=1e-12))


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide / temperature, -1)
