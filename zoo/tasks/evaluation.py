"""The one evaluation loop: whatever the task, every image counts once, however many processes share them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from math import fsum
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from zoo.errors import DataError, require
from zoo.measurement.macs import unchanged
from zoo.models.targets import PAD
from zoo.progress import bar
from zoo.structure.description import description_of
from zoo.tasks import task_of
from zoo.tasks.identity import identity, with_targets
from zoo.tasks.loader import ahead, images_of, sharded, taking_turns
from zoo.tasks.outputs import AS_IT_IS, Computing
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
    """Measure a model where its parameters are; arguments, result and errors of `evaluate_together`.

    Args:
        model: images [B, C, H, W] to outputs [B, ...]; evaluated in eval mode, left as it was.
        data: batches of images and targets, as the task's loader gives them; of images and their digests, where its
            transform was `Identified`.
        task: whose rows and figures are taken; None is the model's own.
        against: a reference for the same task.
        progress: the title of a progress bar on a terminal; None for no bar.
    """
    return evaluate_together([Seen(model, against)], data, task=task, progress=progress)[0]


@dataclass(frozen=True)
class Seen:
    """A model, and what it sees of the images of a batch.

    Args:
        model: images [B, C, H, W] to outputs [B, ...].
        against: a reference for the same task, of the same images; None for none.
        view: the number of the transform that made its images.
    """

    model: nn.Module
    against: nn.Module | None = None
    view: int = 0


def evaluate_together(
    seen: Sequence[Seen],
    data: DataLoader[Any],
    *,
    task: Task | None = None,
    computing: Computing = AS_IT_IS,
    progress: str | None = None,
) -> list[dict[str, Any]]:
    """Measure models of one task in one pass over images; across processes, every image counts once.

    Args:
        seen: the models, whose classes are the same; evaluated in eval mode, left as they were.
        data: batches of images and targets, as the task's loader gives them; of images, once for each view, and their
            digests, where its transform was `Identified`.
        task: whose rows and figures are taken; None is that of the first model.
        computing: how outputs are computed.
        progress: the title of a progress bar on a terminal; None for no bar.

    Returns:
        Of each model the task's figures, none where the targets are hidden; with `against` also `kl`, the mean
        divergence from it (nats), `agreement` (0..1) and, of classes, which are `forgotten`; `images`, how many there
        were; and of digests `sha256`, which tells these images and targets from others.

    Raises:
        DataError: there are no images, their targets are none that the model can meet, or they are hidden and there is
            nothing else to compare it with.
    """
    task = task or task_of(seen[0].model)
    accelerator = _accelerator()
    require("evaluate", "eval")
    place, meaning = (accelerator.process_index, accelerator.num_processes), cache(task.meaning)
    hidden = progress is None or not accelerator.is_main_process
    networks = {id(each): each for one in seen for each in (one.model, one.against) if each is not None}
    kept: list[Batch] = []
    failed: DataError | None = None
    with unchanged(*networks.values()), torch.inference_mode():
        forward = {each: computing.forward(network) for each, network in networks.items()}
        with bar(progress or "", images_of(data), "image", hidden=hidden) as shown:
            try:
                for images, targets in ahead(taking_turns(data, *place)):
                    *views, digests = images if isinstance(images, list) else (images, None)
                    kept.append(_batch(seen, forward, meaning, views, targets, digests))
                    shown.update(len(targets) * place[1])
            except DataError as error:  # of one process, which all are told
                failed = error
    kept = _gathered([_name(one.model) for one in seen], failed or kept, sharded(data, place[1]))
    if not kept:
        raise DataError("expected images to evaluate on, found none; check the data set and its limit")
    hashes = [digests for _, _, digests in kept if digests is not None]
    same = {"sha256": identity(torch.cat(hashes))} if hashes else {}
    return [
        {**_figures(one, meaning, kept[0][0][one.view], [rows[number] for _, rows, _ in kept]), **same}
        for number, one in enumerate(seen)
    ]


# Of each view the images' size, of each model its rows, and the digests of images with targets.
Batch: TypeAlias = tuple[Sequence[torch.Size], Sequence[Mapping[str, Tensor]], Tensor | None]


def _batch(
    seen: Sequence[Seen],
    forward: Mapping[int, Callable[[Tensor], Tensor]],
    meaning: Callable[[nn.Module, torch.Size], Meaning],
    views: Sequence[Tensor],
    targets: Tensor,
    digests: Tensor | None,
) -> Batch:
    """What is kept of a batch; a model that is another one's reference computes it once."""
    outputs = cache(lambda network, view: forward[network](views[view]))
    rows = []
    for one in seen:
        meant, found = meaning(one.model, views[one.view].shape[1:]), outputs(id(one.model), one.view)
        row = dict(meant.rows(found, targets.to(found.device)))
        if one.against is not None:
            reference = outputs(id(one.against), one.view).to(found.device)
            row["kl"] = meant.divergence(found.double(), reference.double())
            row["agreement"] = meant.agreement(found, reference)
            row |= {} if meant.forgotten is None else {"before": reference.argmax(1)}
        rows.append({key: part.cpu() for key, part in row.items()})
    sizes = [view.shape[1:] for view in views]
    return sizes, rows, None if digests is None else with_targets(digests, targets)


def _figures(
    one: Seen,
    meaning: Callable[[nn.Module, torch.Size], Meaning],
    size: torch.Size,
    rows: Sequence[Mapping[str, Tensor]],
) -> dict[str, Any]:
    """The figures of a model from the rows of all batches; means of what doesn't depend on the order of these."""
    apart: dict[str, Any]
    kept = {key: _together([row[key] for row in rows]) for key in rows[0]}
    apart = {key: _mean(kept.pop(key)) for key in BESIDE if key in kept}
    before, meant = kept.pop("before", None), meaning(one.model, size)
    figures = meant.figures(kept)
    if figures and before is not None and meant.forgotten is not None:
        apart["forgotten"] = meant.forgotten(kept["references"], before, kept["predictions"])
    if not figures and one.against is None:
        raise DataError("the targets are hidden in this split, so nothing can be measured: use another")
    return {**figures, **apart, "images": len(next(iter(kept.values())))}


def of_first(value: Any) -> Any:
    """A value that can be pickled, as the first of several processes has it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    _accelerator()
    return require("accelerate", "eval").utils.broadcast_object_list([value])[0]


def _accelerator() -> Any:
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs.
    return require("accelerate", "eval").Accelerator(cpu=not torch.accelerator.is_available())


def _name(model: nn.Module) -> str:
    return getattr(description_of(model), "name", type(model).__name__)


def _mean(values: Tensor) -> float:
    return fsum(values.double().tolist()) / len(values)


def _gathered(names: list[str], kept: list[Batch] | DataError, parts: bool) -> list[Batch]:
    """What all processes kept, in the order of one process, whether each has a part or they took turns.

    Raises:
        DataError: one of them met it, or they measure different models.
    """
    every = require("accelerate", "eval").utils.gather_object([(names, kept)])
    if other := next((each for each, _ in every if each != names), None):
        raise DataError(
            f"of several processes one measures {', '.join(names)}, another {', '.join(other)}: give all the same files"
        )
    found = []
    for _, each in every:
        if isinstance(each, DataError):
            raise each
        found.append(each)
    if parts:
        return [batch for part in found for batch in part]
    return [batch for turn in zip_longest(*found) for batch in turn if batch is not None]


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Rows [B, M, ...] of several batches as one, filled up to the largest M."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat([*parts])
    return pad_sequence([row for part in parts for row in part], batch_first=True, padding_value=PAD)
