"""The two columns of a data set: images as they are stored, or texts, and labels, which are classes or boxes.

Map-style data is cast and renamed. A stream is mapped to plain bytes and paths, which nothing encodes anew; that leaves
them as they were in `datasets` 4 and 5, as the tests compare.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoo.errors import DataError, require
from zoo.interruption import acts_at_last
from zoo.printable import logger
from zoo.tasks import boxes
from zoo.tasks.inside import check_image
from zoo.tasks.pixels import named

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Data: TypeAlias = Dataset | IterableDataset

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")  # the last ones are webdataset's
TEXT_COLUMN = "text"
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
TEXT = ("string", "large_string")
LOOKED_AT_OF_STREAM = 64  # images that are fetched to tell what their boxes are
HIDDEN = -1  # the label of an image whose class is kept secret

log = logger(__name__)


def is_stream(data: Any) -> bool:
    """Whether a data set can only be read from its beginning."""
    return isinstance(data, require("datasets", "eval").IterableDataset)


def text_of(value: Any) -> str | None:
    """The text that a row holds in place of an image; None of an image."""
    return value[TEXT_COLUMN] if isinstance(value, Mapping) and TEXT_COLUMN in value else None


def columns_of(spec: str, data: "Data") -> tuple[str, str]:
    """The names of the columns of images, or else texts, and labels.

    Raises:
        DataError: there are none of a known name.
    """
    names = data.column_names or list(next(iter(data)))
    image = next((name for name in (*IMAGE_COLUMNS, TEXT_COLUMN) if name in names), None)
    label = next((name for name in (*LABEL_COLUMNS, *boxes.OBJECT_COLUMNS) if name in names), None)
    if image is None or label is None:
        raise DataError(
            f"{spec}: expected a column {' or '.join((*IMAGE_COLUMNS, TEXT_COLUMN))} and a column "
            f"{' or '.join((*LABEL_COLUMNS, *boxes.OBJECT_COLUMNS))}, found {', '.join(names)}; rename them where the "
            "data is made"
        )
    return image, label


def has_boxes(data: Any) -> bool:
    """Whether the labels of a data set are boxes."""
    return boxes.are_boxes((data.features or {}).get("label"))


def class_kind(data: Any) -> Any:
    """The type of a data set's classes, of which those with names have `names`; None where it doesn't say."""
    return boxes.class_kind((data.features or {}).get("label"))


@acts_at_last()
def class_numbers(data: "Dataset") -> NDArray[Any] | None:
    """The classes of all images of map-style data, or of all objects; None where only reading tells."""
    if not has_boxes(data):
        return labels_of(data)
    if data.data.column("label").null_count:
        return None
    if data.format["type"] == "custom":  # a transform may renumber them
        return np.array([number for label in data.select_columns("label")[:]["label"] for number in label["labels"]])
    arrow = require("pyarrow.compute", "eval")
    return np.asarray(arrow.list_flatten(arrow.struct_field(data.with_format("arrow")["label"], "labels")))


@acts_at_last()
def labels_of(data: "Dataset") -> NDArray[Any] | None:
    """The labels of map-style data [N], read without its images; None of boxes, or where only reading tells."""
    if "label" not in data.column_names or has_boxes(data) or data.data.column("label").null_count:
        return None
    data = data if data.format["type"] == "custom" else data.with_format("numpy")  # a transform may renumber them
    labels: NDArray[Any] = np.asarray(data.select_columns("label")[:]["label"])
    return labels


def of_table(spec: str, data: "Dataset", form: str | None = None) -> "Dataset":
    """Map-style data with the columns `image`, undecoded, and `label`; what the package renders when read stays so.

    Of texts `image` is a dictionary, `{"text": ...}`.

    Args:
        spec: of the data, for the message.
        data: as the library opened it.
        form: of boxes, `xywh` or `xyxy`; None where that isn't said.

    Raises:
        DataError: the columns are missing, or it can't be told what the boxes are.
    """
    datasets = require("datasets", "eval")
    if data.format["type"] == "custom":
        if _rendered(data):
            return data
        log.warning("%s: images and labels are read as they are stored, without the transform that was set", spec)
    image, label = columns_of(spec, data)
    data = data.with_format(None).select_columns([image, label])
    if image == TEXT_COLUMN:
        features = datasets.Features({"image": _held(image), "label": data.features[label]})
        kept = partial(_kept, image=image, label=label, hub=None)
        data = data.map(kept, remove_columns=[image, label], features=features, keep_in_memory=True)
    else:
        data = data.cast_column(image, datasets.Image(decode=False))
        data = data.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    kind = data.features["label"]
    if boxes.are_objects(kind):
        return _boxed(spec, data, boxes.reading(spec, kind, form, _some(data, boxes.LOOKED_AT)))
    if _is_text(kind):
        numbers = _numbers(data.unique("label"))
        return _encoded(data, numbers, datasets.ClassLabel(names=list(numbers)))
    return data


def of_stream(
    spec: str,
    stream: "IterableDataset",
    labels: Callable[[], Sequence[Any] | None] = lambda: None,
    hub: str | None = None,
    form: str | None = None,
) -> "IterableDataset":
    """A stream with the columns `image`, undecoded, and `label`.

    Args:
        spec: of the data, for the message.
        stream: as the library opened it.
        labels: reads all labels, needed where they are text; None where it can't be done.
        hub: the data set of the Hub in which all images must lie.
        form: as for `of_table`.

    Raises:
        DataError: the columns are missing, the labels are text of unknown classes, or it can't be told what the boxes
            are; as it is read, that an image lies elsewhere, or a box is none.
    """
    datasets = require("datasets", "eval")
    image, label = columns_of(spec, stream)
    kept = partial(_kept, image=image, label=label, hub=hub)
    if stream.features is None:
        return stream.map(kept, remove_columns=[name for name in (image, label) if name not in ("image", "label")])
    kind, numbers, how = stream.features[label], None, None
    stream = stream if image == TEXT_COLUMN else stream.cast_column(image, datasets.Image(decode=False))
    stream = stream.select_columns([image, label])
    if boxes.are_objects(kind):
        how = boxes.reading(spec, kind, form, map(kept, stream.take(LOOKED_AT_OF_STREAM)))
        kind = how.kind
    if _is_text(kind):
        if (all_of_them := labels()) is None:
            raise DataError(f"{spec}: its labels are text, and can't be read without its images: make them numbers")
        numbers = _numbers(boxes.classes_in(all_of_them, how) if how else all_of_them)
        kind = datasets.ClassLabel(names=list(numbers))
    if how:
        kept, kind = partial(kept, how=how), boxes.label_features(kind)
    features = datasets.Features({"image": _held(image), "label": kind})
    return stream.map(partial(kept, numbers=numbers), remove_columns=[image, label], features=features)


def _held(image: str) -> dict[str, Any]:
    """How a row holds what is in this column."""
    text, binary = (require("datasets", "eval").Value(kind) for kind in ("string", "binary"))
    return {TEXT_COLUMN: text} if image == TEXT_COLUMN else {"bytes": binary, "path": text}


@acts_at_last()
def relabelled(data: Any, numbers: Mapping[Any, int], kind: Any) -> Any:
    """Data with other class numbers; images stay as they are stored.

    Args:
        data: with the columns `image` and `label`.
        numbers: the new number of each old one.
        kind: the `ClassLabel` of the new ones.
    """
    datasets = require("datasets", "eval")
    if is_stream(data):
        kind = boxes.label_features(kind) if has_boxes(data) else kind
        features = data.features and datasets.Features({**data.features, "label": kind})
        return data.map(partial(_renumbered_row, numbers=numbers), input_columns=["label"], features=features)
    if not _rendered(data) and class_kind(data).dtype != kind.dtype:
        return _encoded(data, numbers, kind)
    before = data.format["format_kwargs"]["transform"] if _rendered(data) else None
    renumbered = data.with_transform(partial(_renumbered, numbers=numbers, before=before))
    # cast_column would write all rows anew
    renumbered.info.features["label"] = boxes.label_features(kind) if has_boxes(data) else kind
    return renumbered


def numbers_of(data: "Dataset") -> list[Mapping[Any, int]]:
    """The new numbers of the old ones of each `relabelled` that map-style data went through, first to last."""
    transform, numberings = data.format["format_kwargs"].get("transform"), []
    while isinstance(transform, partial) and transform.func is _renumbered:
        numberings.append(transform.keywords["numbers"])
        transform = transform.keywords["before"]
    return numberings[::-1]


def _rendered(data: "Dataset") -> bool:
    """Whether rows are made by a transform of the package; anybody else's may make other columns of them."""
    transform = data.format["format_kwargs"].get("transform") if data.format["type"] == "custom" else None
    return getattr(getattr(transform, "func", None), "__module__", "").startswith("zoo.")


