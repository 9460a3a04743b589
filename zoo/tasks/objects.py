"""Data sets that are objects already: of `datasets` as they are, of torch as columns that are read when asked for."""

from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from zoo.errors import DataError, require
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
    count, names, labels = len(data), getattr(data, "classes", None), getattr(data, "targets", None)
    columns: dict[str, Any] = {"image": list(range(count))}
    features: dict[str, Any] = {"image": datasets.Value("int64")}
    if labels is not None and len(labels) == count:  # as torchvision's have them
        columns["label"] = torch.as_tensor(labels).tolist()
        names = None if names is None else [str(each) for each in names]
        features["label"] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    table = datasets.Dataset.from_dict(columns, datasets.Features(features))
    return table.with_transform(partial(_read, data=_Shared(data)))


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
