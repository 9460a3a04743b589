"""What a classifier says of images: the most likely classes, by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import DataError, StructureError
from zoo.structure.sources import timm
from zoo.tasks.loader import Transform


def predictions(
    forward: Callable[[Tensor], Any],
    transform: Transform,
    config: Mapping[str, Any],
    images: Sequence[Any],
    *,
    top: int = 5,
) -> list[dict[str, Any]]:
    """The most likely classes of images.

    Formula: score = softmax(logits).

    Args:
        forward: images [B, C, H, W] → logits [B, classes].
        transform: an image → [C, H, W].
        config: the model's `pretrained_cfg`.
        images: of a batch.
        top: how many classes, if there are as many.

    Returns:
        Of each image `scores`, highest first, and `labels` [top], and `names`, a list of the classes'.

    Raises:
        DataError: an image can't be decoded, or its logits aren't finite.
        StructureError: the model gives no logits.
    """
    logits = forward(torch.stack([transform(image) for image in images]))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise StructureError(f"predict: expected logits [B, classes], the model gives {_shape(logits)}")
    if len(bad := (~logits.isfinite().all(1)).nonzero()):
        raise DataError(f"image {int(bad[0])} of the batch: the logits aren't finite; look at the model's weights")
    scores, labels = logits.float().softmax(1).topk(min(top, logits.shape[1]))
    names = class_labels(config, logits.shape[1])
    return [
        {"scores": score, "labels": label, "names": [names[each] for each in label.tolist()]}
        for score, label in zip(scores.cpu(), labels.cpu(), strict=True)
    ]


def class_labels(config: Mapping[str, Any], classes: int) -> list[str]:
    """What classes are called: as a model says, else as those of ImageNet where it has as many, else their numbers."""
    named = config.get("label_names")
    if named and len(named) == classes:
        return [str(name) for name in named]
    if (subset := timm().data.infer_imagenet_subset({"num_classes": classes})) is not None:
        known = timm().data.ImageNetInfo(subset)
        return [known.index_to_description(label) for label in range(classes)]
    return [str(label) for label in range(classes)]


def _shape(outputs: Any) -> str:
    return f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
