"""The pictures of a card; none of them says what the card's words and tables don't."""

from collections.abc import Mapping, Sequence

from zoo.catalog.entry import Entry
from zoo.catalog.report import Report
from zoo.files import PICTURES
from zoo.pages import classes, family, widths
from zoo.pages.style import Picture
from zoo.structure.description import Description
from zoo.tasks import TASKS

FRONT, WIDTHS, CLASSES = PICTURES


def pictures(
    entry: Entry,
    description: Description,
    report: Report,
    fingerprint: Mapping[str, str],
    held: Mapping[str, Sequence[int]],
) -> dict[str, Picture]:
    """What is worth being drawn of a model.

    Args:
        entry: the catalog's, or what stands for it.
        description: the structure.
        report: what was measured of it.
        fingerprint: of its dense base, as config.json has it.
        held: tensor → its shape, of the model.

    Returns:
        File's name → picture.
    """
    found = []
    points = family.points(entry, report) if entry.project != "own" else []
    if family.drawable(points):
        label = TASKS[entry.task].leading.label if entry.task in TASKS else "accuracy"
        values = [points, entry.name, label]
        found.append(Picture(FRONT, family.alt(points, entry.name), values, family))
    if layers := widths.kept(description.plan, fingerprint, held):
        found.append(Picture(WIDTHS, widths.alt(layers), [layers], widths))
    if lost := classes.lost(report.forgotten or ()):
        found.append(Picture(CLASSES, classes.alt(lost, len(report.forgotten or ())), [lost], classes))
    return {picture.name: picture for picture in found}
