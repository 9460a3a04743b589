"""The one evaluation loop: accuracy, and how far a compressed model's outputs lie from a reference's."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.errors import DataError, require
from zoo.measurement.divergence import kl

MANY = 100  # classes, below which the right one is easily among five


def evaluate(
    model: nn.Module,
    data: DataLoader[tuple[Tensor, int]],
    *,
    against: nn.Module | None = None,
    progress: str | None = None,
) -> dict[str, float]:
    """Measure a classifier where its parameters are; across processes, every image counts once.

    Formula: kl = mean over images of Σ_c p(c) · (log p(c) - log q(c)), p of `against`, q of `model`;
    topK = share of images whose class is among the K most likely.

    Args:
        model: a classifier, images [B, C, H, W] to logits [B, classes]; evaluated in eval mode, left as it was.
        data: batches of images and labels [B], as `classification.loader` gives them.
        against: a reference of the same classes.
        progress: the title of a progress bar on a terminal; None for no bar.

    Returns:
        `top1` (0..1), `images` (how many), `top5` of at least 100 classes, and with `against` also `kl` (nats).

    Raises:
        DataError: there are no images, or their labels are hidden.
    """
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs.
    accelerator = require("accelerate", "eval").Accelerator(cpu=not torch.accelerator.is_available())
    tqdm = require("tqdm", "eval").tqdm
    require("evaluate", "eval")
    rows: list[dict[str, Tensor]] = []
    # `disable=None` hides the bar where stderr is no terminal.
    hidden = None if progress is not None and accelerator.is_main_process else True
    batches = tqdm(accelerator.prepare_data_loader(data), desc=progress, disable=hidden)
    with evaluating(model, against), torch.inference_mode():
        for images, labels in batches:
            logits = _logits(model, images)
            if len(labels) and labels.max() >= logits.shape[1]:
                raise DataError(f"found label {labels.max()}, the model has {logits.shape[1]} classes: use other data")
            row = {"predictions": logits.argmax(1), "references": labels.to(logits.device)}
            if logits.shape[1] >= MANY:
                row["top5"] = (logits.topk(5).indices == row["references"][:, None]).any(1).double()
            if against is not None:
                row["kl"] = kl(logits.double(), _logits(against, images).to(logits.device).double())
            gathered = accelerator.gather_for_metrics({key: part.to(accelerator.device) for key, part in row.items()})
            rows.append({key: part.cpu() for key, part in gathered.items()})
    return _figures(rows)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    where = next(chain(model.parameters(), model.buffers()), images)
    dtype = where.dtype if where.is_floating_point() else images.dtype
    logits: Tensor = model(images.to(where.device, dtype))
    return logits.float()


def _figures(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    from zoo.tasks.accuracy import Accuracy

    if not rows:
        raise DataError("expected images to evaluate on, found none; check the data set and its limit")
    found = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    predictions, labels = found.pop("predictions"), found.pop("references")
    if labels.min() < 0:
        raise DataError(f"expected labels from 0, found {labels.min()}: they are hidden in this split; use another")
    # The metric creates a folder when it is made, though it keeps everything in memory.
    with TemporaryDirectory() as folder:
        metric = Accuracy(keep_in_memory=True, cache_dir=folder)
        figures = metric.compute(predictions=predictions.numpy(), references=labels.numpy())
    means = {key: values.mean().item() for key, values in found.items()}
    return {"top1": figures["top1"], **means, "images": len(labels)}


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Models in eval mode for as long as the context is open, then as they were."""
    modes = {module: module.training for model in models if model is not None for module in model.modules()}
    try:
        for model in models:
            if model is not None:
                model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training
