"""The same images are the same data wherever they lie, and a claim of them is judged there; no other images are."""

import hashlib
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo import catalog
from zoo.cli import verifying
from zoo.tasks.identity import Identified
from zoo.tasks.loader import loader
from zoo.verbs import judging
from zoo.verbs.measuring import report_of

CLASSES = ["truck", "cat", "ship"]  # in no alphabetical order
NETWORK = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "num_classes": 3}


@pytest.fixture(scope="module")
def rows():
    """Thirty pictures, each with the number of its class."""
    rng = np.random.default_rng(0)
    return [(Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)), each % 3) for each in range(30)]


@pytest.fixture(scope="module")
def model():
    network = zoo.create(zoo.Base("timm/resnet18", NETWORK))
    seen = {"input_size": (3, 32, 32), "label_names": CLASSES, "crop_pct": 1.0}
    network.pretrained_cfg = {**network.pretrained_cfg, **seen}
    return network


def in_folders(rows, place, names=tuple(CLASSES)):
    for split in ("train", "validation"):
        for number, (image, label) in enumerate(rows):
            (place / split / names[label]).mkdir(parents=True, exist_ok=True)
            image.save(place / split / names[label] / f"{number}.png")
    return str(place)


def table(rows, names=tuple(CLASSES)):
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    labels = [list(names).index(CLASSES[label]) for _, label in rows]
    return datasets.Dataset.from_dict({"image": [image for image, _ in rows], "label": labels}, kinds)


def in_parquet(rows, place):
    place.mkdir(parents=True)
    shuffled = [rows[number] for number in np.random.default_rng(1).permutation(len(rows))]
    for split in ("train", "test"):
        table(shuffled, sorted(CLASSES)).to_parquet(place / f"{split}.parquet")
    return str(place)


