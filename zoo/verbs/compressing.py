"""`compress` and `distil`: a model in, a smaller or a better model out."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.catalog.entry import AVAILABLE, Budget
from zoo.compression.calibration import batched, check_finite
from zoo.compression.channels.checking import CLOSE, checked, cut, difference, graph_difference, rescaled
from zoo.compression.channels.groups import Analysis, narrow
from zoo.compression.exclusion import kept_whole
from zoo.compression.keeping import alike_, single
from zoo.compression.low_rank import dwain, falor, lockd
from zoo.compression.low_rank.low_rank import LowRank, low_rank
from zoo.compression.prune.prune import Prune, prune
from zoo.errors import BudgetError, DataError, StructureError, UnknownName
from zoo.measurement.macs import forward_on_meta
from zoo.structure import blocks
from zoo.structure.describing import check_outputs, describe, described
from zoo.structure.description import Description, attach_, config_of, configure_, skeleton_of
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import build
from zoo.structure.plan import Factor, Plan, Swap
from zoo.structure.tensors import assign_, tensors_of
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluating
from zoo.tasks.objects import is_set
from zoo.tasks.task import Labels
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.distilling import data_name, epochs, training_images

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 512
BY_BUDGET = ("prune", "low_rank")
LEARNING = ("lockd", "dwain")  # which train before the structure is known
NO_PLAN = "the attributes of its block aren't known, so no plan can cut it"
LOOSEN = {  # what lets a method decompose more
    "falor": "nsr_final_threshold or kl_final_threshold",
    "lockd": "nsr_threshold, proportion_threshold or the schedule's epochs",
    "dwain": "trade_off_factor, max_accepted_ppl_diff or nsr_final_threshold, or lower min_rank",
}
SUFFIXES = {"prune": "pruned", "low_rank": "lowrank"}


@torch.inference_mode(False)  # gradients, whatever the caller's mode
def compress(
    model: nn.Module,
    *,
    budget: float | Budget | None = None,
    data: Any,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    method: str = "prune",
    images: int = CALIBRATION_IMAGES,
    seed: int = 0,
    state: Path | None = None,
    augment: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    **options: Any,
) -> nn.Module:
    """Compress a model.

    Args:
        model: from `zoo.load` or timm, dense or compressed before; left as it was.
        budget: share of its macs that stays, 0..1, or shares of macs and params, for `prune` and `low_rank`; the other
            methods have thresholds instead.
        data: calibration images: a data set as `--data` takes it, a Dataset of `datasets` or torch, or batches
            [B, C, H, W] of the model's input size, with labels or without, or one such batch. `lockd` and `dwain` train
            and need a data set.
        skip_damaged: leave out images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        method: `prune`, `low_rank`, `falor`, `lockd` or `dwain`.
        images: how many of the data set are looked at.
        seed: of what is random.
        state: a file that `falor`, `lockd` and `dwain` resume from.
        augment: keyword arguments of timm's training transform, for a method that trains.
        machine: how a method that trains runs here.
        options: fields of the method's declaration (`zoo.compression.prune.prune.Prune`, ...) that differ from its
            defaults; for a method that trains also `schedule`, fields of its schedule that do.

    Returns:
        A new model in eval mode, with `zoo_entry`; `save` writes it.

    Raises:
        UnknownName: no such method or option.
        BudgetError: the budget can't be met, is missing, or means nothing to the method.
        DataError, StructureError: the images or the model can't be used.
    """
    check_method(method)
    if (budget is None) == (method in BY_BUDGET):
        problem = "needs a budget" if budget is None else "has thresholds and takes no budget"
        raise BudgetError(f"{method} {problem}; {' and '.join(BY_BUDGET)} compress to a budget")
    budget = budget if budget is None or isinstance(budget, Budget) else Budget(budget)
    model, dense = described(model)
    if dense.base is None or dense.graph is not None:
        raise StructureError(f"{dense.name} is a graph: only what has a plan over a base can be compressed")
    check_finite(model)
    check_outputs(model, dense)
    given, model = model, model if method in LEARNING else single(model)
    named = isinstance(data, str) or is_set(data)
    batches = batched(model, calibration(model, data, images, seed, skip_damaged) if named else data)
    name, recipe = f"{dense.name}_{suffix(method, budget)}", {"method": method, "options": dict(options)}
    if budget is not None:
        recipe |= {"budget": structs.asdict(budget)}
    about = replace(dense, name=name, recipe=recipe, source="")
    with evaluating(model):
        if method == "prune":
            assert budget is not None
            smaller = _pruned(model, about, batches, budget, declared(Prune, options, method))
        else:
            if method in ("low_rank", "falor"):
                edit, tensors = _factored(model, method, batches, budget, seed, state, options)
            elif named or isinstance(data, DataLoader):
                reading = {"skip_damaged": skip_damaged, "labels": labels}
                edit, tensors = _learned(
                    model, method, data, reading, seed, state, augment, machine or Machine(), options
                )
            else:
                raise DataError(f"{method} trains, so batches aren't enough: pass a data set, or its name")
            smaller = _rebuilt(model, replace(about, plan=dense.plan + Plan((edit,))), tensors)
            if not edit.layers and method in LOOSEN:
                log.warning("%s: no layer was decomposed; raise %s", method, LOOSEN[method])
    return alike_(smaller, given)


def suffix(method: str, budget: Budget | None) -> str:
    """What a compressed model's name ends in: the method and, of a budget, the share of the macs in percent."""
    kept = SUFFIXES.get(method, method)
    if budget is None:
        return kept
    share = 100 * budget.macs
    return f"{kept}_{share:.0f}" if share >= 1 else f"{kept}_{share:.1g}"


