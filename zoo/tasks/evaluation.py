"""The one evaluation loop: whatever the task, every image counts once, however many processes share them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from zoo.errors import DataError, require
from zoo.measurement.divergence import as_one
from zoo.measurement.macs import unchanged
from zoo.measurement.passes import pass_sizes
from zoo.models.targets import PAD
from zoo.progress import bar
from zoo.tasks import task_of
from zoo.tasks.identity import identity, with_targets
from zoo.tasks.task import Meaning, Task

BESIDE = ("agreement", "kl")  # figures that a model has beside a reference


def evaluate(
    model: nn.Module,
    data: DataLoader[Any],
    *,
    task: Task | None = None,
    against: nn.Module | None = None,
    progress: str | None = None,
) -> dict[str, Any]:
    """Measure a model where its parameters are; across processes, every image counts once.

    Args:
        model: images [B, C, H, W] to outputs [B, ...]; evaluated in eval mode, left as it was.
        data: batches of images and targets, as the task's loader gives them; of images and their digests, where its
            transform was `Identified`.
        task: whose rows and figures are taken; None is the model's own.
        against: a reference for the same task.
        progress: the title of a progress bar on a terminal; None for no bar.

    Returns:
        The task's figures, none where the targets are hidden; with `against` also `kl`, the mean divergence from it
        (nats), and `agreement` (0..1); `images`, how many there were; and of digests `sha256`, which tells these images
        and targets from others.

    Raises:
        DataError: there are no images, their targets are none that the model can meet, or they are hidden and there is
            nothing else to compare it with.
    """
    task = task or task_of(model)
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs.
    accelerator = require("accelerate", "eval").Accelerator(cpu=not torch.accelerator.is_available())
    require("evaluate", "eval")
    rows: list[Mapping[str, Tensor]] = []
    meaning: Meaning | None = None
    hidden = progress is None or not accelerator.is_main_process
    batches = bar(progress or "", unit="batch", steps=accelerator.prepare_data_loader(data), hidden=hidden)
    with unchanged(model, *([] if against is None else [against])), torch.inference_mode():
        for images, targets in batches:
            images, digests = images if isinstance(images, list) else (images, None)
            meaning = meaning or task.meaning(model, images.shape[1:])
            outputs = _outputs(model, images)
            row = dict(meaning.rows(outputs, targets.to(outputs.device)))
            if digests is not None:
                row["sha256"] = with_targets(digests, targets)
            if against is not None:
                reference = outputs if against is model else _outputs(against, images).to(outputs.device)
                row["kl"] = meaning.divergence(outputs.double(), reference.double())
                row["agreement"] = meaning.agreement(outputs, reference)
            parts = {key: part.to(accelerator.device) for key, part in row.items()}
            even = accelerator.pad_across_processes(parts, dim=1, pad_index=PAD)
            rows.append({key: part.cpu() for key, part in accelerator.gather_for_metrics(even).items()})
    if not rows or meaning is None:
        raise DataError("expected images to evaluate on, found none; check the data set and its limit")
    kept = {key: _together([row[key] for row in rows]) for key in rows[0]}
    apart: dict[str, Any] = {} if against is None else {key: kept.pop(key).double().mean().item() for key in BESIDE}
    apart |= {"sha256": identity(kept.pop("sha256"))} if "sha256" in kept else {}
    figures = meaning.figures(kept)
    if not figures and against is None:
        raise DataError("the targets are hidden in this split, so nothing can be measured: use another")
    return {**figures, **apart, "images": len(next(iter(kept.values())))}


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Rows [B, M, ...] of several batches as one, filled up to the largest M."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat([*parts])
    return pad_sequence([row for part in parts for row in part], batch_first=True, padding_value=PAD)


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    where = next(chain(model.parameters(), model.buffers()), images)
    whole = images.dtype == torch.int64 or not where.is_floating_point()  # token ids, or an integer model's pixels
    images = images.to(where.device, images.dtype if whole else where.dtype)
    sizes = pass_sizes(len(images), images.shape[-2:].numel()) if where.device.type == "cpu" else len(images)
    return torch.cat([as_one(model(part)).float() for part in images.split(sizes)])
