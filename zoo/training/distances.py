"""Distances: the loss of a detector that gives distributions of the distances to a box's sides, as YOLOv8 does.

    L = (7.5 · Σ w·(1 - CIoU) + 1.5 · Σ w·DFL + 0.5 · Σ BCE) / max(1, Σ w)

The first two sums go over the points that learn an object, w the score that one shall have; the last over all points
and classes, whose targets are w of a point's own class and 0 of all others.

    DFL = (⌈d⌉ - d)·CE(⌊d⌋) + (d - ⌊d⌋)·CE(⌊d⌋ + 1)     of a distance d in strides, the mean of the four sides

Source: Zheng et al., Distance-IoU Loss, section 3.2 (CIoU), https://arxiv.org/abs/1911.08287
        Li et al., Generalized Focal Loss, equation 6 (DFL), https://arxiv.org/abs/2006.04388
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import complete_box_iou_loss

from zoo.models.heads import boxes_at, cells, distributions
from zoo.models.settings import YoloV8
from zoo.training.assignment import assigned
from zoo.training.weighed import Weighed

CIOU, DFL, BCE = 7.5, 1.5, 0.5
SHORT = 0.01  # of the last bin, so that there is one above every distance


def yolov8_loss(heads: Sequence[Tensor], settings: YoloV8, objects: Tensor, labels: Tensor) -> Weighed:
    """The loss of a batch.

    Args:
        heads: [B, 4R + C, H, W] of each stride.
        settings: strides and R.
        objects: boxes [B, M, 4] in pixels of the input.
        labels: theirs [B, M], -1 of what is none.
    """
    distances, classes = distributions(heads, settings)
    centres, strides = cells(heads, settings)
    boxes = boxes_at(distances, centres, strides)
    learned = assigned(classes.detach().sigmoid(), boxes.detach(), centres * strides, labels, objects)
    wanted = torch.zeros_like(classes)
    batch, point = (learned.object >= 0).nonzero(as_tuple=True)
    number = learned.object[batch, point]
    w, box = learned.score[batch, point], objects[batch, number]
    wanted[batch, point, labels[batch, number]] = w
    ciou = complete_box_iou_loss(boxes[batch, point], box)
    at, stride = centres[point], strides[point]
    sides = torch.cat([at - box[:, :2] / stride, box[:, 2:] / stride - at], 1)
    located = CIOU * ciou + DFL * distribution_focal(distances[batch, point], sides)
    named = F.binary_cross_entropy_with_logits(classes, wanted, reduction="sum")
    return Weighed((w * located).sum() + BCE * named, learned.score.sum())


def distribution_focal(logits: Tensor, distances: Tensor) -> Tensor:
    """DFL of each box: logits [N, 4, R] for distances [N, 4] in strides, [N]; what lies beyond the last bin is cut.

    >>> distribution_focal(torch.zeros(1, 4, 5), torch.full((1, 4), 2.5)).item() - torch.tensor(5.0).log().item()
    0.0
    """
    distances = distances.clamp(0, logits.shape[2] - 1 - SHORT)
    below = distances.floor()
    nats = -logits.log_softmax(2)
    low, high = (nats.gather(2, (below + i).long()[..., None])[..., 0] for i in (0, 1))
    return ((below + 1 - distances) * low + (distances - below) * high).mean(1)
