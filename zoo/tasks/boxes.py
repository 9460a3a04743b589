"""Boxes as data sets have them, and as rows of the package: `zoo.models.targets` says how.

An image's objects are a dictionary of lists, or a list of dictionaries, whose keys are one of each of `KEYS`. A list
named `xywh` or `xyxy` says what its numbers are; of any other the data's name says it, `SPEC.xywh`, or its images do:
both readings are held against their sizes, and where both or neither fit nothing is guessed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from zoo.catalog.data_names import FORMS
from zoo.errors import DataError, require
from zoo.printable import logger
from zoo.tasks.pixels import size_of

OBJECT_COLUMNS = ("objects", "annotations")
KEYS = {
    "boxes": ("xywh", "xyxy", "bbox", "bboxes", "boxes", "box"),
    "labels": ("category", "categories", "category_id", "label", "labels", "class", "classes"),
    "crowd": ("iscrowd", "is_crowd", "crowd"),
    "difficult": ("difficult", "is_difficult"),
    "area": ("area", "areas"),
}
LOOKED_AT = 256  # images whose boxes are held against their sizes
PARTS = tuple(KEYS)  # of a label
FIT, MISFIT = 0.99, 0.9  # shares of boxes that fit: of the right reading at least, of the other at most
SLACK = 2  # pixels that a box may lie outside of its image

log = logger(__name__)


class Reading(NamedTuple):
    """How the objects of a data set are read.

    Args:
        keys: of the objects, by those of KEYS.
        form: of the boxes, one of FORMS.
        kind: of the classes, as `datasets` types them.
    """

    keys: Mapping[str, str]
    form: str
    kind: Any


def label_features(kind: Any) -> dict[str, Any]:
    """The type of a label of boxes; `kind` is that of a class."""
    datasets = require("datasets", "eval")
    number, flag = datasets.Value("float32"), datasets.Value("bool")
    items = (datasets.List(number, 4), kind, flag, flag, number)
    return {part: datasets.List(item) for part, item in zip(PARTS, items, strict=True)}


def are_boxes(kind: Any) -> bool:
    """Whether a column of that type holds labels of boxes."""
    return isinstance(kind, Mapping) and set(PARTS) == set(kind)


def are_objects(kind: Any) -> bool:
    """Whether a column of that type holds objects of which labels of boxes can be made."""
    return isinstance(getattr(kind, "feature", kind), Mapping) and not are_boxes(kind)


def class_kind(kind: Any) -> Any:
    """The type of a class in a column of labels, which may be boxes."""
    return kind["labels"].feature if are_boxes(kind) else kind


def reading(spec: str, kind: Any, form: str | None, looked_at: Iterable[Mapping[str, Any]]) -> Reading:
    """How the objects of a data set are read.

    Args:
        spec: of the data, for messages.
        kind: of the column of objects, as `datasets` types it.
        form: of the boxes, where the data's name says it.
        looked_at: rows of `image`, undecoded, and `label`, the objects, where nobody says it.

    Raises:
        DataError: the objects have no boxes or classes, or it can't be told what their boxes are.
    """
    items = getattr(kind, "feature", kind)
    found = {what: next((name for name in names if name in items), "") for what, names in KEYS.items()}
    if not found["boxes"] or not found["labels"]:
        raise DataError(f"{spec}: expected objects with a bbox and a category each, found {', '.join(items)[:200]}")
    keys = {what: name for what, name in found.items() if name}
    category = items[keys["labels"]]
    form = form or (keys["boxes"] if keys["boxes"] in FORMS else _form(spec, looked_at, keys))
    return Reading(keys, form, category.feature if items is kind else category)


def classes_in(objects: Iterable[Any], how: Reading) -> Iterator[Any]:
    """The classes of all objects of a data set, as it has them."""
    return chain.from_iterable(_lists(each, how.keys)["labels"] for each in objects)


def label_of(
    objects: Any, how: Reading, numbers: Mapping[str, int] | None, place: str
) -> tuple[dict[str, list[Any]], int]:
    """The label of a row, and how many of its boxes have no area and are left out.

    Args:
        objects: of the row.
        how: they are read.
        numbers: of classes that are told by name.
        place: of the row, for messages.

    Raises:
        DataError: a box isn't one, or a class is unknown.
    """
    lists = _lists(objects, how.keys)
    boxes, classes = lists["boxes"], lists["labels"]
    flags = [_flags(lists.get(key), len(boxes)) for key in ("crowd", "difficult")]
    areas = lists.get("area") or [None] * len(boxes)
    if {len(each) for each in (classes, *flags, areas)} != {len(boxes)}:
        raise DataError(f"{place}: {len(boxes)} boxes, but {len(classes)} classes: each object needs one of each")
    rows = [
        (corners, _class(name, how, numbers, place), crowd, difficult, _area(corners) if area is None else float(area))
        for box, name, crowd, difficult, area in zip(boxes, classes, *flags, areas, strict=True)
        if _area(corners := _corners(box, how.form, place)) > 0
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(PARTS)
    return dict(zip(PARTS, map(list, columns), strict=True)), len(boxes) - len(rows)


def _lists(objects: Any, keys: Mapping[str, str]) -> dict[str, list[Any]]:
    """Objects as a list for each key; none where there are no objects."""
    if isinstance(objects, Mapping):
        return {what: list(objects.get(name) or ()) for what, name in keys.items()}
    return {what: [each.get(name) for each in objects or ()] for what, name in keys.items()}


def _flags(values: Sequence[Any] | None, count: int) -> list[bool]:
    return [bool(value) for value in values] if values else [False] * count


def _class(name: Any, how: Reading, numbers: Mapping[str, int] | None, place: str) -> int:
    count = getattr(how.kind, "num_classes", None)
    known = range(count or 2**31) if numbers is None else numbers
    if name is None or name not in known:
        expected = f", expected 0 to {count - 1}" if count and numbers is None else ""
        raise DataError(
            f"{place}: an object of class {name!r}, which the data set hasn't{expected}: mend it, or leave it out"
        )
    return int(name) if numbers is None else numbers[name]


def _corners(box: Any, form: str, place: str) -> list[float]:
    numbers = [math.nan if number is None else float(number) for number in box or ()]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise DataError(f"{place}: expected a box of four finite numbers, found {numbers[:8]}: mend it")
    x, y, *other = numbers
    right, below = (x + other[0], y + other[1]) if form == "xywh" else other
    if right < x or below < y:
        another = next(each for each in FORMS if each != form)
        raise DataError(
            f"{place}: a box {numbers} ends before it begins, read as {form}: mend it, or name the data "
            f"SPEC.{another} if all are so"
        )
    return [x, y, right, below]


def _area(corners: Sequence[float]) -> float:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _form(spec: str, rows: Iterable[Mapping[str, Any]], keys: Mapping[str, str]) -> str:
    """What the boxes of a data set are, as those of some images tell."""
    fits = [tuple(_fits(box, size, form) for form in FORMS) for box, size in _boxes(rows, keys)]
    how = "say which by the data's name, SPEC.xywh or SPEC.xyxy, or by that of the list, xywh or xyxy in place of bbox"
    if not fits:
        raise DataError(f"{spec}: no boxes in {LOOKED_AT} of its images tell whether they are xywh or xyxy: {how}")
    shares = [sum(each) / len(fits) for each in zip(*fits, strict=True)]
    for form, share, other in zip(FORMS, shares, shares[::-1], strict=True):
        if share >= FIT and other <= MISFIT:
            log.info("%s: its boxes are %s, as %d of them tell", spec, form, len(fits))
            return form
    told = " and ".join(f"{share:.1%} as {form}" for form, share in zip(FORMS, shares, strict=True))
    raise DataError(f"{spec}: it can't be told what its boxes are, {told} lie in their images, of {len(fits)}: {how}")


def _boxes(rows: Iterable[Mapping[str, Any]], keys: Mapping[str, str]) -> Iterator[tuple[Any, tuple[int, int]]]:
    for row in rows:
        if boxes := _lists(row["label"], keys)["boxes"]:
            size = size_of(row["image"])
            yield from ((box, size) for box in boxes if box and len(box) == 4 and None not in box)


def _fits(box: Sequence[float], size: tuple[int, int], form: str) -> bool:
    x, y, right, below = box if form == "xyxy" else (box[0], box[1], box[0] + box[2], box[1] + box[3])
    within = min(x, y) >= -SLACK and right <= size[0] + SLACK and below <= size[1] + SLACK
    return within and right > x and below > y and max(box) > 1  # else they are shares of the image
