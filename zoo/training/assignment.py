"""Assignment: which points of a detector without anchors learn which object.

    t = s^α · IoU^β

of each point within an object's box: s is its score for the object's class, IoU that of its own box with the object's.
The `topk` best points of each object learn it; one that several objects ask for learns the one that it overlaps most.
What such a point shall score is t, scaled so that an object's best point has the largest IoU of its points.

A network that scores well and lies well is taught there, so scores come to say how well boxes lie.

Source: Feng et al., TOOD: Task-aligned One-stage Object Detection, section 3.2, https://arxiv.org/abs/2108.07755
"""

from typing import NamedTuple

import torch
from torch import Tensor

TOPK, ALPHA, BETA = 10, 0.5, 6.0
TINY = torch.finfo(torch.float32).tiny


class Assigned(NamedTuple):
    """What each point of a batch learns.

    Args:
        object: number of the object [B, A], -1 of a point that learns none.
        score: that the point shall have for its class [B, A], 0 of one that learns none.
    """

    object: Tensor
    score: Tensor


def assigned(
    scores: Tensor, boxes: Tensor, points: Tensor, labels: Tensor, objects: Tensor, topk: int = TOPK
) -> Assigned:
    """Assign objects to points.

    Args:
        scores: of each class [B, A, C], 0..1.
        boxes: of the points [B, A, 4], x1, y1, x2, y2 in pixels.
        points: centres of cells [A, 2], x and y in pixels.
        labels: of the objects [B, M], -1 of what is none.
        objects: their boxes [B, M, 4].
        topk: points that learn an object, at most.
    """
    if not objects.shape[1]:
        none = scores.new_zeros(scores.shape[:2])
        return Assigned(none.long() - 1, none)
    corners = objects[:, :, None]
    within = ((points > corners[..., :2]) & (points < corners[..., 2:])).all(3) & (labels >= 0)[..., None]
    overlap = iou(objects, boxes) * within  # [B, M, A]
    named = labels.clamp(min=0)[..., None].expand(-1, -1, scores.shape[1])
    t = scores.mT.gather(1, named) ** ALPHA * overlap**BETA
    best = t.topk(min(topk, t.shape[2]), 2)
    asks = torch.zeros_like(t).scatter(2, best.indices, best.values) > 0
    asked, wanted = torch.where(asks, overlap, -1.0).max(1)
    learns = asks & (torch.arange(t.shape[1], device=t.device)[:, None] == wanted[:, None])
    t, overlap = t * learns, overlap * learns
    score = (t / t.amax(2, keepdim=True).clamp(min=TINY) * overlap.amax(2, keepdim=True)).amax(1)
    return Assigned(torch.where(asked >= 0, wanted, -1), score)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """The share of the union of two boxes that both have, of each of [B, M, 4] with each of [B, A, 4]: [B, M, A]."""
    a, b = a[:, :, None], b[:, None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(3) for each in (a, b)]
    both = sides.prod(3)
    return both / (areas[0] + areas[1] - both).clamp(min=TINY)
