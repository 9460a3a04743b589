"""What was measured beside what is claimed, figure by figure: of a repository's results, and of a source."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from zoo.catalog.entry import Entry
from zoo.catalog.report import COSTS, OBJECTS, Report, Row
from zoo.hub import repository
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.tolerance import TURNED, printed, tolerance
from zoo.printable import logger
from zoo.structure.graph.certificate import is_integer, outputs_sha256
from zoo.tasks.evaluation import BESIDE
from zoo.verbs.viewing import CLOSE, views_apart

log = logger(__name__)

COUNTS = {**dict.fromkeys(COSTS, 0.0), "kmapp": 5e-4}  # and how far each may be off
SAME_KL = 1e-6  # nats, that a model without a change may be off the same one
MAX_ROUNDING = 0.001  # of a share that is printed: percents have a digit behind the point, which may be a 0 left out


def compared(claimed: Report, found: Report, changed: str, others: str, another: str, cast: str) -> list[Row]:
    """What was measured beside what the results claim.

    Args:
        claimed: by the results.
        found: here.
        changed: what of the conditions isn't as claimed.
        others: why the images aren't those of the claim.
        another: that the divergence was measured against another base.
        cast: that the weights were given another precision.
    """
    turned = 0.0 if _same_pixels(claimed, found) else TURNED
    note = changed or others
    notes = {**dict.fromkeys(COUNTS, ""), **dict.fromkeys(BESIDE, note or another), "weights_bytes": cast}
    within = {**COUNTS, "kl": max(0.01 * claimed.measured.get("kl", 0.0), SAME_KL)}
    image = tolerance(found.data.get("images", 1), turned=turned)
    rows = [
        Row(figure, claimed.measured.get(figure), value, within.get(figure, image), notes.get(figure, note))
        for figure, value in found.measured.items()
    ]
    return rows + _classes(claimed, found, note, turned)


def _classes(claimed: Report, found: Report, note: str, turned: float) -> list[Row]:
    """The figures of each class; one of its n objects that turns changes recall and precision by 1/n each."""
    rows = []
    for name in dict.fromkeys((*found.classes, *claimed.classes)) if found.classes else ():
        here, there = found.classes.get(name, {}), claimed.classes.get(name, {})
        within = 2 * tolerance(int(max(here.get(OBJECTS, 0), 1)), turned=turned)
        for figure in dict.fromkeys((*here, *there)):
            value, claim = here.get(figure), there.get(figure)
            if figure != OBJECTS and (value is not None or not note):
                rows.append(Row(figure, claim, value, within, note, of=name))
    return rows


def structural(folder: Path, model: nn.Module) -> list[Row]:
    """Whether a graph beside the plan gives the same outputs, and integers the very bytes that they gave."""
    said, rows = repository.read_config(folder)["zoo"], []
    if "view" in said:
        rows.append(Row("graph", 0.0, views_apart(folder), CLOSE))
    if is_integer(model):
        rows.append(Row("bytes", 0.0, float(outputs_sha256(model) != said.get("outputs_sha256"))))
    return rows


def others_than(claimed: Report, found: Report, named: bool, drawn: int | None) -> str:
    """That what was evaluated isn't what the claim is of; nothing where it is.

    Args:
        claimed: by the results.
        found: here.
        named: whether the results name the data set.
        drawn: at most so many images of it were evaluated.
    """
    if _same_pixels(claimed, found):
        log.info("%s: these %d images are those that its figures are of", found.name, found.data["images"])
        return ""
    if drawn is not None:
        return "a draw"
    claim = claimed.data.get("sha256")
    if claim and named:
        log.warning("%s: these images aren't those that its figures are of, though the name is the same", found.name)
    if named and not is_local(claimed.data):
        return ""
    return "other images" if claim else "images unknown"


def _same_pixels(claimed: Report, found: Report) -> bool:
    claim, here = (each.data.get("sha256") for each in (claimed, found))
    return claim == here is not None


def is_local(data: Mapping[str, Any]) -> bool:
    """Whether figures are of a folder, whose name any folder may have."""
    return str(data.get("dataset", "")).startswith("./")


def reported(entry: Entry, model: nn.Module, found: Report, images: int | None, changed: str) -> list[Row]:
    """What the entry's source reports: costs in its own counting, accuracy where it was measured on the same data.

    Args:
        entry: of the model.
        model: as it was loaded.
        found: of it.
        images: that were drawn; None where all were evaluated.
        changed: what of the conditions isn't as claimed.
    """
    rows = []
    same = found.data.get("dataset", "") in (entry.dataset, entry.recipe.data) and not is_local(found.data)
    for claim in entry.reported:
        if claim.runtime or claim.device:  # of another program or machine
            continue
        size = (entry.input[0], *2 * (claim.input or entry.input[-1],))
        for figure, value in claim.figures.items():
            if figure == "params_m":
                rows.append(Row(figure, value, found.measured["params"] / 1e6, printed(value)))
            elif figure == "kmapp" and claim.counting:
                counted = COUNTINGS[claim.counting](model, size)
                rows.append(Row(f"kmapp ({claim.counting})", value, counted, max(value / 200, printed(value))))
            elif figure in found.measured and same and claim.input in (None, found.data["input"][-1]):
                within = _of_source(value, found, images)
                rows.append(Row(figure, value, found.measured[figure], within, changed))
    return rows


def _of_source(claim: float, found: Report, images: int | None) -> float:
    """How far a share may be from what a source printed, which had another decoder."""
    objects = sum(int(each.get(OBJECTS, 0)) for each in found.classes.values())
    drawn = None if images is None else claim
    rounding = min(printed(claim), MAX_ROUNDING)
    return tolerance(objects or found.data["images"], turned=TURNED, drawn=drawn, rounding=rounding)


def without(claimed: Report, found: Report, against: bool, others: str) -> list[Row]:
    """What is claimed and wasn't measured."""
    left = claimed.measured.keys() - found.measured.keys() - (set() if against else {*BESIDE})
    return [Row(each, claimed.measured[each], None) for each in sorted(left & COUNTS.keys() if others else left)]
