"""Folders and repositories that timm itself saved (`save_for_hf`, `push_to_hf_hub`), read as dense models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.catalog.entry import Base
from zoo.errors import RepositoryError
from zoo.files import sha256_stamped
from zoo.hub import weights
from zoo.structure.base import fingerprint, skeleton, without_claims
from zoo.structure.sources import SOURCES, timm

PICKLES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth")


def is_timms(config: Mapping[str, Any]) -> bool:
    """Whether a config.json that isn't ours is timm's, of an architecture that this timm has."""
    architecture = config.get("architecture")
    return isinstance(architecture, str) and SOURCES["timm"].has(architecture)


def as_ours(config: Mapping[str, Any], config_file: Path, weights_file: Path) -> dict[str, Any]:
    """What our own config.json would say of a model that timm saved.

    Args:
        config: timm's; of old, `pretrained_cfg` was all of it.
        config_file: where it lies, for messages.
        weights_file: where its weights lie; not fetched yet, perhaps.

    Raises:
        RepositoryError: it lacks something.
        StructureError: timm builds no such model.
        WeightsError: its weights are larger than such a model can need.
    """
    architecture = config["architecture"]
    own = config.get("pretrained_cfg", {key: value for key, value in config.items() if key != "architecture"})
    given = config.get("model_args") or {}
    size = own.get("input_size", [3, 224, 224]) if isinstance(own, dict) else None
    if not isinstance(given, dict) or not isinstance(size, list) or len(size) != 3:
        raise RepositoryError(f"{config_file}: expected pretrained_cfg with input_size, and model_args, as timm writes")
    usual = timm().get_pretrained_cfg(architecture).to_dict(remove_source=True)
    classes = config.get("num_classes", own.get("num_classes", usual["num_classes"]))
    args = {"num_classes": classes, "in_chans": size[0]}
    if own.get("fixed_input_size", usual.get("fixed_input_size")):
        args["img_size"] = size[1:]
    base = Base(f"timm/{architecture}", {**args, **{key: value for key, value in given.items() if value is not None}})
    dense, fetched = skeleton(base), weights_file.is_file()
    if fetched:
        weights.check_size(weights_file, dense)
    names = config.get("label_names", own.get("label_names", own.get("labels")))
    return {
        "architecture": architecture,
        "num_classes": classes,
        **({} if names is None else {"label_names": names}),
        # timm writes its own weights' licence and tag beside whatever it saves
        "pretrained_cfg": {**without_claims({**usual, **own}), "architecture": architecture, "num_classes": classes},
        "zoo": {
            "schema": 1,
            "name": architecture,
            "base": {"id": base.id, "args": dict(base.args)},
            "plan": [],
            "fingerprint": fingerprint(dense),
            "weights_sha256": sha256_stamped(weights_file) if fetched else "",
        },
    }


def check_no_pickle(weights_file: Path) -> None:
    """Say what to do about a folder whose weights are a pickle alone.

    Raises:
        RepositoryError: they are.
    """
    folder = weights_file.parent
    pickles = [name for name in PICKLES if (folder / name).is_file()]
    if pickles and not weights_file.is_file():
        raise RepositoryError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which isn't loaded: zoo save {folder} --weights "
            f"{folder / pickles[0]} --out NEW makes a repository of it, and runs nothing"
        )
