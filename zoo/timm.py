"""The models of the catalog among timm's: after `import zoo.timm`, timm builds, loads and lists them by their names.

    >>> import timm
    >>> import zoo.timm
    >>> timm.list_models("digits_cnn_pruned_*")
    ['digits_cnn_pruned_25', 'digits_cnn_pruned_25_int8', 'digits_cnn_pruned_50']
    >>> model = timm.create_model("digits_cnn_pruned_25", pretrained=True)

So it does repositories of ours by any name, `hf-hub:ORG/NAME` and `local-dir:FOLDER`. What goes by timm's registry has
them too: transformers' AutoModelForImageClassification, of the catalog and of what `register` was told.

Registered is what classifies images and can be loaded, of the user's own catalog too. Not registered: detectors, whose
outputs nothing of timm's reads; what isn't built yet; a name of timm's own, which stays timm's; a name with a dot,
behind which timm expects a tag. A tag is a revision on the Hub: `NAME.v1`. A graph, such as every integer model, is
loaded as it is; it refuses to be drawn at random or to give features.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models import _hub, _registry, generate_default_cfgs, is_model, is_model_in_modules, register_model
from torch import nn

from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.errors import StructureError
from zoo.files import read_json
from zoo.hub import repository
from zoo.hub.remote import Access
from zoo.structure.base import ORIGINS
from zoo.structure.description import DEFAULT_TASK, config_of, configure_
from zoo.structure.sources import OURS
from zoo.verbs import adaptation
from zoo.verbs.loading import create, folder_of, load

_OFF = {"drop_rate": 0, "drop_path_rate": 0}  # arguments that ask for nothing with these values
_models = ModuleType(f"{__name__}.{OURS}")  # where timm looks for what belongs to a function


def register(name: str | os.PathLike[str]) -> str:
    """Let timm know a repository by its model's name.

    Args:
        name: `org/name` on the Hub, or a folder.

    Returns:
        The name that timm knows it by.

    Raises:
        UnknownName, RepositoryError, HubError: as for `zoo.load`.
        StructureError: timm has another model of that name.

    >>> register(catalog.EMBEDDED / "digits_vit")
    'digits_vit'
    """
    folder = folder_of(name, files=(repository.CONFIG,))
    config = repository.read_config(folder)
    model = str(config["zoo"]["name"])
    if is_model(model) and not is_model_in_modules(model, (OURS,)):
        raise StructureError(f"{name} is called {model}, as a model of timm's own: zoo save it under another name")
    if "." in model:
        raise StructureError(
            f"{name} is called {model}, of which timm takes the end for a tag: zoo save it without dot"
        )
    _register(model, str(folder.absolute() if Path(name).is_dir() else name), _pretrained_cfg(config))
    return model


def _register_catalog() -> None:
    for name in catalog.names():
        entry = catalog.info(name)
        if entry.task == DEFAULT_TASK and "." not in name and not is_model(name):
            _register(name, name, _known(entry))


def _register(name: str, source: str, config: dict[str, Any]) -> None:
    """Register a function by a name, whether or not it was before."""

    def function(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
        if pretrained_cfg and not isinstance(pretrained_cfg, str):
            raise StructureError(
                f"{name} has a pretrained_cfg of its own: leave it out, pretrained_cfg_overlay changes it"
            )
        return _model(name, source, pretrained_cfg or None, pretrained, **options)

    if is_model(name):
        _registry._model_entrypoints.pop(name)  # timm warns of a name that it has
    _add(name, function, config)


def _add(name: str, function: Callable[..., nn.Module], config: dict[str, Any]) -> None:
    function.__name__, function.__module__ = name, _models.__name__
    setattr(_models, name, function)
    _models.default_cfgs = generate_default_cfgs({name: config})  # type: ignore[attr-defined]
    _models.__all__ = []  # type: ignore[attr-defined]  # timm goes through all of it for each function
    register_model(function)


def _known(entry: Entry) -> dict[str, Any]:
    """What timm says of its own models, as far as the catalog or the wheel has it."""
    if entry.status == "embedded" and (catalog.EMBEDDED / entry.name).is_dir():
        folder = catalog.EMBEDDED / entry.name
        return {**_pretrained_cfg(read_json(folder / repository.CONFIG)), "file": str(folder / repository.WEIGHTS)}
    place = entry.repo or (entry.origin.repo if entry.origin else None)
    return {"hf_hub_id": place, "input_size": entry.input, "license": entry.license, **dict(entry.preprocessing)}


def _pretrained_cfg(config: dict[str, Any]) -> dict[str, Any]:
    """Of a repository's config.json what timm has a field for."""
    fields = timm.models.PretrainedCfg.__dataclass_fields__.keys() - {*ORIGINS, "tag"}
    found = {key: value for key, value in config.get("pretrained_cfg", {}).items() if key in fields}
    return {**found, "num_classes": config.get("num_classes", 0)}


def _repository(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
    """A repository that timm was asked for by its place."""
    config = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    if config.get("source") not in ("hf-hub", "local-dir"):
        raise StructureError(f"{OURS} is any repository of ours: say which, hf-hub:ORG/NAME or local-dir:FOLDER")
    if config["source"] == "local-dir":
        return _model(config["file"], str(Path(config["file"]).absolute()), None, pretrained, **options)
    name, _, revision = config["hf_hub_id"].partition("@")
    return _model(name, name, revision or None, pretrained, **options)


def _model(
    name: str,
    source: str,
    revision: str | None,
    pretrained: bool,
    *,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **others: Any,
) -> nn.Module:
    """A model as timm hands them out, in training mode."""
    if refused := [key for key, value in others.items() if key not in _OFF or value != _OFF[key]]:
        taken = "num_classes, in_chans, features_only, out_indices, device, dtype"
        raise StructureError(f"{name} has a structure of its own, which {refused[0]} can't change: taken are {taken}")
    if pretrained:
        options: dict[str, Any] = {"cache_dir": cache_dir, "num_classes": num_classes, "in_chans": in_chans}
        model = load(source, revision=revision, device=device or "cpu", dtype=dtype, **options)
    else:
        access = Access(Path(cache_dir) if cache_dir else None)
        fetched = revision is not None or "/" in source
        model = create(folder_of(source, revision, None, access, (repository.CONFIG,)) if fetched else source)
        if in_chans is not None:
            adaptation.set_in_chans_(model, in_chans)
        if num_classes is not None:
            adaptation.set_num_classes_(model, num_classes)
        if (device, dtype) != (None, None):  # else it stays on the meta device, where transformers fills it
            model = model.to(device=device, dtype=dtype)
    if features_only:
        model = adaptation.features(model, out_indices)
    if pretrained_cfg_overlay:
        configure_(model, {**config_of(model), **pretrained_cfg_overlay})
    return model.train()


def _parsed(cfg: dict[str, Any], extra_fields: dict[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """What timm reads of a config.json, of which one of ours leads to `_repository`."""
    found: tuple[dict[str, Any], str, dict[str, Any]] = _parse(cfg, extra_fields)
    return (found[0], OURS, {}) if "zoo" in cfg else found


sys.modules[_models.__name__] = _models
_parse, _hub._parse_model_cfg = _hub._parse_model_cfg, _parsed
_add(OURS, _repository, {})
_register_catalog()
