"""What accelerate and torch put into and around a model for as long as it trains here, and what takes it back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.errors import DataError, MissingExtra, require
from zoo.training.schedule import Machine, Schedule


def accelerator(machine: Machine) -> Any:
    """Accelerate's `Accelerator` for a machine.

    Raises:
        DataError: the machine can't.
        MissingExtra: the tracker, or accelerate, isn't installed.
    """
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


def shared(accelerator: Any, loader: Any) -> Any:
    """A loader that gives this process its share of each batch, on its device.

    Accelerate's own method would keep every loader for as long as there is an accelerator.
    """
    return require("accelerate.data_loader", "eval").prepare_data_loader(
        loader,
        accelerator.device,
        accelerator.num_processes,
        accelerator.process_index,
        split_batches=True,
        put_on_device=True,
        rng_types=accelerator.rng_types.copy(),
        non_blocking=accelerator.non_blocking,
    )


@contextlib.contextmanager
def prepared(
    accelerator: Any, model: nn.Module, schedule: Schedule, machine: Machine
) -> Iterator[tuple[nn.Module, Any]]:
    """The model as it trains here, and its optimiser; in the end the model is as it was, in eval mode.

    Args:
        accelerator: of `accelerator`.
        model: taken to the device; what is put into and around it is taken back.
        schedule: of the optimiser.
        machine: how it runs here.

    Yields:
        The wrapped model, and AdamW over what of it requires gradients.

    Raises:
        DataError: batch norm can't be synchronised here.
    """
    if machine.channels_last:
        model.to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    together = machine.sync_bn and accelerator.num_processes > 1
    with synchronised(model.to(accelerator.device), accelerator.device) if together else contextlib.nullcontext():
        wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, lr=schedule.lr))
        optimizer.zero_grad()
        try:
            yield wrapped, optimizer
        finally:
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False).eval()


@contextlib.contextmanager
def synchronised(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let batch norm take its statistics over all processes' images until the block ends; names stay as they are.

    Args:
        model: its batch norms are replaced in place by others with the same tensors, and put back; it is to stay where
            it is meanwhile, as moving it would part them.
        device: where it is.

    Raises:
        DataError: torch synchronises batch norm on a GPU alone.
    """
    if device.type != "cuda":
        raise DataError(f"machine: sync_bn needs a GPU, this is {device.type}: leave it out, or train on one process")
    modules = model.named_modules(remove_duplicate=False)
    own = {path: module for path, module in modules if path and isinstance(module, _BatchNorm)}
    convert_sync_batchnorm(model)
    try:
        yield
    finally:
        for path, module in own.items():
            module.train(model.get_submodule(path).training)
            model.set_submodule(path, module)
