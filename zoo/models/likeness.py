"""Likeness: how far a detector's heads are from another's, whatever kind they are of.

    D = (Σ_a Σ_c (BCE(t, s) - H(t)) + λ·Σ_a w·(1 - CIoU)) / max(1, Σ_a w),   w = max_c t

over points a and classes c, with s a score, t the other's, and CIoU that of both boxes. A box matters as far as the
other one is sure of it, a score matters everywhere. It is 0 of the same heads.

Near these the scores' part is a half of Σ Δs²/(s(1 - s)). That of boxes has a cusp there: it is taken for the parabola
that meets it where a side is off by a tenth of its box, λ·w·10·Σ (Δside/length)². So D ≈ ½‖z(heads) - z(target)‖² of
the coordinates z that `coordinates` gives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.models.heads import decode
from zoo.models.settings import Settings

BOXES = 7.5  # λ: nats that a box counts which overlaps nothing
OFF = 0.1  # of a box's length, by which one of its sides is off where its parabola meets what it stands for
LEAST = 1e-7  # score, as single precision holds 1 less no less


def unlike(heads: Sequence[Tensor], target: Sequence[Tensor], settings: Settings) -> Tensor:
    """How far heads are from those of a reference.

    Args:
        heads: what a detector returns.
        target: what the reference does, of the same shapes.
        settings: of both.

    Returns:
        [B], in nats.
    """
    from torchvision.ops import complete_box_iou_loss  # torchvision takes long to import

    (boxes, scores), (its_boxes, its_scores) = (decode(each, settings) for each in (heads, target))
    named = cross_entropy(scores, its_scores) - cross_entropy(its_scores, its_scores)
    w = its_scores.amax(2)
    apart: Tensor = complete_box_iou_loss(boxes, its_boxes)
    return (named.sum((1, 2)) + BOXES * (w * apart).sum(1)) / w.sum(1).clamp(min=1)


def coordinates(heads: Sequence[Tensor], own: Sequence[Tensor], target: Sequence[Tensor], settings: Settings) -> Tensor:
    """Coordinates of heads, whose square distances are twice what heads that lie near others are unlike them.

    Args:
        heads: what a detector returns.
        own: others near them.
        target: those of the reference; how a score counts is told between the scores of these two.
        settings: of all.

    Returns:
        [B, n].
    """
    (boxes, scores), (_, near), (its_boxes, its_scores) = (decode(each, settings) for each in (heads, own, target))
    mean, w = ((near + its_scores) / 2).clamp(LEAST, 1 - LEAST), its_scores.amax(2, keepdim=True)
    lengths = (its_boxes[..., 2:] - its_boxes[..., :2]).clamp(min=1).repeat(1, 1, 2)
    named = scores / (mean * (1 - mean)).sqrt()
    placed = (boxes - its_boxes) / lengths * (2 * BOXES / OFF * w).sqrt()
    return torch.cat([named.flatten(1), placed.flatten(1)], 1) / w.sum((1, 2)).clamp(min=1).sqrt()[:, None]


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """BCE(t, s) = -t·log s - (1 - t)·log(1 - s), in nats; torch's own isn't allowed under autocast."""
    yes, no = (each.clamp(min=LEAST).log() for each in (scores, 1 - scores))
    return -(target * yes + (1 - target) * no)
