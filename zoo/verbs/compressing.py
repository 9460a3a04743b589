"""`compress`: a model in, a smaller model out."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.catalog.data_names import data_name
from zoo.catalog.entry import Budget
from zoo.catalog.methods import CALIBRATION_IMAGES, METHODS, Apart, check_last, check_task, suffix, unknown_option
from zoo.compression import Given, algorithm
from zoo.compression.calibration import batched, check_finite, parted
from zoo.compression.keeping import alike_, rebuilt, single
from zoo.compression.latency import reached
from zoo.compression.refinement import refine_
from zoo.declarations import validated
from zoo.errors import BudgetError, DataError, StructureError
from zoo.measurement.divergence import as_one
from zoo.measurement.latency import processor
from zoo.measurement.macs import Counts, input_size, like_images, measure, unchanged, unwrapped
from zoo.printable import logger, told
from zoo.structure.changed import compared
from zoo.structure.describing import describe, described
from zoo.structure.description import Description, config_of, configure_, description_of
from zoo.structure.graph.capture import check_parameters, check_values
from zoo.structure.graph.certificate import check_floats
from zoo.structure.tensors import tensors_of
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset
from zoo.tasks.objects import is_set
from zoo.tasks.task import Labels
from zoo.training.schedule import Machine, Schedule
from zoo.verbs import licences
from zoo.verbs.distilling import epochs, training_images

log = logger(__name__)

COSTED = 8  # images, that tell what one costs
LITTLE = 0.99  # of the macs, that are left of a model which is hardly smaller


@told()
@torch.inference_mode(False)  # gradients, whatever the caller's mode
def compress(
    model: nn.Module,
    *,
    budget: float | Budget | None = None,
    data: Any = None,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    method: str = "prune",
    images: int = CALIBRATION_IMAGES,
    seed: int = 0,
    state: Path | None = None,
    schedule: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    calibrate_steps: int = 0,
    example: Sequence[int] | Tensor | None = None,
    rounds: int = 1,
    latency_ms: float | None = None,
    timed_on: str = "",
    **options: Any,
) -> nn.Module:
    """Compress a model.

    Args:
        model: from `zoo.load` or timm, dense or compressed before, or any module that `torch.export` takes, which
            becomes a graph; left as it was.
        budget: share of its macs that stays, 0..1, or shares of macs and params, for methods that work to one
            (`prune`, `low_rank`); the others have thresholds instead.
        data: calibration images: a data set as `--data` takes it, a Dataset of `datasets` or torch, arrays (images,
            labels), or batches [B, C, H, W] of the model's input size, with labels or without, or one such batch. A
            method that trains (`lockd`, `dwain`) needs a data set, or batches with labels; `magnitude` looks at none.
        skip_damaged: leave out images that can't be decoded.
        labels: {class of the data: class of the model}, or the names of the model's classes in order.
        method: one of `zoo.catalog.methods.available()`.
        images: how many of the data set are looked at.
        seed: of what is random.
        state: a file to resume from, for a method that takes long.
        schedule: fields of the schedule that differ from the method's own, for a method that trains.
        augment: keyword arguments of timm's training transform, for a method that trains.
        machine: how a method that trains runs here.
        calibrate_steps: of distillation on the calibration images alone that follow, without labels, as
            `zoo.compression.refinement` says; one image in four is then held back, which the method doesn't see either,
            but for one that trains, which sees the whole data set.
        example: of a module that says nothing of its images: their channels, height, width, or some of them
            [B, C, H, W].
        rounds: of a method that works to a budget: it begins anew so often, each time with what is left of the model,
            and with the same share of that to keep. Without training between them this was no gain where it was
            measured: MobileNetV2 at 74 % of its macs had 71.2 % of ImageNet's sample right after one round and 67.6 %
            after three, `digits_vit` at 25 % pruned 94.0 and 92.4 %, of another draw 95.8 and 96.0 %, factored 97.6 and
            96.7 %.
        latency_ms: in place of a budget, milliseconds that one image may take on this machine, with as many threads as
            torch has, as `zoo.compression.latency` says.
        timed_on: which machine that is; the recipe says it.
        options: fields of the method's declaration (`zoo.compression.prune.prune.Prune`, ...) that differ from its
            defaults.

    Returns:
        A new model in eval mode, with `zoo_entry`; `save` writes it, `changes` tells what became of each layer. What
        was done, and at what cost, is logged: to stderr, where no logging is configured.

    Raises:
        UnknownName: no such method or option.
        BudgetError: the budget can't be met, is missing, or means nothing to the method.
        DataError, StructureError: an argument, the images or the model can't be used.
    """
    schedule, augment = ({} if said is None else said for said in (schedule, augment))
    apart = Apart(images, seed, schedule, augment, calibrate_steps, rounds, latency_ms, timed_on)
    how, own = declarations(method, {**options, **structs.asdict(apart)})
    budget = checked_budget(method, budget, latency_ms, rounds)
    check_last(method, 0, calibrate_steps)
    if data is None and (METHODS[method].looks or calibrate_steps):
        raise DataError(
            f"{method if METHODS[method].looks else 'calibrate'} looks at images: pass data, such as a folder"
        )
    original, dense = _checked(model, method, example)
    carried = description_of(unwrapped(model)) is not None
    dense, held = licences.judged(original, dense, carried)
    dense_model = original if own else single(original)
    about = _about(dense, dense_model, method, budget, apart, options)
    meaning = task_of(dense_model).meaning(dense_model, input_size(dense_model))
    far = meaning.divergence, meaning.fisher
    given = Given(dense_model, about, how, (), budget, seed, state, *far, schedule=own, machine=machine)
    read: dict[str, Any] = {"skip_damaged": skip_damaged, "labels": labels}
    if own:
        given = _learning(given, data, images, augment, read)
    elif data is not None:
        given = _looking(given, data, images, skip_damaged)
    smaller = alike_(_run(given, apart), original)
    configure_(smaller, licences.claims(config_of(smaller), held, carried))
    return smaller


def _about(
    dense: Description, model: nn.Module, method: str, budget: Budget | None, apart: Apart, options: Mapping[str, Any]
) -> Description:
    """What is known of a smaller model before it is made: its name, and the recipe, which tells what is unusual."""
    said, usual = structs.asdict(apart), structs.asdict(Apart())
    said |= {"timed_on": apart.timed_on or processor(like_images(model).device)} if apart.latency_ms else {}
    unusual = {key: value for key, value in said.items() if value != usual[key]}
    recipe: dict[str, Any] = {"method": method, "options": {**options, **unusual}}
    recipe |= {} if budget is None else {"budget": structs.asdict(budget)}
    recipe |= {"base_method": former} if (former := dense.recipe.get("method")) else {}
    recipe |= {"converted_from": came} if (came := dense.recipe.get("converted_from")) else {}
    return replace(dense, name=f"{dense.name}_{suffix(method, budget, apart.latency_ms)}", recipe=recipe, source="")


def _run(given: Given, apart: Apart) -> nn.Module:
    """What the method makes of the model, at its budget or as fast as asked for; what came of it is told."""
    model, method = given.model, given.description.recipe["method"]

    def made(budget: Budget | None) -> nn.Module:
        asked, steps = replace(given, budget=budget), apart.calibrate_steps
        return _refined(asked, steps, apart.rounds) if steps else _in_rounds(asked, apart.rounds)

    with unchanged(model):
        _say_cost(given, apart.rounds)
        smaller = made(given.budget) if apart.latency_ms is None else _as_fast(given, apart.latency_ms, made)
    log.info("%s", compared(model, smaller))
    if advice := METHODS[method].advice:
        _say_if_little(method, measure(smaller).macs / measure(model).macs, _shapes(smaller) == _shapes(model), advice)
    return smaller


def _checked(model: nn.Module, method: str, example: Sequence[int] | Tensor | None) -> tuple[nn.Module, Description]:
    """A model without what wraps it, and its description, both such as the method can use."""
    check_parameters(unwrapped(model))
    check_floats(unwrapped(model), "compressed")
    check_values(unwrapped(model))
    check_finite(unwrapped(model))
    original, dense = described(model, example=example)
    check_task(method, dense.task)
    return original, dense


def declarations(method: str, options: Mapping[str, Any]) -> tuple[Any, Schedule | None]:
    """A method's declaration and the schedule that it trains by, None where it doesn't train.

    Args:
        method: its name.
        options: fields of its declaration that differ from the defaults, and of `Apart`.

    Raises:
        UnknownName: this version has no such method, or that has no such option.
        DataError: an option isn't of its type.
    """
    chosen, names = algorithm(method), Apart.__struct_fields__
    said = {key: value for key, value in options.items() if key in names}
    schedule = validated(Apart, said, f"{method}:", DataError).schedule
    own = {key: value for key, value in options.items() if key not in names}
    if chosen.schedule is None and schedule:
        own["schedule"] = schedule  # which no declaration has
    how = declared(chosen.declaration, own, method)
    if chosen.schedule is None:
        return how, None
    return how, declared(Schedule, {**asdict(chosen.schedule), **schedule}, f"{method}'s schedule")


def checked_budget(
    method: str, budget: float | Budget | None, latency_ms: float | None = None, rounds: int = 1
) -> Budget | None:
    """A budget, which is there just where the method works to one and no latency is asked for in its place.

    Raises:
        BudgetError: it is missing, or means nothing to the method, or rounds are to go to none.
    """
    if not METHODS[method].budgeted and rounds > 1:
        raise BudgetError(f"{method} takes no rounds: it has thresholds, and no budget to go towards")
    if latency_ms is not None and (budget is not None or not METHODS[method].budgeted):
        instead = "a budget is given too: leave one of them out" if budget is not None else f"{method} has thresholds"
        raise BudgetError(f"latency of {latency_ms} ms: {instead}")
    if METHODS[method].budgeted and budget is None and latency_ms is None:
        raise BudgetError(f"{method} needs a budget: the share of the macs that stays")
    if not METHODS[method].budgeted and budget is not None:
        own = [field.name for field in dataclasses.fields(algorithm(method).declaration)]
        raise BudgetError(f"{method} takes no budget, as it has thresholds: set {', '.join(own)}")
    return budget if budget is None or isinstance(budget, Budget) else Budget(budget)


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
            raise unknown_option(where, key, known)
    return kind(**options)


def _looking(given: Given, data: Any, images: int, skip_damaged: bool) -> Given:
    """With images for a method that trains nothing."""
    if isinstance(data, str) or is_set(data):
        data = calibration(given.model, data, images, given.seed, skip_damaged)
    return replace(given, batches=batched(given.model, data))


def _learning(given: Given, data: Any, images: int, augment: Mapping[str, Any], read: Mapping[str, Any]) -> Given:
    """With images and their classes, and with epochs, for a method that trains."""
    model, method = given.model, given.description.recipe["method"]
    labelled = isinstance(data, list) and all(isinstance(each, list | tuple) and len(each) == 2 for each in data)
    if not (isinstance(data, str | DataLoader) or is_set(data) or labelled):
        raise DataError(f"{method} trains, so batches without labels aren't enough: pass a data set, or its name")
    weight, config, task = next(model.parameters()), config_of(model), task_of(model)
    machine = given.machine or Machine()
    if weight.dtype != torch.float32:
        raise StructureError(f"{method} trains in float32, the model is {weight.dtype}: pass model.float()")
    assert given.schedule is not None
    trained_on, schedule = training_images(model, data, given.schedule, **read)
    epoch = epochs(task, trained_on, task.training_transform(config, augment), schedule, given.seed, machine)
    drawn = dataset(data, "train", limit=images, seed=given.seed, skip_damaged=read["skip_damaged"])
    known = task.matched(drawn, model, data_name(data), read["labels"])
    few = list(task.loader(known, task.evaluation_transform(config), 64))
    batches = batched(model, [batch for batch, _ in few])
    labels = torch.cat([classes for _, classes in few]).to(weight.device).split([len(batch) for batch in batches])
    return replace(given, batches=batches, labels=labels, epoch=epoch, schedule=schedule)


def _smaller(given: Given) -> nn.Module:
    description, tensors = algorithm(given.description.recipe["method"]).run(given)
    return rebuilt(given.model, description, tensors)


def _say_cost(given: Given, rounds: int) -> None:
    """Say how long a method takes here, by what one pass over some images does."""
    method, images = given.description.recipe["method"], sum(map(len, given.batches))
    if (passes := METHODS[method].passes) is None:
        return
    some = given.batches[0][:COSTED]
    with torch.no_grad():
        given.model(some)  # pays for what is set up once
        begun = time.perf_counter()
        as_one(given.model(some)).sum().item()
    whole = rounds * images * (time.perf_counter() - begun) / len(some)
    log.info("%s: %d images, some %.2g to %.2g s here", method, images, *(count * whole for count in passes))


def _as_fast(given: Given, ms: float, made: Callable[[Budget], nn.Module]) -> nn.Module:
    """What a method makes of a model that takes so long here."""
    rough = algorithm(given.description.recipe["method"]).rough
    assert rough is not None
    return reached(
        given.model, ms, rough(given.model, given.batches[0][:2], given.how), lambda share: made(Budget(share))
    )


def _in_rounds(given: Given, rounds: int) -> nn.Module:
    """What a method leaves after so many rounds, the i-th towards budget^(i/rounds)."""
    dense, model = measure(given.model), given.model
    for number in range(1, rounds):
        assert given.budget is not None
        part = _part(given.budget, number / rounds, dense, measure(model))
        model = _smaller(replace(given, model=model, budget=part))
        given = replace(given, description=describe(model))
        log.info("round %d of %d: %.1f %% of the macs are left", number, rounds, 100 * measure(model).macs / dense.macs)
    last = given.budget and _part(given.budget, 1.0, dense, measure(model))
    return _smaller(replace(given, model=model, budget=last))


def _part(budget: Budget, part: float, dense: Counts, now: Counts) -> Budget:
    """What a model may keep that is to become a part of the way to a budget smaller than the dense one."""
    macs = budget.macs**part * dense.macs / now.macs
    params = budget.params and budget.params**part * dense.params / now.params
    return Budget(min(macs, 1.0), params and min(params, 1.0))


def _refined(given: Given, steps: int, rounds: int) -> nn.Module:
    """What a method makes of the images that aren't held back, nearer to the dense model if they help."""
    shown, held = parted(given.batches)
    smaller = _in_rounds(given if given.labels else replace(given, batches=shown), rounds)  # labels go by the batches
    where: dict[str, Any] = {"far": given.divergence, "seed": given.seed, "machine": given.machine}
    before, after = refine_(smaller, given.model, shown, held, steps, **where)
    images = sum(map(len, held))
    if after < before:
        log.info("calibrate: %.4g nats, before %.4g, on %d images held back", after, before, images)
    else:
        log.warning("calibrate: the model stays as it was, %.4g nats on %d images held back", before, images)
    return smaller


def _say_if_little(method: str, left: float, same: bool, advice: str) -> None:
    """Say what to change where a method left a model as it was, or hardly smaller."""
    if same:
        log.warning("%s: no layer was decomposed; %s", method, advice)
    elif left > LITTLE:
        log.warning("%s: %.1f %% of the macs are left; %s", method, 100 * left, advice)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {path: tensor.shape for path, tensor in tensors_of(model).items()}
