"""Folders of images whose objects stand in files of their own: JSON as COCO has it, XML as Pascal VOC has it.

    COCO        annotations/instances_train2017.json   train2017/*.jpg, or images/train2017/*.jpg
    by split    train/_annotations.coco.json           train/*.jpg
    VOC         Annotations/*.xml, JPEGImages/*.jpg    ImageSets/Main/trainval.txt; or several such folders in one
    by split    train/*.xml                            train/*.jpg

Classes are known by their names: COCO's ids leave some out, and other tools number them from 0 or 1.

Source: https://cocodataset.org/#format-data, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from zoo.errors import DataError, first_line, require

if TYPE_CHECKING:
    from datasets import Dataset

MAX_XML = 4 << 20  # bytes of a file for one image
IN_SPLIT = "_annotations.coco.json"
SIDES = ("xmin", "ymin", "xmax", "ymax")


def annotated(folder: Path, split: str, names: Sequence[str]) -> "Dataset | None":
    """A folder's split with the objects of its images; None where it isn't laid out so.

    Args:
        folder: of one of the layouts.
        split: `train` or `test`; of VOC's, where there is a test split, train and val are trained on.
        names: that such a split may have.

    Returns:
        A data set of `image` and `objects`, as `zoo.tasks.boxes` reads them.

    Raises:
        DataError: a file can't be read, or there is no such split.
    """
    files = sorted((folder / "annotations").glob("*.json")) + sorted(folder.glob(f"*/{IN_SPLIT}"))
    if files:
        return _coco(folder, files, names)
    roots = [each for each in (folder, *sorted(folder.glob("*")), *sorted(folder.glob("VOCdevkit/*"))) if _is_voc(each)]
    if roots:
        return _voc(folder, _listed(roots, split))
    beside = next((found for name in names if (found := sorted((folder / name).glob("*.xml")))), None)
    return None if beside is None else _voc(folder, [(file, file.parent) for file in beside])


def _coco(folder: Path, files: Sequence[Path], names: Sequence[str]) -> "Dataset":
    told = {file.parent.name if file.name == IN_SPLIT else file.stem: file for file in files}
    told = {name: file for name, file in told.items() if name.startswith("instances")} or told
    for name in names:
        for stem, file in told.items():
            if re.search(rf"(^|_){name}(\d{{4}})?$", stem):
                short = stem.rsplit("_", 1)[-1]
                within = [folder / part for part in (short, f"images/{short}", "images", ".")]
                return _of_coco(file, [file.parent, *within] if file.name == IN_SPLIT else within)
    raise DataError(f"{folder}: no objects for a split {' or '.join(names)}: found {', '.join(list(told)[:5])}")


def _of_coco(file: Path, places: Sequence[Path]) -> "Dataset":
    datasets = require("datasets", "eval")
    try:
        content = json.loads(file.read_bytes())
        names = {each["id"]: str(each["name"]) for each in sorted(content["categories"], key=lambda each: each["id"])}
        classes = list(dict.fromkeys(names.values()))  # several ids of one name are one class
        numbers = {number: classes.index(name) for number, name in names.items()}
        objects: dict[Any, list[Any]] = {each["id"]: [] for each in content["images"]}
        for each in content["annotations"]:
            objects[each["image_id"]].append((numbers.get(each.get("category_id")), each))
        images = {each["id"]: str(each["file_name"]) for each in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: expected images, annotations and categories as COCO has them: {error!r}") from None
    first = next(iter(images.values()), "")
    place = next((place for place in places if (place / first).is_file()), places[0])
    rows = []
    for number, name in images.items():
        if unknown := [each for category, each in objects[number] if category is None]:
            found = unknown[0].get("category_id")
            raise DataError(f"{file}: {name} has an object of category {found!r}, which the file hasn't: mend it")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{file}: the image {name!r} lies outside of the folder: mend it")
        try:
            rows.append((place / name, [_of_annotation(*each) for each in objects[number]]))
        except (TypeError, ValueError) as error:
            raise DataError(f"{file}: {name} has a box or an area that isn't of numbers: {error}; mend it") from None
    return _table(rows, "xywh", datasets.ClassLabel(names=classes))


def _of_annotation(category: int, each: Mapping[str, Any]) -> dict[str, Any]:
    area = each.get("area")
    return {
        "xywh": [float(number) for number in each.get("bbox") or ()],
        "category": category,
        "iscrowd": bool(each.get("iscrowd")),
        "difficult": False,
        "area": None if area is None else float(area),
    }


def _is_voc(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in ("Annotations", "JPEGImages", "ImageSets/Main"))


def _listed(roots: Sequence[Path], split: str) -> list[tuple[Path, Path]]:
    """The files of a split, each with the folder of its image."""
    tested = any((root / "ImageSets/Main/test.txt").is_file() for root in roots)
    name = {"train": "trainval" if tested else "train", "test": "test" if tested else "val"}[split]
    lists = [(root, root / f"ImageSets/Main/{name}.txt") for root in roots]
    return [
        (root / "Annotations" / f"{Path(line.split()[0]).name}.xml", root / "JPEGImages")
        for root, file in lists
        if file.is_file()
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


def _voc(folder: Path, files: Sequence[tuple[Path, Path]]) -> "Dataset":
    if not files:
        raise DataError(f"{folder}: no objects for that split: expected its list in ImageSets/Main")
    rows = [_of_xml(file, place) for file, place in files]
    return _table(rows, "xyxy", require("datasets", "eval").Value("string"))


def _of_xml(file: Path, place: Path) -> tuple[Path, list[dict[str, Any]]]:
    try:
        if file.stat().st_size > MAX_XML:
            raise ValueError(f"it has more than {MAX_XML:,} bytes")
        root = ElementTree.fromstring(file.read_bytes())  # noqa: S314 (expat bounds what entities become)
        objects = [_of_object(each) for each in root.iter("object")]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: expected objects as VOC has them: {first_line(error)}") from None
    return place / (Path(root.findtext("filename") or "").name or f"{file.stem}.jpg"), objects


def _of_object(each: ElementTree.Element) -> dict[str, Any]:
    left, top, right, below = (float(each.findtext(f"bndbox/{side}") or "nan") for side in SIDES)
    return {
        "xyxy": [left - 1, top - 1, right, below],  # its first pixel is 1, and its last one lies within
        "category": each.findtext("name"),
        "iscrowd": False,
        "difficult": (each.findtext("difficult") or "0").strip() == "1",
        "area": None,
    }


def _table(rows: Sequence[tuple[Path, list[dict[str, Any]]]], form: str, kind: Any) -> "Dataset":
    datasets = require("datasets", "eval")
    number, flag = datasets.Value("float64"), datasets.Value("bool")
    item = {form: datasets.List(number), "category": kind, "iscrowd": flag, "difficult": flag, "area": number}
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(item)})
    columns = {"image": [str(path) for path, _ in rows], "objects": [objects for _, objects in rows]}
    return datasets.Dataset.from_dict(columns, features)