def check_method(method: str) -> None:
    """Check that this version can run a method.

    Raises:
        UnknownName: it can't, or there is none of that name.
    """
    if method not in AVAILABLE:
        raise UnknownName(f"no method {method!r}: this version compresses by {', '.join(AVAILABLE)}")


def calibration(
    model: nn.Module, data: Any, images: int = CALIBRATION_IMAGES, seed: int = 0, skip_damaged: bool = False
) -> list[Tensor]:
    """Batches of training images, drawn by a seed, as the model sees them in evaluation, [B, C, H, W]."""
    task = task_of(model)
    drawn = dataset(data, "train", limit=images, seed=seed, skip_damaged=skip_damaged)
    return [batch for batch, _ in task.loader(drawn, task.evaluation_transform(config_of(model)), 64)]


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


def learning(method: str, options: Mapping[str, Any]) -> tuple[lockd.Lockd | dwain.Dwain, Schedule]:
    """The declaration and the schedule of a method that trains.

    Args:
        method: `lockd` or `dwain`.
        options: as `compress` takes them; what is no method's own is left out.

    Raises:
        UnknownName: there is no such option.
    """
    kind, trains = (lockd.Lockd, lockd.SCHEDULE) if method == "lockd" else (dwain.Dwain, dwain.SCHEDULE)
    own = {key: value for key, value in options.items() if key not in ("schedule", "images", "seed", "augment")}
    schedule = declared(Schedule, {**asdict(trains), **options.get("schedule", {})}, f"{method}'s schedule")
    return declared(kind, own, method), schedule


def swapped(model: nn.Module) -> nn.Module:
    """The model with replacements where timm's own classes hard-code a width; it has copies of the weights.

    Raises:
        StructureError: the model doesn't say what it was made from.
    """
    description = describe(model)
    found = {path: blocks.SWAPS.get(blocks.class_name(module)) for path, module in model.named_modules()}
    classes = {path: name for path, name in found.items() if name}
    plan = description.plan + Plan((Swap(classes),)) if classes else description.plan
    return _rebuilt(model, replace(description, plan=plan), tensors_of(model))


def planned(model: nn.Module, analysis: Analysis, units: Sequence[Tensor]) -> nn.Module:
    """The model cut by a plan, on the meta device, with its description.

    Args:
        model: from `swapped`.
        analysis: of that model.
        units: of each group, those that stay [k].

    Raises:
        StructureError: the classes of the model can't be built so, or would compute something else.
    """
    description = describe(model)
    if rescaled(analysis, units):
        raise StructureError(f"{description.name}: heads whose width is their attention's scale can't be narrowed")
    edit = narrow(model, analysis, units)
    cut_model = skeleton_of(replace(description, plan=description.plan + Plan((edit,))))
    config = config_of(model)
    forward_on_meta(cut_model, config["input_size"])
    return cut_model


