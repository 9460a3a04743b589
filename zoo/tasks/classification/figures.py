"""What evaluation keeps of each image that was classified, and the figures of all of them."""

from collections.abc import Mapping
from tempfile import TemporaryDirectory

from torch import Tensor

from zoo.errors import DataError
from zoo.measurement.divergence import kl

MANY = 100  # classes, below which the right one is easily among five


def rows(logits: Tensor, labels: Tensor, reference: Tensor | None = None) -> dict[str, Tensor]:
    """What is kept of a batch.

    Args:
        logits: [B, classes].
        labels: [B].
        reference: logits of another model [B, classes].

    Returns:
        `predictions` and `references` [B], of at least 100 classes `top5` [B] (0 or 1), and `kl` [B] (nats).

    Raises:
        DataError: a label is none of the model's classes.
    """
    if len(labels) and labels.max() >= logits.shape[1]:
        raise DataError(f"found label {labels.max()}, the model has {logits.shape[1]} classes: use other data")
    row = {"predictions": logits.argmax(1), "references": labels}
    if logits.shape[1] >= MANY:
        row["top5"] = (logits.topk(5).indices == labels[:, None]).any(1).double()
    if reference is not None:
        row["kl"] = kl(logits.double(), reference.double())
    return row


def figures(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Figures of all images.

    Formula: topK = share of images whose class is among the K most likely; kl is the mean over images.

    Args:
        rows: what `rows` gave, of all images.

    Returns:
        `top1` (0..1), and of what was kept `top5` (0..1) and `kl` (nats).

    Raises:
        DataError: labels are hidden.
    """
    from zoo.tasks.classification.accuracy import Accuracy

    means = dict(rows)
    predictions, labels = means.pop("predictions"), means.pop("references")
    if labels.min() < 0:
        raise DataError(f"expected labels from 0, found {labels.min()}: they are hidden in this split; use another")
    # The metric creates a folder when it is made, though it keeps everything in memory.
    with TemporaryDirectory() as folder:
        metric = Accuracy(keep_in_memory=True, cache_dir=folder)
        found = metric.compute(predictions=predictions.numpy(), references=labels.numpy())
    return {"top1": found["top1"], **{key: values.mean().item() for key, values in means.items()}}
