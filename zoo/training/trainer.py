"""The one training loop, over accelerate.

Methods differ in `step` and `schedule`, not in the loop. Every random choice is a function of (seed, step) or of
(seed, epoch, sample), and the state is written whole or not at all: a run killed at any moment and started again ends
in the same weights, bit for bit at the same number of threads and processes.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zoo.errors import DataError, StorageError, require
from zoo.files import writing
from zoo.structure import base
from zoo.training.hierarchy import Step


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Args:
        epochs: passes over the data.
        steps: optimiser steps at most; what a stream without a length needs.
        batch_size: images of one step and process.
        lr: the highest learning rate of AdamW, reached after the warm-up.
        warmup: share of the steps in which it rises linearly; then it falls along a cosine to zero.
        weight_decay: of tensors with two or more dimensions.
        clip: largest norm of the gradient; 0 leaves it as it is.
        checkpoint_seconds: at most so much work is lost when the run is killed.
    """

    epochs: int = 30
    steps: int | None = None
    batch_size: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        least = {"epochs": 0, "steps": 1, "batch_size": 1, "lr": 0, "warmup": 0, "weight_decay": 0, "clip": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            whole = name in ("epochs", "steps", "batch_size")
            if value is None and name == "steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= smallest:
                kind = "whole number" if whole else "number"
                raise DataError(f"schedule: {name} is {value!r}, expected a {kind} of at least {smallest}")


def train(
    model: nn.Module,
    step: Step,
    data: Callable[[int], Any],
    schedule: Schedule,
    *,
    seed: int = 0,
    state: Path | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    progress: str = "train",
) -> nn.Module:
    """Train a model in place.

    Args:
        model: its parameters that require gradients are trained; parameters and buffers are what the state holds.
        step: (model, batch, progress 0..1) → loss.
        data: epoch → loader of that epoch; the same epoch always gives the same batches.
        schedule: how long and how fast.
        seed: of what is random inside the model (dropout).
        state: a file to resume from and to write to; None keeps none.
        evaluate: called after each epoch, on every process; its figures are shown in the progress bar.
        progress: what the progress bar says.

    Returns:
        The same model in eval mode, on accelerate's device.

    Raises:
        DataError: the data is empty, the loss isn't finite, or the state belongs to another run.
        StorageError: the state can't be written.
    """
    # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs.
    cpu = not torch.accelerator.is_available()
    accelerator = require("accelerate", "eval").Accelerator(cpu=cpu, step_scheduler_with_optimizer=False)
    tqdm = require("tqdm", "eval").tqdm
    total, per_epoch = _length(accelerator, data, schedule)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr)
    run = json.dumps({**asdict(schedule), "total": total, "seed": seed, "processes": accelerator.num_processes})
    done = _resume_(state, run, model, optimizer) if state and state.exists() else 0
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    optimizer.zero_grad()
    written = time.monotonic()
    bar = tqdm(total=total, initial=done, desc=progress, unit="step", disable=_quiet(accelerator), leave=False)
    with torch.random.fork_rng(devices=[]), bar:
        for batch in _batches(accelerator, data, done, total, per_epoch):
            wrapped.train()
            # Hashed, because torch's generator on the CPU looks at the lowest 32 bits alone.
            digest = hashlib.sha256(f"{seed} {done} {accelerator.process_index}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:4]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, done, total)
            loss = step(wrapped, batch, done / total)
            if not torch.isfinite(loss):
                raise DataError(f"{progress}: the loss is {loss.item()} at step {done}; lower the learning rate")
            accelerator.backward(loss)
            if schedule.clip > 0:
                accelerator.clip_grad_norm_(wrapped.parameters(), schedule.clip)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            bar.update()
            due = done == total or time.monotonic() - written >= schedule.checkpoint_seconds
            if state and due and accelerator.is_main_process:
                _write_state(state, run, model, optimizer.optimizer, done)
                written = time.monotonic()
            if evaluate and done % per_epoch == 0:
                bar.set_postfix(evaluate())
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:  # running statistics are each process's own; the state holds the first one's
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return model.eval()


def learning_rate(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate of a step: linear warm-up, then a cosine to zero.

    >>> [round(learning_rate(Schedule(lr=1.0, warmup=0.5), step, 4), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = max(1, round(schedule.warmup * total)) if schedule.warmup else 0
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _length(accelerator: Any, data: Callable[[int], Any], schedule: Schedule) -> tuple[int, int]:
    """Steps in all, and steps of one epoch."""
    loader = accelerator.prepare_data_loader(data(0))
    try:
        per_epoch = len(loader)
    except TypeError:
        if schedule.steps is None:
            raise DataError("train: a stream has no length; set the schedule's steps") from None
        return schedule.steps, schedule.steps
    if per_epoch == 0:
        raise DataError(f"train: not one whole batch of {schedule.batch_size} images; lower the batch size")
    total = schedule.epochs * per_epoch
    return min(total, schedule.steps or total), per_epoch


def _batches(accelerator: Any, data: Callable[[int], Any], done: int, total: int, per_epoch: int) -> Iterator[Any]:
    """The batches that are left, epoch after epoch."""
    epoch, skipped = divmod(done, per_epoch)
    left = total - done
    while left > 0:
        loader = accelerator.prepare_data_loader(data(epoch))
        if skipped:
            loader = accelerator.skip_first_batches(loader, skipped)
        count = 0
        for batch in loader:
            if left == 0:
                return
            yield batch
            left, count = left - 1, count + 1
        if count == 0:
            raise DataError(f"train: epoch {epoch} has no batches")
        epoch, skipped = epoch + 1, 0


def _write_state(path: Path, run: str, model: nn.Module, optimizer: torch.optim.Optimizer, done: int) -> None:
    tensors = {f"model.{name}": value for name, value in base.tensors(model).items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"run": run, "step": str(done)})
    with writing(path) as file:
        file.write(data)


def _resume_(path: Path, run: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StorageError(0, f"{path} can't be resumed from ({error}); remove it to start again") from None
    held = base.tensors(model)
    if metadata.get("run") != run or {k for k in tensors if k.startswith("model.")} != {f"model.{k}" for k in held}:
        raise DataError(f"{path} belongs to another run; remove it to start again")
    with torch.no_grad():
        for name, value in held.items():
            value.copy_(tensors[f"model.{name}"])
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer.{index}."
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if found:
            optimizer.state[parameter] = {k: v.clone() for k, v in found.items()}
    return int(metadata["step"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _quiet(accelerator: Any) -> bool | None:
    return None if accelerator.is_main_process else True
