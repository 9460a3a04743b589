"""Data sets that are objects already: of `datasets` as they are, of torch as columns that are read when asked for.

Arrays and batches are made a data set of torch first.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset

from zoo.errors import DataError, require
from zoo.tasks import boxes, torch_boxes
from zoo.tasks.columns import HIDDEN
from zoo.tasks.folders import split_of


def is_set(data: Any) -> bool:
    """Whether an object is a data set, of `datasets`, torch or numpy, or several by split, rather than batches."""
    datasets = require("datasets", "eval")
    return isinstance(data, (datasets.Dataset, datasets.IterableDataset, Mapping, Dataset)) or _are_arrays(data)


def opened(data: Any, split: str, form: str | None = None) -> Any:
    """An object as a data set.

    Args:
        data: a Dataset or IterableDataset of `datasets`; a Dataset of (image, label) of torch, or a DataLoader of one,
            whose batches and order aren't taken over, but a subset that it draws from, or one of (image, target) with
            boxes as torchvision's detectors take them (`zoo.tasks.torch_boxes`); arrays (images [N, H, W] or
            [N, H, W, C] of 0..255, labels [N]); or a list of batches (images [B, C, H, W], labels [B]). An
            image that is a tensor, or an array of floats [C, H, W], is taken for preprocessed. Or a dictionary of any
            of these by split.
        split: `train` or `test`, of a dictionary.
        form: of torch's boxes that don't say it, `xywh` or `xyxy`; None is `xyxy`.

    Raises:
        DataError: it is something else.
    """
    datasets = require("datasets", "eval")
    if isinstance(data, Mapping):
        return opened(split_of("the dictionary", data, split), split, form)
    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return data
    if isinstance(data, DataLoader):
        rows, drawn = data.dataset, data.sampler
        if isinstance(drawn, SubsetRandomSampler):
            chosen = list(drawn.indices)
            rows = rows.select(chosen) if isinstance(rows, datasets.Dataset) else Subset(rows, chosen)
        return opened(rows, split, form)
    if _are_arrays(data):
        return _of_torch(_of_arrays(*data))
    if isinstance(data, list | tuple):
        return _of_torch(_of_batches(data))
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, torch.Tensor):
        raise DataError(
            f"{type(data).__name__} is no data set: expected a name, folder or Hub id, a Dataset or IterableDataset of "
            "datasets, a torch Dataset of (image, label) that has a length, arrays (images, labels), or a list of "
            "batches, as list(loader) gives"
        )
    return _of_torch(data, form)


def _are_arrays(data: Any) -> bool:
    pair = isinstance(data, list | tuple) and len(data) == 2 and all(isinstance(each, np.ndarray) for each in data)
    return pair and data[1].ndim < 3  # else two batches of images


class _Arrays(Dataset[tuple[Any, int]]):
    """Pixels and labels, an image made of them when it is asked for."""

    def __init__(self, images: Any, labels: Any) -> None:
        self.images, self.targets = images, labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        return Image.fromarray(self.images[number]), int(self.targets[number])


def _of_arrays(images: Any, labels: Any) -> Dataset[Any]:
    """Pixels of 0..255 as images, floats as tensors that are preprocessed."""
    shape = list(images.shape)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(images) != len(labels):
        raise DataError(
            f"arrays: expected as many whole numbers [N] as images, found labels {list(labels.shape)} of "
            f"{labels.dtype} for images {shape}"
        )
    if np.issubdtype(images.dtype, np.floating) and images.ndim == 4:
        return TensorDataset(torch.from_numpy(images).float(), torch.from_numpy(labels).long())
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))):
        raise DataError(
            f"arrays: expected images [N, H, W] or [N, H, W, C] of uint8, or preprocessed ones [N, C, H, W] of floats, "
            f"found {shape} of {images.dtype}"
        )
    return _Arrays(images[..., 0] if images.shape[3:] == (1,) else images, labels)


def _of_batches(batches: Any) -> Dataset[Any]:
    if not batches or not all(isinstance(each, list | tuple) and len(each) == 2 for each in batches):
        raise DataError("expected a data set, or a list of batches (images [B, C, H, W], labels [B]), found another")
    parts = [torch.cat([torch.as_tensor(part) for part in each]) for each in zip(*batches, strict=True)]
    return TensorDataset(*parts)


def _of_torch(data: Any, form: str | None = None) -> Any:
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
    first = torch_boxes.first_target(data) if unknown else None
    with_boxes = torch_boxes.is_target(first)
    if not with_boxes:
        _check_number(first, 0)
    label = boxes.label_features(kind) if with_boxes else kind
    features = datasets.Features({"image": datasets.Value("int64"), "label": label})
    table = datasets.Dataset.from_dict({"image": list(range(count)), "label": numbers}, features)
    made = partial(torch_boxes.label_of, kind=kind, form=form or "xyxy") if with_boxes else _number
    return table.with_transform(partial(_read, data=_Shared(data), made=made))


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
    if labels is not None and not _are_numbers(labels):
        labels = None
    names = getattr(data, "classes", None)
    return names and [name if isinstance(name, str) else _synonyms(name) for name in names], labels


def _are_numbers(labels: Any) -> bool:
    """Whether labels are whole numbers, one an image; names and vectors say nothing before an image is read."""
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return False
    return found.ndim == 1 and not found.is_floating_point()


def _synonyms(name: Any) -> str:
    return ", ".join(name) if isinstance(name, tuple) else str(name)


class _Shared:
    """What `datasets` shall not copy with each view of the rows."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: Any) -> "_Shared":
        return self


def _read(batch: dict[str, list[Any]], *, data: _Shared, made: Callable[[Any, int], Any]) -> dict[str, list[Any]]:
    """The rows of some numbers, their labels made of the target and the number of each."""
    if "image" not in batch:
        return batch
    rows = [data.held[number] for number in batch["image"]]
    for image in (row[0] for row in rows):
        if isinstance(image, torch.Tensor) and not image.is_floating_point():
            raise DataError(
                f"an image is a tensor of {image.dtype}: expected floats as the model takes them, or an image of PIL, "
                "such as torchvision.transforms.functional.to_pil_image makes of it"
            )
    labels = [made(row[1], number) for row, number in zip(rows, batch["image"], strict=True)]
    return {"image": [row[0] for row in rows], "label": labels}


def _number(target: Any, row: int) -> int:
    _check_number(target, row)
    return int(target)


def _check_number(target: Any, row: int) -> None:
    if isinstance(target, Mapping | list):
        raise DataError(
            f"row {row}: expected the number of a class, found a {type(target).__name__}: data with boxes has a target "
            "{boxes [N, 4], labels [N]}, as torchvision.datasets.wrap_dataset_for_transforms_v2 makes of torchvision's "
            "own, or is passed as a folder, a Hub id or a Dataset of datasets with a column objects"
        )