class OfTorch(torch.utils.data.Dataset):
    classes = CLASSES

    def __init__(self, rows):
        self.rows, self.targets = rows, [label for _, label in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


DOORS = {
    "folders": lambda rows, place: in_folders(rows, place / "folders"),
    "parquet, shuffled, its classes in another order": lambda rows, place: in_parquet(rows, place / "parquet"),
    "a table": lambda rows, place: table(rows),
    "a stream": lambda rows, place: table(rows).to_iterable_dataset(3),
    "a data set of torch": lambda rows, place: OfTorch(rows),
}


def by_hand(rows):
    def one(image, label):
        seen = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        return hashlib.sha256(seen + int(label).to_bytes(8, "little")).digest()

    return hashlib.sha256(b"".join(sorted(one(*row) for row in rows))).hexdigest()


@pytest.mark.parametrize("door", DOORS)
def test_the_same_images_have_one_hash_whatever_door_they_come_in_by(door, rows, model, tmp_path):
    assert report_of(model, DOORS[door](rows, tmp_path)).data["sha256"] == by_hand(rows)


@pytest.mark.parametrize(
    "other",
    [
        lambda rows: [*rows[:-1], (Image.fromarray(np.asarray(rows[-1][0]) ^ (np.indices((9, 12, 3)).sum(0) == 0)), 2)],
        lambda rows: [*rows[:-1], (rows[-1][0], 1)],
        lambda rows: [*rows, rows[-1]],
        lambda rows: rows[:-1],
    ],
    ids=["a pixel", "a class", "an image twice", "an image less"],
)
def test_whatever_is_another_image_or_class_gives_another_hash(other, rows, model):
    assert report_of(model, table(other(rows))).data["sha256"] not in ("", by_hand(rows))


@pytest.mark.parametrize("channels", [1, 3])
def test_what_identifies_images_leaves_what_the_model_sees_of_them_alone(channels, rows):
    seen = {"input_size": (channels, 32, 32), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    network = torch.nn.Identity()
    network.pretrained_cfg = seen
    transform = zoo.transform(network)
    (both, _), (alone, _) = (next(iter(loader(table(rows), each, 30))) for each in (Identified(transform), transform))

    assert torch.equal(both[0], alone)


@pytest.fixture
def published(rows, model, tmp_path):
    """A model whose results are of a folder that isn't there any more, and the same images elsewhere."""
    mine = in_folders(rows, tmp_path / "mine" / "pictures")
    zoo.save(model, tmp_path / "model", report=report_of(model, mine, name="resnet18"))
    shutil.rmtree(tmp_path / "mine")
    return tmp_path / "model", in_parquet(rows, tmp_path / "elsewhere")


def verdicts(folder, data):
    return {row.figure: row.verdict for row in zoo.verify(folder, data=data).rows}


def test_a_claim_is_judged_on_the_very_images_wherever_they_lie(published, caplog):
    folder, elsewhere = published
    with caplog.at_level("INFO", "zoo"):
        assert verdicts(folder, elsewhere)["top1"] == "agrees"
    assert "resnet18: these 30 images are those that its figures are of" in caplog.text

    results = json.loads((folder / "results.json").read_text())
    results["measured"]["top1"] += 0.5
    (folder / "results.json").write_text(json.dumps(results))
    assert verdicts(folder, elsewhere)["top1"] == "differs"


def test_a_claim_of_other_images_is_shown_and_not_judged_though_their_folder_has_the_same_name(
    published, rows, tmp_path
):
    folder, _ = published
    others = in_folders(rows[:-1], tmp_path / "others" / "pictures")

    assert json.loads((folder / "results.json").read_text())["data"]["dataset"] == "./pictures"
    costs = ("params", "macs", "kmapp", "weights_bytes")
    assert verdicts(folder, others) == {**dict.fromkeys(costs, "agrees"), "top1": "other images"}


def test_a_verification_that_judged_no_claim_on_images_has_not_passed(published, rows, tmp_path, capsys):
    folder, same = published
    others = in_folders(rows[:-1], tmp_path / "others" / "pictures")

    assert verifying.verify.main([str(folder), "--data", same, "--json"], standalone_mode=False) is None
    assert json.loads(capsys.readouterr().out)[0]["unjudged"] == ""
    with pytest.raises(SystemExit, match="1"):
        verifying.verify.main([str(folder), "--data", others], standalone_mode=False)
    told = "resnet18: no claim on images was judged (other images), so it isn't verified"
    assert told in capsys.readouterr().err
    assert zoo.verify(folder, structure_only=True).passed


def test_a_claim_without_a_hash_is_not_judged_by_the_name_of_a_folder(published, rows, tmp_path):
    folder, _ = published
    mine = in_folders(rows, tmp_path / "again" / "pictures")
    results = json.loads((folder / "results.json").read_text())
    del results["data"]["sha256"]
    (folder / "results.json").write_text(json.dumps(results))
    found = zoo.verify(folder, data=mine)

    assert (results["data"]["dataset"], found.report.data["dataset"]) == ("./pictures",) * 2
    assert {row.figure: row.verdict for row in found.rows}["top1"] == "images unknown"
    assert not found.passed


@pytest.mark.parametrize("dataset", ["./pictures", None], ids=["a folder", "no name"])
def test_what_a_source_reports_is_of_no_images_but_those_of_a_public_name(dataset, rows, model, tmp_path, monkeypatch):
    said = f'dataset = "{dataset}"' if dataset else ""
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "mine.toml").write_text(f"""
        [family]
        architecture = "resnet18"
        task = "image-classification"
        status = "recipe"
        {said}
        input = [3, 32, 32]
        [[model]]
        name = "mine"
        base = {{ id = "timm/resnet18" }}
        reported = [{{ top1 = 0.99 }}]
    """)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    place = in_folders(rows, tmp_path / "pictures")
    for data in (place, table(rows)):
        assert judging.reported(catalog.info("mine"), model, report_of(model, data), None, "") == []


LETTERS = ["a", "b", "c"]  # what the classes are called in the folder
MAPPED = dict(zip(LETTERS, CLASSES, strict=True))


@pytest.fixture
def mapped(rows, model, tmp_path):
    """A model whose results are of classes that were mapped, and those images elsewhere, under their own names."""
    mine = in_folders(rows, tmp_path / "mine" / "pictures", LETTERS)
    zoo.save(model, tmp_path / "model", report=report_of(model, mine, name="resnet18", labels=MAPPED))
    return tmp_path / "model", in_folders(rows, tmp_path / "elsewhere", LETTERS)


def test_a_claim_of_mapped_classes_is_measured_again_with_the_same_mapping_wherever_the_images_lie(
    mapped, rows, tmp_path, caplog
):
    folder, elsewhere = mapped
    found = zoo.verify(folder, data=elsewhere)

    assert found.report.data["labels"] == MAPPED
    assert {row.figure: row.verdict for row in found.rows}["top1"] == "agrees"
    assert verdicts(folder, in_folders(rows, tmp_path / "by their names"))["top1"] == "agrees"  # nothing to be mapped
    assert "its figures are of mapped classes, such as a, which" in caplog.text
    turned = {"a": "cat", "b": "ship", "c": "truck"}
    assert {row.verdict for row in zoo.verify(folder, data=elsewhere, labels=turned).rows} == {"agrees", "other images"}


def test_nothing_that_is_saved_holds_the_way_to_the_data(published, tmp_path):
    for file in published[0].iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
