"""Average precision: COCO's beside pycocotools, VOC 2007's beside a slow loop, and what is defined at the edges."""

import numpy as np
import pytest
import torch
from cocos import by_pycocotools
from torch.nn import functional as F

from zoo.errors import DataError
from zoo.models.targets import CROWD, DIFFICULT, ORDINARY
from zoo.tasks.detection.precision import COCO_FIGURES, coco_precision, voc07_precision

CLASSES = 4


def scenes(seed, images=24, most=12):
    """Detections and targets of generated images: shifted copies of objects, some of another class, tied scores."""
    drawn = np.random.default_rng(seed)
    detections, targets = np.full((images, 3 * most, 6), -1.0), np.full((images, 1 + most, 7), -1.0)
    for found, objects in zip(detections, targets, strict=True):
        objects[0] = (1, 1, 0, 0, 640, 480, 0)
        count, copies = drawn.integers(0, most + 1), drawn.integers(0, 3 * most + 1)
        sides = np.exp(drawn.uniform(2, 5.3, (count, 2)))
        corners = drawn.uniform(0, 300, (count, 2))
        flags, labels = drawn.choice(3, count, p=(0.7, 0.15, 0.15)), drawn.integers(0, CLASSES, count)
        area = sides.prod(1) * drawn.uniform(0.5, 1)
        objects[1 : 1 + count] = np.column_stack([corners, corners + sides, labels, flags, area])
        if count:
            source = objects[1 + drawn.integers(0, count, copies)]
            width = source[:, 2:3] - source[:, :1]
            boxes = source[:, :4] + drawn.normal(0, 0.1, (copies, 4)) * width
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            other = np.where(drawn.random(copies) < 0.2, drawn.integers(0, CLASSES, copies), source[:, 4])
            found[:copies] = np.column_stack([boxes, drawn.integers(1, 40, copies) / 40, other])
    return torch.tensor(detections).float(), torch.tensor(targets).float()


def one_image(found, objects):
    """The detections (box, score, label) and objects (box, label, flag) of a single image."""
    rows = [[*box, label, flag, (box[2] - box[0]) * (box[3] - box[1])] for *box, label, flag in objects]
    targets = torch.tensor([[1.0, 1, 0, 0, 99, 99, 0], *rows])
    return torch.tensor(found, dtype=torch.float32).reshape(1, -1, 6), targets[None]


@pytest.mark.parametrize("seed", range(3))
def test_all_twelve_figures_of_coco_are_those_of_pycocotools(seed):
    detections, targets = scenes(seed)
    found, oracle = coco_precision(detections, targets, CLASSES), by_pycocotools(detections, targets, CLASSES)

    assert [found[key] for key in COCO_FIGURES] == pytest.approx(oracle.stats, abs=1e-6)
    assert 0.1 < found["map"] < 0.9
    precisions = oracle.eval["precision"][:, :, :, 0, -1]
    assert found["per_class"] == pytest.approx(precisions.mean((0, 1)), abs=1e-6)
    assert found["per_class50"] == pytest.approx(precisions[0].mean(0), abs=1e-6)
    assert found["objects"] == [int(((targets[:, 1:, 4] == n) & (targets[:, 1:, 5] != CROWD)).sum()) for n in range(4)]


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)


def voc07_by_hand(detections, targets, label):
    """As the paper tells it: each detection in turn, and every threshold of recall."""
    objects = [[row for row in each[1:].tolist() if row[4] == label] for each in targets.double()]
    total = sum(row[5] == ORDINARY for each in objects for row in each)
    found = [
        (row[4], n, row[:4]) for n, each in enumerate(detections.double()) for row in each.tolist() if row[5] == label
    ]
    taken, right, wrong, curve = set(), 0, 0, []
    for _, number, box in sorted(found, key=lambda each: -each[0]):
        overlaps = [overlap(box, row[:4]) for row in objects[number]]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= 0.5:
            if objects[number][best][5] != ORDINARY:
                continue
            if (number, best) not in taken:
                taken.add((number, best))
                right += 1
            else:
                wrong += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    return sum(max((p for hits, p in curve if 10 * hits >= r * total), default=0) for r in range(11)) / 11


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_voc_2007_is_that_of_a_slow_loop(seed):
    detections, targets = scenes(seed)
    found = voc07_precision(detections, targets, CLASSES)

    assert found["per_class"] == pytest.approx([voc07_by_hand(detections, targets, n) for n in range(CLASSES)])
    assert found["map50_voc07"] == pytest.approx(np.mean(found["per_class"]))
    assert 0.2 < found["map50_voc07"] < 0.9


