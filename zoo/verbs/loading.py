"""Names in, models out: `create` and `load`, each readable from top to bottom."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from zoo import atomic, catalog
from zoo.catalog.entry import Base, Entry, Origin
from zoo.declarations import validated
from zoo.errors import RepositoryError, StructureError, UnknownName, ZooError, as_cause, first_line
from zoo.hub import graph_view, remote, repository
from zoo.hub.remote import DEFAULT, Access
from zoo.measurement.macs import unwrapped
from zoo.printable import logger
from zoo.structure.base import MAX_ARGUMENT, check_tag, initialised, skeleton, untagged, without_claims
from zoo.structure.describing import describe, settle_
from zoo.structure.description import (
    Description,
    attach_,
    config_of,
    configure_,
    description_of,
    of_classes,
    skeleton_of,
)
from zoo.structure.graph.certificate import check_floats
from zoo.structure.plan import Plan, apply_
from zoo.structure.sources import SOURCES, is_base_id
from zoo.tasks import task_of
from zoo.verbs import adaptation
from zoo.verbs.conversions import conversion, converted_before
from zoo.verbs.converting import CHECKPOINT_FILES, preprocessing
from zoo.verbs.dense_weights import WEIGHTS
from zoo.verbs.predicting import bound

log = logger(__name__)

Backend = Literal["onnxruntime"]


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    namespace: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    structure: graph_view.Form | None = None,
    backend: Backend | None = None,
    mmap: bool = True,
    token: str | bool | None = None,
    local_files_only: bool = False,
    refresh: bool = False,
) -> nn.Module:
    """Load a model with its weights.

    Args:
        name: of the catalog; `org/name` on the Hub; the folder of a repository (`./folder`); or a dense id with its
            tag (`timm/resnet50d.a1_in1k`, `torchvision/resnet18.IMAGENET1K_V1`).
        revision: of a model on the Hub: a commit, in full or shortened, a tag or a branch; None is the commit that the
            catalog pins, or the head. Of a timm id: of the repository that its weights lie in.
        namespace: the organisation or user on the Hub that a plain name is looked up at; None is `ZOO_NAMESPACE`, which
            names that are embedded don't need.
        cache_dir: for what is fetched; None is huggingface_hub's own.
        device: where the weights shall lie.
        dtype: of the floating-point weights; None keeps what is stored.
        num_classes: a new, randomly initialised head of so many classes, unless the model has as many; 0 leaves it out.
        in_chans: channels of the input; the first convolution's weights are repeated, or added up for one channel.
        features_only: return the feature maps [B, C, H, W] of every stage instead of logits.
        structure: of a repository that has both, `graph` instead of `plan`: it needs no timm, and a fresh process has
            its first output sooner. `zoo convert NAME --graph` writes one beside a plan.
        backend: of an integer model, what computes it in place of torch: `onnxruntime` on the CPU, many times as fast,
            gives the same bytes; it is compared at load, and refused where it doesn't.
        mmap: weights on the CPU stay in their file, and are read when they are used: loading costs next to nothing and
            processes share the memory. While the model lives, nobody may overwrite that file in place (its weights
            would change) or truncate it (the process would end with SIGBUS); replacing it, as `save` does, or deleting
            it is harmless. False reads them into memory.
        token: as huggingface_hub takes it: a token, or False for none; None is the one that was logged in with.
        local_files_only: take what the cache holds and ask the Hub for nothing.
        refresh: fetch again what the cache holds.

    Returns:
        An ordinary module in eval mode, carrying `pretrained_cfg` (timm's transforms resolve), `zoo_entry`
        (`zoo.structure.description.Description`: name, base, plan) and the method `predict`, as `zoo.predict`.

    Raises:
        UnknownName: no such model; the message names near ones.
        HubError: it can't be fetched.
        RepositoryError, StructureError, FingerprintError, WeightsError: what doesn't fit, by name.
    """
    _check_options(device, dtype, backend, num_classes=num_classes, in_chans=in_chans)
    access = Access(Path(cache_dir) if cache_dir else None, token, local_files_only, refresh)
    if is_base_id(name):
        if structure == "graph":
            raise StructureError(f"{name} is a base, which has no graph: zoo.save it, then zoo convert FOLDER --graph")
        model = pretrained(Base(str(name)), revision, access).to(device)
    else:
        model = repository.rebuild(folder_of(name, revision, namespace, access), device, mmap=mmap, form=structure)
    if (dtype, in_chans, num_classes, features_only) != (None, None, None, False):
        check_floats(model, "given another dtype, in_chans, num_classes or features_only")
    if in_chans is not None:
        adaptation.set_in_chans_(model, in_chans)
    if num_classes is not None:
        adaptation.set_num_classes_(model, num_classes)
        model = model.to(device)
    if dtype is not None:
        model = model.to(dtype=dtype)
    if backend is not None:
        from zoo.onnx.backend import accelerated

        source = description_of(model)
        known = repository.read_config(Path(source.source)) if source and source.source else {"zoo": {}}
        model = accelerated(model, known["zoo"].get("outputs_sha256"))
    elif features_only:
        model = adaptation.features(model).eval()
    return bound(model)


def create(name: str | os.PathLike[str] | Base, *, seed: int = 0) -> nn.Module:
    """Build a model with random weights; no weights are fetched.

    Args:
        name: of the catalog, `org/name` on the Hub, the folder of a repository, a base id such as `timm/resnet18` or
            `zoo/cifar_resnet20`, or a base with arguments, `Base("zoo/cifar_resnet20", {"shortcut": "B"})`.
        seed: of the random weights. They come from the base's own initialiser, of which the plan keeps the first
            channels.

    Returns:
        The module in eval mode, carrying `pretrained_cfg` and `zoo_entry`; neither has a tag or a licence, which are of
        weights.

    Raises:
        UnknownName, RepositoryError, StructureError: as for `load`.
    """
    return drawn(*description_named(name), seed)


def drawn(description: Description, config: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The same of what `description_named` gives."""
    if description.graph is not None and any(node.op == "qoutput" for node in description.graph.nodes):
        made_of = description.recipe.get("base", "its base")
        raise StructureError(
            f"{description.name} computes in integers, which nothing draws at random or prunes: take {made_of}, "
            f"or zoo.load it"
        )
    if description.base is None or description.graph is not None:
        raise StructureError(f"create: {description.name} is a graph, which has no initialiser: load it instead")
    model = initialised(description.base, seed)
    with torch.random.fork_rng(devices=[]):  # factors draw their own values
        torch.manual_seed(seed)
        apply_(model, description.plan)
    if not description.recipe and (plain := untagged(description.base)) != description.base:
        description = replace(description, name=plain.architecture, base=plain)
    configure_(model, without_claims(config))
    attach_(model, description)
    return model.eval()


def pretrained(base: Base, revision: str | None = None, access: Access = DEFAULT) -> nn.Module:
    """Load a dense base with its weights.

    Args:
        base: an entry of the catalog, or an id with its tag (`timm/resnet50d.a1_in1k`).
        revision: as for `load`.
        access: how the Hub is asked.

    Returns:
        The model in eval mode.

    Raises:
        HubError, RepositoryError: the weights can't be fetched.
        UnknownName, StructureError: no such base.
    """
    if not is_base_id(base.id):
        return repository.rebuild(folder_of(base.id, revision, None, access))
    check_tag(base)
    skeleton(base)  # says what is wrong with the arguments before anything is fetched
    if base.source not in WEIGHTS:
        named = repr(base.id) if not base.args else f"zoo.Base({base.id!r}, {dict(base.args)!r})"
        raise RepositoryError(
            f"{base.id} has no weights of its own: put yours into zoo.create({named}) and zoo.save that, which "
            "zoo.compress takes"
        )
    return WEIGHTS[base.source](base, revision, access).eval()


def transform(model: nn.Module) -> Callable[[Any], Tensor]:
    """The preprocessing that a model was evaluated with.

    Args:
        model: from `load`, `create` or timm.

    Returns:
        Image → tensor [C, H, W], normalised; stack several to a batch. An image is PIL's, a file's path or bytes, or
        what a row of a data set holds of it; it is decoded upright, as `zoo.tasks.pixels.decode` does everywhere.

    Raises:
        StructureError: the model carries no `pretrained_cfg`.
        UnknownName: this version doesn't know what the model is for.
    """
    config = config_of(unwrapped(model))
    if not config:
        raise StructureError("transform: the model has no pretrained_cfg; load it with zoo.load or timm.create_model")
    try:
        return task_of(model).evaluation_transform(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ZooError):
            raise
        raise StructureError(f"transform: the model's pretrained_cfg can't be used: {error!r}") from as_cause(error)


def _check_options(device: Any, dtype: Any, backend: Any, **counts: Any) -> None:
    validated(Backend | None, backend, "load: backend", StructureError)
    if backend is not None and torch.device(device).type != "cpu":
        raise StructureError(f"load: {backend} computes on the CPU here, device is {device!r}: leave one of them out")
    for option, value in counts.items():
        validated(Annotated[int, Meta(ge=0, le=MAX_ARGUMENT)] | None, value, f"load: {option}", StructureError)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise StructureError(f"load: dtype is {dtype!r}, expected a floating-point torch.dtype such as torch.float16")
    check_device(device, "load")


def check_device(device: Any, verb: str) -> None:
    """Check that torch computes there.

    Raises:
        StructureError: it can't, and why.
    """
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise StructureError(f"{verb}: device {device!r} can't be used here: {first_line(error)}") from None


def _is_path(name: str | os.PathLike[str]) -> bool:
    if not isinstance(name, str) or name in (".", ".."):
        return True
    return ("/" in name or os.sep in name) and (not remote.ID.fullmatch(name) or Path(name).is_dir())


def folder_of(
    name: str | os.PathLike[str],
    revision: str | None = None,
    namespace: str | None = None,
    access: Access = DEFAULT,
    files: Iterable[str] = repository.FILES,
) -> Path:
    """The folder of a model's repository, fetched if need be.

    Args:
        name: of the catalog, `org/name` on the Hub, or a path.
        revision: as for `load`.
        namespace: as for `load`.
        access: how the Hub is asked.
        files: what is needed of it.

    Raises:
        UnknownName, RepositoryError, HubError: as for `load`.
    """
    if isinstance(name, os.PathLike) or "/" in name:
        atomic.restore(Path(name))
    if _is_path(name):
        folder = Path(name)
        if not folder.is_dir():
            raise RepositoryError(f"no folder {folder}: expected a model repository, or a name that zoo list shows")
        _check_revision(name, revision)
        return folder
    entry = _origin_entry(str(name), namespace)
    if entry is not None:
        return conversion(entry, origin_of(entry.name, revision, access)[1])
    repo, pinned = _place(str(name), namespace)
    if repo is None:
        _check_revision(name, revision)
        return catalog.EMBEDDED / str(name)
    return remote.fetch(repo, revision or pinned, access=access, files=files)


def _origin_entry(name: str, namespace: str | None) -> Entry | None:
    """The entry of a name whose weights lie in another project's repository, unless a namespace is to be asked."""
    entry = None if namespace else catalog.known(name)
    return entry if entry is not None and entry.status == "origin" else None


def _check_revision(name: str | os.PathLike[str], revision: str | None) -> None:
    if revision is not None:
        raise RepositoryError(f"{name} doesn't lie on the Hub, where revision {revision!r} would mean something")


def origin_of(
    source: str | os.PathLike[str], revision: str | None = None, access: Access = DEFAULT
) -> tuple[Entry | None, Path]:
    """Where another project's checkpoint lies, fetched if need be, and what the catalog knows of it.

    Args:
        source: a folder, a name of the catalog, or `org/name` on the Hub.
        revision: as for `load`; None is the commit that the catalog knows.
        access: how the Hub is asked.

    Raises:
        UnknownName, RepositoryError, HubError: as for `load`.
    """
    if _is_path(source) or Path(source).is_dir():
        if not Path(source).is_dir():
            raise RepositoryError(f"no folder {source}: expected a checkpoint, a name of the catalog, or org/name")
        return None, Path(source)
    every = (catalog.info(name) for name in catalog.names(all=True))
    converted = (each for each in every if each.origin and each.origin.repo == source)
    entry = catalog.known(str(source)) or next(converted, None)
    if entry is None and "/" not in str(source):
        raise RepositoryError(f"{_entry(str(source)).name} has no origin to be converted from")
    origin = entry.origin if entry else Origin(str(source), "torch-dag")
    if origin is None:
        raise RepositoryError(f"{source} has no origin to be converted from: it is no other project's checkpoint")
    return entry, remote.fetch_files(
        origin.repo, revision or origin.commit, CHECKPOINT_FILES[origin.format], access=access
    )


def _place(name: str, namespace: str | None) -> tuple[str | None, str | None]:
    """Where on the Hub a name lies, and at which commit; nowhere if it is embedded."""
    if "/" in name:
        return name, None
    if namespace:
        return f"{namespace}/{name}", None
    own = os.environ.get("ZOO_NAMESPACE")
    if own and ((there := catalog.known(name)) is None or catalog.obstacle(there)):
        return f"{own}/{name}", None
    entry = _entry(name)
    if obstacle := catalog.obstacle(entry):
        raise RepositoryError(f"{name} can't be loaded: {obstacle}")
    return entry.repo, entry.revision


def _entry(name: str) -> Entry:
    try:
        return catalog.info(name)
    except UnknownName as error:
        if (Path(name) / repository.CONFIG).is_file():
            raise UnknownName(f"no model {name!r} in the catalog; for the folder of that name say ./{name}") from None
        if SOURCES["timm"].has(name):
            raise UnknownName(f"no model {name!r} in the catalog; timm's own of that name is timm/{name}") from None
        raise error


def description_named(name: str | os.PathLike[str] | Base) -> tuple[Description, dict[str, Any]]:
    """What a name says that a model is, and its `pretrained_cfg`; nothing is initialised, and no weights are fetched.

    Raises:
        UnknownName, RepositoryError, StructureError: as for `create`.
    """
    description, config = _description(name)
    if config:
        return of_classes(description, config.get("num_classes"), config.get("task", description.task)), dict(config)
    model = skeleton_of(description)
    settle_(model, description)
    return describe(model), config_of(model)


def _description(name: str | os.PathLike[str] | Base) -> tuple[Description, Any]:
    """The same; without `pretrained_cfg` where that is the base's own."""
    if isinstance(name, Base) or is_base_id(name):
        base = name if isinstance(name, Base) else Base(str(name))
        check_tag(base)
        return Description(base.id.partition("/")[2], base), None
    if not _is_path(name) and "/" not in str(name):
        entry = _entry(str(name))
        if entry.origin is not None and entry.origin.format == "timm":
            return Description(entry.name, Base(entry.origin.repo), task=entry.task), None
        if (folder := converted_before(entry)) is not None:
            config = repository.read_config(folder)
            return repository.describe_folder(folder, config), config.get("pretrained_cfg")
        if plan := catalog.stand_in(entry):
            log.warning(
                "%s is a stand-in of the published macs and params; its widths are known once it was converted",
                entry.name,
            )
            edits = Plan.from_json(plan["plan"])
            standing = Description(entry.name, entry.base, edits, structure="stand-in", task=entry.task)
            return standing, preprocessing(entry, entry.base)
        if entry.status == "origin":
            raise RepositoryError(f"the structure of {name} is known once it was converted: zoo.load({str(name)!r})")
        if obstacle := catalog.obstacle(entry):
            if entry.base is None or entry.recipe.method is not None:
                raise RepositoryError(f"the structure of {name} isn't known yet: {obstacle}")
            return Description(entry.name, entry.base, task=entry.task), None
    folder = folder_of(name, files=(repository.CONFIG,))
    config, description, _ = repository.structure_in(folder)  # refuses what this timm builds otherwise, or is absurd
    return description, config.get("pretrained_cfg")
