"""The one evaluation loop: whatever the task, every image counts once, however many processes share them."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
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
from zoo.tasks.loader import taking_turns
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
    size: torch.Size | None = None
    hidden = progress is None or not accelerator.is_main_process
    mine = taking_turns(data, accelerator.process_index, accelerator.num_processes)
    batches = bar(progress or "", unit="batch", steps=mine, hidden=hidden)
    with unchanged(model, *([] if against is None else [against])), torch.inference_mode():
        for images, targets in batches:
            images, digests = images if isinstance(images, list) else (images, None)
            size = images.shape[1:]
            meaning = meaning or task.meaning(model, size)
            outputs = _outputs(model, images)
            row = dict(meaning.rows(outputs, targets.to(outputs.device)))
            if digests is not None:
                row["sha256"] = with_targets(digests, targets)
            if against is not None:
                reference = outputs if against is model else _outputs(against, images).to(outputs.device)
                row["kl"] = meaning.divergence(outputs.double(), reference.double())
                row["agreement"] = meaning.agreement(outputs, reference)
            rows.append({key: part.cpu() for key, part in row.items()})
    size, rows = _gathered(size, rows)
    if size is None:
        raise DataError("expected images to evaluate on, found none; check the data set and its limit")
    meaning = meaning or task.meaning(model, size)
    kept = {key: _together([row[key] for row in rows]) for key in rows[0]}
    apart: dict[str, Any] = {} if against is None else {key: kept.pop(key).double().mean().item() for key in BESIDE}
    apart |= {"sha256": identity(kept.pop("sha256"))} if "sha256" in kept else {}
    figures = meaning.figures(kept)
    if not figures and against is None:
        raise DataError("the targets are hidden in this split, so nothing can be measured: use another")
    return {**figures, **apart, "images": len(next(iter(kept.values())))}


def _gathered(
    size: torch.Size | None, rows: Sequence[Mapping[str, Tensor]]
) -> tuple[torch.Size | None, list[Mapping[str, Tensor]]]:
    """The size of the images, and what all processes kept of each batch, in the order of one process."""
    found = require("accelerate", "eval").utils.gather_object([(size, rows)])
    turns = zip_longest(*(batches for _, batches in found))
    return next((each for each, _ in found if each), None), [row for turn in turns for row in turn if row is not None]


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
