"""`verify`: what a card and a source claim of a model, measured again."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import catalog
from zoo.catalog.data_names import HUB_ID, NAMED, data_name, limited, told
from zoo.catalog.report import COSTS, OBJECTS, Report, Row, Verification
from zoo.errors import RepositoryError
from zoo.files import read_json
from zoo.hub import repository
from zoo.measurement.conventions import COUNTINGS
from zoo.printable import logger
from zoo.structure.graph.certificate import is_integer, outputs_sha256
from zoo.structure.sources import is_base_id
from zoo.tasks import task_of
from zoo.tasks.classification.classes import class_names
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import BESIDE
from zoo.tasks.task import Labels
from zoo.verbs.loading import folder_of, load
from zoo.verbs.measuring import report_of
from zoo.verbs.viewing import CLOSE, views_apart

log = logger(__name__)

COUNTS = {**dict.fromkeys(COSTS, 0.0), "kmapp": 5e-4}  # and how far each may be off
MAX_IMAGES = 1_000_000  # of a data set that a claim names
SAME_KL = 1e-6  # nats, that a model without a change may be off the same one


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
    these. The divergence from the dense base may differ by a hundredth of itself; it has a row where that base is at
    hand, a model of the catalog with the weights that it was measured against. In another precision, at another size or
    crop, on other images or against another base, a claim is shown and not judged; a verification that judges none of
    those on images hasn't passed. Whether images are the same is told by the hash of their pixels and classes
    (`zoo.tasks.identity`), wherever they lie, and never by the name of a folder.

    Args:
        name: of the catalog, `org/name` on the Hub, a repository's folder, or a timm id, of which nothing is claimed.
        data: the data set to evaluate on, as `report_of` takes it; None takes the one that the results name, a data set
            of the package or of the Hub: what lies on this disk is read for nobody but you.
        skip_damaged: leave out images that can't be decoded; on the data that the results name, as they say.
        labels: {class of the data: class of the model}, or the names of the model's classes in order; None takes those
            that the results say, where the data has such classes.
        images: evaluate on at most so many; a reported accuracy may then differ by two standard deviations of the draw.
        structure_only: leave accuracy out; needs no data.
        revision: as for `load`.
        namespace: as for `load`.
        device: as for `load`.
        dtype: as for `load`.
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
    folder = None if is_base_id(name) else folder_of(name, revision, namespace)
    claimed = results_of(folder) if folder else Report(str(name), {})
    given = data is not None
    spec = None if structure_only else data if given else _named(claimed, name)
    base = claimed.data.get("against")
    known = catalog.known(base) if spec is not None and base else None
    base = base if known is not None and catalog.obstacle(known) is None else None
    _say_what_is_fetched(claimed, None if given else spec, base)
    model = load(folder or name, revision=None if folder else revision, device=device, dtype=dtype)
    if folder:
        repository.check_sha256(folder)
    against = load(base, device=device, dtype=dtype) if base else None
    if spec is not None and against is None and task_of(model).leading.figure in BESIDE:
        log.warning("%s: its outputs can be compared with its base's alone, which isn't at hand", claimed.name)
        spec = None
    named = spec is not None and told(spec) == claimed.data.get("dataset")
    if named:
        skip_damaged = skip_damaged or claimed.data.get("skip_damaged", False)
    if labels is None and spec is not None:
        labels = _labels_of(claimed, None if named else spec)
    reading: dict[str, Any] = {"skip_damaged": skip_damaged, "labels": labels}
    settings: dict[str, Any] = {"size": size, "crop_pct": crop_pct, "batch_size": batch_size, "workers": workers}
    found = report_of(model, spec, against=against, images=images, **reading, **settings)
    changed = _changed(size, crop_pct, dtype)
    others = _others(claimed, found, named, images) if spec is not None else ""
    rows = _compared(claimed, found, changed or others, _another(claimed, str(base)) if against else "")
    rows = [replace(row, note=_changed(dtype=dtype)) if row.figure == "weights_bytes" else row for row in rows]
    rows += _classes(claimed, found, changed or others)
    if folder and "view" in repository.read_config(folder)["zoo"]:
        rows.append(Row("graph", 0.0, views_apart(folder), CLOSE))
    if folder and is_integer(model):
        expected = repository.read_config(folder)["zoo"].get("outputs_sha256")
        rows.append(Row("bytes", 0.0, float(outputs_sha256(model) != expected)))
    left = claimed.measured.keys() - found.measured.keys() - (set() if against else {*BESIDE})
    left = left & COUNTS.keys() if others else left
    rows += [Row(figure, claimed.measured[figure], None) for figure in sorted(left) if not structure_only]
    return Verification(found.name, (*rows, *_reported(name, model, found, images, changed)), found)


def _compared(claimed: Report, found: Report, changed: str, another: str) -> list[Row]:
    """What was measured beside what the results claim; a figure of the task may be one image off.

    Args:
        claimed: by the results.
        found: here.
        changed: what of the conditions isn't as claimed.
        another: that the divergence was measured against another base.
    """
    tolerances = {**COUNTS, "kl": max(0.01 * claimed.measured.get("kl", 0.0), SAME_KL)}
    image = 1 / found.data.get("images", 1)
    notes = {**dict.fromkeys(COUNTS, ""), **dict.fromkeys(BESIDE, changed or another)}
    return [
        Row(figure, claimed.measured.get(figure), value, tolerances.get(figure, image), notes.get(figure, changed))
        for figure, value in found.measured.items()
    ]


def _classes(claimed: Report, found: Report, note: str) -> list[Row]:
    """The figures of each class; one of its n objects may turn, which changes recall and precision by 1/n each.

    Arguments are those of `_compared`.
    """
    rows = []
    for name in dict.fromkeys((*found.classes, *claimed.classes)) if found.classes else ():
        here, there = found.classes.get(name, {}), claimed.classes.get(name, {})
        turned = 2 / max(here.get(OBJECTS, 0), 1)
        for figure in dict.fromkeys((*here, *there)):
            value, claim = here.get(figure), there.get(figure)
            if figure != OBJECTS and (value is not None or not note):
                rows.append(Row(figure, claim, value, turned, note, of=name))
    return rows


def _others(claimed: Report, found: Report, named: bool, drawn: int | None) -> str:
    """That what was evaluated isn't what the claim is of; nothing where it is.

    Args:
        claimed: by the results.
        found: here.
        named: whether the results name the data set.
        drawn: at most so many images of it were evaluated.
    """
    claim, here = (each.data.get("sha256") for each in (claimed, found))
    if claim == here is not None:
        log.info("%s: these %d images are those that its figures are of", found.name, found.data["images"])
        return ""
    if drawn is not None:
        return "a draw"
    if claim and named:
        log.warning("%s: these images aren't those that its figures are of, though the name is the same", found.name)
    if named and not _is_local(claimed.data):
        return ""
    return "other images" if claim else "images unknown"


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


def _is_local(data: Mapping[str, Any]) -> bool:
    """Whether figures are of a folder, whose name any folder may have."""
    return str(data.get("dataset", "")).startswith("./")


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


def _changed(size: int | None = None, crop_pct: float | None = None, dtype: torch.dtype | None = None) -> str:
    """What was asked for that a claim isn't of; nothing where everything is as claimed."""
    said = (size and f"at {size} px", crop_pct and f"crop {crop_pct:g}", dtype and f"in {dtype}".replace("torch.", ""))
    return ", ".join(each for each in said if each)


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


