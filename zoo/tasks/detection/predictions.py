"""What a detector says of images: boxes of objects, in pixels of the upright image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.measurement.divergence import leaves
from zoo.models.heads import detections
from zoo.models.settings import SURE, settings_of
from zoo.models.targets import upright
from zoo.tasks.detection.transforms import Fitted
from zoo.tasks.pixels import Pixels


def predictions(
    forward: Callable[[Tensor], Any],
    transform: Fitted,
    config: Mapping[str, Any],
    images: Sequence[Pixels],
    *,
    score: float = SURE,
    iou: float = 0.7,
) -> list[dict[str, Tensor]]:
    """The objects of images.

    Args:
        forward: images [B, C, H, W] → raw heads.
        transform: an image → [C, H, W], and where it lies there.
        config: the model's `pretrained_cfg`.
        images: of a batch.
        score: what scores no more isn't given; average precision is measured with all above 0.001.
        iou: what overlaps a better object of its class by more isn't given.

    Returns:
        Of each image, as torchvision's detectors give it, `boxes` [N, 4], x1, y1, x2, y2 in pixels of the upright
        image, `scores` [N], highest first, and `labels` [N], from 0.

    Raises:
        DataError: an image can't be decoded, or a head isn't finite.
        StructureError: the model doesn't say what its heads mean.
    """
    tensors, geometries = zip(*map(transform.located, images), strict=True)
    batch = torch.stack(tensors)
    settings = settings_of(config.get("detector"))
    found = detections(leaves(forward(batch)), settings, (batch.shape[2], batch.shape[3]), score, iou)
    here = [{key: part.cpu() for key, part in each.items()} for each in found]
    return [upright(each, torch.tensor(geometry)) for each, geometry in zip(here, geometries, strict=True)]


def as_rows(found: Mapping[str, Tensor]) -> Tensor:
    """What was found in an image, in the order that GluonCV and MRT give it: label, score, x1, y1, x2, y2 [N, 6].

    >>> as_rows({"boxes": torch.tensor([[1, 2, 3, 4.0]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([7])})
    tensor([[7.0000, 0.5000, 1.0000, 2.0000, 3.0000, 4.0000]])
    """
    return torch.cat([found["labels"][:, None], found["scores"][:, None], found["boxes"]], 1)
