"""Repository: a model's folder in the Hub's layout, and what its config.json says."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta, Struct
from torch import nn

from zoo import atomic
from zoo.catalog.entry import INTERPOLATIONS, Base
from zoo.catalog.report import Versions
from zoo.deadline import deadline
from zoo.declarations import Finite, ModelName, Name, Positive, Version, fits, one_of, validated
from zoo.errors import RepositoryError, WeightsError
from zoo.files import read_json, sha256, sha256_stamped, write_json, writing_folder
from zoo.hub import graph_view, timm_folder, weights
from zoo.hub.graph_view import CONSTANTS, GRAPH, Form, View
from zoo.models.heads import check_detector
from zoo.models.settings import AnySettings
from zoo.structure.base import MAX_ARGUMENT, MAX_SIZE, ORIGINS, fingerprint, skeleton, tag
from zoo.structure.description import (
    DEFAULT_TASK,
    Description,
    Structure,
    config_of,
    configure_,
    dense_skeleton,
    skeleton_of,
)
from zoo.structure.graph import bounds
from zoo.structure.graph.certificate import certificate, is_integer, outputs_sha256
from zoo.structure.graph.graph import Graph
from zoo.structure.plan import Plan
from zoo.structure.sources import SOURCES, source_of, timm
from zoo.structure.tensors import assign_, computable, stored, tensors_of
from zoo.version import __version__

SCHEMA = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
RESULTS = "results.json"
FILES = (CONFIG, WEIGHTS, CARD, RESULTS, GRAPH, CONSTANTS)

MAX_SIDE = 4_096  # pixels; timm's largest images have 1,024
MIN_CROP = 0.5  # of a side; timm's smallest share is 0.875
MAX_WORDS = 1_000_000  # of a vocabulary
CROP_MODES = ("center", "squash", "border")

_Channels = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
_Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
_Classes = Annotated[int, Meta(ge=0, le=MAX_ARGUMENT)]
_Input = Annotated[
    tuple[_Channels, _Side, _Side], Meta(description=f"channels, height and width, at most {MAX_SIDE:,} pixels a side")
]
_Paths = Name | list[Name] | None


class _Pretrained(Struct):
    """Of timm's description of a model what transforms, costs, new heads and cards follow from."""

    input_size: _Input | None = None
    mean: Annotated[list[Finite], Meta(max_length=MAX_SIZE)] | None = None
    std: Annotated[list[Positive], Meta(max_length=MAX_SIZE)] | None = None
    crop_pct: Annotated[float, Meta(ge=MIN_CROP, le=2)] | None = None
    crop_mode: Annotated[str, one_of(CROP_MODES)] | None = None
    interpolation: Annotated[str, one_of(INTERPOLATIONS)] | None = None
    vocab_size: Annotated[int, Meta(ge=2, le=MAX_WORDS)] | None = None
    vocabulary: Annotated[list[Name], Meta(max_length=MAX_WORDS)] | None = None
    license: Name | None = None
    note: Annotated[str, Meta(max_length=MAX_SIZE)] | None = None
    first_conv: _Paths = None
    classifier: _Paths = None
    detector: AnySettings | None = None
    task: Name | None = None


class _Config(Struct):
    """Of timm's keys those that are read here."""

    num_classes: _Classes = 0
    pretrained_cfg: _Pretrained = msgspec.field(default_factory=_Pretrained)


class _Converted(Struct, frozen=True):
    """Of the checkpoint that a model was converted from, what is read here."""

    format: str
    repo: str | None = None
    commit: str | None = None
    sha256: Mapping[str, str] = {}
    changed: Sequence[str] = ()


class _Recipe(Struct, frozen=True):
    """Of how a model was made, what cards and `zoo show` read."""

    method: str | None = None
    base: str | None = None
    base_method: str | None = None
    budget: Mapping[str, float | None] | None = None
    data: str | None = None
    options: Mapping[str, Any] = {}
    teachers: Sequence[str] = ()
    schedule: Mapping[str, Any] = {}
    distil: Mapping[str, Any] = {}
    augment: Mapping[str, Any] = {}
    converted_from: _Converted | None = None
    altered: bool = False


class _Saved(Struct, frozen=True, kw_only=True):
    """What stands under `zoo`, where later versions may say more."""

    schema: int
    name: ModelName
    task: Name = DEFAULT_TASK
    recipe: _Recipe = _Recipe()
    weights_sha256: Name
    outputs_sha256: Name | None = None
    versions: Versions = {}
    base: Base | None = None
    plan: list[Any] = []  # Plan's own words say what is wrong with it
    fingerprint: Mapping[str, str] = {}
    structure: Structure = "exact"
    view: View | None = None


class _OfPlan(_Saved, frozen=True, kw_only=True):
    base: Base
    plan: list[Any]
    fingerprint: Mapping[str, str]


class _OfGraph(_Saved, frozen=True, kw_only=True):
    graph: Literal["graph.json"]


