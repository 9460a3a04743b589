"""The same photograph gives the same tensor, whatever door it came in by.

Run as a script, python tests/test_doors.py NAME ..., it opens what a Hub serves, and prints what it saw.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import datasets
import pytest
import torch
from hub import commit, create, large, serving
from photographs import CFG, LABELS, jpegs, rows, write_classes, write_metadata, write_parquet
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.lengths import counted
from zoo.tasks.loader import loader


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def digest(image):
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16]


def expected():
    """Every photograph's tensor by Pillow and timm alone."""
    size = {"input_size": CFG["input_size"], "mean": CFG["mean"], "std": CFG["std"]}
    transform = create_transform(**size, interpolation="bicubic", crop_pct=0.9)
    return [digest(transform(Image.open(io.BytesIO(each)).convert("RGB"))) for each in jpegs()]


def seen(data, **options):
    """The tensors and labels that a loader gives."""
    if "epoch" in options and isinstance(data, datasets.IterableDataset):
        data = counted(data, least=64)
    batches = list(loader(data, evaluation_transform(CFG), 16, **options))
    return [
        (digest(image), int(label)) for images, labels in batches for image, label in zip(images, labels, strict=True)
    ]


def write_tar(folder):
    folder.mkdir()
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
            for number, (each, label) in enumerate(zip(jpegs(), LABELS, strict=True)):
                for end, content in (("jpg", each), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{number:02d}.{end}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


DOORS = {
    "folders of classes": lambda folder: str(write_classes(folder)),
    "images and a csv": lambda folder: str(write_metadata(folder, "csv")),
    "images and jsonl": lambda folder: str(write_metadata(folder, "jsonl")),
    "parquet": lambda folder: str(write_parquet(folder, 2, image="img", label="fine_label")),
    "a tar": lambda folder: str(write_tar(folder)),
    "a Dataset": lambda folder: rows(image="img"),
    "a stream": lambda folder: rows(image="img", label="labels").to_iterable_dataset(3),
    "a dictionary": lambda folder: datasets.DatasetDict({"test": rows(), "train": rows()}),
    "a torch Dataset": lambda folder: Pairs(),
    "a DataLoader": lambda folder: DataLoader(Pairs(), 7),
}


class Pairs(torch.utils.data.Dataset):
    """(image, label), as torchvision's are."""

    classes, targets = ("meadow", "sea"), LABELS

    def __len__(self):
        return 64

    def __getitem__(self, number):
        return Image.open(io.BytesIO(jpegs(number + 1)[number])), LABELS[number]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves metadata.csv open
@pytest.mark.parametrize("door", DOORS)
def test_a_photograph_is_the_same_through_every_door(door, tmp_path):
    spec = DOORS[door](tmp_path / "photographs")
    pairs = list(zip(expected(), LABELS, strict=True))

    assert seen(dataset(spec, "test")) == pairs
    assert set(seen(dataset(spec, "test", limit=48))) < set(pairs)
    for epoch in (0, 1):
        assert sorted(seen(dataset(spec, "train"), epoch=epoch)) == sorted(pairs)


def test_a_photograph_is_the_same_as_path_bytes_image_and_row(tmp_path):
    path, each, transform = tmp_path / "one.jpg", jpegs(1)[0], evaluation_transform(CFG)
    path.write_bytes(each)
    forms = (path, str(path), each, Image.open(path), {"bytes": each, "path": None}, {"bytes": None, "path": str(path)})

    assert [digest(transform(form)) for form in forms] == expected()[:1] * len(forms)


def test_a_file_of_the_same_name_here_is_never_taken_for_one_of_a_stream(tmp_path, monkeypatch):
    write_parquet(tmp_path / "set", image="img")
    monkeypatch.chdir(tmp_path)
    for number in range(64):
        Image.new("RGB", (8, 8)).save(f"{number:02d}.jpg")

    assert [image for image, _ in seen(dataset(str(tmp_path / "set"), "test"))] == expected()
    streamed = datasets.load_dataset(str(tmp_path / "set"), streaming=True)
    assert [image for image, _ in seen(dataset(streamed, "test"))] == expected()


def test_streams_and_draws_from_a_hub_give_the_same_photographs(tmp_path):
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub") as address:
        for shards in (1, 3):
            name, files = f"org/shards-{shards}", write_parquet(tmp_path / str(shards), shards, image="img") / "data"
            assert create(address, name, "dataset").status == 200
            lines = [
                large(address, name, f"data/{file.name}", file.read_bytes(), kind="dataset") for file in files.iterdir()
            ]
            assert commit(address, name, *lines, kind="dataset").status == 200
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, __file__, "org/shards-1", "org/shards-3"]
        done = subprocess.run(command, env={**os.environ, **own, **online}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    pairs = [list(pair) for pair in zip(expected(), LABELS, strict=True)]
    drawn = [list(pair) for pair in seen(dataset(str(tmp_path / "1"), "test", limit=20))]

    for found in json.loads(done.stdout.splitlines()[-1]):
        assert found["stream"] == found["after two epochs"] == pairs
        for name in ("shuffled", "epoch 0", "epoch 1", "two workers"):
            assert sorted(found[name]) == sorted(pairs), name
        assert found["taken"] == pairs[:10]
        assert found["drawn"] == drawn
    assert sorted(label for _, label in drawn) == [0] * 10 + [1] * 10


def opened(name):
    stream = dataset(name, "test")
    return {
        "stream": seen(stream),
        "shuffled": seen(stream.shuffle(seed=1, buffer_size=10)),
        "taken": seen(stream.take(10)),
        "epoch 0": seen(dataset(name, "train"), epoch=0),
        "epoch 1": seen(dataset(name, "train"), epoch=1),
        "two workers": seen(stream, workers=2),
        "drawn": seen(dataset(name, "test", limit=20)),
        "after two epochs": seen(stream),
    }


if __name__ == "__main__":
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # seconds, after a stream that was shuffled
    sys.stdout.write(json.dumps([opened(name) for name in sys.argv[1:]]) + "\n")
