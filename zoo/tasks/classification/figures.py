"""What evaluation keeps of each image that was classified, and the figures of all of them."""

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from zoo.errors import DataError, StructureError

MANY = 100  # classes, below which the right one is easily among five


def rows(logits: Tensor, labels: Tensor, subset: Sequence[int] = ()) -> dict[str, Tensor]:
    """What is kept of a batch.

    Args:
        logits: [B, classes].
        labels: [B].
        subset: the classes that the data has, where it has some of them alone.

    Returns:
        `predictions` and `references` [B], and of at least 100 classes `top5` [B] (0 or 1); of a subset `subset` [B],
        whether the most likely of its classes is the right one (0 or 1).

    Raises:
        DataError: a label is none of the model's classes.
        StructureError: they are no logits.
    """
    if logits.ndim != 2:
        found = f"expected logits [B, classes], the model gives {[*logits.shape]}"
        raise StructureError(f"{found}: zoo.save it and zoo.load that, which knows that they are none")
    if len(labels) and labels.max() >= logits.shape[1]:
        raise DataError(f"found label {labels.max()}, the model has {logits.shape[1]} classes: use other data")
    row = {"predictions": logits.argmax(1), "references": labels}
    if logits.shape[1] >= MANY:
        row["top5"] = (logits.topk(5).indices == labels[:, None]).any(1).double()
    if subset:
        classes = torch.tensor(subset, device=logits.device)
        row["subset"] = (classes[logits[:, classes].argmax(1)] == labels).double()
    return row


def agreement(logits: Tensor, target: Tensor) -> Tensor:
    """Whether the most likely class is that of a reference, 0 or 1 for each image [B].

    Args:
        logits: [B, classes].
        target: the reference's [B, classes].
    """
    return (logits.argmax(1) == target.argmax(1)).double()


def figures(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of all images.

    Formula: topK = share of images whose class is among the K most likely of all that the model has; top1_subset, of
    data with some of them, the share whose class is the most likely of those, as those of ImageNet-R are published.

    Args:
        rows: what `rows` gave, of all images.

    Returns:
        `top1` and, where they were kept, `top5` and `top1_subset` (0..1); nothing where all labels are hidden.

    Raises:
        DataError: some labels are hidden.
    """
    from zoo.tasks.classification.accuracy import Accuracy

    predictions, labels = rows["predictions"], rows["references"]
    if labels.max() < 0:
        return {}
    if labels.min() < 0:
        raise DataError(f"expected labels from 0, found {labels.min()}: some are hidden in this split; use another")
    # The metric creates a folder when it is made, though it keeps everything in memory.
    with TemporaryDirectory() as folder:
        metric = Accuracy(keep_in_memory=True, cache_dir=folder)
        accuracy = metric.compute(predictions=predictions.numpy(), references=labels.numpy())
    others = {"top5": "top5", "top1_subset": "subset"}
    return {"top1": accuracy["top1"]} | {key: rows[row].mean().item() for key, row in others.items() if row in rows}
