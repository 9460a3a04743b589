"""A data set of the Hub consists of its own files, whatever its card or its rows name."""

import io
import os
from pathlib import Path

import datasets
import fsspec
import pytest
import yaml

from zoo.errors import DataError, UnknownName, ZooError
from zoo.tasks.datasets import dataset
from zoo.tasks.inside import check_card, check_image
from zoo.tasks.lengths import training_set

AT = "hf://datasets/org/set@0123abc"


@pytest.fixture
def carded(monkeypatch):
    """A function that gives the data set org/set a card: file, text."""
    cards = {}

    def opened(address, mode):
        name = address.removeprefix("hf://datasets/org/set/")
        if name not in cards:
            raise FileNotFoundError(address)
        return io.BytesIO(cards[name].encode())

    monkeypatch.setattr(fsspec, "open", opened)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("opened"))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("opened"))
    return cards.__setitem__


OUTSIDE = ["/**", "/etc/passwd", " /x", "~/x", "../x", "a/../../x", "..", "file:///x", "https://x/y", "C:/x", "C:\\x"]
OUTSIDE += [
    "hf://datasets/other/set/x",
    "zip://x::/x.zip",
    "\\\\host\\x",
    "local://x",
    "a\n/../x",
    "s3://x",
    "a\\..\\x",
]
WITHIN = ["train/*", "data/train-*.parquet", "**", "a..b/c", "x.zip", "*.tar.gz", "train [1]/é.png", "hidden/.x"]


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_card_that_names_other_files_is_refused_before_they_are_looked_for(path, carded):
    for file, config in [
        ("README.md", {"data_files": path}),
        ("README.md", {"data_dir": path}),
        ("README.md", {"data_files": ["x", {"split": "train", "path": ["y", path]}]}),
        (".huggingface.yaml", {"data_files": {"train": path}}),
    ]:
        text = yaml.safe_dump({"configs": [{"config_name": "default", **config}]}, allow_unicode=True)
        carded("README.md", "# nothing")
        carded(file, f"---\n{text}---\n# A set" if file == "README.md" else text)
        for opening in (lambda: dataset("org/set", "train"), lambda: training_set("org/set", steps=5)):
            with pytest.raises(DataError, match=r"^org/set: its .* names files outside of it, .*: use another data"):
                opening()


@pytest.mark.parametrize("path", WITHIN)
def test_a_card_that_names_its_own_files_is_taken(path, carded):
    text = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": path}]}, allow_unicode=True)
    carded("README.md", f"---\n{text}---\n")
    carded(".huggingface.yaml", "configs: &a\n- *a")  # which holds itself
    check_card("org/set")


@pytest.mark.parametrize(
    "image",
    [
        {"bytes": None, "path": "/home/me/private.png"},
        {"bytes": None, "path": "private.png"},
        {"path": "file:///home/me/private.png"},
        {"path": "http://10.0.0.1/x.png"},
        {"path": f"{AT}/x.zip::/x.zip"},
        {"path": f"reference::{AT}/x.json"},
        {"path": f"zip://x.png::file:///x.zip::{AT}"},
        {"path": "zip://x.png::/home/me/x.zip"},
        {"path": "hf://datasets/org/set-of-others@0123abc/x.png"},
        {"path": "hf://datasets/other/set@0123abc/x.png"},
        "/home/me/private.png",
    ],
)
def test_a_row_of_the_hub_whose_image_lies_elsewhere_is_refused(image, monkeypatch):
    rows = [{"image": image, "label": number} for number in range(3)]
    streams = datasets.IterableDatasetDict({"train": datasets.IterableDataset.from_generator(lambda: iter(rows))})
    monkeypatch.setattr("zoo.tasks.datasets.check_card", lambda spec: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda spec, streaming: streams)

    with pytest.raises(DataError, match=r"^org/set: an image of it lies outside of it, at '.*': use another data set$"):
        list(dataset("org/set", "train"))


@pytest.mark.parametrize(
    "image",
    [
        {"bytes": b"...", "path": "/home/me/where/it/was.png"},
        {"path": f"{AT}/x.png"},
        {"path": f"zip://in/x.png::{AT}/x.zip"},
        {"path": f"zip://x.png::gzip://x.zip::{AT}/x.zip.gz"},
        {"path": None},
    ],
)
def test_a_row_whose_image_is_its_own_is_taken(image):
    check_image("org/set", image)


ODD = [
    "\0",
    "a\0/b",
    "~nobody/x",
    f"/{300 * 'a'}",
    f"a/{5000 * 'b'}",
    "digits" + 3000 * "[:5]",
    3000 * "[",
    "",
    "\ud800/x",
]


@pytest.mark.parametrize("spec", ODD, ids=range(len(ODD)))
def test_whatever_is_said_to_be_a_data_set_is_one_or_a_line(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, UnknownName)) as raised:
        dataset(spec, "test")
    assert str(raised.value).isprintable()


def test_a_folder_with_a_file_whose_name_is_no_text_is_a_line(tmp_path):
    for split in ("train", "validation"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            Path(os.fsdecode(bytes(tmp_path / split / label) + b"/\xff\x1b.png")).write_bytes(b"x")
    with pytest.raises(ZooError, match="the name of a file in it isn't text in UTF-8: rename it"):
        dataset(str(tmp_path), "train")
