"""`verify`: what a card and a source claim of a model, measured again."""

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import catalog
from zoo.counting import COUNTINGS
from zoo.errors import RepositoryError
from zoo.files import read_json
from zoo.hub import repository
from zoo.hub.repository import describe, versions
from zoo.loading import folder_of, load
from zoo.measurement import measure
from zoo.report import Report, Row, Verification
from zoo.tasks.classification import evaluation_transform, loader, workers_for
from zoo.tasks.datasets import check_classes, dataset
from zoo.tasks.evaluation import evaluate

BATCH = 256
COUNTS = {"params", "macs", "kmapp"}


def verify(
    name: str | os.PathLike[str],
    *,
    data: str | None = None,
    images: int | None = None,
    structure_only: bool = False,
    revision: str | None = None,
    namespace: str | None = None,
) -> Verification:
    """Measure a model again and compare.

    The weights' sha256 is read from the disk. Params and macs must agree exactly. The accuracy is that of the same
    weights on the same images, so only rounding may differ: one image in the set may turn. The divergence from the
    dense base may differ by a hundredth of itself; it has a row where that base is at hand, a model of the catalog.

    Args:
        name: of the catalog, `org/name` on the Hub, or a repository's folder.
        data: the data set to evaluate on; None takes the one that the results name.
        images: evaluate on at most so many; a reported accuracy may then differ by two standard deviations of the draw.
        structure_only: leave accuracy out; needs no data.
        revision: as for `load`.
        namespace: as for `load`.

    Returns:
        A row for each figure; `passed` is False if any differs.

    Raises:
        RepositoryError: the results can't be read.
        ZooError: as for `load`.
    """
    folder = folder_of(name, revision, namespace)
    claimed = results_of(folder)
    model = load(folder)
    repository.check_sha256(folder)
    spec = data or claimed.data.get("dataset")
    if not spec and not structure_only and (further := sorted(claimed.measured.keys() - COUNTS)):
        raise RepositoryError(f"{folder / repository.RESULTS} names no data set for {', '.join(further)}: pass --data")
    base = claimed.data.get("against")
    against = load(base) if base in catalog.names() and not structure_only else None
    found = report_of(model, None if structure_only else spec, against=against, images=images)
    if images or (data and data != claimed.data.get("dataset")):  # an accuracy elsewhere is no claim of this one
        claimed = Report(claimed.name, {k: v for k, v in claimed.measured.items() if k in COUNTS})
    tolerances = {"kmapp": 5e-4, "top1": 1 / found.data.get("images", 1), "kl": 0.01 * claimed.measured.get("kl", 0)}
    rows = [
        Row(figure, claimed.measured.get(figure), value, tolerances.get(figure, 0.0))
        for figure, value in found.measured.items()
    ]
    left = claimed.measured.keys() - found.measured.keys() - (set() if against else {"kl"})
    rows += [Row(figure, claimed.measured[figure], None) for figure in sorted(left) if not structure_only]
    return Verification(describe(model).name, (*rows, *_reported(name, model, found, images)), found)


def report_of(
    model: nn.Module,
    data: str | None = None,
    *,
    against: nn.Module | None = None,
    name: str | None = None,
    images: int | None = None,
    workers: int | None = None,
) -> Report:
    """Measure a model.

    Args:
        model: from `load`, `compress` or timm.
        data: the data set; its test split is evaluated. None counts params and macs only.
        against: the dense model that the outputs are compared with (`kl`, in nats).
        name: of the model; None takes the one that it carries.
        images: evaluate on at most so many.
        workers: processes that load images; None takes a core each where it is worth it.

    Returns:
        The figures, with the data, preprocessing, versions and machine that they hold for.
    """
    counts = measure(model)
    figures: dict[str, float] = {"params": counts.params, "macs": counts.macs, "kmapp": round(counts.kmapp, 4)}
    where: dict[str, Any] = {}
    if data is not None:
        config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        images_of = dataset(data, "test", limit=images)
        check_classes(images_of, getattr(model, "num_classes", None), data)
        workers = workers_for(images_of) if workers is None else workers
        batches = loader(images_of, evaluation_transform(config), BATCH, workers=workers)
        found = evaluate(model, batches, against=against, progress="evaluate")
        evaluated = int(found.pop("images"))
        figures.update(found)
        keys = ("interpolation", "crop_pct", "mean", "std")
        where = {"dataset": data, "split": "test", "images": evaluated, "input": list(counts.input)}
        where.update({key: config[key] for key in keys if key in config})
        if against is not None:
            where["against"] = describe(against).name
    return Report(name or describe(model).name, figures, where, versions(), _hardware(next(model.parameters()).device))


def _hardware(device: torch.device) -> str:
    """The processor that measured, as it names itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.machine()}, {torch.get_num_threads()} threads"


def results_of(folder: Path) -> Report:
    """What the repository's results say; nothing where it has none."""
    path = folder / repository.RESULTS
    if not path.exists():
        return Report(folder.name, {})
    try:
        return Report.from_json(read_json(path))
    except (ValueError, TypeError) as error:
        raise RepositoryError(f"{path} isn't a report: {error}") from None


def _reported(name: str | os.PathLike[str], model: nn.Module, found: Report, images: int | None) -> list[Row]:
    """What the entry's source reports: costs in its own counting, accuracy where it was measured on the same data."""
    if not isinstance(name, str) or name not in catalog.names(all=True):
        return []
    entry, rows = catalog.info(name), []
    same = found.data.get("dataset") in (entry.dataset, entry.recipe.data)
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
                rows.append(Row(figure, value, found.measured[figure], drawn))
    return rows


def _printed(value: float) -> float:
    """By how much a printed figure may be off: a unit of its last digit, as some sources cut and others round."""
    return 0.5 if isinstance(value, int) else float(10.0 ** -len(str(value).partition(".")[2]))
