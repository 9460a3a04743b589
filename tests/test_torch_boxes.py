"""Data sets of torch with boxes: the same images and boxes are the same data as in any other form."""

import logging

import datasets
import pytest
import torch
from annotated import CLASSES, CONFIG, EXPECTED, NAMES, PICTURES, SIZE, identity_of, lists, pictures, table
from torchvision.ops import box_convert
from torchvision.tv_tensors import BoundingBoxes

import zoo
from zoo.errors import DataError
from zoo.tasks.datasets import dataset
from zoo.tasks.detection.batches import detection_loader, matched
from zoo.tasks.detection.transforms import evaluation_transform, training_transform
from zoo.tasks.pixels import decode
from zoo.training.schedule import Schedule
from zoo.verbs.compressing import calibration

TINY = {"width": 0.0625, "class_width": 8, "num_classes": 3, "reg_max": 4, "img_size": 32}


class Pairs(torch.utils.data.Dataset):
    """The pictures of a folder, with the targets that `of` makes of boxes, labels and flags."""

    def __init__(self, folder, of, image=lambda image: image):
        self.files, self.of, self.image = sorted(folder.glob("*.png")), of, image

    def __len__(self):
        return len(self.files)

    def __getitem__(self, number):
        boxes, labels = EXPECTED[number]
        flags = [flag for *_, flag in [*PICTURES.values()][number]]
        target = self.of(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels), flags)
        return self.image(decode(self.files[number])), target


def plain(boxes, labels, flags):
    return {"boxes": boxes, "labels": labels, "iscrowd": torch.tensor(flags), "image_id": 5}


def typed(form):
    def made(boxes, labels, flags):
        converted = box_convert(boxes, "xyxy", form.lower())
        return plain(BoundingBoxes(converted, format=form, canvas_size=SIZE[::-1]), labels, flags)

    return made


def detector():
    return zoo.create(zoo.Base("zoo/yolov8n", TINY))


@pytest.mark.parametrize(
    "of", [plain, typed("XYXY"), typed("XYWH"), typed("CXCYWH")], ids=["plain", "XYXY", "XYWH", "CXCYWH"]
)
def test_boxes_are_those_of_the_same_images_elsewhere(tmp_path, of):
    other = dataset(table(tmp_path / "set", lists(), CLASSES), "train")
    data = dataset(Pairs(tmp_path / "set", of), "train")

    assert data[:]["label"] == other[:]["label"]
    assert identity_of(data) == identity_of(other)


def test_a_detector_is_measured_calibrated_and_trained_on_them_as_on_any(tmp_path):
    tables = table(tmp_path / "set", lists(), datasets.Value("int64"))
    pairs, model = Pairs(tmp_path / "set", plain), detector()
    with torch.no_grad():
        for head in model.heads:
            head.classes[-1].bias.fill_(2.0)  # it finds much
    ways = tables, pairs, torch.utils.data.DataLoader(pairs, 2), {"test": pairs, "train": pairs}
    figures = [zoo.evaluate(model, data, against=model) for data in ways]
    students = [detector(), detector()]
    for student, data in zip(students, (tables, pairs), strict=True):
        zoo.distil(student, [model], data, schedule=Schedule(steps=1, batch_size=2))

    assert figures == [figures[0]] * len(ways)
    assert (figures[0]["images"], figures[0]["agreement"]) == (3, 1)
    assert all(map(torch.equal, calibration(model, pairs, 3), calibration(model, tables, 3)))
    assert all(map(torch.equal, *(student.state_dict().values() for student in students)))


def test_images_that_are_preprocessed_stay_as_they_are(tmp_path):
    seen = evaluation_transform({**CONFIG, "input_size": [3, *SIZE[::-1]]})
    pictures(tmp_path / "set")
    whole, ready = (dataset(Pairs(tmp_path / "set", plain, image), "train") for image in (lambda image: image, seen))
    expected = next(iter(detection_loader(whole, seen, 3)))
    for found in (
        next(iter(detection_loader(ready, seen, 3))),
        next(iter(detection_loader(ready, training_transform(CONFIG, {}), 3))),
    ):
        assert all(map(torch.equal, found, expected))


def test_their_classes_are_matched_by_name_where_the_data_set_has_names(tmp_path):
    pictures(tmp_path / "set")
    pairs, model = Pairs(tmp_path / "set", plain), detector()
    pairs.classes = NAMES
    model.pretrained_cfg["label_names"] = NAMES[::-1]
    data = matched(dataset(pairs, "train"), model, "it")

    assert [label["labels"] for label in data[:]["label"]] == [[2, 0], [], [1]]
    pairs.classes = NAMES[:2]
    with pytest.raises(DataError, match=r"row 0: an object of class 2, which the data set hasn't, expected 0 to 1"):
        dataset(pairs, "train")[0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"boxes": [[1, 1, 5, 5]], "labels": [3]},
            "found label 3, none of 3 classes, which are 0 to 2: use other data",
        ),
        ({"boxes": [[1, 1, 5, 5]], "labels": [-1]}, "row 0: an object of class -1, which the data set hasn't"),
        ({"boxes": [[1, 1, 5, 5]], "labels": []}, "row 0: 1 boxes, but 0 classes"),
        ({"boxes": [[5, 5, 1, 1]], "labels": [1]}, "row 0: a box [5, 5, 1, 1] ends before it begins, read as xyxy"),
        ({"boxes": [[5, 5, 1]], "labels": [1]}, "row 0: expected a box of four finite numbers, found [5.0, 5.0, 1.0]"),
        (
            {"boxes": BoundingBoxes([[1.0, 1, 5, 5, 9]], format="XYWHR", canvas_size=(9, 9)), "labels": [1]},
            "row 0: boxes are xywhr, expected xyxy, xywh, cxcywh: convert them",
        ),
        ([{"bbox": [0, 0, 1, 1]}], "row 0: expected the number of a class, found a list: data with boxes has a target"),
        (
            {"annotation": {}},
            "row 0: expected the number of a class, found a dict: data with boxes has a target {boxes",
        ),
    ],
)
def test_what_is_no_box_or_class_is_told_in_one_line(tmp_path, target, message):
    pictures(tmp_path / "set")
    with pytest.raises(DataError) as error:
        zoo.evaluate(detector(), dataset(Pairs(tmp_path / "set", lambda *_: target), "train"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_box_without_an_area_is_left_out_and_a_later_row_without_boxes_is_told(tmp_path, caplog):
    pictures(tmp_path / "set")
    targets = iter([{"boxes": [[1, 1, 1, 5], [1, 1, 2, 5]], "labels": [0, 1]}] * 2 + [{"masks": []}])
    data = dataset(Pairs(tmp_path / "set", lambda *_: next(targets)), "train")
    with caplog.at_level(logging.WARNING):
        assert data[0]["label"]["labels"] == [1]
    assert "row 0: 1 boxes have no area and are left out" in caplog.text
    with pytest.raises(DataError, match="row 1: expected a target with boxes and labels, found masks: mend it"):
        data[1]
