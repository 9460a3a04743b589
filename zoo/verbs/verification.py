"""`verify`: what a card and a source claim of a model, measured again."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn

from zoo import catalog
from zoo.catalog.data_names import HUB_ID, NAMED, data_name, limited, told
from zoo.catalog.entry import Entry
from zoo.catalog.report import Report, Verification
from zoo.errors import RepositoryError, ZooError
from zoo.files import read_json
from zoo.hub import repository
from zoo.printable import logger
from zoo.structure.sources import is_base_id
from zoo.tasks import task_of
from zoo.tasks.classification.classes import class_names
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import BESIDE
from zoo.tasks.outputs import Computing
from zoo.tasks.task import Labels
from zoo.verbs import judging
from zoo.verbs.judging import COUNTS
from zoo.verbs.loading import folder_of, load
from zoo.verbs.measuring import Subject, reports_of

log = logger(__name__)

MAX_IMAGES = 1_000_000  # of a data set that a claim names


def verify(
    name: str | os.PathLike[str],
    *,
    data: Any = None,
    skip_damaged: bool = False,
    labels: Labels | None = None,
    images: int | None = None,
    structure_only: bool = False,
    revision: str | None = None,
    namespace: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    precision: str = "",
    channels_last: bool = False,
    compile: bool = False,
    size: int | None = None,
    crop_pct: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Verification:
    """Measure a model again and compare.

    The weights' sha256 is read from the disk. A model of integers gives, for images that are fixed, the very bytes that
    it gave where it was saved (`bytes`, 0 where they are the same). Where a graph lies beside the plan, both give the
    same outputs. Params, macs and the bytes of the weights must agree exactly. The accuracy is that of the same weights
    on the same images, so only rounding may differ: one image in the set may turn, and of a class of objects one of
    these; where the pixels are others, or a source's, `zoo.measurement.tolerance` says how many. The divergence from
    the dense base may differ by a hundredth of itself; it has a row where that base is at hand, a model of the catalog
    with the weights that it was measured against. In another precision, at another size or crop, on other images or
    against another base, a claim is shown and not judged; a verification that judges none of those on images hasn't
    passed. Whether images are the same is told by the hash of their pixels and classes (`zoo.tasks.identity`), wherever
    they lie, and never by the name of a folder.

    Args:
        name: of the catalog, `org/name` on the Hub, a repository's folder, or a timm id, of which nothing is claimed.
        data: the data set to evaluate on, as `report_of` takes it; None takes the one that the results name, a data set
            of the package or of the Hub: what lies on this disk is read for nobody but you.
        skip_damaged: leave out images that can't be decoded; on the data that the results name, as they say.
        labels: {class of the data: class of the model}, or the names of the model's classes in order; None takes those
            that the results say, where the data has such classes.
        images: evaluate on at most so many; a reported accuracy may then differ by as much as such a draw may.
        structure_only: leave accuracy out; needs no data.
        revision: as for `load`.
        namespace: as for `load`.
        device: as for `load`.
        dtype: as for `load`.
        precision: of convolutions and products, `bf16` or `fp16`, as autocast chooses; empty is that of the weights.
        channels_last: compute channels last, which some devices do faster.
        compile: compute by torch.compile, which some models are faster by, after a minute.
        size: side in pixels of the square images to evaluate on; None takes the model's own.
        crop_pct: share of the shorter side that is cropped, 0..1; None takes the model's own.
        batch_size: images of one batch, as for `report_of`.
        workers: processes that load images, as for `report_of`.

    Returns:
        A row for each figure; `passed` is False if any differs, or none of those on images could be judged.

    Raises:
        RepositoryError: the results can't be read, or name data on this disk.
        ZooError: as for `load`.
    """
    asked = {key: value for key, value in locals().items() if key != "name"}
    return verify_together([name], **asked)[str(name)]


def verify_together(
    names: Sequence[str | os.PathLike[str]],
    *,
    refused: Callable[[str, ZooError], None] | None = None,
    **settings: Any,
) -> dict[str, Verification]:
    """Measure models again, those on the same data in one pass over the images; each figure is that of `verify`.

    Args:
        names: as for `verify`.
        refused: is told the name of a model that can't be verified, and why, and the others go on; None raises it.
        settings: the other arguments of `verify`.

    Returns:
        What `verify` returns of each model that could be verified, by its name, in their order.
    """
    asked = _Asked(**settings)
    loaded: dict[Any, nn.Module] = {}
    claims: list[_Claim] = []
    for name in names:
        with _told([str(name)], refused):
            claims.append(_claim(name, asked, loaded))
    found: dict[str, Verification] = {}
    for numbers in _alike(claims):
        ours = [claims[number] for number in numbers]
        told_of = None if refused is None else _named_refusal(refused, ours)
        subjects = [Subject(each.model, each.against, labels=each.labels) for each in ours]
        how: dict[str, Any] = {"skip_damaged": ours[0].skip_damaged, "computing": asked.computing}
        how |= {key: getattr(asked, key) for key in ("images", "size", "crop_pct", "batch_size", "workers")}
        reports: list[Report | None] = []
        with _told([each.name for each in ours], refused):
            reports = reports_of(subjects, ours[0].spec, refused=told_of, **how)
        for each, report in zip(ours, reports, strict=False):
            if report is not None:
                with _told([each.name], refused):
                    found[each.name] = _judged(each, asked, report)
    return {each.name: found[each.name] for each in claims if each.name in found}


@dataclass(frozen=True)
class _Asked:
    """The arguments of `verify` beside the name."""

    data: Any = None
    skip_damaged: bool = False
    labels: Labels | None = None
    images: int | None = None
    structure_only: bool = False
    revision: str | None = None
    namespace: str | None = None
    device: str | torch.device = "cpu"
    dtype: torch.dtype | None = None
    precision: str = ""
    channels_last: bool = False
    compile: bool = False
    size: int | None = None
    crop_pct: float | None = None
    batch_size: int | None = None
    workers: int | None = None

    @property
    def computing(self) -> Computing:
        return Computing(self.precision, self.channels_last, self.compile)

    @property
    def cast(self) -> str:
        """That the weights are given another precision."""
        return f"in {self.dtype}".replace("torch.", "") if self.dtype else ""

    def changed(self, precision: Any = "") -> str:
        """What was asked for that a claim of such a precision isn't of; nothing where everything is as claimed."""
        said = [self.size and f"at {self.size} px", self.crop_pct and f"crop {self.crop_pct:g}", self.cast]
        if precision != self.precision:
            said.append(f"{self.precision} autocast" if self.precision else "claimed of another precision")
        return ", ".join(each for each in said if each)


