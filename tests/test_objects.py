"""Data of one's own comes in as whatever object it is: the same images are the same data, in every verb."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, SubsetRandomSampler

import zoo
from zoo.errors import DataError
from zoo.tasks.datasets import dataset
from zoo.tasks.pixels import decode
from zoo.training.schedule import Schedule
from zoo.verbs.compressing import calibration


class Pairs(torch.utils.data.Dataset):
    def __init__(self, pixels, labels):
        self.pixels, self.targets = pixels, labels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, number):
        return Image.fromarray(self.pixels[number]), self.targets[number]


def arrays(split):
    rows = dataset("digits", split)
    return np.stack([np.asarray(decode(image, "L")) for image in rows["image"]]), np.asarray(rows["label"])


def preprocessed(split):
    transform, rows = zoo.transform(zoo.load("digits_cnn")), dataset("digits", split)
    return torch.stack([transform(image) for image in rows["image"]]), torch.tensor(rows["label"])


KINDS = {
    "arrays": arrays,
    "arrays with channels": lambda split: (arrays(split)[0][..., None], arrays(split)[1]),
    "a data set of torch": lambda split: Pairs(*arrays(split)),
    "a loader": lambda split: DataLoader(Pairs(*arrays(split)), 7, shuffle=True),
    "a table": lambda split: dataset("digits", split),
    "batches": lambda split: [*zip(*(part.split(64) for part in preprocessed(split)), strict=True)],
    "arrays of floats": lambda split: tuple(part.numpy() for part in preprocessed(split)),
    "splits": lambda split: {split: arrays(split)},
}


@pytest.fixture(scope="module")
def dense():
    return zoo.load("digits_cnn")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_evaluated_on_any_object_as_on_the_data_set_by_its_name(kind, dense):
    assert zoo.evaluate(dense, KINDS[kind]("test")) == {"top1": pytest.approx(447 / 450), "images": 450}


def test_of_a_loader_that_draws_from_a_subset_no_other_image_is_taken():
    data, chosen = Pairs(*arrays("test")), [7, 3, 11]
    rows = dataset(DataLoader(data, 2, sampler=SubsetRandomSampler(chosen)), "test")

    assert [*rows["label"]] == [data.targets[number] for number in chosen]
    assert [np.array_equal(rows[i]["image"], data.pixels[number]) for i, number in enumerate(chosen)] == [True] * 3


def test_labels_that_are_told_by_name_are_read_with_their_images(dense):
    data = Pairs(*arrays("test"))
    numbers, data.targets = data.targets, [str(label) for label in data.targets]

    assert [*dataset(data, "test")["label"]] == [*numbers]


def test_tensors_of_whole_numbers_are_not_taken_for_preprocessed(dense):
    pixels, labels = arrays("test")
    with pytest.raises(DataError, match=r"an image is a tensor of torch\.uint8: expected floats"):
        zoo.evaluate(dense, [(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels))])


def test_a_model_is_evaluated_beside_another_and_left_as_it_was(dense):
    half = zoo.load("digits_cnn_pruned_50").train()
    found = zoo.evaluate(half, arrays("test"), against=dense, images=100)

    assert set(found) == {"top1", "agreement", "kl", "images"}
    assert found["images"] == 100
    assert half.training


@pytest.mark.parametrize("kind", ["arrays", "a data set of torch", "splits"])
def test_a_model_is_calibrated_with_any_object_as_with_the_data_set_by_its_name(kind, dense):
    found, expected = (calibration(dense, data, 100) for data in (KINDS[kind]("train"), "digits"))

    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["arrays", "splits"])
def test_a_model_is_trained_on_any_object_as_on_the_data_set_by_its_name(kind):
    students = [zoo.create("digits_cnn") for _ in range(2)]
    for student, data in zip(students, (KINDS[kind]("train"), "digits"), strict=True):
        zoo.distil(student, [], data, schedule=Schedule(epochs=1, steps=2, batch_size=16))

    found, expected = (student.state_dict() for student in students)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["batches", "arrays of floats"])
def test_a_model_is_trained_on_what_is_preprocessed(kind):
    student = zoo.create("digits_cnn")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    zoo.distil(student, [], KINDS[kind]("train"), schedule=Schedule(epochs=1, steps=2, batch_size=16))

    assert not all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("kind", ["arrays", "a table"])
def test_a_claim_is_verified_on_an_object_that_holds_the_very_images(kind):
    rows = zoo.verify("digits_cnn", data=KINDS[kind]("test")).rows

    assert {row.figure: row.verdict for row in rows}["top1"] == "agrees"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((4, 8, 8), np.uint8), np.zeros(3, np.int64)), "found labels [3] of int64 for images [4, 8, 8]"),
        ((np.zeros((4, 8, 8), np.uint8), np.zeros(4)), "found labels [4] of float64"),
        ((np.zeros((4, 3, 8, 8), np.uint8), np.zeros(4, np.int64)), "found [4, 3, 8, 8] of uint8"),
        ((np.zeros((4, 8, 8), np.int32), np.zeros(4, np.int64)), "found [4, 8, 8] of int32"),
        ([torch.zeros(4, 1, 32, 32)], "a list of batches (images [B, C, H, W], labels [B])"),
        ({"holdout": (np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64))}, "no split for test"),
        (iter([]), "list_iterator is no data set: expected a name, folder"),
    ],
)
def test_what_is_no_data_set_is_told_in_a_line(data, message, dense):
    with pytest.raises(DataError) as error:
        zoo.evaluate(dense, data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_parquet_file_is_a_data_set_without_splits(dense, tmp_path, caplog):
    dataset("digits", "test").to_parquet(tmp_path / "digits.parquet")

    assert zoo.evaluate(dense, str(tmp_path / "digits.parquet")) == {"top1": pytest.approx(447 / 450), "images": 450}
    assert not caplog.messages
    assert len(dataset(str(tmp_path / "digits.parquet"), "train")) == 450
    assert "has no splits: what is made with its images is evaluated on the same" in caplog.text