THERE, AWAY = (10, 10, 30, 30), (60, 60, 90, 90)
DEFINED = {  # detections, objects → map50 of COCO, and of VOC
    "found exactly": ([(*THERE, 0.9, 0)], [(*THERE, 0, ORDINARY)], 1, 1),
    "found, and something else after it": ([(*THERE, 0.9, 0), (*AWAY, 0.8, 0)], [(*THERE, 0, ORDINARY)], 1, 1),
    "found after something else": ([(*THERE, 0.7, 0), (*AWAY, 0.8, 0)], [(*THERE, 0, ORDINARY)], 0.5, 0.5),
    "found as another class": ([(*THERE, 0.9, 1)], [(*THERE, 0, ORDINARY)], 0, 0),
    "nothing found": ([], [(*THERE, 0, ORDINARY)], 0, 0),
    "one of two": ([(*THERE, 0.9, 0)], [(*THERE, 0, ORDINARY), (*AWAY, 0, ORDINARY)], 51 / 101, 6 / 11),
    "a crowd twice before it": (
        [(*AWAY, 0.9, 0), (*AWAY, 0.8, 0), (*THERE, 0.7, 0)],
        [(*THERE, 0, ORDINARY), (*AWAY, 0, CROWD)],
        *(1, 1),
    ),
    "a tenth of a crowd": (
        [(60, 60, 63, 90, 0.9, 0), (*THERE, 0.7, 0)],
        [(*THERE, 0, ORDINARY), (*AWAY, 0, CROWD)],
        *(1, 0.5),
    ),
    "a difficult one twice before it": (
        [(*AWAY, 0.9, 0), (*AWAY, 0.8, 0), (*THERE, 0.7, 0)],
        [(*THERE, 0, ORDINARY), (*AWAY, 0, DIFFICULT)],
        *((51 * 1 + 50 * 2 / 3) / 101, 1),
    ),
    "a difficult one missed": ([(*THERE, 0.9, 0)], [(*THERE, 0, ORDINARY), (*AWAY, 0, DIFFICULT)], 51 / 101, 1),
}


@pytest.mark.parametrize("name", DEFINED)
def test_precision_is_defined(name):
    found, objects, coco, voc = DEFINED[name]
    rows = one_image(found, objects)

    assert coco_precision(*rows, CLASSES)["map50"] == pytest.approx(coco)
    assert voc07_precision(*rows, CLASSES)["map50_voc07"] == pytest.approx(voc)


def test_the_area_is_that_of_the_data_and_sizes_without_objects_have_no_figure():
    detections, targets = one_image([(*AWAY, 0.9, 0)], [(*AWAY, 0, ORDINARY)])
    assert coco_precision(detections, targets, CLASSES).keys() & {"map_small", "map_medium", "map_large"} == {
        "map_small"
    }
    targets[:, 1:, 6] = 96**2 + 1
    assert coco_precision(detections, targets, CLASSES)["map_large"] == 1


def test_classes_without_objects_have_no_figure():
    detections, targets = one_image([(*THERE, 0.9, 1), (*AWAY, 0.9, 2)], [(*THERE, 1, ORDINARY)])
    for precision in (coco_precision, voc07_precision):
        assert precision(detections, targets, CLASSES)["per_class"] == [None, 1, None, None]


@pytest.mark.parametrize("precision", [coco_precision, voc07_precision])
def test_filling_and_the_order_of_images_change_nothing(precision):
    detections, targets = scenes(3)
    detections[..., 4] = torch.where(detections[..., 4] < 0, -1, torch.rand(detections.shape[:2]))  # without ties
    whole = precision(detections, targets, CLASSES)
    filled = [F.pad(each.flip(0), (0, 0, 0, 5), value=-1) for each in (detections, targets)]

    again = precision(*filled, CLASSES)
    for key in ("per_class", "per_class50", "objects"):
        assert again.pop(key, None) == pytest.approx(whole.pop(key, None))
    assert again == pytest.approx(whole)


FAULTS = {
    "no objects": ([(*THERE, 0.9, 0)], [], "expected objects to find, found 0"),
    "crowds alone": ([(*THERE, 0.9, 0)], [(*THERE, 0, CROWD)], "expected objects to find, found 1, which don't count"),
    "a score of nan": (
        [(*THERE, float("nan"), 0)],
        [(*THERE, 0, ORDINARY)],
        "detections of image 0: .*finite",
    ),
    "an endless box": ([], [(0, 0, float("inf"), 9, 0, ORDINARY)], "targets of image 0: expected finite values"),
    "a class of others": ([(*THERE, 0.9, 4)], [(*THERE, 0, ORDINARY)], "detections of image 0: .*a label of 4 classes"),
    "an object without a class": ([], [(*THERE, -1, ORDINARY)], "targets of image 0: expected a label of 4 classes"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("precision", [coco_precision, voc07_precision])
def test_what_means_nothing_is_an_error_of_one_line(precision, name):
    found, objects, said = FAULTS[name]
    with pytest.raises(DataError, match=said) as caught:
        precision(*one_image(found, objects), CLASSES)
    assert "\n" not in str(caught.value)


def test_difficult_objects_alone_are_none_for_voc():
    rows = one_image([(*THERE, 0.9, 0)], [(*THERE, 0, DIFFICULT)])
    with pytest.raises(DataError, match="found 1, which don't count"):
        voc07_precision(*rows, CLASSES)
    assert coco_precision(*rows, CLASSES)["map"] == 1
