"""What a detector's outputs are held against: boxes as a row of data has them, and as a tensor of a batch.

A row's label is a dictionary of `boxes` ([x1, y1, x2, y2] in pixels of the upright image), `labels`, `crowd`,
`difficult` and `area`, each a list with an item an object. A target [1 + M, 7] is

    row 0       scale_x, scale_y, left, top, width, height, mosaic: of the image
    other rows  x1, y1, x2, y2, label, flag, area: of an object

where a pixel of the upright image, which is `width` x `height`, lies at pixel · scale + (left, top) of the model's
input, and `mosaic` is the seed of the mosaic that is yet to be made with the image, 0 for none. Boxes are in pixels of
the upright image. Targets of a batch are filled up to the same M by rows of -1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

COLUMNS = 7
PAD = -1
ORDINARY, CROWD, DIFFICULT = 0, 1, 2  # flags; what is both is a crowd


def target_of(label: Mapping[str, Sequence[Any]], geometry: Sequence[float]) -> Tensor:
    """The target of an image, its boxes clipped to it; those of which nothing is left are left out.

    Args:
        label: of a row.
        geometry: scale_x, scale_y, left, top, width, height.

    Returns:
        [1 + M, 7], float32.

    >>> label = {"boxes": [[-2, 1, 4, 3]], "labels": [5], "crowd": [False], "difficult": [True], "area": [12]}
    >>> target_of(label, (1, 1, 0, 0, 8, 2)).tolist()
    [[1.0, 1.0, 0.0, 0.0, 8.0, 2.0, 0.0], [0.0, 1.0, 4.0, 2.0, 5.0, 2.0, 12.0]]
    """
    boxes = torch.tensor(label["boxes"], dtype=torch.float32).reshape(-1, 4)
    crowd, difficult = (torch.tensor(label[key], dtype=torch.bool) for key in ("crowd", "difficult"))
    flags = torch.where(crowd, CROWD, torch.where(difficult, DIFFICULT, ORDINARY))
    others = [torch.tensor(label["labels"]), flags, torch.tensor(label["area"])]
    objects = torch.cat([clipped(boxes, *geometry[4:]), torch.stack([each.float() for each in others], 1)], 1)
    return torch.cat([torch.tensor([[*geometry, 0.0]]), objects[has_area(objects)]])


def clipped(boxes: Tensor, width: float, height: float) -> Tensor:
    """The part of each box [..., 4] that lies within an image of that size."""
    most = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return boxes.clamp(min=0).minimum(most)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes [..., 4 or more] are wider and higher than nothing."""
    return (boxes[..., 2:4] > boxes[..., :2]).all(-1)


def collated(targets: Sequence[Tensor]) -> Tensor:
    """Targets [1 + M, 7] of several images as those of a batch [B, 1 + M, 7]."""
    return pad_sequence(list(targets), batch_first=True, padding_value=PAD)


def is_object(targets: Tensor) -> Tensor:
    """Which rows [B, M] after the first are objects."""
    return targets[:, 1:, 4] >= 0


def input_boxes(targets: Tensor) -> tuple[Tensor, Tensor]:
    """What is trained on: boxes in pixels of the model's input [B, M, 4], and labels [B, M].

    The label is -1 of what fills up, and of crowds and difficult objects, which nothing is trained on.
    """
    scale, offset = (targets[:, :1, part].repeat(1, 1, 2) for part in (slice(0, 2), slice(2, 4)))
    ordinary = is_object(targets) & (targets[:, 1:, 5] == ORDINARY)
    return targets[:, 1:, :4] * scale + offset, torch.where(ordinary, targets[:, 1:, 4], PAD).long()


def upright(found: Mapping[str, Tensor], geometry: Tensor) -> dict[str, Tensor]:
    """What was found in pixels of the input, as that in pixels of the upright image; what lies beside it is nothing.

    Args:
        found: `boxes` [N, 4], and what else is said of each.
        geometry: row 0 of the image's target [7].
    """
    boxes = restored(found["boxes"][None], geometry[None])[0]
    kept = has_area(boxes)
    return {key: each[kept] for key, each in {**found, "boxes": boxes}.items()}


def restored(boxes: Tensor, geometry: Tensor) -> Tensor:
    """Boxes in pixels of the upright image, clipped to it.

    Formula: (box - (left, top)) / scale.

    Args:
        boxes: in pixels of the model's input [B, M, 4].
        geometry: row 0 of the images' targets [B, 7].

    Returns:
        [B, M, 4]
    """
    scale, offset, size = (geometry[:, None, part].repeat(1, 1, 2) for part in (slice(0, 2), slice(2, 4), slice(4, 6)))
    return ((boxes - offset) / scale).clamp(min=0).minimum(size)
