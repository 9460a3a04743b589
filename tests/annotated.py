"""Three pictures with five objects, written as COCO, VOC and the Hub have them."""

import json
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from zoo.tasks.detection.batches import detection_loader
from zoo.tasks.detection.transforms import evaluation_transform
from zoo.tasks.identity import Identified, identity, with_targets

NAMES = ["cat", "dog", "emu"]
SIZE = (60, 40)
PICTURES = {  # file → its objects: xywh, class, crowd or difficult
    "a.png": [([30, 10, 25, 20], 0, False), ([1, 2, 10, 30], 2, True)],
    "b.png": [],
    "c.png": [([40, 5, 19, 8], 1, False)],
}
EXPECTED = [  # in the order of files: boxes, labels
    ([[30, 10, 55, 30], [1, 2, 11, 32]], [0, 2]),
    ([], []),
    ([[40, 5, 59, 13]], [1]),
]
CONFIG = {"input_size": [3, 32, 32], "mean": [0] * 3, "std": [1] * 3}


def pictures(folder):
    folder.mkdir(parents=True)
    for number, name in enumerate(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def corners(x, y, width, height):
    return [x, y, x + width, y + height]


def coco(ids=(1, 7, 90)):
    """Objects as COCO writes them; its ids leave some out."""
    categories = [{"id": number, "name": name} for number, name in zip(ids, NAMES, strict=True)]
    annotations = [
        {"id": 10 * image + i, "image_id": image, "bbox": box, "category_id": ids[kind], "iscrowd": int(crowd)}
        for image, objects in enumerate(PICTURES.values())
        for i, (box, kind, crowd) in enumerate(objects)
    ]
    images = [{"id": image, "file_name": name} for image, name in enumerate(PICTURES)]
    return {"images": images, "categories": categories[::-1], "annotations": annotations}


def xml(name):
    objects = ""
    for (x, y, width, height), kind, difficult in PICTURES[name]:
        sides = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
        flag = f"<difficult>{int(difficult)}</difficult>"
        objects += f"<object><name>{NAMES[kind]}</name>{flag}<bndbox>{sides}</bndbox></object>"
    return f"<annotation><filename>{name}</filename>{objects}</annotation>"


def lists(key="bbox", form="xywh", named=False, flag="iscrowd"):
    """Objects as columns of the Hub have them, one dictionary of lists an image."""
    boxes = [[box if form == "xywh" else corners(*box) for box, _, _ in each] for each in PICTURES.values()]
    kinds = [[NAMES[kind] if named else kind for _, kind, _ in each] for each in PICTURES.values()]
    flags = [[crowd for *_, crowd in each] for each in PICTURES.values()]
    return [{key: b, "category": k, flag: f} for b, k, f in zip(boxes, kinds, flags, strict=True)]


def table(folder, objects, kind=None, column="objects"):
    """A data set of the pictures and these objects; of a list of dictionaries where they are such."""
    paths = sorted(str(path) for path in pictures(folder).glob("*.png"))
    columns = {"image": paths, column: objects}
    features = {**datasets.Dataset.from_dict(columns).features, "image": datasets.Image()}
    if kind is not None and isinstance(features[column], dict):
        features[column] = {**features[column], "category": datasets.List(kind)}
    elif kind is not None:
        features[column] = datasets.List({**features[column].feature, "category": kind})
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def coco_folder(folder, images="train2017"):
    pictures(folder / images)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(coco()))
    (folder / "annotations" / "captions_train2017.json").write_text("{}")
    return str(folder)


def coco_by_split(folder):
    (pictures(folder / "train") / "_annotations.coco.json").write_text(json.dumps(coco((0, 1, 2))))
    return str(folder)


def voc_folder(folder, root="."):
    root = folder / root
    pictures(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for name in PICTURES:
        (root / "Annotations" / name.replace("png", "xml")).write_text(xml(name))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n\nc\n")
    return str(folder)


def voc_by_split(folder):
    for name in PICTURES if pictures(folder / "train") else ():
        (folder / "train" / name.replace("png", "xml")).write_text(xml(name))
    return str(folder)


def with_metadata(folder, named=True):
    pictures(folder / "train")
    rows = [{"file_name": name, "objects": each} for name, each in zip(PICTURES, lists(named=named), strict=True)]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def parquet(data, folder):
    """A folder of the Hub's layout with a data set, its images within."""
    paths = [Path(image["path"]) for image in data.cast_column("image", datasets.Image(decode=False))["image"]]
    stored = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    columns = {"image": stored, "objects": data["objects"]}
    datasets.Dataset.from_dict(columns, data.features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


CLASSES = datasets.ClassLabel(names=NAMES)


def identity_of(data):
    loader = detection_loader(data, Identified(evaluation_transform(CONFIG)), 2)
    return identity(torch.cat([with_targets(digests, targets) for (_, digests), targets in loader]))


def many(folder, boxes, form="xywh", size=SIZE, key="bbox", kind=CLASSES):
    """A data set of one image, with boxes of class 0."""
    folder.mkdir()
    Image.new("RGB", size).save(folder / "one.png")
    features = {"image": datasets.Image(), "objects": {key: datasets.List(datasets.List(datasets.Value("float32")))}}
    features["objects"]["category"] = datasets.List(kind)
    objects = [{key: boxes, "category": [0] * len(boxes)}]
    columns = {"image": [str(folder / "one.png")], "objects": objects}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))
