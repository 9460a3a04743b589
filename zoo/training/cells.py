"""Cells: the loss of a detector whose cells hold what lies in their middle, as YOLOv3 has it.

    L = Σ_learned (g·BCE(t_xy, place in the cell) + g·|t_wh - log(side / anchor)| + Σ_c BCE) + Σ BCE(object)

An object is learned at the cell that its centre lies in, by the anchor, of all levels, of the most similar shape;
g = 2 - area / area of the input, as small ones are harder to find. That there is an object is learned everywhere but at
boxes that overlap one by more than 0.7 and aren't the ones that shall learn it. It is the mean over the images.

Source: Redmon, Farhadi, YOLOv3: An Incremental Improvement, section 2, https://arxiv.org/abs/1804.02767; g and 0.7 are
GluonCV's, https://github.com/dmlc/gluon-cv/blob/master/gluoncv/model_zoo/yolo/yolo_target.py
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.models.heads import anchored, yolo3
from zoo.models.settings import YoloV3
from zoo.training.assignment import iou
from zoo.training.weighed import Weighed

IGNORED = 0.7


def yolo3_loss(heads: Sequence[Tensor], settings: YoloV3, objects: Tensor, labels: Tensor) -> Weighed:
    """The loss of a batch.

    Args:
        heads: [B, a·(4 + 1 + C), H, W] of each stride.
        settings: strides and anchors.
        objects: boxes [B, M, 4] in pixels of the input.
        labels: theirs [B, M], -1 of what is none.
    """
    values, corners, strides, anchors = anchored(heads, settings.strides, settings.anchors)
    batch, number = (labels >= 0).nonzero(as_tuple=True)
    box, label = objects[batch, number], labels[batch, number]
    centre, sides = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).clamp(min=1)
    anchor = responsible(centre, sides, corners, strides, anchors)
    height, width = heads[0].shape[2:]
    area = height * width * settings.strides[0] ** 2
    place = centre / strides[anchor] - corners[anchor]
    said, g = values[batch, anchor], (2 - sides.prod(1) / area)[:, None]
    placed = g * F.binary_cross_entropy_with_logits(said[:, :2], place, reduction="none")
    sized = g * (said[:, 2:4] - (sides / anchors[anchor]).log()).abs()
    named = F.binary_cross_entropy_with_logits(
        said[:, 5:], F.one_hot(label, said.shape[1] - 5).to(said.dtype), reduction="none"
    )
    there = torch.zeros_like(values[..., 4])
    there[batch, anchor] = 1
    counts = (there > 0) | ~_near(yolo3([head.detach() for head in heads], settings)[0], objects, labels)
    found = F.binary_cross_entropy_with_logits(values[..., 4], there, reduction="none") * counts
    images = values.new_tensor(len(values))
    return Weighed(placed.sum() + sized.sum() + named.sum() + found.sum(), images)


def responsible(centre: Tensor, sides: Tensor, corners: Tensor, strides: Tensor, anchors: Tensor) -> Tensor:
    """The number of the anchor that learns each object [N], of A.

    Args:
        centre: of the objects [N, 2], in pixels.
        sides: of the objects [N, 2], in pixels.
        corners: column and row of the anchors' cells [A, 2].
        strides: of the anchors [A, 1], in pixels.
        anchors: width and height [A, 2], in pixels.
    """
    here = ((centre[:, None] / strides).floor() == corners).all(2)
    common = torch.minimum(sides[:, None], anchors).prod(2)
    alike = common / (sides.prod(1)[:, None] + anchors.prod(1) - common)
    return alike.masked_fill(~here, -1).argmax(1)


def _near(boxes: Tensor, objects: Tensor, labels: Tensor) -> Tensor:
    """Which boxes [B, A, 4] overlap an object so far that they aren't taught to be none [B, A]."""
    if not objects.shape[1]:
        return boxes.new_zeros(boxes.shape[:2], dtype=torch.bool)
    return (iou(objects, boxes).masked_fill((labels < 0)[..., None], -1) > IGNORED).any(1)
