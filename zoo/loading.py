"""Names in, models out: `create` and `load`, each readable from top to bottom."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from zoo import adaptation, catalog
from zoo.catalog.entry import Base, Entry
from zoo.errors import RepositoryError, StructureError, UnknownName, ZooError
from zoo.hub import repository
from zoo.hub.repository import Description
from zoo.structure.base import MAX_ARGUMENT, initialised, skeleton
from zoo.structure.plan import apply_
from zoo.tasks.classification import evaluation_transform


def load(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
) -> nn.Module:
    """Load a model with its weights.

    Args:
        name: of the catalog, or the folder of a repository (a path: with a slash in it).
        device: where the weights shall lie.
        dtype: of the floating-point weights; None keeps what is stored.
        num_classes: a new, randomly initialised head of so many classes; 0 leaves the head out.
        in_chans: channels of the input; the first convolution's weights are repeated, or added up for one channel.
        features_only: return the feature maps [B, C, H, W] of every stage instead of logits.

    Returns:
        An ordinary module in eval mode, carrying `pretrained_cfg` (timm's transforms resolve) and `zoo_entry`
        (`zoo.hub.Description`: name, base, plan).

    Raises:
        UnknownName: no such model; the message names near ones.
        RepositoryError, StructureError, FingerprintError, WeightsError: what doesn't fit, by name.
    """
    _check_options(device, dtype, num_classes=num_classes, in_chans=in_chans)
    model = repository.rebuild(folder_of(name), device)
    if in_chans is not None:
        adaptation.set_in_chans_(model, in_chans)
    if num_classes is not None:
        adaptation.set_num_classes_(model, num_classes)
        model = model.to(device)
    if dtype is not None:
        model = model.to(dtype=dtype)
    return adaptation.features(model).eval() if features_only else model


def create(name: str | os.PathLike[str], *, seed: int = 0) -> nn.Module:
    """Build a model with random weights; nothing is fetched.

    Args:
        name: of the catalog, or the folder of a repository (weights not needed), or a base id such as `timm/resnet18`.
        seed: of the random weights. They come from the base's own initialiser, of which the plan keeps the first
            channels.

    Returns:
        The module in eval mode, carrying `pretrained_cfg` and `zoo_entry`.

    Raises:
        UnknownName, RepositoryError, StructureError: as for `load`.
    """
    description, config = _description(name)
    model = initialised(description.base, seed)
    with torch.random.fork_rng(devices=[]):  # factors draw their own values
        torch.manual_seed(seed)
        apply_(model, description.plan)
    if config:
        model.pretrained_cfg = model.default_cfg = dict(config)  # type: ignore[assignment]
    model.zoo_entry = description  # type: ignore[assignment]
    return model.eval()


def pretrained(base: Base) -> nn.Module:
    """Load a dense base with its weights.

    Args:
        base: an entry of the catalog, or a timm id with its tag (`timm/resnet50d.a1_in1k`), fetched by timm.

    Returns:
        The model in eval mode.

    Raises:
        RepositoryError: timm can't fetch the weights.
        UnknownName, StructureError: no such base.
    """
    if not base.id.startswith("timm/"):
        return load(base.id)
    name = base.id.removeprefix("timm/")
    skeleton(base)  # says what is wrong with the id or the arguments before anything is fetched
    try:
        model = timm.create_model(name, pretrained=True, **base.args)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RepositoryError(f"the weights of {base.id} can't be fetched by timm: {reason}") from error
    model.zoo_entry = Description(base.architecture, base)  # type: ignore[assignment]
    return model.eval()


def transform(model: nn.Module) -> Callable[[Any], Tensor]:
    """The preprocessing that a model was evaluated with.

    Args:
        model: from `load`, `create` or timm.

    Returns:
        PIL image → tensor [C, H, W], normalised; stack several to a batch.

    Raises:
        StructureError: the model carries no `pretrained_cfg`.
    """
    config = getattr(model, "pretrained_cfg", None)
    if not config:
        raise StructureError("transform: the model has no pretrained_cfg; load it with zoo.load or timm.create_model")
    try:
        return evaluation_transform(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ZooError):
            raise
        raise StructureError(f"transform: the model's pretrained_cfg can't be used: {error!r}") from error


def _check_options(device: Any, dtype: Any, **counts: Any) -> None:
    for option, value in counts.items():
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_ARGUMENT):
            raise StructureError(f"load: {option} is {value!r}, expected a whole number of at most {MAX_ARGUMENT}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StructureError(f"load: dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.float16")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise StructureError(f"load: device {device!r} can't be used here: {reason}") from None


def _is_path(name: str | os.PathLike[str]) -> bool:
    return not isinstance(name, str) or "/" in name or os.sep in name or name in (".", "..")


def folder_of(name: str | os.PathLike[str]) -> Path:
    """The folder of a model's repository.

    Args:
        name: of the catalog, or a path.

    Raises:
        UnknownName, RepositoryError: as for `load`.
    """
    if _is_path(name):
        folder = Path(name)
        if not folder.is_dir():
            raise RepositoryError(f"no folder {folder}: expected a model repository, or a name that zoo list shows")
        return folder
    entry = _entry(str(name))
    if obstacle := catalog.obstacle(entry):
        raise RepositoryError(f"{name} can't be loaded: {obstacle}")
    return catalog.EMBEDDED / entry.name


def _entry(name: str) -> Entry:
    try:
        return catalog.info(name)
    except UnknownName as error:
        if (Path(name) / repository.CONFIG).is_file():
            raise UnknownName(f"no model {name!r} in the catalog; for the folder of that name say ./{name}") from None
        raise error


def _description(name: str | os.PathLike[str]) -> tuple[Description, Any]:
    if isinstance(name, str) and name.startswith("timm/"):
        return Description(name.partition("/")[2], Base(name)), None
    if not _is_path(name):
        entry = _entry(str(name))
        if entry.origin is not None and entry.origin.format == "timm":
            return Description(entry.name, Base(entry.origin.repo)), None
        if entry.status != "embedded":
            if entry.base is None or entry.recipe.method is not None:
                raise RepositoryError(f"the structure of {name} isn't known yet; make it with: zoo build {name}")
            return Description(entry.name, entry.base), None
    folder = folder_of(name)
    config = repository.read(folder)
    description = repository.from_config(config, str(folder))
    repository.dense_skeleton(config, description)  # refuses what this timm builds otherwise, or what is absurd
    return description, config.get("pretrained_cfg")