def _encoded(data: "Dataset", numbers: Mapping[Any, int], kind: Any) -> "Dataset":
    """Data with the column of labels written anew; images stay where they are."""
    labels = [_number(label, numbers) for label in data["label"]]
    return data.remove_columns("label").add_column("label", labels, feature=kind)


def _boxed(spec: str, data: "Dataset", how: boxes.Reading) -> "Dataset":
    """Data with objects as labels of boxes; images stay where they are."""
    datasets = require("datasets", "eval")
    numbers, kind = None, how.kind
    if _is_text(kind):
        numbers = _numbers(boxes.classes_in(data["label"], how))
        kind = datasets.ClassLabel(names=list(numbers))
    read = [boxes.label_of(objects, how, numbers, f"{spec}: row {row}") for row, objects in enumerate(data["label"])]
    if flat := sum(left_out for _, left_out in read):
        log.warning("%s: %d boxes have no area and are left out", spec, flat)
    labels = [label for label, _ in read]
    # The library's own fingerprint is a hash of all labels, which takes longer than all else.
    fingerprint = hashlib.sha256(f"{data._fingerprint} {how}".encode()).hexdigest()[:16]
    bare, kind = data.remove_columns("label"), boxes.label_features(kind)
    return bare.add_column("label", labels, new_fingerprint=fingerprint, feature=kind)


