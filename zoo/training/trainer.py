"""The one training loop, over accelerate.

Methods differ in `step` and `schedule`, not in the loop. Every random choice is a function of (seed, step) or of
(seed, epoch, sample), and the state is written whole or not at all: a run killed at any moment and started again ends
in the same weights, bit for bit at the same number of threads and processes and on the same Machine.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import interruption
from zoo.errors import DataError
from zoo.progress import bar
from zoo.training import accelerated, checkpoint, ema
from zoo.training.distillation import Batch, Step
from zoo.training.schedule import Machine, Schedule, check_shares, learning_rate, steps_of_epochs
from zoo.training.weighed import Weighed

LOG_STEPS = 20  # between two lines of a tracker


def train(
    model: nn.Module,
    step: Step,
    data: Callable[[int], Any],
    schedule: Schedule,
    *,
    seed: int = 0,
    state: Path | None = None,
    about: Mapping[str, Any] | None = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    progress: str = "train",
    machine: Machine | None = None,
) -> nn.Module:
    """Train a model in place.

    Args:
        model: its parameters that require gradients are trained.
        step: (model, batch, progress 0..1) → mean loss over the batch's images, or a `Weighed` one.
        data: epoch → loader of that epoch, in the schedule's batches, of which each process takes its share; the same
            epoch always gives the same batches.
        schedule: how long and how fast.
        seed: of what is random inside the model (dropout).
        state: a file to resume from, which the main process writes, every so often, before it evaluates, and when
            Ctrl-C ends the training; None keeps none. That of a run with another model, schedule, seed or `about` is
            refused.
        about: what else tells this run from others, as JSON takes it.
        evaluate: called after each epoch, on every process; its figures are shown in the progress bar and logged.
        progress: what the progress bar says.
        machine: how it runs here.

    Returns:
        The same model in eval mode, on accelerate's device; its weights are the average where the schedule has one.

    Raises:
        DataError: the data is empty, the loss isn't finite, the state belongs to another run, or the machine can't.
        KeyboardInterrupt: Ctrl-C, after the step under way; in `evaluate`, and where several processes train, at once.
        MissingExtra: the tracker isn't installed.
        StorageError: the state can't be written.
    """
    machine = machine or Machine()
    accelerator = accelerated.accelerator(machine)
    total, per_epoch = _length(accelerator, data, schedule)
    run = _identity(model, schedule, total, seed, accelerator, about or {}) if state or accelerator.log_with else ""
    with contextlib.ExitStack() as stack:
        wrapped, optimizer = stack.enter_context(accelerated.prepared(accelerator, model, schedule, machine))
        average = ema.started(model) if schedule.ema else None
        held = (model, optimizer.optimizer, average, accelerator.scaler)
        done = checkpoint.resume_(state, run, *held) if state and state.exists() else 0
        if accelerator.log_with:
            accelerator.init_trackers(progress, config=json.loads(run))
        bar = stack.enter_context(_bar(accelerator, progress, done, total))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        batches = _batches(accelerator, data, done, total, per_epoch)
        speed, written = _speed(schedule.batch_size, done), time.monotonic()

        def keep() -> None:
            if state and accelerator.is_main_process:
                checkpoint.save_training(state, run, done, *held)

        while done < total:
            with _interruptible(accelerator, keep):
                batch, lr = next(batches), learning_rate(schedule, done, total)
                _seed(seed, done, accelerator.process_index)
                loss = _backward(accelerator, wrapped, step, batch, done / total, machine)
                if not math.isfinite(loss):
                    raise DataError(f"{progress}: the loss is {loss} at step {done}; lower the learning rate")
                _update_(accelerator, wrapped, optimizer, lr, schedule.clip)
                if average is not None:
                    ema.update_(average, model, schedule.ema)
                done += 1
                bar.update()
                if accelerator.trackers and (done % LOG_STEPS == 0 or done == total):
                    accelerator.log({"loss": loss, "lr": lr, "images_per_s": speed(done)}, step=done)
                ends = done == total or (evaluate is not None and done % per_epoch == 0)
                if ends or time.monotonic() - written >= schedule.checkpoint_seconds:
                    keep()
                    written = time.monotonic()
            if evaluate and done % per_epoch == 0:
                with ema.averaged(model, average):
                    figures = evaluate()
                bar.set_postfix(figures)
                accelerator.log(dict(figures), step=done)
    _finish_(accelerator, model, average)
    return model.eval()


def _bar(accelerator: Any, progress: str, done: int, total: int) -> Any:
    """The main process's progress bar."""
    return bar(progress, total, "step", done=done, hidden=not accelerator.is_main_process)


