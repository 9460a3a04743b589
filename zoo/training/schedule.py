"""Schedule and Machine: what a recipe says of a training, and what only the machine that runs it cares about."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from zoo.declarations import Count, Nonnegative, Whole, one_of, validate
from zoo.errors import DataError

PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Args:
        epochs: passes over the data.
        steps: optimiser steps at most; what a stream without a length needs.
        batch_size: images of one optimiser step, over all processes: a recipe takes the same steps on any number.
        lr: the highest learning rate of AdamW, reached after the warm-up.
        warmup: share of the steps in which it rises linearly; then it falls along a cosine to zero.
        weight_decay: of tensors with two or more dimensions.
        clip: largest norm of the gradient; 0 leaves it as it is.
        ema: decay d of the average θ̄ ← d·θ̄ + (1 - d)·θ that is evaluated and returned in place of the weights; 0: none.
        checkpoint_seconds: at most so much work is lost when the run is killed.
    """

    epochs: Whole = 30
    steps: Count | None = None
    batch_size: Count = 64
    lr: Nonnegative = 1e-3
    warmup: Nonnegative = 0.05
    weight_decay: Nonnegative = 0.05
    clip: Nonnegative = 1.0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    checkpoint_seconds: Annotated[float, Meta(ge=0)] = 20.0

    def __post_init__(self) -> None:
        validate(self, "schedule", DataError)


@dataclass(frozen=True)
class Machine:
    """How training runs here; no recipe names it.

    A state is resumed on another machine: only `precision` must be the same, because it decides what is computed. The
    others change rounding at most, but for batch norm, whose statistics are those of one part of a process's share, and
    with `sync_bn` those of all processes' parts.

    Args:
        precision: `no`, `fp16` or `bf16`; None takes what `accelerate launch --mixed_precision` said.
        accumulation: parts that a process's share of a batch is computed in, where memory is scarce. Of a detector's
            all but the first are seen twice, as the batch's weight must be known before gradients are taken.
        channels_last: keep images and convolutions in that order, which tensor cores want.
        compile: `torch.compile` the model.
        workers: processes that load images for each training process; None takes a core each where it is worth it.
        log_with: a tracker that accelerate knows (`tensorboard`, `trackio`, ...), or one's own; None logs nowhere.
        logs: the folder of trackers that write files.
        sync_bn: batch norm's statistics are those of all processes, which exchange them; on GPUs alone.
    """

    precision: Annotated[str, one_of(PRECISIONS)] | None = None
    accumulation: Count = 1
    channels_last: bool = False
    compile: bool = False
    workers: Whole | None = None
    log_with: Any = None
    logs: str = "logs"
    sync_bn: bool = False

    def __post_init__(self) -> None:
        validate(self, "machine", DataError)


def check_shares(schedule: Schedule, processes: int) -> None:
    """Check that processes can share batches.

    Raises:
        DataError: not equally.
    """
    if schedule.batch_size % processes:
        raise DataError(
            f"train: {processes} processes can't share {schedule.batch_size} images equally; start another number of "
            "them"
        )


def steps_of_epochs(schedule: Schedule, per_epoch: int) -> int:
    """The steps of a training, of so many an epoch."""
    total = schedule.epochs * per_epoch
    return min(total, schedule.steps or total)


def learning_rate(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine to zero.

    >>> [round(learning_rate(Schedule(lr=1.0, warmup=0.5), step, 4), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = max(1, round(schedule.warmup * total)) if schedule.warmup else 0
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
