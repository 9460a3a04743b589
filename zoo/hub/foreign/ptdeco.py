"""ptdeco's checkpoints: decompose_config.json and decompose_state_dict.pt ⇄ a Factor edit and tensors.

The configuration says by module path which two layers stand in a layer's place; the state dict is the whole model's.
Neither names the dense model: whoever reads them must know it.

Source: ptdeco/utils/modconfig.py.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError, RepositoryError, StructureError, WeightsError
from zoo.files import read_json, writing_folder
from zoo.hub.foreign import unpickle
from zoo.structure.plan import Factor, Plan, Rank, Spatial, apply_

CONFIG = "decompose_config.json"
WEIGHTS = "decompose_state_dict.pt"
_CONV2D = ("in_channels", "out_channels", "kernel_size", "groups", "padding", "padding_mode", "stride", "dilation")


def read_decomposition(folder: Path, base: nn.Module) -> tuple[Factor, dict[str, Tensor]]:
    """Read a checkpoint; nothing in it is run.

    Args:
        folder: holds the two files.
        base: the dense model that was decomposed; left as it was.

    Returns:
        The edit, and path → tensor of the factored model.

    Raises:
        CheckpointError: a file is missing or damaged, or doesn't fit the base.
    """
    try:
        if not (folder / CONFIG).is_file():
            raise StructureError(f"it has no {CONFIG}: not a ptdeco checkpoint")
        config = read_json(folder / CONFIG)
        tensors = unpickle.load_pickle(folder / WEIGHTS, ())
        ranks = {path: _rank(base, path, entry) for path, entry in config.items()}
        return Factor(ranks), _renamed(tensors, config)
    except (RepositoryError, StructureError, WeightsError) as error:
        raise CheckpointError(f"{folder} isn't imported: {error}") from error


def write_decomposition(folder: Path, model: nn.Module, plan: Plan) -> None:
    """Write a checkpoint that ptdeco reads; it appears whole or not at all.

    Args:
        folder: a new one.
        model: the factored model.
        plan: its edits over the dense model.

    Raises:
        StructureError: an edit isn't a Factor, which is all that ptdeco knows.
        StorageError: the disk is full or refuses.
    """
    config: dict[str, Any] = {}
    for edit in plan.edits:
        if not isinstance(edit, Factor):
            raise StructureError(
                f"export: the plan has a {edit.edit}, expected Factor edits alone: ptdeco has no other"
            )
        for path, rank in edit.layers.items():
            factors = model.get_submodule(path)
            full = min(factors[0].weight.shape[1], factors[1].weight.shape[0])  # type: ignore[index]
            config[path] = {**_config(factors), "__meta__": {"proportion": rank.rank / full}}
    if not config:
        raise StructureError("export: the model isn't decomposed, there is nothing that ptdeco could read")
    with writing_folder(folder) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        data = io.BytesIO()  # into a file, torch would tell of a full disk as of a fault of its own
        torch.save(model.state_dict(), data)  # noqa: TID251  # ptdeco reads nothing else
        (new / WEIGHTS).write_bytes(data.getbuffer())


def _config(layer: nn.Module) -> dict[str, Any]:
    """A layer as ptdeco describes it."""
    if isinstance(layer, nn.Sequential):
        return {"type": "Sequential", "modules": {name: _config(child) for name, child in layer.named_children()}}
    if isinstance(layer, nn.Linear):
        sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
        return {"type": "Linear", **sizes, "bias": layer.bias is not None}
    return {"type": "Conv2d", **{name: getattr(layer, name) for name in _CONV2D}, "bias": layer.bias is not None}


def _rank(base: nn.Module, path: str, entry: Any) -> Rank:
    """The rank that gives the two layers that an entry describes; they must be those that we would put there."""
    layers = entry.get("modules") if isinstance(entry, dict) and entry.get("type") == "Sequential" else None
    if not isinstance(layers, dict) or len(layers) != 2 or not all(isinstance(each, dict) for each in layers.values()):
        raise StructureError(f"{CONFIG}: {path} isn't a Sequential of two layers")
    modules = list(layers.values())
    rank = modules[1].get("in_features", modules[1].get("in_channels"))
    for spatial in get_args(Spatial):
        holder = nn.Module()
        try:
            holder.layer = base.get_submodule(path)
        except AttributeError:
            raise StructureError(f"{CONFIG}: the base has no module {path!r}") from None
        factors = apply_(holder, Plan((Factor({"layer": Rank(rank, spatial)}),))).layer
        if [_listed(_config(layer)) for layer in _children(factors)] == [_listed(each) for each in modules]:
            return Rank(rank, spatial)
    raise StructureError(f"{CONFIG}: {path} isn't the base's layer in two: another size, stride, padding or bias")


def _children(module: nn.Module | Tensor) -> Iterable[nn.Module]:
    assert isinstance(module, nn.Module)
    return module.children()


def _listed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON has it, where tuples are lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _renamed(tensors: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict with the factors named 0 and 1, whatever names they had."""
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise WeightsError(f"{WEIGHTS} isn't a state dict")
    names = {f"{path}.{old}": f"{path}.{new}" for path in config for new, old in enumerate(config[path]["modules"])}
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        module, _, tensor = str(key).rpartition(".")
        renamed[f"{names.get(module, module)}.{tensor}" if module else tensor] = value.detach()
    return renamed
