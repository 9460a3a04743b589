"""`compress` and `distil`: a model in, a smaller or a better model out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.catalog.entry import AVAILABLE, Budget
from zoo.compression.prune import Prune, prune
from zoo.compression.refit import recalibrate_
from zoo.errors import StructureError, UnknownName
from zoo.hub import weights
from zoo.hub.repository import Description, describe
from zoo.structure import base, blocks
from zoo.structure.base import skeleton
from zoo.structure.plan import Mask, Plan, Swap, apply_
from zoo.tasks.classification import evaluation_transform, loader, training_transform
from zoo.tasks.datasets import check_classes, dataset
from zoo.training import masks
from zoo.training.hierarchy import Distil, Step, distil_step, task_step
from zoo.training.trainer import Schedule, train

CALIBRATION_IMAGES = 512


def compress(
    model: nn.Module,
    *,
    budget: float | Budget,
    data: str | Sequence[Tensor],
    method: str = "prune",
    images: int = CALIBRATION_IMAGES,
    **options: Any,
) -> nn.Module:
    """Compress a model.

    Args:
        model: from `zoo.load` or timm, dense or compressed before; left as it was.
        budget: share of its macs that stays, 0..1, or shares of macs and params.
        data: calibration images: a data set as `--data` takes it, or batches [B, C, H, W].
        method: `prune`.
        images: how many of the data set are looked at.
        options: fields of the method's declaration (`zoo.compression.prune.Prune`) that differ from its defaults.

    Returns:
        A new model in eval mode, with `zoo_entry`; `save` writes it.

    Raises:
        UnknownName: no such method or option.
        BudgetError: the budget can't be met.
        DataError, StructureError: the images or the model can't be used.
    """
    check_method(method)
    how = declared(Prune, options, "prune")
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    dense = describe(model)
    batches = calibration(model, data, images) if isinstance(data, str) else list(data)
    swapped = _swapped(model, dense)
    edit, tensors = prune(swapped, batches, budget, how)
    plan = describe(swapped).plan + Plan((edit,))
    recipe = {"method": method, "budget": asdict(budget), "options": dict(options)}
    name = f"{dense.name}_pruned_{round(100 * budget.macs)}"
    pruned = _rebuilt(model, replace(dense, name=name, plan=plan, recipe=recipe, source=""), tensors)
    recalibrate_(pruned.to(batches[0].device), batches)
    return pruned


def check_method(method: str) -> None:
    """Check that this version can run a method.

    Raises:
        UnknownName: it can't, or there is none of that name.
    """
    if method not in AVAILABLE:
        raise UnknownName(f"no method {method!r}: this version compresses by {', '.join(AVAILABLE)}")


def distil(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    data: str,
    *,
    how: Distil | None = None,
    schedule: Schedule | None = None,
    augment: Mapping[str, Any] | None = None,
    seed: int = 0,
    state: Path | None = None,
) -> nn.Module:
    """Train a model in place: from its teachers, or from the labels alone where there are none.

    Args:
        model: from `compress`, `create` or `load`.
        teachers: from smaller to larger.
        data: a data set as `--data` takes it; its train split.
        how: the declaration of the loss.
        schedule: how long and how fast.
        augment: keyword arguments of timm's training transform.
        seed: of order and augmentation.
        state: a file to resume from.

    Returns:
        The same model in eval mode.

    Raises:
        UnknownName, DataError: the data, the augmentation or the state can't be used, or the loss isn't finite.
        MissingExtra: accelerate or datasets isn't installed.
        StorageError: the state can't be written.
    """
    schedule = schedule or Schedule()
    transform = training_transform(model.pretrained_cfg, augment or {})  # type: ignore[arg-type]
    images = dataset(data, "train")
    for network in (model, *teachers):
        check_classes(images, getattr(network, "num_classes", None), data)
    step: Step = distil_step([teacher.eval() for teacher in teachers], how or Distil()) if teachers else task_step
    plan: Plan = describe(model).plan
    zeros = [path for edit in plan.edits if isinstance(edit, Mask) for path in edit.paths]

    def epoch(number: int) -> Any:
        return loader(images, transform, schedule.batch_size, seed=seed, epoch=number)

    with masks.held(model, zeros):
        return train(model, step, epoch, schedule, seed=seed, state=state, progress="distil" if teachers else "train")


def calibration(model: nn.Module, data: str, images: int = CALIBRATION_IMAGES) -> list[Tensor]:
    """Batches of training images as the model sees them in evaluation, [B, C, H, W]."""
    transform = evaluation_transform(model.pretrained_cfg)  # type: ignore[arg-type]
    weight = next(model.parameters())
    batches = loader(dataset(data, "train", limit=images), transform, 64)
    return [batch.to(weight.device, weight.dtype) for batch, _ in batches]


def declared(kind: Callable[..., Any], options: Mapping[str, Any], where: str) -> Any:
    """A declaration with some of its fields replaced.

    Raises:
        UnknownName: it has no such field; the message lists those it has.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in options:
        if key not in known:
            raise UnknownName(f"{where} has no option {key!r}, known are {', '.join(known)}")
    return kind(**options)


def _rebuilt(model: nn.Module, description: Description, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of this description with these tensors, carrying the preprocessing of another."""
    if description.base is None or description.graph is not None:
        raise StructureError(f"{description.name} is a graph: only what has a plan over a base can be compressed")
    rebuilt = apply_(skeleton(description.base), description.plan)
    weights.assign_(rebuilt, {path: tensor.detach().clone() for path, tensor in tensors.items()}, description.name)
    rebuilt.pretrained_cfg = rebuilt.default_cfg = dict(model.pretrained_cfg)  # type: ignore[assignment, arg-type]
    rebuilt.zoo_entry = description  # type: ignore[assignment]
    return rebuilt.eval()


def _swapped(model: nn.Module, description: Description) -> nn.Module:
    """The model with replacements where timm's own classes hard-code a width; the weights are copies."""
    found = {path: blocks.SWAPS.get(blocks.class_name(module)) for path, module in model.named_modules()}
    classes = {path: name for path, name in found.items() if name}
    plan = description.plan + Plan((Swap(classes),)) if classes else description.plan
    return _rebuilt(model, replace(description, plan=plan), base.tensors(model))