def _pruned(model: nn.Module, about: Description, batches: Sequence[Tensor], budget: Budget, how: Prune) -> nn.Module:
    """The pruned model: by a plan where what plans can cut meets the budget, else as a graph."""
    dense = swapped(model)
    computed = {path: (held, held.shape) for path, held in dense.named_buffers()}  # timm's convit grows one in forward
    image = batches[0][:2]
    whole = kept_whole(dense, how.exclude, "prune")
    try:
        analysis = checked(dense, image, partial(planned, dense), NO_PLAN, whole)
        found = prune(dense, analysis, batches, budget, how)
        smaller = planned(dense, analysis, found.units)
        off = _close(about, difference(dense, analysis, found.units, smaller, image))
        tensors, structure = found.tensors, replace(about, plan=describe(smaller).plan)
    except (BudgetError, StructureError) as error:
        analysis = checked(dense, image, whole=whole)
        found = prune(dense, analysis, batches, budget, how)  # or its own error says that no graph meets it either
        log.info("%s becomes a graph: by a plan, the %s", about.name, error)
        off = _close(about, graph_difference(dense, analysis, found.units, image))
        program = cut(analysis, found.units)
        graph, tensors = lift(program, {**program.constants, **found.tensors})
        smaller, structure = build(graph, about.name), replace(about, plan=Plan(), graph=graph)
    log.debug("prune: %d images went through the model; the cut is %.0e off the masked model", found.forwards, off)
    grown = {path for path, now in dense.named_buffers() if path in computed and now.shape != computed[path][1]}
    tensors = {**tensors, **{path: computed[path][0] for path in grown & set(tensors)}}
    return _filled(smaller, model, structure, tensors)


def _close(about: Description, off: float) -> float:
    if off > CLOSE:
        raise StructureError(f"{about.name}: the cut model is {off:.1e} off the masked dense one, expected {CLOSE:.0e}")
    return off


def _factored(
    model: nn.Module,
    method: str,
    batches: Sequence[Tensor],
    budget: Budget | None,
    seed: int,
    state: Path | None,
    options: Mapping[str, Any],
) -> tuple[Factor, dict[str, Tensor]]:
    """The factors that a method finds in calibration images."""
    if method == "falor":
        return falor.falor(model, batches, declared(falor.Falor, options, method), state=state)
    assert budget is not None
    return low_rank(model, batches, budget, declared(LowRank, {"seed": seed, **options}, method))


def _learned(
    model: nn.Module,
    method: str,
    data: Any,
    reading: Mapping[str, Any],
    seed: int,
    state: Path | None,
    augment: Mapping[str, Any] | None,
    machine: Machine,
    options: Mapping[str, Any],
) -> tuple[Factor, dict[str, Tensor]]:
    """The factors that a method learns."""
    weight = next(model.parameters())
    if weight.dtype != torch.float32:
        raise StructureError(f"{method} trains in float32, the model is {weight.dtype}: pass model.float()")
    how, schedule = learning(method, options)
    task, config = task_of(model), config_of(model)
    images, schedule = training_images(model, data, schedule, **reading)
    transform = task.training_transform(config, augment or {})
    epoch = epochs(task, images, transform, schedule, seed, machine)
    if isinstance(how, lockd.Lockd):
        return lockd.lockd(model, epoch, how, schedule, seed=seed, state=state, machine=machine)
    skip, labels = reading["skip_damaged"], reading["labels"]
    some = dataset(data, "train", limit=CALIBRATION_IMAGES, seed=seed, skip_damaged=skip)
    drawn = task.matched(some, model, data_name(data), labels)
    few = task.loader(drawn, task.evaluation_transform(config), 64)
    labelled = [(batch.to(weight.device), numbers.to(weight.device)) for batch, numbers in few]
    return dwain.dwain(model, labelled, epoch, how, schedule, seed=seed, state=state, machine=machine)


def _rebuilt(model: nn.Module, description: Description, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model of this description with these tensors, carrying the preprocessing of another."""
    return _filled(skeleton_of(description), model, description, tensors)


def _filled(smaller: nn.Module, model: nn.Module, description: Description, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A structure with values, carrying the preprocessing of the model that it was made from."""
    assign_(smaller, {path: tensor.detach().clone() for path, tensor in tensors.items()}, description.name)
    smaller.num_classes = model.num_classes
    configure_(smaller, config_of(model))
    attach_(smaller, description)
    return smaller.to(next(model.parameters()).device).eval()
