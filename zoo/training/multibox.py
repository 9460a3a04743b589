"""Multibox: the loss of a detector of differences from anchors and a softmax, as SSD has it.

    L = (Σ smooth L1 + Σ CE) / N

The first sum goes over the N anchors that learn an object, those that overlap one by half or more than any other anchor
does; the second also over the three times as many others of the image that look least like background.

Source: Liu et al., SSD: Single Shot MultiBox Detector, section 2.2, https://arxiv.org/abs/1512.02325
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.models.heads import anchored, ssd_anchors
from zoo.models.settings import Ssd
from zoo.training.assignment import iou
from zoo.training.weighed import Weighed

OVERLAP = 0.5
NEGATIVES = 3  # for each anchor that learns an object


def ssd_loss(heads: Sequence[Tensor], settings: Ssd, objects: Tensor, labels: Tensor) -> Weighed:
    """The loss of a batch.

    Args:
        heads: [B, a·(4 + 1 + C), H, W] of each step.
        settings: of the anchors.
        objects: boxes [B, M, 4] in pixels of the input.
        labels: theirs [B, M], -1 of what is none.
    """
    values, corners, steps, sides = anchored(heads, settings.steps, ssd_anchors(settings))
    centres = (corners + 0.5) * steps
    number = learned(torch.cat([centres - sides / 2, centres + sides / 2], 1), objects, labels)
    learns = number >= 0
    batch, anchor = learns.nonzero(as_tuple=True)
    box = objects[batch, number[batch, anchor]]
    moved = ((box[:, :2] + box[:, 2:]) / 2 - centres[anchor]) / sides[anchor]
    grown = ((box[:, 2:] - box[:, :2]) / sides[anchor]).log()
    wanted = torch.cat([moved, grown], 1) / box.new_tensor(settings.variances)
    located = F.smooth_l1_loss(values[batch, anchor, :4], wanted, reduction="sum")
    classes = torch.zeros_like(number)  # of the background
    classes[batch, anchor] = labels[batch, number[batch, anchor]] + 1
    nats = F.cross_entropy(values[..., 4:].mT, classes, reduction="none")
    others = nats.detach().masked_fill(learns, -1).argsort(1, descending=True).argsort(1)
    seen = learns | (others < NEGATIVES * learns.sum(1, keepdim=True))
    return Weighed(located + (nats * seen).sum(), learns.sum())


def learned(anchors: Tensor, objects: Tensor, labels: Tensor) -> Tensor:
    """The number of the object that each anchor [A, 4] learns [B, A], -1 of one that learns none."""
    if not objects.shape[1]:
        return labels.new_full((len(labels), len(anchors)), -1)
    overlap = iou(objects, anchors.expand(len(objects), -1, -1)).masked_fill((labels < 0)[..., None], -1)
    most, number = overlap.max(1)
    number = torch.where(most >= OVERLAP, number, -1)
    best = overlap.argmax(2)
    for m in range(objects.shape[1]):  # whose best anchor learns it, however little they overlap
        real = labels[:, m] >= 0
        number[real, best[real, m]] = m
    return number
