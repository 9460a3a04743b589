"""Data sets that are objects already: of `datasets` as they are, of torch as columns that are read when asked for."""

from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from zoo.errors import DataError, require
from zoo.tasks.columns import HIDDEN
from zoo.tasks.folders import split_of


def is_set(data: Any) -> bool:
    """Whether an object is a data set, of `datasets` or torch, rather than batches."""
    datasets = require("datasets", "eval")
    kinds = (datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict, Dataset)
    return isinstance(data, kinds)


def opened(data: Any, split: str) -> Any:
    """An object as a data set.

    Args:
        data: a Dataset, an IterableDataset or a dictionary of them, of `datasets`; a Dataset of (image, label) of
            torch, or a DataLoader of one, whose batches and order aren't taken over. An image that is a tensor is taken
            for preprocessed.
        split: `train` or `test`, of a dictionary.

    Raises:
        DataError: it is something else.
    """
    datasets = require("datasets", "eval")
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        return split_of("the dictionary", data, split)
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return data
    if isinstance(data, DataLoader):
        return opened(data.dataset, split)
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, list | tuple | dict):
        raise DataError(
            f"{type(data).__name__} is no data set: expected a name, folder or Hub id, a Dataset or IterableDataset of "
            "datasets, or a torch Dataset of (image, label) that has a length"
        )
    return _of_torch(data)


def _of_torch(data: Any) -> Any:
    datasets = require("datasets", "eval")
    count, (names, labels) = len(data), _told(data)
    unknown = labels is None or len(labels) != count
    numbers: list[Any] = [None] * count if unknown else torch.as_tensor(labels).tolist()
    kind = datasets.Value("int64")
    if names:
        whole = len(set(names)) == len(names)  # ImageNet's have two cranes
        kind = datasets.ClassLabel(names=names) if whole else datasets.ClassLabel(num_classes=len(names))
        wrong = [] if unknown else [label for label in numbers if not HIDDEN <= label < len(names)]
        if wrong:
            what = f"the {type(data).__name__} has label {wrong[0]}"
            raise DataError(f"{what}, expected 0 to {len(names) - 1} as it has {len(names)} classes: use other data")
    features = datasets.Features({"image": datasets.Value("int64"), "label": kind})
    table = datasets.Dataset.from_dict({"image": list(range(count)), "label": numbers}, features)
    return table.with_transform(partial(_read, data=_Shared(data)))


def _told(data: Any) -> tuple[list[str] | None, Any]:
    """The names of a torch data set's classes and its labels, as torchvision's have them; None where it doesn't say."""
    if isinstance(data, Subset):
        names, labels = _told(data.dataset)
        if labels is None or len(labels) != len(data.dataset):  # type: ignore[arg-type]
            return names, None
        return names, [labels[number] for number in data.indices]
    if isinstance(data, TensorDataset):
        labels = data.tensors[1] if len(data.tensors) > 1 else None
    else:
        labels = getattr(data, "targets", None)
    if labels is not None and (torch.as_tensor(labels).ndim != 1 or torch.as_tensor(labels).is_floating_point()):
        labels = None
    names = getattr(data, "classes", None)
    return names and [name if isinstance(name, str) else _synonyms(name) for name in names], labels


def _synonyms(name: Any) -> str:
    return ", ".join(name) if isinstance(name, tuple) else str(name)


class _Shared:
    """What `datasets` shall not copy with each view of the rows."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: Any) -> "_Shared":
        return self


def _read(batch: dict[str, list[Any]], *, data: _Shared) -> dict[str, list[Any]]:
    if "image" not in batch:
        return batch
    rows = [data.held[number] for number in batch["image"]]
    return {"image": [row[0] for row in rows], "label": [int(row[1]) for row in rows]}