def _reported(
    name: str | os.PathLike[str], model: nn.Module, found: Report, images: int | None, changed: str
) -> list[Row]:
    """What the entry's source reports: costs in its own counting, accuracy where it was measured on the same data."""
    entry = catalog.known(name) if isinstance(name, str) else None
    if entry is None:
        return []
    rows = []
    same = found.data.get("dataset", "") in (entry.dataset, entry.recipe.data) and not _is_local(found.data)
    for claim in entry.reported:
        if claim.runtime or claim.device:  # of another program or machine
            continue
        size = (entry.input[0], *2 * (claim.input or entry.input[-1],))
        for figure, value in claim.figures.items():
            if figure == "params_m":
                rows.append(Row(figure, value, found.measured["params"] / 1e6, _printed(value)))
            elif figure == "kmapp" and claim.counting:
                counted = COUNTINGS[claim.counting](model, size)
                rows.append(Row(f"kmapp ({claim.counting})", value, counted, max(value / 200, _printed(value))))
            elif figure in found.measured and same and claim.input in (None, found.data["input"][-1]):
                drawn = 2 * math.sqrt(value * (1 - value) / images) if images else 0.001
                rows.append(Row(figure, value, found.measured[figure], drawn, changed))
    return rows


def _printed(value: float) -> float:
    """By how much a printed figure may be off: a unit of its last digit, as some sources cut and others round."""
    return 0.5 if isinstance(value, int) else float(10.0 ** -len(str(value).partition(".")[2]))
