"""Divergence: how far a model's outputs lie from another's, in nats.

Source: Kullback, Leibler, "On Information and Sufficiency" (1951).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

FAINT = 1e-3  # of the largest output
Divergence = Callable[[Tensor, Tensor], Tensor]
"""Outputs, and those of a reference → how far each image's are from it [B], in nats."""


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
    return symmetric(partial(kl, temperature=temperature), outputs, target)


def symmetric(divergence: Divergence, outputs: Tensor, target: Tensor) -> Tensor:
    """The larger one of both directions of any divergence, for each image [B]."""
    return torch.maximum(divergence(outputs, target), divergence(target, outputs))


def leaves(outputs: Any) -> list[Tensor]:
    """The tensors that a model returned."""
    return [each for each in pytree.tree_leaves(outputs) if isinstance(each, Tensor)]


def apart(outputs: Any, expected: Any) -> float:
    """How far a model's outputs are from those expected, where both should be the same.

    Formula: max over tensors of max|y - t| / max|t|; a tensor whose max|t| is less than a thousandth of the largest
    one's counts against that thousandth, as all that it holds may be rounding of others.

    Args:
        outputs: tensors, as a model returns them.
        expected: as many of the same shapes.

    Returns:
        The largest difference as a share of the largest output; infinite where shapes differ or something is no number.

    >>> apart([torch.tensor([1.0, 4.5]), torch.tensor([101.0])], [torch.tensor([1.0, 4.0]), torch.tensor([100.0])])
    0.125
    """
    found, wanted = ([each.detach().double() for each in leaves(some)] for some in (outputs, expected))
    if [each.shape for each in found] != [each.shape for each in wanted]:
        return math.inf
    pairs = [(y, t) for y, t in zip(found, wanted, strict=True) if t.numel()]
    sizes = [float(t.abs().nan_to_num(0, 0).max()) for _, t in pairs]
    least = max(1e-30, FAINT * max(sizes, default=0.0))
    most = 0.0
    for (y, t), size in zip(pairs, sizes, strict=True):
        off = float((y - t).abs().masked_fill(y == t, 0).max())  # infinite ones may be equal
        most = max(most, off / max(size, least)) if off < math.inf else math.inf
    return most


def as_one(outputs: Any) -> Tensor:
    """What a model returned as one tensor that begins with the batch.

    Args:
        outputs: a tensor, or tensors in a tuple, a list or a dictionary.

    Returns:
        The tensor, where it is one; of several, the values of those that begin with the batch [B, n, 1].

    >>> as_one({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4, 5)}).shape
    torch.Size([2, 23, 1])
    """
    tensors = leaves(outputs)
    if len(tensors) == 1:
        return tensors[0]
    alike = [each.flatten(1) for each in tensors if each.ndim > 1 and len(each) == len(tensors[0])]
    return torch.cat(alike, 1).unsqueeze(2)


def divergence(outputs: Tensor, target: Tensor) -> Tensor:
    """The divergence `kl` of logits [B, classes]; of outputs that are none, such as maps, their noise to signal.

    Formula: of other outputs y and target t, of image i: |yᵢ − tᵢ|² / |tᵢ|². No other image of the batch makes a
    difference.

    Args:
        outputs: of any shape that begins with the batch.
        target: of the same shape.

    Returns:
        [B].
    """
    if target.ndim == 2:
        return kl(outputs, target)
    noise, signal = (each.square().flatten(1).sum(1) for each in (outputs - target, target))
    return noise / signal.clamp(min=1e-12)


def _log_p(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.log_softmax(wide / temperature, -1)
