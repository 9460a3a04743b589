"""Data for detectors: whose classes are the model's, and in batches of images and targets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from zoo.errors import DataError
from zoo.models.targets import collated, target_of
from zoo.tasks import features
from zoo.tasks.classification.classes import check_same_classes, of_classes
from zoo.tasks.columns import has_boxes
from zoo.tasks.detection.mosaic import GROUP, mosaic
from zoo.tasks.detection.transforms import Augmented
from zoo.tasks.identity import Identified, digest
from zoo.tasks.loader import Mixed, Transform, loader

if TYPE_CHECKING:
    from zoo.tasks.columns import Data
    from zoo.tasks.streams import Stream
    from zoo.tasks.task import Labels


def matched(data: "Data", model: nn.Module, spec: str, labels: "Labels | None" = None) -> "Data":
    """Data with boxes whose labels are the numbers of a model's classes; arguments and errors of `of_classes`."""
    if not has_boxes(data):
        raise DataError(f"{spec} has no boxes, which a detector is held against: use data with objects")
    return of_classes(data, model, spec, labels)


def check_same(model: nn.Module, other: nn.Module, what: str) -> None:
    """Check that two detectors have heads of the same shapes, and mean the same by each class.

    Raises:
        DataError: they don't.
    """
    check_same_classes(model, other, what)
    features.check_same(model, other, what)


def boxed(transform: Any, image: Any, label: Mapping[str, Sequence[Any]]) -> tuple[Any, Tensor]:
    """An image and its target, as a transform of this task, or `Identified` of one, makes them."""
    if isinstance(image, Tensor):  # of a torch data set that preprocesses
        target = target_of(label, (1, 1, 0, 0, image.shape[2], image.shape[1]))
        return [image, digest(image)] if isinstance(transform, Identified) else image, target
    pair: tuple[Any, Tensor] = transform.boxed(image, label)
    return pair


def collate(samples: Sequence[tuple[Any, Tensor]]) -> list[Any]:
    """Samples → images [B, C, H, W] (of `Identified` with digests) and targets [B, 1 + M, 7]."""
    images, targets = zip(*samples, strict=True)
    return [default_collate(list(images)), collated(targets)]


def detection_loader(data: "Data | Stream", transform: Transform, batch_size: int, **others: Any) -> DataLoader[Any]:
    """Batches of images and targets; arguments as for `zoo.tasks.loader.loader`."""
    mixed = Mixed(GROUP, mosaic) if isinstance(transform, Augmented) and transform.mosaic else None
    return loader(data, transform, batch_size, pair=boxed, collate=collate, mixed=mixed, **others)


def views(transforms: Sequence[Transform]) -> Transform:
    """What several detectors see of an image: all the same.

    Raises:
        DataError: they take images of different sizes.
    """
    if len(transforms) > 1:
        raise DataError("distil: a teacher takes images of another size than the model: boxes are learnt at one size")
    return transforms[0]
