"""What a training will cost: counted exactly, and timed on the machine that is to run it."""

import contextlib
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.catalog.entry import Recipe, reading
from zoo.compression import Trained, algorithm
from zoo.compression.refinement import SCHEDULE
from zoo.measurement.divergence import as_one
from zoo.measurement.macs import like_images, measure
from zoo.structure.description import config_of
from zoo.tasks import task_of
from zoo.tasks.loader import Transform, workers_for
from zoo.tasks.task import Task
from zoo.training.distillation import Distil, shares_of
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.distilling import training_images, training_of
from zoo.verbs.recipes import declarations_of, distillation_of

SECONDS = 0.5  # how long a timing goes on
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingCost:
    """What a training costs.

    Args:
        steps: optimiser steps.
        batch_size: images of one step.
        forward: macs of the student's forward pass, of one image; the backward pass takes twice as many.
        teachers: macs of the teachers' forward passes, of one image, as they share the training out.
        images_per_s: that this machine trains on, all processes together.
        loaded_per_s: images that it could load meanwhile, all processes together.
        compiled: `torch.compile` will be on, which was timed without.
        at_most: it may be fewer steps.
    """

    steps: int
    batch_size: int
    forward: int
    teachers: int
    images_per_s: float
    loaded_per_s: float
    compiled: bool = False
    at_most: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole training."""
        return self.steps * self.batch_size * (3 * self.forward + self.teachers)

    @property
    def seconds(self) -> float:
        """About how long it takes here: whichever is slower decides, training or loading."""
        return self.steps * self.batch_size / min(self.images_per_s, self.loaded_per_s)

    def __str__(self) -> str:
        time_here = f"{self.seconds:,.0f} s" if self.seconds < 7200 else f"{self.seconds / 3600:,.0f} h"
        parts = (f"{self.forward / 1e9:.3g} forward", f"{2 * self.forward / 1e9:.3g} backward")
        taught = (f"{self.teachers / 1e9:.3g} of the teachers",) if self.teachers else ()
        return (
            f"{'at most ' * self.at_most}{self.steps:,} steps of {self.batch_size:,} images, GMACs of one: "
            f"{', '.join((*parts, *taught))}, "
            f"{self.macs:.2g} MACs in all; {self.images_per_s:,.0f} images/s here, the loader alone "
            f"{self.loaded_per_s:,.0f}: about {time_here}{', without torch.compile and its warm-up' * self.compiled}"
        )


def cost(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    data: Any,
    transform: Transform,
    schedule: Schedule,
    *,
    how: Distil | None = None,
    machine: Machine | None = None,
    processes: int = 1,
    device: torch.device | str = "cpu",
) -> TrainingCost | None:
    """Count and time a training before it begins.

    Args:
        model: the student, with `pretrained_cfg`; left as it was.
        teachers: from smaller to larger, with `pretrained_cfg`.
        data: images to train on, with a length.
        transform: of training images.
        schedule: how long.
        how: the declaration of the loss.
        machine: how it will run.
        processes: that train together.
        device: of this one.

    Returns:
        The cost; None of no steps.
    """
    machine, steps = machine or Machine(), _steps(data, schedule)
    if steps is None:
        return None
    shares = shares_of(len(teachers), how or Distil()) if teachers else ()
    config = config_of(model)
    counts = [measure(teacher).macs for teacher in teachers]
    taught = sum(share * macs for share, macs in zip(shares, counts, strict=True))
    share = max(1, schedule.batch_size // processes)
    student = copy.deepcopy(model).to(device).train()
    trained = _trained(student, config, teachers, shares, share, machine, torch.device(device))
    return TrainingCost(
        steps,
        schedule.batch_size,
        measure(model).macs,
        round(taught),
        processes * trained,
        processes * _loaded(task_of(model), data, transform, share, machine),
        machine.compile,
    )


def cost_of_learning(
    model: nn.Module,
    trained: Callable[[nn.Module, Tensor, Any], Trained],
    how: Any,
    data: Any,
    transform: Transform,
    schedule: Schedule,
    *,
    machine: Machine | None = None,
    processes: int = 1,
    device: torch.device | str = "cpu",
) -> TrainingCost | None:
    """Count and time what a method trains before the structure is known.

    `trained` is the method's, as `Algorithm` has it, `how` its declaration; the other arguments are those of `cost`.
    Where the dense model runs beside what is trained, it is the teacher.

    Raises:
        StructureError, UnknownName: as the method does.
    """
    machine, steps, size = machine or Machine(), _steps(data, schedule), config_of(model)["input_size"]
    if steps is None:
        return None
    counted = learning_macs(model, trained, how)
    dense, device = copy.deepcopy(model).eval(), torch.device(device)
    image = torch.zeros(2, *size, dtype=like_images(dense).dtype)
    student = trained(dense.to(device), image.to(device), how).student.to(device).train()
    share = max(1, schedule.batch_size // processes)
    return TrainingCost(
        counted.times * steps,
        schedule.batch_size,
        counted.forward,
        counted.beside,
        processes * _trained(student, config_of(model), (), (), share, machine, device),
        processes * _loaded(task_of(model), data, transform, share, machine),
        machine.compile,
        counted.at_most,
    )


@dataclass(frozen=True)
class Learning:
    """What a method trains: how many times over, macs of what is trained and of what runs beside it, of one image."""

    times: int
    forward: int
    beside: int
    at_most: bool


def learning_macs(model: nn.Module, trained: Callable[[nn.Module, Tensor, Any], Trained], how: Any) -> Learning:
    """Count what a method trains before the structure is known; arguments as for `cost_of_learning`."""
    size, dense = config_of(model)["input_size"], copy.deepcopy(model).eval()
    image = torch.zeros(2, *size, dtype=like_images(dense).dtype, device="meta")
    with torch.device("meta"):
        counted = trained(dense.to("meta"), image, how)
    beside = measure(model).macs if counted.beside else 0
    return Learning(counted.times, measure(counted.student, size).macs - beside, beside, counted.at_most)


def training_costs(model: nn.Module, teachers: Sequence[nn.Module], recipe: Recipe, machine: Machine, here: Any) -> str:
    """What a recipe's training does, and what it costs, in a line.

    Args:
        model: the student.
        teachers: the recipe's.
        recipe: what is done.
        machine: how it will run.
        here: accelerate's `PartialState`.

    Raises:
        UnknownName, DataError: the recipe can't be followed.
    """
    (schedule, how), data, read = distillation_of(recipe), recipe.data, reading(recipe)
    training = training_of(model, teachers, data, how=how, schedule=schedule, augment=recipe.augment, **read)
    where: Any = {"machine": machine, "processes": here.num_processes, "device": here.device}
    costs = cost(model, teachers, training.images, training.transform, training.schedule, how=how, **where)
    doing = f"distil from {', '.join(recipe.teachers)}" if teachers else "train"
    long = f"{schedule.epochs} epochs of " if schedule.steps is None or schedule.epochs < schedule.steps else ""
    return f"{doing}, {long}{data}{f': {costs}' if costs else ''}"


def learning_costs(base: nn.Module, recipe: Recipe, machine: Machine, here: Any) -> str:
    """What a recipe's method is, and what it costs where it trains, in a line; arguments as for `training_costs`."""
    return _method_costs(base, recipe, machine, here) + _calibration_costs(base, recipe, machine, here)


