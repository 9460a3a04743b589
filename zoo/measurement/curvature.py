"""Curvature: how a divergence bends where two models' outputs agree, as the Fisher information of what they say.

    D(y + δ ‖ y) ≈ ½ δᵀ F δ,   of classes F = diag(p) − p pᵀ

Source: Martens, "New Insights and Perspectives on the Natural Gradient Method" (JMLR 2020), section 8.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from zoo.errors import StructureError


@dataclass(frozen=True)
class Fisher:
    """The information F of outputs between a model's and a reference's, which may be the same.

    Args:
        probe: outputs, those of the reference, share of the prediction that is spread evenly, generator → random u of
            the outputs' shape with E[u uᵀ] = F.
        bend: outputs, those of the reference, those moved by δ, the same share → δᵀ F δ of each image [B].
    """

    probe: Callable[[Tensor, Tensor, float, Generator], Tensor]
    bend: Callable[[Tensor, Tensor, Tensor, float], Tensor]


def categorical(outputs: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """p̄ = (1 − s)(p + q)/2 + s/classes of two predictions, logits [B, classes].

    Raises:
        StructureError: they are no logits.
    """
    if outputs.ndim != 2:
        raise StructureError(f"low_rank: expected logits [B, classes], found {tuple(outputs.shape)}; use a classifier")
    p = outputs.softmax(1) if outputs is target else (target.softmax(1) + outputs.softmax(1)) / 2
    return (1 - smoothing) * p + smoothing / outputs.shape[1]


def signs(like: Tensor, generator: Generator) -> Tensor:
    """Random signs of a tensor's shape and type, the same on every device."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)


def _probe(outputs: Tensor, target: Tensor, smoothing: float, generator: Generator) -> Tensor:
    """Random u = √p∘v − p (√p·v), v random signs; it varies far less than the gradient at a drawn label does."""
    p = categorical(outputs, target, smoothing)
    root = p.sqrt()
    v = signs(p, generator)
    return root * v - p * (root * v).sum(1, keepdim=True)


def _bend(outputs: Tensor, target: Tensor, moved: Tensor, smoothing: float) -> Tensor:
    p, δ = categorical(outputs, target, smoothing), moved - outputs
    return (p * δ * δ).sum(1) - (p * δ).sum(1).square()


CLASSES = Fisher(_probe, _bend)
"""Of logits [B, classes]."""
