"""64 small photographs, each a JPEG of quality 92 that any second encoding would change, in two classes."""

import io
import json

import datasets
import numpy as np
from PIL import Image

NAMES = ["meadow", "sea"]
LABELS = [number * 2 // 64 for number in range(64)]  # sorted by class, as sets of the Hub are
CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "crop_pct": 0.9}


def jpegs(count=64, exif=None):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        image = coarse.resize((56, 40), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=92, **({"exif": exif} if exif else {}))
        made.append(file.getvalue())
    return made


def rows(image="image", label="label"):
    """The photographs as a data set of `datasets`, with a column more than is needed."""
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=NAMES), "note": datasets.Value("string")}
    stored = [{"bytes": each, "path": f"{number:02d}.jpg"} for number, each in enumerate(jpegs())]
    return datasets.Dataset.from_dict(
        {image: stored, label: LABELS, "note": ["x"] * 64}, features=datasets.Features(features)
    )


def write_parquet(folder, shards=1, **columns):
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        for shard in range(shards):
            part = rows(**columns).shard(shards, shard, contiguous=True)
            part.to_parquet(folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet", batch_size=8)
    return folder


def write_classes(folder):
    for split in ("train", "test"):
        for number, (each, label) in enumerate(zip(jpegs(), LABELS, strict=True)):
            path = folder / split / NAMES[label] / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(each)
    return folder


def write_metadata(folder, kind):
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number, each in enumerate(jpegs()):
            (folder / split / f"{number:02d}.jpg").write_bytes(each)
        lines = [{"file_name": f"{number:02d}.jpg", "label": label} for number, label in enumerate(LABELS)]
        if kind == "csv":
            text = "file_name,label\n" + "".join(f"{line['file_name']},{line['label']}\n" for line in lines)
        else:
            text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / split / f"metadata.{kind}").write_text(text)
    return folder
