"""Boxes as data sets of torchvision have them: an image's target, a dictionary, as labels of the package.

    boxes       [N, 4]: x1, y1, x2, y2 in pixels, or what a `BoundingBoxes` says that they are
    labels      [N]: numbers of classes from 0, without one for the background
    iscrowd     [N], where there are crowds; `area` [N] and `difficult` [N] alike

Source: https://docs.pytorch.org/vision/stable/transforms.html and torchvision's references/detection
"""

from collections.abc import Mapping
from typing import Any

import torch

from zoo.errors import DataError
from zoo.printable import logger
from zoo.tasks import boxes
from zoo.tasks.loader import generators_kept

FORMATS = ("xyxy", "xywh", "cxcywh")
SIDES = 4

log = logger(__name__)


def first_target(data: Any) -> Any:
    """What the first row of a torch data set has beside its image; None of an empty one."""
    if not len(data):
        return None
    with generators_kept():
        row = data[0]
    return row[1] if isinstance(row, tuple | list) and len(row) > 1 else None


def is_target(target: Any) -> bool:
    """Whether it has boxes."""
    return isinstance(target, Mapping) and {"boxes", "labels"} <= set(target)


def label_of(target: Any, row: int, kind: Any, form: str) -> dict[str, Any]:
    """The label of a row; boxes without an area are left out.

    Args:
        target: of the row, as above.
        row: its number, for messages.
        kind: of the classes, as `datasets` types them.
        form: of boxes that don't say it, one of FORMATS.

    Raises:
        DataError: it has no boxes or labels, a box isn't one, or a class is none of the data set's.
    """
    place = f"row {row}"
    if not is_target(target):
        what = ", ".join(map(str, target))[:200] if isinstance(target, Mapping) else type(target).__name__
        raise DataError(f"{place}: expected a target with boxes and labels, found {what}: mend it, or leave it out")
    form = getattr(getattr(target["boxes"], "format", None), "value", form).lower()
    if form not in FORMATS:
        raise DataError(f"{place}: boxes are {form}, expected {', '.join(FORMATS)}: convert them, none may be rotated")
    keys = {what: next((name for name in names if name in target), "") for what, names in boxes.KEYS.items()}
    keys = {**{what: name for what, name in keys.items() if name}, "boxes": "boxes", "labels": "labels"}
    lists = {name: torch.as_tensor(target[name]).tolist() for name in keys.values()}
    lists["boxes"] = [_corners(box, form, place) if len(box) == SIDES else box for box in lists["boxes"]]
    label, left_out = boxes.label_of(lists, boxes.Reading(keys, "xyxy", kind), None, place)
    if left_out:
        log.warning("%s: %d boxes have no area and are left out", place, left_out)
    return label


def _corners(box: list[float], form: str, place: str) -> list[float]:
    x, y, right, below = box
    if form != "xyxy":
        width, height = right, below
        x, y = (x - width / 2, y - height / 2) if form == "cxcywh" else (x, y)
        right, below = x + width, y + height
    if right < x or below < y:
        raise DataError(
            f"{place}: a box {box} ends before it begins, read as {form}: mend it, or pass a BoundingBoxes of "
            "torchvision, which says its format"
        )
    return [x, y, right, below]
