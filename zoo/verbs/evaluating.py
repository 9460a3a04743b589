"""`evaluate`: how good a model is on images of yours."""

from typing import Any

from torch import nn

from zoo.catalog.report import COSTS
from zoo.measurement.macs import unwrapped
from zoo.tasks.task import Labels
from zoo.verbs.measuring import report_of


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    against: nn.Module | None = None,
    labels: Labels | None = None,
    skip_damaged: bool = False,
    images: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> dict[str, float]:
    """Measure how good a model is; it is left as it was.

    Args:
        model: from `load`, `compress` or timm, where its parameters are.
        data: a data set as `--data` takes it, of which the test split is used; a Dataset of `datasets` or torch, whose
            images may have boxes as torchvision's detectors take them, or a DataLoader of one; arrays (images
            [N, H, W, C] of 0..255, labels [N]); a list of batches (images [B, C, H, W] as the model takes them, labels
            [B]); or a dictionary of these by split.
        against: a reference, mostly the dense model, that the outputs are compared with.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        skip_damaged: leave out images that can't be decoded.
        images: evaluate on at most so many, drawn from all of it.
        batch_size: images of one batch.
        workers: processes that load images.

    Returns:
        The figures of the model's task (`top1`, and `top5` of many classes, 0..1), with `against` also `kl` (nats) and
        `agreement` (0..1), and `images`, how many there were.

    Raises:
        UnknownName, DataError: the data can't be used, or its labels are hidden and there is no reference.

    >>> import zoo
    >>> round(evaluate(zoo.load("digits_cnn"), "digits")["top1"], 4)
    0.9933
    """
    how: dict[str, Any] = {"labels": labels, "skip_damaged": skip_damaged, "images": images}
    found = report_of(unwrapped(model), data, against=against, batch_size=batch_size, workers=workers, **how)
    figures = {key: value for key, value in found.measured.items() if key not in COSTS}
    return {**figures, "images": found.data["images"]}
