"""The one training loop, over accelerate.

Methods differ in `step` and `schedule`, not in the loop. Every random choice is a function of (seed, step) or of
(seed, epoch, sample), and the state is written whole or not at all: a run killed at any moment and started again ends
in the same weights, bit for bit at the same number of threads and processes and on the same Machine.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.errors import DataError, MissingExtra, StorageError, require
from zoo.training import ema
from zoo.training import state as states
from zoo.training.hierarchy import Batch, Step
from zoo.training.schedule import Machine, learning_rate
from zoo.training.schedule import Schedule as Schedule

LOG_STEPS = 20  # between two lines of a tracker


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
    machine: Machine | None = None,
) -> nn.Module:
    """Train a model in place.

    Args:
        model: its parameters that require gradients are trained; parameters and buffers are what the state holds.
        step: (model, batch, progress 0..1) → mean loss of the batch.
        data: epoch → loader of that epoch, in the schedule's batches, of which each process takes its share; the same
            epoch always gives the same batches.
        schedule: how long and how fast.
        seed: of what is random inside the model (dropout).
        state: a file to resume from, which the main process writes; None keeps none.
        evaluate: called after each epoch, on every process; its figures are shown in the progress bar and logged.
        progress: what the progress bar says.
        machine: how it runs here.

    Returns:
        The same model in eval mode, on accelerate's device; its weights are the average where the schedule has one.

    Raises:
        DataError: the data is empty, the loss isn't finite, the state belongs to another run, or the machine can't.
        MissingExtra: the tracker isn't installed.
        StorageError: the state can't be written.
    """
    machine = machine or Machine()
    accelerator = _accelerator(machine)
    tqdm = require("tqdm", "eval").tqdm
    total, per_epoch = _length(accelerator, data, schedule)
    if machine.channels_last:
        model.to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, lr=schedule.lr))
    average = ema.started(model) if schedule.ema else None
    held = (model, optimizer.optimizer, average, accelerator.scaler)
    run = _identity(schedule, total, seed, accelerator)
    try:
        done = states.resume_(state, run, *held) if state and state.exists() else 0
    except (DataError, StorageError):
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).eval()
        raise
    optimizer.zero_grad()
    written = logged = time.monotonic()
    if accelerator.log_with:
        accelerator.init_trackers(progress, config=json.loads(run))
    hidden = None if accelerator.is_main_process else True
    bar = tqdm(total=total, initial=done, desc=progress, unit="step", disable=hidden, leave=False)
    with torch.random.fork_rng(devices=[]), bar, _unwrapped(accelerator, wrapped):
        since = done
        for batch in _batches(accelerator, data, done, total, per_epoch):
            wrapped.train()
            # Hashed, because torch's generator on the CPU looks at the lowest 32 bits alone.
            digest = hashlib.sha256(f"{seed} {done} {accelerator.process_index}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:4]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, done, total)
            loss = 0.0
            for part, share, last in _parts(batch, machine):
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                    with accelerator.autocast():
                        mean = step(wrapped, part, done / total)
                    loss += share * mean.item()
                    if not torch.isfinite(mean):
                        raise DataError(
                            f"{progress}: the loss is {mean.item()} at step {done}; lower the learning rate"
                        )
                    accelerator.backward(share * mean)
            if schedule.clip > 0:
                accelerator.clip_grad_norm_(wrapped.parameters(), schedule.clip)
            optimizer.step()
            optimizer.zero_grad()
            if average is not None:
                ema.update_(average, model, schedule.ema)
            done += 1
            bar.update()
            due = done == total or time.monotonic() - written >= schedule.checkpoint_seconds
            if state and due and accelerator.is_main_process:
                states.write(state, run, done, *held)
                written = time.monotonic()
            if accelerator.trackers and (done % LOG_STEPS == 0 or done == total):
                now = time.monotonic()
                speed = (done - since) * schedule.batch_size / (now - logged)
                accelerator.log({"loss": loss, "lr": group["lr"], "images_per_s": speed}, step=done)
                since, logged = done, now
            if evaluate and done % per_epoch == 0:
                with ema.averaged(model, average):
                    figures = evaluate()
                bar.set_postfix(figures)
                accelerator.log(dict(figures), step=done)
    accelerator.wait_for_everyone()
    if average is not None:
        ema.put_(average, model)
    if accelerator.num_processes > 1:  # running statistics are each process's own; the state holds the first one's
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    for tracker in accelerator.trackers:  # accelerate's own end would part the processes, which have yet to evaluate
        tracker.finish()
    return model.eval()


def _accelerator(machine: Machine) -> Any:
    accelerate = require("accelerate", "eval")
    tracker = machine.log_with
    if isinstance(tracker, str) and tracker not in map(str, accelerate.tracking.get_available_trackers()):
        raise MissingExtra(f"tracker {tracker!r} isn't one that accelerate finds here: pip install {tracker}")
    accelerate.state.AcceleratorState._reset_state()  # it keeps the precision of whoever came first
    try:
        return accelerate.Accelerator(
            # Without cpu=True accelerate takes several processes on a machine without an accelerator for several runs.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=machine.precision,
            dynamo_backend="inductor" if machine.compile else None,
            dataloader_config=accelerate.DataLoaderConfiguration(
                split_batches=True, non_blocking=torch.accelerator.is_available()
            ),
            step_scheduler_with_optimizer=False,
            log_with=tracker,
            project_dir=machine.logs,
        )
    except ValueError as error:
        raise DataError(f"train: {error}") from None


def _identity(schedule: Schedule, total: int, seed: int, accelerator: Any) -> str:
    """What a state must have in common with the run that goes on from it."""
    said = {key: value for key, value in asdict(schedule).items() if key != "checkpoint_seconds"}
    return json.dumps({**said, "total": total, "seed": seed, "precision": accelerator.mixed_precision})


@contextlib.contextmanager
def _unwrapped(accelerator: Any, wrapped: nn.Module) -> Iterator[None]:
    """Take back in the end what mixed precision put around the model's forward pass."""
    try:
        yield
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).eval()


def _length(accelerator: Any, data: Callable[[int], Any], schedule: Schedule) -> tuple[int, int]:
    """Steps in all, and steps of one epoch."""
    if schedule.batch_size % accelerator.num_processes:
        raise DataError(
            f"train: {accelerator.num_processes} processes can't share {schedule.batch_size} images equally; start "
            "another number of them"
        )
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


def _parts(batch: Batch, machine: Machine) -> Iterator[tuple[Batch, float, bool]]:
    """The parts that a batch is computed in, each with its share of the images and whether it is the last."""
    if machine.accumulation == 1 and not machine.channels_last:
        yield batch, 1.0, True
        return
    images, labels = batch
    if machine.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    parts = list(zip(images.chunk(machine.accumulation), labels.chunk(machine.accumulation), strict=True))
    for index, part in enumerate(parts):
        yield part, len(part[0]) / len(images), index == len(parts) - 1
