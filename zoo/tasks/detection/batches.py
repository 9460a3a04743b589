"""Batches of images and targets for detectors, from the loader that serves all tasks."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from zoo.errors import DataError
from zoo.models.targets import collated
from zoo.tasks.detection.mosaic import mosaics
from zoo.tasks.loader import Transform, loader


def boxed(transform: Any, image: Any, label: Mapping[str, Sequence[Any]]) -> tuple[Any, Tensor]:
    """An image and its target, as a transform of this task, or `Identified` of one, makes them."""
    pair: tuple[Any, Tensor] = transform.boxed(image, label)
    return pair


def collate(samples: Sequence[tuple[Any, Tensor]]) -> list[Any]:
    """Samples → images [B, C, H, W] (of `Identified` with digests) and targets [B, 1 + M, 7], mosaics made."""
    images, targets = zip(*mosaics(samples), strict=True)
    return [default_collate(list(images)), collated(targets)]


detection_loader = partial(loader, pair=boxed, collate=collate)


def views(transforms: Sequence[Transform]) -> Transform:
    """What several detectors see of an image: all the same.

    Raises:
        DataError: they take images of different sizes.
    """
    if len(transforms) > 1:
        raise DataError("distil: a teacher takes images of another size than the model: boxes are learnt at one size")
    return transforms[0]
