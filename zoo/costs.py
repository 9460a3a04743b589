"""What a training will cost: counted exactly, and timed on the machine that is to run it."""

import contextlib
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.measurement import measure
from zoo.tasks.classification import Transform, loader, workers_for
from zoo.training.hierarchy import Distil, seen, shares_of
from zoo.training.schedule import Machine, Schedule

SECONDS = 0.5  # how long a timing goes on
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Cost:
    """What a training costs.

    Args:
        steps: optimiser steps.
        batch_size: images of one step.
        forward: macs of the student's forward pass, of one image; the backward pass takes twice as many.
        teachers: macs of the teachers' forward passes, of one image, as they share the training out.
        images_per_s: that this machine trains on, all processes together.
        loaded_per_s: images that it could load meanwhile, all processes together.
    """

    steps: int
    batch_size: int
    forward: int
    teachers: int
    images_per_s: float
    loaded_per_s: float

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
            f"{self.steps:,} steps of {self.batch_size:,} images, GMACs of one: {', '.join((*parts, *taught))}, "
            f"{self.macs:.2g} MACs in all; {self.images_per_s:,.0f} images/s here, the loader alone "
            f"{self.loaded_per_s:,.0f}: about {time_here}"
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
) -> Cost | None:
    """Count and time a training before it begins.

    Args:
        model: the student, with `pretrained_cfg`; left as it was.
        teachers: from smaller to larger, with `pretrained_cfg`.
        data: what `dataset` returns.
        transform: of training images.
        schedule: how long.
        how: the declaration of the loss.
        machine: how it will run.
        processes: that train together.
        device: of this one.

    Returns:
        The cost; None for a stream without a number of steps.
    """
    machine, config = machine or Machine(), _config(model)
    per_epoch = len(data) // schedule.batch_size if hasattr(data, "__len__") else 0
    steps = min(schedule.epochs * per_epoch or schedule.steps or 0, schedule.steps or 2**62)
    if steps == 0:
        return None
    shares = shares_of(len(teachers), how or Distil()) if teachers else ()
    counts = [measure(teacher, _input(teacher, config)).macs for teacher in teachers]
    taught = sum(share * macs for share, macs in zip(shares, counts, strict=True))
    share = max(1, schedule.batch_size // processes)
    workers = workers_for(data) if machine.workers is None else machine.workers
    return Cost(
        steps,
        schedule.batch_size,
        measure(model).macs,
        round(taught),
        processes * _trained(model, teachers, shares, share, machine, torch.device(device)),
        processes * _loaded(data, transform, share, workers),
    )


def _config(model: nn.Module) -> Mapping[str, Any]:
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return config


def _input(teacher: nn.Module, student: Mapping[str, Any]) -> Sequence[int]:
    """Channels, height and width that a teacher gets."""
    own = _config(teacher)
    size: Sequence[int] = (own if own.get("fixed_input_size") else student)["input_size"]
    return size


def _trained(
    model: nn.Module,
    teachers: Sequence[nn.Module],
    shares: Sequence[float],
    most: int,
    machine: Machine,
    device: torch.device,
) -> float:
    """Images a second of one process, from batches that double until one takes long enough."""
    config, student = _config(model), copy.deepcopy(model).to(device).train()
    dtype = _DTYPES.get(machine.precision or "no")
    autocast = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()
    most, size, seconds = max(2, most // machine.accumulation), 1, 0.0
    # The first pass pays for what is set up once; batch norm refuses a batch of one image.
    while seconds < SECONDS and size < most:
        size = min(2 * size, most)
        images = torch.zeros(size, *config["input_size"], device=device)
        with autocast:
            seconds = _seconds(device, lambda images=images: student(images).sum().backward())
            for share, teacher in zip(shares, teachers, strict=True):
                view = seen(images, config, _config(teacher))
                with torch.no_grad():
                    teacher.to(device)
                    seconds += share * _seconds(device, lambda view=view, teacher=teacher: teacher(view))
    return size / max(seconds, 1e-9)


def _seconds(device: torch.device, work: Any) -> float:
    started = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def _loaded(data: Any, transform: Transform, batch: int, workers: int) -> float:
    """Images a second that one process's loader gives, the start of its workers left out where it can be."""
    started, loaded = time.perf_counter(), 0
    for index, (images, _) in enumerate(loader(data, transform, batch, epoch=0, workers=workers)):
        if index == 1 and workers:
            started, loaded = time.perf_counter(), 0
        loaded += len(images)
        if index and time.perf_counter() - started > SECONDS * (1 + workers):  # what lay ready mustn't decide
            break
    return loaded / (time.perf_counter() - started)
