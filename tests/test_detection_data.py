"""Data with boxes for a model: classes by name, and training and measuring on what lies in a folder."""

import shutil
from types import SimpleNamespace

import datasets
import pytest
from annotated import (
    CLASSES,
    CONFIG,
    EXPECTED,
    NAMES,
    SIZE,
    identity_of,
    lists,
    table,
    with_metadata,
)
from PIL import Image

import zoo
from zoo.errors import DataError
from zoo.tasks.classification import classes
from zoo.tasks.columns import class_numbers
from zoo.tasks.datasets import dataset
from zoo.tasks.detection.batches import detection_loader, matched
from zoo.tasks.detection.transforms import evaluation_transform
from zoo.tasks.features import FEATURES
from zoo.training.schedule import Schedule
from zoo.verbs.measuring import report_of


def model(*names, count=None):
    config = {"label_names": list(names)} if names else {}
    return SimpleNamespace(num_classes=count or len(names), pretrained_cfg=config)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("network", "labels", "expected"),
    [
        (model("emu", "dog", "cat"), None, [2, 0]),
        (model("Cat", "cow", "DOG", "emu"), None, [0, 3]),
        (model(count=3), None, [0, 2]),
        (model("animal", "dog"), {"cat": "animal", "emu": "animal"}, [0, 0]),
        (model("cat", "dog", "emu"), None, [0, 2]),
    ],
)
def test_classes_of_objects_are_matched_by_name(tmp_path, stream, network, labels, expected):
    opened = table(tmp_path / "set", lists(), CLASSES)
    data = matched(dataset(opened.to_iterable_dataset() if stream else opened, "train"), network, "it", labels)

    assert next(iter(data))["label"]["labels"] == expected
    assert next(iter(data))["label"]["boxes"] == EXPECTED[0][0]
    targets = next(iter(detection_loader(data, evaluation_transform(CONFIG), 3)))[1]
    assert targets[0, 1:, 4].tolist() == expected


def test_classes_that_a_detector_has_not_are_an_error_and_no_precision(tmp_path):
    data = dataset(table(tmp_path / "set", lists(), CLASSES), "train")
    with pytest.raises(DataError, match="it has classes that the model hasn't, or more than once: 'emu'"):
        matched(data, model("cat", "dog", "cow"), "it")
    with pytest.raises(DataError, match="it has boxes, the model gives a class an image"):
        classes.matched(data, model("cat", "dog", "emu"), "it")
    with pytest.raises(DataError, match="digits has no boxes"):
        matched(dataset("digits", "test"), model("cat", "dog", "emu"), "digits")
    numbers = dataset(table(tmp_path / "more", lists(), datasets.Value("int64")), "train")
    with pytest.raises(DataError, match="it has labels up to 2, the model 2 classes"):
        matched(numbers, model(count=2), "it")
    assert class_numbers(numbers).tolist() == [0, 2, 1]


def test_a_detector_is_trained_and_measured_on_a_folder_that_has_a_damaged_image(tmp_path):
    folder = with_metadata(tmp_path / "set")
    shutil.copytree(tmp_path / "set/train", tmp_path / "set/validation")
    detector = zoo.create(
        zoo.Base("zoo/yolov8n", {"width": 0.125, "class_width": 8, "num_classes": 3, "reg_max": 4, "img_size": 64})
    )
    zoo.distil(detector, [], folder, schedule=Schedule(steps=1, batch_size=2))
    (tmp_path / "set/validation/b.png").write_bytes(b"no image")
    report = report_of(detector, folder, skip_damaged=True)

    assert detector.pretrained_cfg["label_names"] == NAMES
    assert (report.data["images"], report.data["left_out"]) == (2, 1)
    assert report.data["sha256"] == identity_of(dataset(folder, "train").select([0, 2]))
    assert 0 <= report.measured["map"] <= 1
    with pytest.raises(DataError, match=r"b\.png: no image that can be decoded.*--skip-damaged"):
        report_of(detector, folder)


def test_a_detectors_transform_gives_tensors_and_boxes():
    transform = zoo.transform(zoo.create(zoo.Base("zoo/yolov8n", {"width": 0.125, "img_size": 64})))
    label = {"boxes": [[0, 0, *SIZE]], "labels": [0], "crowd": [False], "difficult": [False], "area": [1]}
    tensor, target = transform.boxed(Image.new("RGB", SIZE), label)

    assert tensor.shape == transform(Image.new("L", (1, 4000))).shape == (3, 64, 64)
    assert target[0].tolist() == pytest.approx([64 / 60, 43 / 40, 0, 10, 60, 40, 0])


def test_features_are_compared_on_images_that_have_boxes_as_on_any():
    loader = FEATURES.loader(dataset("digit_scenes", "test", limit=4), evaluation_transform(CONFIG), 4)

    assert [part.shape for part in next(iter(loader))] == [(4, 3, 32, 32), (4,)]