def versions() -> dict[str, str]:
    """Versions of what a model's figures depend on."""
    return {
        "zoo": __version__,
        "timm": SOURCES["timm"].version,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_repository(
    folder: Path, model: nn.Module, description: Description, files: Mapping[str, str | bytes]
) -> None:
    """Write a repository; it appears whole or not at all.

    Args:
        folder: where; an earlier repository there is replaced.
        model: the weights and `pretrained_cfg`.
        description: what the model is; rebuilt here and compared, so that what is written can be read.
        files: further files by name (card, results, pictures).

    Raises:
        StructureError: the base can't be built or a plan's edit doesn't fit it.
        WeightsError: the plan doesn't describe this model.
        StorageError: the disk is full or refuses.
    """
    values, structure = tensors_of(model), _structure(description)
    rebuilt = skeleton_of(description)
    config = config_of(model)
    if description.graph is not None:
        bounds.check_memory(description.graph, rebuilt, config.get("input_size"), ids=bool(config.get("vocab_size")))
    computed = computable(rebuilt)
    assign_(rebuilt, {path: value for path, value in values.items() if path not in computed}, description.name)
    config = {key: value for key, value in config.items() if key not in ORIGINS and value is not None}
    names = config.pop("label_names", None)  # where timm keeps them too
    with writing_folder(folder) as new:
        digest = weights.save_weights(new / WEIGHTS, dict(stored(rebuilt, values)))
        for name, content in files.items():
            (new / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if description.graph is not None:
            write_json(new / GRAPH, description.graph.to_json())
        write_json(
            new / CONFIG,
            {
                "architecture": description.name,
                "num_classes": int(getattr(rebuilt, "num_classes", getattr(model, "num_classes", 0))),
                **({"label_names": list(names)} if names else {}),
                "num_features": int(getattr(model, "num_features", 0)),
                "pretrained_cfg": {**config, "architecture": description.name},
                "zoo": {
                    "schema": SCHEMA,
                    "name": description.name,
                    "task": description.task,
                    **structure,
                    "recipe": dict(description.recipe),
                    "weights_sha256": digest,
                    **({"outputs_sha256": outputs_sha256(model)} if is_integer(model) else {}),
                    "versions": versions(),
                },
            },
        )


def _structure(description: Description) -> dict[str, Any]:
    """The keys that say how the structure is rebuilt."""
    base = description.base and {"id": description.base.id, "args": dict(description.base.args)}
    if description.graph is not None:
        return {"base": base, "graph": GRAPH, "plan": description.plan.to_json()}
    saved = fingerprint_of(description)
    mark = {"structure": description.structure} if description.structure != "exact" else {}
    return {"base": base, "plan": description.plan.to_json(), "fingerprint": saved, **mark}


def fingerprint_of(description: Description) -> dict[str, str]:
    """The fingerprint of the base that a plan edits; of a graph it has none."""
    if description.graph is not None:
        return {}
    return fingerprint(dense_skeleton(description), description.plan.paths())


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check a repository's config.json.

    Args:
        folder: the repository.

    Returns:
        The configuration: timm's keys, and ours under `zoo`; of a folder that timm saved, what ours would be.

    Raises:
        RepositoryError: it isn't a repository, was written by a newer schema, or lacks a key.
    """
    atomic.restore(folder)
    if not folder.is_dir():
        raise RepositoryError(f"{folder} isn't a folder: expected a model repository")
    config = read_json(folder / CONFIG)
    if "zoo" not in config and timm_folder.is_timms(config):
        config = timm_folder.as_ours(config, folder / CONFIG, folder / WEIGHTS)
    ours = config.get("zoo")
    if not isinstance(ours, dict):
        raise RepositoryError(f"{folder / CONFIG} has no key 'zoo': not written by this package")
    schema = ours.get("schema")
    if type(schema) is not int or schema > SCHEMA:
        written = ours.get("versions")
        needed = written.get("zoo") if isinstance(written, dict) else None
        raise RepositoryError(
            f"{folder / CONFIG} has schema {schema}, zoo {__version__} reads up to {SCHEMA}: "
            f"needs zoo >= {needed if fits(Version, needed) else 'newer'}; pip install -U compressed-zoo"
        )
    validated(_Config, config, f"{folder / CONFIG}:", RepositoryError)
    _saved(folder, config)
    return _with_names(folder, config)


def _with_names(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the names of the classes in `pretrained_cfg`, where timm puts them."""
    names, classes = config.get("label_names"), config.get("num_classes")
    if names is None:
        return config
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise RepositoryError(f"{folder / CONFIG}: label_names isn't a list of {classes} names")
    return {**config, "pretrained_cfg": {**config.get("pretrained_cfg", {}), "label_names": names}}


def describe_folder(folder: Path, config: Mapping[str, Any]) -> Description:
    """What a repository says that it holds.

    Args:
        folder: the repository; read only for a graph.
        config: its config.json.

    Raises:
        RepositoryError: a graph that is named isn't there.
        StructureError: the plan or the graph holds something unknown.
    """
    saved = _saved(folder, config)
    about: dict[str, Any] = {"recipe": config["zoo"].get("recipe", {}), "task": saved.task, "source": str(folder)}
    plan = Plan.from_json(saved.plan, f"{folder / CONFIG}: zoo.plan")
    if isinstance(saved, _OfGraph):
        graph = Graph.from_json(read_json(folder / GRAPH), str(folder / GRAPH))
        return Description(saved.name, saved.base, plan, graph=graph, **about)
    return Description(saved.name, _as_saved(saved.base, saved.fingerprint), plan, structure=saved.structure, **about)


def _saved(folder: Path, config: Mapping[str, Any]) -> "_OfPlan | _OfGraph":
    """What stands under `zoo`."""
    kind = _OfGraph if "graph" in config["zoo"] else _OfPlan
    saved: _OfPlan | _OfGraph = validated(kind, config["zoo"], f"{folder / CONFIG}: zoo", RepositoryError)
    return saved


def _as_saved(base: Base, saved: Mapping[str, str]) -> Base:
    """The base as it was meant: earlier versions built every tag with the classes of the architecture's default."""
    if tag(base) is None or "num_classes" in base.args:
        return base
    names = base.id.partition("/")[2], base.architecture
    own, usual = (timm().models.get_pretrained_cfg_value(name, "num_classes") for name in names)
    if own == usual or fingerprint(skeleton(base), saved) == saved:
        return base
    return Base(base.id, {**base.args, "num_classes": usual})


def structure_of(config: Mapping[str, Any], description: Description) -> nn.Module:
    """The structure that a repository describes, on meta; its base must be that which it was saved from.

    Raises:
        UnknownName, StructureError: it can't be built.
        FingerprintError: its source builds another base now.
    """
    ours = config["zoo"]
    model = skeleton_of(description, ours.get("fingerprint"), ours.get("versions", {}))
    if description.graph is not None:
        seen = config.get("pretrained_cfg", {})
        bounds.check_memory(description.graph, model, seen.get("input_size"), ids=bool(seen.get("vocab_size")))
        model.num_classes = int(config.get("num_classes", 0))  # type: ignore[assignment]
    return model


def structure_in(folder: Path, form: Form | None = None) -> tuple[dict[str, Any], Description, nn.Module]:
    """What a repository's config.json says, what is described there, and that structure on meta.

    Args:
        folder: the repository.
        form: the structure to take, where it has two; None is the plan.

    Raises:
        RepositoryError, UnknownName, StructureError, FingerprintError: as for `read_config` and `structure_of`.
    """
    # This reads the weights of a folder that timm saved, however long that takes.
    config = graph_view.seen_as(folder, read_config(folder), form)
    if isinstance(saved := _saved(folder, config), _OfPlan):
        source_of(saved.base)  # and this imports its library
    with deadline(f"{folder}: its structure"):
        description = describe_folder(folder, config)
        return config, description, structure_of(config, description)


def rebuild(
    folder: Path, device: str | torch.device = "cpu", *, mmap: bool = True, form: Form | None = None
) -> nn.Module:
    """Rebuild the model that a repository holds: base on meta → plan → weights.

    Args:
        folder: the repository.
        device: where the weights shall lie.
        mmap: as for `weights.load_weights`.
        form: as for `structure_in`.

    Returns:
        The model in eval mode, with `pretrained_cfg` and its description as `zoo_entry`.

    Raises:
        RepositoryError, StructureError, FingerprintError, WeightsError: whatever doesn't fit, named.
    """
    config, _, model = structure_in(folder, form)
    path, expected = folder / WEIGHTS, config["zoo"]["weights_sha256"]
    timm_folder.check_no_pickle(path)
    values = weights.load_weights(path, device, mmap=mmap, structure=model)
    if (digest := sha256_stamped(path)) != expected:
        raise _altered(path, expected, digest)
    assign_(model, graph_view.completed(values, folder, config, model, device), str(path))
    certificate(model)
    configure_(model, config.get("pretrained_cfg", {}))
    if "detector" in config_of(model):
        check_detector(model)
    return model


def check_sha256(folder: Path) -> None:
    """Read the weights from the disk, and what a view lies in, and compare their sha256, whatever the stamps say.

    Raises:
        RepositoryError, WeightsError: a file is missing or was altered.
    """
    config = read_config(folder)
    graph_view.check_view(folder, config)
    expected, found = config["zoo"]["weights_sha256"], sha256(folder / WEIGHTS)
    if found != expected:
        raise _altered(folder / WEIGHTS, expected, found)


def _altered(path: Path, expected: str, found: str) -> WeightsError:
    return WeightsError(f"{path} has sha256 {found[:12]}…, expected {expected[:12]}…: fetch or save it again")
