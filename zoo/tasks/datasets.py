"""Data for training and evaluation, by name, folder or Hub id, through the `datasets` library alone.

Why folders of classes are listed here: `load_dataset("imagefolder")` takes 0.6 ms a file each time that it is called,
12 minutes for ImageNet; a listing of the same files in the same order takes 4 µs a file.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image

from zoo.errors import DataError, UnknownName, require
from zoo.tasks.digits import digit_pairs, digits

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    Data: TypeAlias = Dataset | IterableDataset
    Splits: TypeAlias = DatasetDict | IterableDatasetDict

# Validation comes first: the test labels of the well-known sets are kept secret and read -1.
SPLITS = {"train": ("train",), "test": ("validation", "val", "valid", "test")}
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
NOISE_IMAGES, NOISE_CLASSES = 64, 1000
NAMED = ("digits", "digit_pairs", "noise")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}


def dataset(spec: str, split: str, *, limit: int | None = None) -> "Data":
    """Open a data set of images and their classes.

    Args:
        spec: `digits`, `digit_pairs`, `noise` (random pixels in 1,000 classes, to try a pipeline with), a folder (one
            sub-folder per class, within `train` and `validation`), or the id of a data set on the Hub
            (`ILSVRC/imagenet-1k`), which is streamed. `SPEC[:N]` is the same with the limit N.
        split: `train` or `test`; of a folder or Hub data set, `test` is its validation split where there is one.
        limit: keep at most so many images: the first ones, but a fixed random choice of a folder, which is sorted by
            class. `digit_pairs` has exactly so many.

    Returns:
        A data set (an iterable one if streamed) with the columns `image` (PIL) and `label` (int).

    Raises:
        UnknownName: the word names no data set.
        DataError: the split, the columns or the images are missing, or the Hub can't be reached.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if shortened := re.fullmatch(r"(.+)\[:(\d+)\]", spec):
        most = int(shortened[2])
        return dataset(shortened[1], split, limit=most if limit is None else min(most, limit))
    if spec == "digit_pairs":
        return digit_pairs(split, limit)
    if spec == "digits":
        return _first(digits(split), limit)
    if spec == "noise":
        return _first(_noise(split), limit)
    folder = Path(spec).expanduser()
    if folder.is_dir():
        found = _classes(folder, split) or _of_folder(folder, split)
        return found if limit is None else _first(found.shuffle(seed=0, keep_in_memory=True), limit)
    if HUB_ID.fullmatch(spec):
        found = _columns(spec, _split(spec, _open_hub(spec), split))
        return found if limit is None else found.take(limit)
    if "/" in spec or os.sep in spec or folder.exists():
        what = "a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{spec}: {what}; {_expected(spec)}")
    raise UnknownName(f"no data set {spec!r}; possible are: digits, digit_pairs, a folder, a Hub id such as org/name")


def num_classes(data: "Data") -> int | None:
    """The number of classes, or None where the data set doesn't say."""
    return getattr((data.features or {}).get("label"), "num_classes", None)


def check_classes(data: "Data", classes: int | None, spec: str) -> None:
    """Compare a model's classes with those of the data.

    Args:
        data: what `dataset` returns.
        classes: the model's; None where it doesn't say.
        spec: of the data, for the message.

    Raises:
        DataError: they differ, so an accuracy would mean nothing.
    """
    found = num_classes(data)
    if None not in (found, classes) and found != classes:
        raise DataError(f"{spec} has {found} classes, the model {classes}: choose other data, or load with num_classes")


def _noise(split: str) -> "Dataset":
    datasets = require("datasets", "eval")
    rng = np.random.default_rng(list(SPLITS).index(split))
    pixels = rng.integers(0, 256, (NOISE_IMAGES, 96, 128, 3), dtype=np.uint8)
    labels = rng.integers(0, NOISE_CLASSES, NOISE_IMAGES)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(NOISE_CLASSES)}
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels}, datasets.Features(features)
    )


def _first(data: "Dataset", limit: int | None) -> "Dataset":
    return data if limit is None else data.select(range(min(limit, len(data))))


def _classes(folder: Path, split: str) -> "Dataset | None":
    """A folder's split, where each of its splits holds nothing but folders of images; else None."""
    datasets = require("datasets", "eval")
    splits = [folder / name for names in SPLITS.values() for name in names if (folder / name).is_dir()]
    wanted = next((folder / name for name in SPLITS[split] if folder / name in splits), None)
    if wanted is None or {entry.name for entry in _visible(folder)} != {path.name for path in splits}:
        return None
    classes = [entry for path in splits for entry in _visible(path)]
    if not all(entry.is_dir() for entry in classes):
        return None
    names = sorted({entry.name for entry in classes})
    number = {name: index for index, name in enumerate(names)}
    files = [(file.path, number[entry.name]) for entry in _visible(wanted) for file in _visible(Path(entry.path))]
    if not files or {os.path.splitext(path)[1].lower() for path, _ in files} - EXTENSIONS:
        return None
    paths, labels = zip(*sorted(files), strict=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, datasets.Features(features))


def _visible(folder: Path) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _of_folder(folder: Path, split: str) -> "Dataset":
    """A folder's split, as the library reads it: metadata files, and splits told from the names of files."""
    datasets = require("datasets", "eval")
    try:
        splits: DatasetDict = datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (ValueError, OSError) as error:
        raise DataError(f"{folder}: no images could be read ({_line(error)}); {_expected(folder)}") from error
    try:
        found = _split(str(folder), splits, split)
    except DataError as error:
        raise DataError(f"{error}; {_expected(folder)}") from None
    try:
        return _columns(str(folder), found)
    except DataError:
        raise DataError(f"{folder}: no classes were found; {_expected(folder)}") from None


def _expected(folder: Path | str) -> str:
    return f"expected images in {folder}/train/CLASS and {folder}/validation/CLASS, of two classes at least"


def _open_hub(spec: str) -> "IterableDatasetDict":
    datasets = require("datasets", "eval")
    try:
        return datasets.load_dataset(spec, streaming=True)
    except Exception as error:  # the library lets through whatever its HTTP client and file readers raise
        raise DataError(
            f"{spec}: neither a folder here nor a data set that could be opened on the Hub ({_line(error)}); "
            "check the name and the network, and if it is gated accept its terms there and run: hf auth login"
        ) from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _split(spec: str, splits: "Splits", split: str) -> "Data":
    for name in SPLITS[split]:
        if name in splits:
            return splits[name]
    raise DataError(f"{spec}: no split for {split}: expected {' or '.join(SPLITS[split])}, found {', '.join(splits)}")


def _columns(spec: str, data: "Data") -> "Data":
    found = data.column_names or list(next(iter(data)))
    image = next((name for name in IMAGE_COLUMNS if name in found), None)
    label = next((name for name in LABEL_COLUMNS if name in found), None)
    if image is None or label is None:
        raise DataError(
            f"{spec}: expected a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}, "
            f"found {', '.join(found)}; rename them where the data is made"
        )
    renamed = {old: new for old, new in ((image, "image"), (label, "label")) if old != new}
    return data.select_columns([image, label]).rename_columns(renamed)
