"""`distil`: the data it takes, what its teachers see, and what it refuses before the first step."""

import logging

import pytest
import torch
from tiny import same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo.errors import DataError
from zoo.tasks.classification import CLASSIFICATION
from zoo.tasks.classification.transforms import training_transform
from zoo.tasks.datasets import dataset
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.distilling import epochs, training_images, training_of

SHORT = Schedule(epochs=1, batch_size=4)
TENSORS = torch.randn(8, 1, 16, 16), torch.arange(8)


def student(**config):
    model = zoo.load("digits_cnn_pruned_25")
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    return model


def trained(data, **options):
    return zoo.distil(student(), [zoo.load("digits_cnn")], data, schedule=SHORT, **options).state_dict()


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(*TENSORS),
        DataLoader(TensorDataset(*TENSORS), 2),
        [(TENSORS[0][:5], TENSORS[1][:5]), (TENSORS[0][5:], TENSORS[1][5:])],
    ],
    ids=["dataset", "loader", "batches"],
)
def test_images_that_are_tensors_are_taken_as_they_are_whatever_holds_them(data):
    assert same(trained(TensorDataset(*TENSORS)), trained(data))
    assert not same(student().state_dict(), trained(data))


def test_a_data_set_and_its_name_are_the_same():
    assert same(trained(dataset("digits[:8]", "train")), trained("digits[:8]"))


def test_what_is_no_data_is_refused():
    with pytest.raises(DataError, match="expected a data set, or a list of batches"):
        trained([1, 2])


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        ({"input_size": (1, 8, 8)}, {}),
        ({}, {"input_size": (1, 24, 24)}),
        ({"input_size": (3, 8, 8), "mean": (0.4,) * 3, "std": (0.3,) * 3}, {}),
    ],
    ids=["smaller student", "larger teacher", "grey teacher of a coloured student"],
)
def test_a_teacher_sees_the_crops_of_its_student_as_it_would_by_itself(mine, its):
    model, teacher = student(**mine), zoo.load("digits_cnn")
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **its}
    found = training_of(model, [teacher], "digits[:96]", schedule=SHORT)
    assert list(found.views) == [1]

    def batches(transform):
        return list(epochs(CLASSIFICATION, found.images, transform, Schedule(batch_size=32), 0, Machine())(3))

    views = batches(found.transform)
    for index, network in enumerate((model, teacher)):
        alone = batches(training_transform(network.pretrained_cfg, {}))
        assert all(torch.equal(both[index], own) for (both, _), (own, _) in zip(views, alone, strict=True))


def test_a_teacher_of_another_size_is_right_about_what_it_sees():
    teacher = zoo.load("digits_cnn")
    gentle = {"scale": [0.9, 1.0], "hflip": 0.0, "color_jitter": None}
    found = training_of(student(input_size=(1, 8, 8)), [teacher], "digits", schedule=SHORT, augment=gentle)
    loader = epochs(CLASSIFICATION, found.images, found.transform, Schedule(batch_size=64), 0, Machine())(0)
    with torch.no_grad():
        right = [(teacher(views[1]).argmax(1) == labels).float().mean() for views, labels in loader]
    assert torch.stack(right).mean() > 0.95


def test_of_the_same_size_there_is_one_view():
    found = training_of(student(), [zoo.load("digits_cnn")] * 2, "digits[:8]", schedule=SHORT)
    assert list(found.views) == [0, 0]
    assert type(found.transform) is type(training_transform(student().pretrained_cfg, {}))


def test_tensors_of_other_channels_than_a_teachers_are_refused():
    model = student(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(DataError, match="have 3 channels, a teacher takes 1"):
        training_of(model, [zoo.load("digits_cnn")], TensorDataset(torch.randn(8, 3, 16, 16), TENSORS[1]))


@pytest.mark.parametrize(("images", "batch"), [(50, 32), (64, 64), (1, 1), (100, 64)])
def test_batches_are_no_larger_than_the_data(images, batch, caplog):
    caplog.set_level(logging.WARNING)
    _, schedule = training_images(student(), f"digits[:{images}]", Schedule())
    assert schedule.batch_size == batch
    said = f"digits[:{images}] has {images} images: batches are of {batch}, not 64"
    assert [record.message for record in caplog.records] == [said] * (batch < 64)


def test_a_state_of_other_data_of_the_same_name_is_refused(tmp_path):
    rows = dataset("digits", "train")
    trained(rows.select(range(8)), state=tmp_path / "state")
    with pytest.raises(DataError, match="state belongs to another run; remove it to start again"):
        trained(rows.select(range(8, 16)), state=tmp_path / "state")


def test_what_is_frozen_stays_and_stays_frozen():
    model = student()
    name, frozen = next(iter(model.named_parameters()))
    before = frozen.requires_grad_(False).clone()
    zoo.distil(model, [], "digits[:8]", schedule=SHORT)
    assert torch.equal(dict(model.named_parameters())[name], before)
    assert not dict(model.named_parameters())[name].requires_grad


def test_no_epochs_leave_a_model_as_it_is():
    model = zoo.distil(student().train(), [], "digits[:8]", schedule=Schedule(epochs=0, batch_size=4))
    assert same(model.state_dict(), student().state_dict())
    assert not model.training


def test_what_wraps_model_and_teacher_is_taken_off_and_the_wrapper_comes_back():
    wrapped = nn.DataParallel(student())
    found = zoo.distil(wrapped, [nn.DataParallel(zoo.load("digits_cnn"))], "digits[:8]", schedule=SHORT)

    assert found is wrapped
    assert not found.training
    assert same(found.module.state_dict(), trained("digits[:8]"))
