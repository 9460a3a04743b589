"""Data sets in folders: one folder per class, images beside metadata or annotations, or files in Hub layout.

Why folders of classes are listed here: `load_dataset("imagefolder")` takes 0.6 ms a file each time that it is called,
12 minutes for ImageNet; a listing of the same files takes 4 µs a file.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.catalog.data_names import EXPECTED
from zoo.errors import DataError, as_cause, first_line, require
from zoo.printable import logger
from zoo.tasks.annotations import annotated
from zoo.tasks.boxes import OBJECT_COLUMNS
from zoo.tasks.columns import LABEL_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

log = logger(__name__)

# Validation comes first: the test labels of the well-known sets are kept secret and read -1.
SPLITS = {"train": ("train",), "test": ("validation", "val", "valid", "test")}
EXTENSIONS = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
FILES_OF_ROWS = {".parquet", ".arrow", ".tar"}


def folder_of_data(folder: Path, split: str) -> "Dataset":
    """A folder's split, or all of a parquet file, as the library types it.

    Raises:
        DataError: there are no images, or no such split.
    """
    if folder.is_file():
        if split == "train":
            log.warning("%s has no splits: what is made with its images is evaluated on the same", folder)
        return _loaded(folder, "parquet", data_files=str(folder))["train"]
    try:
        return _classes(folder, split) or annotated(folder, split, SPLITS[split]) or _of_library(folder, split)
    except UnicodeError:
        raise DataError(f"{folder}: the name of a file in it isn't text in UTF-8: rename it") from None


def split_of(spec: str, splits: Any, split: str) -> Any:
    """What a data set has for `train` or `test`.

    Raises:
        DataError: nothing.
    """
    for name in SPLITS[split]:
        if name in splits:
            return splits[name]
    raise DataError(f"{spec}: no split for {split}: expected {' or '.join(SPLITS[split])}, found {', '.join(splits)}")


def by_number(name: str) -> tuple[int, str]:
    """The key that sorts names that are numbers as numbers, before all others."""
    return (int(name), name) if name.isdecimal() else (2**62, name)


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
    names = sorted({entry.name for entry in classes}, key=by_number)
    number = {name: index for index, name in enumerate(names)}
    files = [(number[entry.name], file.path) for entry in _visible(wanted) for file in _visible(Path(entry.path))]
    if not files or {os.path.splitext(path)[1].lower() for _, path in files} - EXTENSIONS:
        return None
    labels, paths = zip(*sorted(files), strict=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, datasets.Features(features))


def _visible(folder: Path) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def _of_library(folder: Path, split: str) -> "Dataset":
    """A folder's split, as the library reads it: metadata files, and splits told from the names of files."""
    rows = any(path.suffix in FILES_OF_ROWS for pattern in ("*", "*/*") for path in folder.glob(pattern))
    splits = _loaded(folder, str(folder)) if rows else _loaded(folder, "imagefolder", data_dir=str(folder))
    try:
        opened: Dataset = split_of(str(folder), splits, split)
    except DataError as error:
        raise DataError(f"{error}; {EXPECTED}") from None
    if not rows and not any(name in opened.column_names for name in (*LABEL_COLUMNS, *OBJECT_COLUMNS)):
        raise DataError(f"{folder}: no classes were found; {EXPECTED}")
    return opened


def _loaded(folder: Path, path: str, **where: str) -> "DatasetDict":
    datasets = require("datasets", "eval")
    try:
        splits: DatasetDict = datasets.load_dataset(path, **where)
    except Exception as error:  # the library lets through whatever its readers raise
        raise DataError(f"{folder}: no images could be read ({first_line(error)}); {EXPECTED}") from as_cause(error)
    return splits