@dataclass(frozen=True)
class _Claim:
    """A model, what its results claim, and on what that is measured again."""

    name: str
    entry: Entry | None
    folder: Path | None
    claimed: Report
    model: nn.Module
    base: str
    against: nn.Module | None
    spec: Any
    named: bool
    skip_damaged: bool
    labels: Labels | None


def _claim(name: str | os.PathLike[str], asked: _Asked, loaded: dict[Any, nn.Module]) -> _Claim:
    """Load a model, and its base where that is at hand, which others may have loaded."""
    folder = None if is_base_id(name) else folder_of(name, asked.revision, asked.namespace)
    claimed = results_of(folder) if folder else Report(str(name), {})
    given = asked.data is not None
    spec = None if asked.structure_only else asked.data if given else _named(claimed, name)
    base = claimed.data.get("against")
    known = catalog.known(base) if spec is not None and base else None
    base = known.name if known is not None and catalog.obstacle(known) is None else ""
    _say_what_is_fetched(claimed, None if given else spec, base)
    how: dict[str, Any] = {"device": asked.device, "dtype": asked.dtype}
    if str(name) not in loaded:
        loaded[str(name)] = load(folder or name, revision=None if folder else asked.revision, **how)
    model = loaded[str(name)]
    if folder:
        repository.check_sha256(folder)
    if base and base not in loaded:
        loaded[base] = load(base, **how)
    against = loaded[base] if base else None
    if spec is not None and against is None and task_of(model).leading.figure in BESIDE:
        log.warning("%s: its outputs can be compared with its base's alone, which isn't at hand", claimed.name)
        spec = None
    named = spec is not None and told(spec) == claimed.data.get("dataset")
    skip_damaged = asked.skip_damaged or (named and claimed.data.get("skip_damaged", False))
    labels = asked.labels
    if labels is None and spec is not None:
        labels = _labels_of(claimed, None if named else spec)
    entry = catalog.known(name) if isinstance(name, str) else None
    return _Claim(str(name), entry, folder, claimed, model, base, against, spec, named, skip_damaged, labels)


def _alike(claims: Sequence[_Claim]) -> list[list[int]]:
    """Those that are measured on the same data, by their numbers."""
    groups: dict[Any, list[int]] = {}
    for number, each in enumerate(claims):
        spec = each.spec if isinstance(each.spec, str | None) else id(each.spec)
        groups.setdefault((spec, each.skip_damaged), []).append(number)
    return [*groups.values()]