def _interruptible(accelerator: Any, keep: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """Put Ctrl-C off until the step is whole and written, where one process trains."""
    if accelerator.num_processes == 1:
        return interruption.put_off(keep)
    # Of several processes one that ended after its step would leave the others waiting in theirs.
    return contextlib.nullcontext()


def _identity(
    model: nn.Module, schedule: Schedule, total: int, seed: int, accelerator: Any, about: Mapping[str, Any]
) -> str:
    """What a state must have in common with the run that goes on from it: also the model that training starts from."""
    said = {key: value for key, value in asdict(schedule).items() if key != "checkpoint_seconds"}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    said |= {"total": total, "seed": seed, "precision": accelerator.mixed_precision}
    return json.dumps({**said, "model": checkpoint.digest("train", trained, model), **about})


def _seed(seed: int, done: int, process: int) -> None:
    """Make what is random inside the model a function of the step."""
    # Hashed, because torch's generator on the CPU looks at the lowest 32 bits alone.
    digest = hashlib.sha256(f"{seed} {done} {process}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4]))


def _backward(
    accelerator: Any, wrapped: nn.Module, step: Step, batch: Batch, progress: float, machine: Machine
) -> float:
    """Add a batch's gradients, part by part; the mean loss."""
    wrapped.train()
    loss, weight = 0.0, None
    parts = list(_parts(batch, machine))
    for part, share, last in parts:
        with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
            with accelerator.autocast():
                found = step(wrapped, part, progress)
            if isinstance(found, Weighed):
                if weight is None:
                    others = _weights(accelerator, wrapped, step, parts[1:], progress)
                    weight = accelerator.reduce(sum(others, found.weight), "sum")
                mean = found.of_batch(weight, share, accelerator.num_processes)
            else:
                mean = share * found
            loss += mean.item()
            accelerator.backward(mean)
    return loss


def _weights(
    accelerator: Any, wrapped: nn.Module, step: Step, parts: Sequence[tuple[Batch, float, bool]], progress: float
) -> list[Any]:
    """The weights of parts before their turn, when they draw the same random numbers; buffers stay as they are."""
    if not parts:
        return []
    device = accelerator.device
    drawing = torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)
    buffers = [module._buffers for module in wrapped.modules()]
    before = [dict(held) for held in buffers]
    try:
        for held in buffers:  # the first part's gradients need what it was given, untouched
            held.update({name: buffer.clone() for name, buffer in held.items() if buffer is not None})
        with torch.no_grad(), drawing, accelerator.autocast():
            found: list[Any] = [step(wrapped, part, progress) for part, *_ in parts]
    finally:
        for held, was in zip(buffers, before, strict=True):
            held.update(was)
    return [each.weight for each in found]


def _update_(accelerator: Any, wrapped: nn.Module, optimizer: Any, lr: float, clip: float) -> None:
    """Take one step along the gradients, and forget them."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    if clip > 0:
        accelerator.clip_grad_norm_(wrapped.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def _speed(batch_size: int, done: int) -> Callable[[int], float]:
    """Steps done → images a second since it was last asked."""
    since, asked = done, time.monotonic()

    def speed(done: int) -> float:
        nonlocal since, asked
        now = time.monotonic()
        rate = (done - since) * batch_size / (now - asked)
        since, asked = done, now
        return rate

    return speed


def _finish_(accelerator: Any, model: nn.Module, average: ema.Average | None) -> None:
    """Leave every process with the same model: the average where there is one."""
    accelerator.wait_for_everyone()
    if average is not None:
        ema.put_(average, model)
    if accelerator.num_processes > 1:  # running statistics are each process's own; the state holds the first one's
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    for tracker in accelerator.trackers:  # accelerate's own end would part the processes, which have yet to evaluate
        tracker.finish()


def _length(accelerator: Any, data: Callable[[int], Any], schedule: Schedule) -> tuple[int, int]:
    """Steps in all, and steps of one epoch."""
    check_shares(schedule, accelerator.num_processes)
    try:
        per_epoch = len(data(0))
    except TypeError:
        if schedule.steps is None:
            raise DataError("train: a stream has no length; set the schedule's steps") from None
        return schedule.steps, schedule.steps
    if per_epoch == 0:
        raise DataError(f"train: not one whole batch of {schedule.batch_size} images; lower the batch size")
    return steps_of_epochs(schedule, per_epoch), per_epoch


def _batches(accelerator: Any, data: Callable[[int], Any], done: int, total: int, per_epoch: int) -> Iterator[Any]:
    """The batches that are left, epoch after epoch."""
    epoch, skipped = divmod(done, per_epoch)
    left = total - done
    while left > 0:
        loader = accelerated.shared(accelerator, data(epoch))
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
    views = list(images) if isinstance(images, list | tuple) else [images]
    if machine.channels_last:
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    chunks = [view.chunk(machine.accumulation) for view in views]
    for index, part in enumerate(labels.chunk(machine.accumulation)):
        seen = [chunk[index] for chunk in chunks]
        last = index == len(chunks[0]) - 1
        yield (seen if len(seen) > 1 else seen[0], part), len(part) / len(labels), last
