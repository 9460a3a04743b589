"""Scenes of digits: always the same, with boxes that fit, of digits that the other split hasn't."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from zoo.tasks.datasets import dataset
from zoo.tasks.digits import half
from zoo.tasks.scenes import render, scene


@pytest.fixture(scope="module")
def test_rows():
    return dataset("digit_scenes", "test", limit=200)[:]


def test_a_scene_is_always_the_same_whatever_is_read_beside_it():
    few, more = dataset("digit_scenes", "train", limit=3), dataset("digit_scenes[:9]", "train", limit=20)

    assert (len(few), len(more)) == (3, 9)
    assert few[2]["image"].tobytes() == more[[7, 2]]["image"][1].tobytes()
    assert few[2]["label"] == more[2]["label"]
    assert few[2]["image"].tobytes() != dataset("digit_scenes", "test", limit=3)[2]["image"].tobytes()


def test_scenes_have_one_to_eight_digits_of_all_sizes_and_classes(test_rows):
    counts = [len(label["labels"]) for label in test_rows["label"]]
    sides = [max(x2 - x1, y2 - y1) for label in test_rows["label"] for x1, y1, x2, y2 in label["boxes"]]
    classes = [number for label in test_rows["label"] for number in label["labels"]]

    assert (min(counts), max(counts)) == (1, 8)
    assert np.mean(counts) == pytest.approx(4.5, abs=0.5)
    assert (min(sides), max(sides)) == (12, pytest.approx(112, abs=2))
    assert np.median(sides) == pytest.approx(np.sqrt(12 * 112), rel=0.15)  # its logarithm is uniform
    assert np.bincount(classes).min() > 0.07 * len(classes)
    assert {image.size for image in test_rows["image"]} == {(128, 128)}


def test_boxes_lie_within_the_image_and_overlap_little(test_rows):
    for label in test_rows["label"]:
        boxes = torch.tensor(label["boxes"])
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        assert (box_iou(boxes, boxes) - torch.eye(len(boxes))).max() <= 0.4 + 1e-6
        assert torch.tensor(label["area"]).equal((boxes[:, 2:] - boxes[:, :2]).prod(1))


def test_a_digit_reaches_from_edge_to_edge_of_its_box_and_not_beyond(monkeypatch):
    for number in range(40):
        found, image = scene("test", number), np.asarray(render("test", number), dtype=int)
        with monkeypatch.context() as patch:
            patch.setattr("zoo.tasks.scenes.scene", lambda split, number: [])
            ground = np.asarray(render("test", number), dtype=int)
        ink = (np.abs(image - ground) > 4).any(2)
        for x1, y1, x2, y2 in (digit.box for digit in found):
            near = max(2, (x2 - x1) // 12), max(2, (y2 - y1) // 12)
            edges = ink[y1 : y1 + near[1], x1:x2], ink[y2 - near[1] : y2, x1:x2]
            edges += ink[y1:y2, x1 : x1 + near[0]], ink[y1:y2, x2 - near[0] : x2]
            assert all(edge.any() for edge in edges)
        for x1, y1, x2, y2 in (digit.box for digit in found):
            ink[y1:y2, x1:x2] = False
        assert not ink.any()


def test_no_digit_of_one_split_is_in_the_other():
    train, test = ({glyph.tobytes() for glyph in half(split)[0]} for split in ("train", "test"))

    assert not train & test
    for split, glyphs in (("train", half("train")), ("test", half("test"))):
        counts = np.bincount(glyphs[1])
        assert all(digit.which < counts[digit.label] for number in range(50) for digit in scene(split, number))
