"""States: files that are written whole, and that a run, and no other, goes on from bit for bit.

`save_state`, `load_state` and `digest` are for any method; `save_training` and `resume_` for a training.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from zoo.atomic import writing
from zoo.errors import DataError, StorageError
from zoo.structure.tensors import bytes_of, tensors_of


def save_state(path: Path, run: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a state.

    Args:
        path: of the file.
        run: what identifies the run.
        tensors: by name.
        facts: what else the run has come to, as JSON takes it.

    Raises:
        StorageError: the disk is full or refuses.
    """
    data = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        {"run": run, "found": json.dumps(facts)},
    )
    with writing(path) as file:
        file.write(data)


def load_state(path: Path, run: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote: tensors, and facts.

    Raises:
        StorageError: the file can't be read or is damaged.
        DataError: it belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StorageError(0, f"{path} can't be resumed from ({error}); remove it to start again") from None
    if metadata.get("run") != run:
        raise _another(path)
    return tensors, json.loads(metadata["found"])


def digest(method: str, how: Any, model: nn.Module, batches: Iterable[Tensor] = ()) -> str:
    """What a run is made of, as a hash: a state must not be resumed by another run."""
    hashed = hashlib.sha256(f"{method} {how}".encode())
    for path, tensor in tensors_of(model).items():
        hashed.update(path.encode())
        hashed.update(bytes_of(tensor))
    for batch in batches:
        hashed.update(bytes_of(batch))
    return hashed.hexdigest()


def save_training(
    path: Path,
    run: str,
    done: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None = None,
    scaler: Any = None,
) -> None:
    """Write the state of a training.

    Args:
        path: of the file.
        run: what identifies the run; only the same is resumed.
        done: steps.
        model: its parameters and buffers.
        optimizer: its moments.
        average: of the weights, where there is one.
        scaler: of the loss, where precision needs one.

    Raises:
        StorageError: the disk is full or refuses.
    """
    tensors = _held(model, average)
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{index}.{key}"] = value
    save_state(path, run, tensors, {"steps": done, "scaler": scaler.state_dict() if scaler else {}})


@torch.no_grad()
def resume_(
    path: Path,
    run: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor] | None = None,
    scaler: Any = None,
) -> int:
    """Set everything as a state says; arguments are those of `save_training`.

    Returns:
        The steps that are done.

    Raises:
        StorageError: the file can't be read or is damaged.
        DataError: it belongs to another run.
    """
    tensors, facts = load_state(path, run)
    held = _held(model, average)
    shapes = {name: value.shape for name, value in tensors.items() if not name.startswith("optimizer.")}
    if shapes != {name: value.shape for name, value in held.items()}:
        raise _another(path)
    for name, value in held.items():
        value.copy_(tensors[name])
    for index, parameter in enumerate(_parameters(optimizer)):
        prefix = f"optimizer.{index}."
        for name in [name for name in tensors if name.startswith(prefix)]:
            value = tensors[name]
            # Moments lie as their parameter does, in memory too; the count of steps stays on the CPU.
            like = value.clone() if value.ndim == 0 else torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            optimizer.state[parameter][name.removeprefix(prefix)] = like
    if scaler:
        scaler.load_state_dict(facts["scaler"])
    return int(facts["steps"])


def _held(model: nn.Module, average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    own = {f"model.{name}": value for name, value in tensors_of(model).items()}
    return own | {f"average.{name}": value for name, value in (average or {}).items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _another(path: Path) -> DataError:
    return DataError(f"{path} belongs to another run; remove it to start again")