def _some(data: "Dataset", most: int) -> Iterable[Mapping[str, Any]]:
    """Rows from all of map-style data, in its order."""
    return (data[int(row)] for row in np.linspace(0, len(data) - 1, min(most, len(data))))


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in TEXT


def _numbers(labels: Iterable[Any]) -> dict[str, int]:
    """The number of each class that is told by its name."""
    return {name: number for number, name in enumerate(sorted({name for name in labels if name is not None}))}


def _number(label: Any, numbers: Mapping[Any, int]) -> Any:
    """The new number of a class, or a label of boxes with new numbers."""
    if isinstance(label, Mapping):
        return {**label, "labels": [_number(each, numbers) for each in label["labels"]]}
    if label is None or label == HIDDEN:
        return HIDDEN
    if label not in numbers:
        known = "" if isinstance(label, str) else f", which are 0 to {len(numbers) - 1}"
        raise DataError(f"found label {label!r}, none of {len(numbers)} classes{known}: use other data")
    return numbers[label]


def _kept(
    row: Mapping[str, Any],
    *,
    image: str,
    label: str,
    hub: str | None,
    how: boxes.Reading | None = None,
    numbers: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    held = {TEXT_COLUMN: row[image]} if image == TEXT_COLUMN else row[image]
    if hub is not None:
        check_image(hub, held)
    if how is None:
        return {"image": held, "label": row[label] if numbers is None else _number(row[label], numbers)}
    boxed, left_out = boxes.label_of(row[label], how, numbers, named(held))
    if left_out:
        log.warning("%s: %d boxes have no area and are left out", named(held), left_out)
    return {"image": held, "label": boxed}


def _renumbered_row(label: Any, *, numbers: Mapping[Any, int]) -> dict[str, Any]:
    return {"label": _number(label, numbers)}


def _renumbered(batch: dict[str, list[Any]], *, numbers: Mapping[Any, int], before: Any) -> dict[str, list[Any]]:
    if before is not None:
        batch = {**batch, **before(batch)}
    if "label" not in batch:
        return batch
    return {**batch, "label": [_number(label, numbers) for label in batch["label"]]}