@contextmanager
def _told(names: Sequence[str], refused: Callable[[str, ZooError], None] | None) -> Iterator[None]:
    """Tell that models can't be verified, where somebody wants to hear of it and go on with others."""
    try:
        yield
    except ZooError as error:
        if refused is None:
            raise
        for name in names:
            refused(name, error)


def _named_refusal(refused: Callable[[str, ZooError], None], ours: Sequence[_Claim]) -> Callable[[int, ZooError], None]:
    return lambda number, error: refused(ours[number].name, error)


def _judged(claim: _Claim, asked: _Asked, found: Report) -> Verification:
    """What was measured, held against what is claimed."""
    claimed, images = claim.claimed, asked.images
    if claim.against and (weights := weights_of(claim.base)):
        found = replace(found, data={**found.data, "against_sha256": weights})
    others = judging.others_than(claimed, found, claim.named, images) if claim.spec is not None else ""
    another = _another(claimed, claim.base) if claim.against else ""
    changed = asked.changed(claimed.data.get("precision", ""))
    rows = judging.compared(claimed, found, changed, others, another, asked.cast)
    rows += judging.structural(claim.folder, claim.model) if claim.folder else []
    rows += [] if asked.structure_only else judging.without(claimed, found, claim.against is not None, others)
    rows += judging.reported(claim.entry, claim.model, found, images, asked.changed()) if claim.entry else []
    return Verification(found.name, tuple(rows), found)


def _named(claimed: Report, name: str | os.PathLike[str]) -> str | None:
    """The data set that a repository's results name; nobody's claim chooses what is read of this disk.

    Raises:
        RepositoryError: what they name is neither a data set of the package nor a Hub id, or lies here; or they name
            none and claim more than counts.
    """
    spec = claimed.data.get("dataset")
    if not spec:
        if further := sorted(claimed.measured.keys() - COUNTS.keys()):
            message = f"{name}: {repository.RESULTS} names no data set for {', '.join(further)}: pass --data"
            raise RepositoryError(message)
        return None
    place, most = limited(spec)
    ours, hubs = place in NAMED, HUB_ID.fullmatch(place) and not Path(place).exists()
    if not (ours or hubs) or (most or 0) > MAX_IMAGES:
        raise RepositoryError(
            f"{claimed.name}: its figures are of {spec[:80]!r}, no data set of the package or of the Hub: say which "
            "data here they are of with --data"
        )
    return str(spec)


def _labels_of(claimed: Report, other: Any) -> Any:
    """How the results take the data's classes; that several count as one is told, as every model is better then.

    Args:
        claimed: by the results.
        other: data of another name than theirs, which may have other classes; None of the same.
    """
    labels = claimed.data.get("labels")
    if isinstance(labels, Mapping) and other is not None:
        unknown = labels.keys() - {*class_names(dataset(other, "test"))}
        if unknown:
            said = "%s: its figures are of mapped classes, such as %s, which %s hasn't: its own names are taken"
            log.warning(said, claimed.name, min(unknown), data_name(other))
            return None
    if isinstance(labels, Mapping) and (count := len(set(map(str, labels.values())))) < len(labels):
        said = "%s: its figures take %d classes of the data for %d of the model's: --labels FILE says which is which"
        log.warning(said, claimed.name, len(labels), count)
    return labels


def _say_what_is_fetched(claimed: Report, spec: str | None, base: str | None) -> None:
    """Say what the results, and not whoever verifies them, choose to be fetched; before it is."""
    if spec and limited(spec)[0] not in NAMED:
        log.warning("%s: its figures are of %s, which is fetched from the Hub", claimed.name, spec)
    if base and catalog.info(base).status != "embedded":
        log.warning("%s: it is compared with %s of the catalog, whose weights are fetched", claimed.name, base)


def _another(claimed: Report, base: str) -> str:
    """That the divergence was measured against other weights than those that `base` has now."""
    was = claimed.data.get("against_sha256")
    return "another base" if was and was != weights_of(base) else ""


def weights_of(name: str) -> str:
    """The sha256 of a model's weights; nothing of a base id."""
    if name == "" or is_base_id(name):
        return ""
    return str(repository.read_config(folder_of(name))["zoo"]["weights_sha256"])


def results_of(folder: Path) -> Report:
    """What the repository's results say; nothing where it has none."""
    path = folder / repository.RESULTS
    if not path.exists():
        return Report(folder.name, {})
    return Report.from_json(read_json(path), str(path))
