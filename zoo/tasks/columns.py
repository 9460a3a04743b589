"""The two columns of a data set: images as they are stored, and labels.

Map-style data is cast and renamed. A stream is mapped to plain bytes and paths, which nothing encodes anew; that leaves
them as they were in `datasets` 4 and 5, as the tests compare.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from zoo.errors import DataError, require

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Data: TypeAlias = Dataset | IterableDataset

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")  # the last ones are webdataset's
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def is_stream(data: Any) -> bool:
    """Whether a data set can only be read from its beginning."""
    return isinstance(data, require("datasets", "eval").IterableDataset)


def columns_of(spec: str, data: "Data") -> tuple[str, str]:
    """The names of the columns of images and labels.

    Raises:
        DataError: there are none of a known name.
    """
    found = data.column_names or list(next(iter(data)))
    image = next((name for name in IMAGE_COLUMNS if name in found), None)
    label = next((name for name in LABEL_COLUMNS if name in found), None)
    if image is None or label is None:
        raise DataError(
            f"{spec}: expected a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}, "
            f"found {', '.join(found)}; rename them where the data is made"
        )
    return image, label


def of_table(spec: str, data: "Dataset") -> "Dataset":
    """Map-style data with the columns `image`, undecoded, and `label`; what is rendered when read stays so.

    Raises:
        DataError: the columns are missing.
    """
    datasets = require("datasets", "eval")
    if data.format["type"] == "custom":
        return data
    image, label = columns_of(spec, data)
    data = data.with_format(None).cast_column(image, datasets.Image(decode=False)).select_columns([image, label])
    data = data.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})
    if getattr(data.features["label"], "dtype", "") in ("string", "large_string"):
        names = sorted(data.unique("label"))
        numbers = {name: number for number, name in enumerate(names)}
        return relabelled(data, numbers, datasets.ClassLabel(names=names))
    return data


def of_stream(
    spec: str, stream: "IterableDataset", labels: Callable[[], Sequence[Any] | None] = lambda: None
) -> "IterableDataset":
    """A stream with the columns `image`, undecoded, and `label`.

    Args:
        spec: of the data, for the message.
        stream: as the library opened it.
        labels: reads all labels, needed where they are text; None where it can't be done.

    Raises:
        DataError: the columns are missing, or the labels are text of unknown classes.
    """
    datasets = require("datasets", "eval")
    image, label = columns_of(spec, stream)
    kept = partial(_kept, image=image, label=label)
    if stream.features is None:
        return stream.map(kept, remove_columns=[name for name in (image, label) if name not in ("image", "label")])
    kind = stream.features[label]
    if kind.dtype in ("string", "large_string"):
        if (all_of_them := labels()) is None:
            raise DataError(f"{spec}: its labels are text, and can't be read without its images: make them numbers")
        kind = datasets.ClassLabel(names=sorted(set(all_of_them)))
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    stream = stream.cast_column(image, datasets.Image(decode=False)).select_columns([image, label])
    features = datasets.Features({"image": stored, "label": kind})
    return stream.map(kept, remove_columns=[image, label], features=features)


def relabelled(data: Any, numbers: Mapping[Any, int], kind: Any) -> Any:
    """Data with other class numbers; images stay as they are stored.

    Args:
        data: with the columns `image` and `label`.
        numbers: the new number of each old one.
        kind: the `ClassLabel` of the new ones.
    """
    datasets = require("datasets", "eval")
    if is_stream(data):
        features = data.features and datasets.Features({**data.features, "label": kind})
        return data.map(partial(_renumbered_row, numbers=numbers), input_columns=["label"], features=features)
    before = data.format["format_kwargs"].get("transform") if data.format["type"] == "custom" else None
    found = data.with_transform(partial(_renumbered, numbers=numbers, before=before))
    found.info.features["label"] = kind  # cast_column would write all rows anew
    return found


def _kept(row: Mapping[str, Any], *, image: str, label: str) -> dict[str, Any]:
    return {"image": row[image], "label": row[label]}


def _renumbered_row(label: Any, *, numbers: Mapping[Any, int]) -> dict[str, int]:
    return {"label": numbers.get(label, label)}


def _renumbered(batch: dict[str, list[Any]], *, numbers: Mapping[Any, int], before: Any) -> dict[str, list[Any]]:
    if before is not None:
        batch = {**batch, **before(batch)}
    if "label" not in batch:
        return batch
    return {**batch, "label": [numbers.get(label, label) for label in batch["label"]]}
