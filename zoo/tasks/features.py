"""Features: models whose outputs aren't logits, such as maps, embeddings, several of them. No labels are looked at.

What is measured is how far one model's outputs lie from another's: `kl` of a report is then their noise to signal, and
`agreement` their cosine similarity.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import DataError
from zoo.measurement.divergence import divergence, leaves
from zoo.measurement.macs import like_images
from zoo.structure.description import config_of
from zoo.tasks.classification.transforms import Views, evaluation_transform, training_transform
from zoo.tasks.columns import HIDDEN
from zoo.tasks.loader import Transform, labelled, loader
from zoo.tasks.task import Labels, Leading, Meaning, Task


def check_same(model: nn.Module, other: nn.Module, what: str) -> None:
    """Check that two models give outputs of the same shapes.

    Raises:
        DataError: they don't.
    """
    mine, its = (_shapes(each) for each in (model, other))
    if mine != its:
        raise DataError(f"{what} gives outputs of {its}, the model of {mine}: choose another")


def _shapes(model: nn.Module) -> list[list[int]]:
    images = torch.zeros(1, *config_of(model)["input_size"]).to(like_images(model))
    with torch.no_grad():
        return [list(each.shape) for each in leaves(model.eval()(images))]


def unlabelled(transform: Transform, image: Any, label: Any) -> tuple[Any, Any]:
    """What a transform makes of an image; of boxes, which make no batch, nothing is kept."""
    return labelled(transform, image, HIDDEN if isinstance(label, Mapping) else label)


def matched(data: Any, model: nn.Module, spec: str, labels: Labels | None = None) -> Any:
    """The data as it is."""
    return data


def name_(model: nn.Module, data: Any) -> None:
    """Nothing has a name."""


def rows(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What is kept of a batch: that there were so many images."""
    return {"images": torch.ones(len(outputs))}


def figures(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Nothing can be said of outputs alone."""
    return {}


def predictions(
    forward: Callable[[Tensor], Any], transform: Transform, config: Mapping[str, Any], images: Sequence[Any]
) -> list[dict[str, Any]]:
    """The features of each image: a list of all that the model gives.

    Args:
        forward: images [B, C, H, W] → tensors [B, ...].
        transform: an image → [C, H, W].
        config: the model's `pretrained_cfg`.
        images: of a batch.
    """
    outputs = leaves(forward(torch.stack([transform(image) for image in images])))
    return [{"features": [each[number].cpu() for each in outputs]} for number in range(len(images))]


def agreement(outputs: Tensor, target: Tensor) -> Tensor:
    """Cosine similarity with a reference's outputs, 0..1 for each image [B]; less than 0 counts as 0."""
    return F.cosine_similarity(outputs.flatten(1).double(), target.flatten(1).double()).clamp(min=0)


OUTPUTS = Meaning(rows, figures, divergence, agreement)
FEATURES = Task(
    evaluation_transform=evaluation_transform,
    training_transform=training_transform,
    views=Views,
    loader=partial(loader, pair=unlabelled),
    matched=matched,
    name_=name_,
    check_same=check_same,
    predictions=predictions,
    meaning=lambda model, size: OUTPUTS,
    leading=Leading("agreement", "cosine similarity", "cosine_similarity", "Cosine similarity"),
    outputs="features",
)