def _calibration_costs(base: nn.Module, recipe: Recipe, machine: Machine, here: Any) -> str:
    """What the calibration that may follow costs at most: the smaller model isn't known yet."""
    steps, size = recipe.options.get("calibrate_steps", 0), SCHEDULE.batch_size
    if not steps:
        return ""
    config, share = config_of(base), max(1, size // here.num_processes)
    speed = here.num_processes * _trained(
        copy.deepcopy(base).to(here.device), config, (base,), (1.0,), share, machine, here.device
    )
    return f"; then calibrate, {steps:,} steps of {size} images: at most about {steps * size / speed:,.0f} s here"


def _method_costs(base: nn.Module, recipe: Recipe, machine: Machine, here: Any) -> str:
    if recipe.method is None:
        return "initialise"
    trained, (how, schedule) = algorithm(recipe.method).trained, declarations_of(recipe)
    if trained is None or schedule is None or not schedule.epochs:
        return recipe.method
    transform = task_of(base).training_transform(config_of(base), recipe.augment)
    where: Any = {"machine": machine, "processes": here.num_processes, "device": here.device}
    images, schedule = training_images(base, recipe.data, schedule, **reading(recipe))
    costs = cost_of_learning(base, trained, how, images, transform, schedule, **where)
    return f"{recipe.method}: {costs}" if costs else recipe.method


def _steps(data: Any, schedule: Schedule) -> int | None:
    """Steps in all; None where there are none."""
    total = schedule.epochs * (len(data) // schedule.batch_size)
    return min(total, schedule.steps or total) or None


@torch.random.fork_rng(devices=[])
def _trained(
    student: nn.Module,
    config: Mapping[str, Any],
    teachers: Sequence[nn.Module],
    shares: Sequence[float],
    most: int,
    machine: Machine,
    device: torch.device,
) -> float:
    """Images a second of one process, from batches that double until one takes long enough."""
    dtype = _DTYPES.get(machine.precision or "no")
    autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    most = max(2, most // machine.accumulation)  # batch norm refuses a batch of one image

    def timed(size: int) -> float:
        images = torch.zeros(size, *config["input_size"], device=device)
        with autocast:
            seconds = _seconds(device, lambda: as_one(student(images)).sum().backward())
            for share, teacher in zip(shares, teachers, strict=True):
                view = torch.zeros(size, *config_of(teacher)["input_size"], device=device)
                with torch.no_grad():
                    teacher.to(device)
                    seconds += share * _seconds(device, partial(teacher, view))
        return seconds

    timed(2)  # pays for what is set up once
    size, seconds = 2, timed(2)
    while seconds < SECONDS and size < most:
        size = min(2 * size, most)
        seconds = timed(size)
    return size / max(seconds, 1e-9)


def _seconds(device: torch.device, work: Any) -> float:
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def _loaded(task: Task, data: Any, transform: Transform, batch: int, machine: Machine) -> float:
    """Images a second that one process's loader gives, the start of its workers left out where it can be."""
    workers = workers_for(data) if machine.workers is None else machine.workers
    begun, loaded = time.perf_counter(), 0
    for index, (images, _) in enumerate(task.loader(data, transform, batch, epoch=0, workers=workers)):
        if index == 1 and workers:
            begun, loaded = time.perf_counter(), 0
        loaded += len(images[0] if isinstance(images, list) else images)
        if index and time.perf_counter() - begun > SECONDS * (1 + workers):  # what lay ready mustn't decide
            break
    return loaded / (time.perf_counter() - begun)
