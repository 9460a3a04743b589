"""`predict`: what a model says of images of yours."""

import inspect
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor, fx, nn

from zoo.declarations import validated
from zoo.errors import DataError, StructureError, in_one_line
from zoo.measurement.macs import input_size, like_images, unchanged, unwrapped
from zoo.measurement.passes import together
from zoo.structure.description import config_of
from zoo.tasks import task_of
from zoo.tasks.pixels import Pixels, of_array

Share = Annotated[float, Meta(ge=0, le=1)] | None


def predict(
    model: nn.Module,
    images: Any,
    *,
    top: int | None = None,
    score: float | None = None,
    iou: float | None = None,
) -> list[dict[str, Any]]:
    """What a model says of images; it is left as it was. A model from `load` has this as a method.

    Args:
        model: from `load`, `compress` or timm, where its parameters are.
        images: one or several, of any sizes: paths, bytes of files, images of PIL, arrays [H, W] or [H, W, 3] of bytes,
            tensors [3, H, W] of bytes or 0..1, or what a row of a data set holds; of a model of texts, texts.
        top: of a classifier, how many classes; None is 5.
        score: of a detector, the least score of an object; None is 0.25. Its average precision is measured with 0.001.
        iou: of a detector, by how much an object may overlap a better one of its class; None is 0.7.

    Returns:
        Of each image, also of a single one, a dictionary of tensors on the CPU. A classifier gives `scores`, highest
        first, and `labels`, and a list `names`; a detector `boxes` [N, 4], x1, y1, x2, y2 in pixels of the upright
        image, `scores` and `labels`; any other model `features`, a list.

    Raises:
        DataError: an image can't be decoded, or what the model gives for it isn't finite.
        StructureError: the model says nothing of its input or its outputs, or an option isn't one of its task.

    >>> import zoo
    >>> from zoo.tasks.datasets import dataset
    >>> found = predict(zoo.load("digits_cnn"), dataset("digits", "test")[0]["image"])
    >>> found[0]["names"][0], round(found[0]["scores"][0].item(), 3)
    ('2', 1.0)
    """
    held = unwrapped(model)
    task, config = task_of(held), config_of(held)
    options = {key: value for key, value in (("top", top), ("score", score), ("iou", iou)) if value is not None}
    _check_options(options, task.predictions)
    like, size = like_images(held), together(torch.Size(input_size(held)[1:]).numel())
    with in_one_line("predict: the model's pretrained_cfg can't be used"):
        transform = task.evaluation_transform(config)

    def forward(batch: Tensor) -> Any:
        return model(batch.to(like))

    found = partial(task.predictions, forward, transform, config, **options)
    with unchanged(model), torch.no_grad():
        return [each for batch in _batches(images, size) for each in found(batch)]


def bound(model: nn.Module) -> nn.Module:
    """Let a model, and whatever is copied from it, have `predict` as a method, unless something has that name."""
    if not hasattr(model, "predict"):
        # In the model itself it would keep that alive, with its weights, until garbage is collected.
        kind = type(model).__mro__[1 if isinstance(model, fx.GraphModule) else 0]  # each graph has a class of its own
        kind.predict = predict  # type: ignore[attr-defined]
    return model


def _check_options(options: Any, predictions: Any) -> None:
    known = [each.name for each in inspect.signature(predictions).parameters.values() if each.kind == each.KEYWORD_ONLY]
    if unknown := [key for key in options if key not in known]:
        raise StructureError(
            f"predict: {unknown[0]} says nothing to such a model, which knows {', '.join(known) or 'no option'}"
        )
    kinds = {"top": Annotated[int, Meta(ge=1)], "score": Share, "iou": Share}
    for key, value in options.items():
        validated(kinds[key], value, f"predict: {key}", StructureError)


def _batches(images: Any, size: int) -> Iterator[list[Pixels]]:
    """So many images at a time, of which none is decoded yet."""
    waiting = iter(_named(each, number) for number, each in enumerate(_several(images)))
    while batch := list(islice(waiting, size)):
        yield batch


def _several(images: Any) -> Iterable[Any]:
    one = (str, os.PathLike, bytes, dict, Image.Image)
    if isinstance(images, one) or getattr(images, "ndim", 4) <= 3 or not isinstance(images, Iterable):
        return [images]
    return images


def _named(image: Any, number: int) -> Pixels:
    """An image that an error calls by its number, where it has no path."""
    if isinstance(image, bytes):
        return {"bytes": image, "path": f"image {number}"}
    if isinstance(image, np.ndarray | Tensor):
        try:
            return of_array(image)
        except DataError as error:
            raise DataError(f"image {number}: {error}") from None
    return image  # type: ignore[no-any-return]
