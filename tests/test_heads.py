"""Heads become boxes and scores by the formulas of their papers, and detections by the rules that are published."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn
from torchvision.models.detection._utils import BoxCoder

import zoo
from zoo.errors import DataError, StructureError
from zoo.models.heads import DECODERS, check_detector, decode, detections, ssd_anchors
from zoo.models.settings import settings_of
from zoo.structure.base import skeleton

YOLOV8 = {"decode": "yolov8", "strides": [8, 16], "reg_max": 4, "resize": "letterbox"}
SSD = {
    "decode": "ssd",
    "resize": "stretch",
    "steps": [16, 32],
    "sizes": [20.0, 45.0, 80.0],
    "ratios": [[1.0, 2.0, 0.5], [1.0, 2.0, 0.5, 3.0, 1 / 3]],
    "variances": [0.1, 0.1, 0.2, 0.2],
}
YOLO3 = {
    "decode": "yolo3",
    "resize": "stretch",
    "strides": [8, 16],
    "anchors": [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]]],
}
ALL = (YOLOV8, SSD, YOLO3)
CLASSES = 3


def heads_for(data, side=48, batch=2, scale=1.0):
    """Random heads of the shapes that the settings ask for."""
    read, generator = settings_of(data), torch.Generator().manual_seed(0)
    row = DECODERS[read.decode]
    return [
        scale * torch.randn(batch, channels, side // stride, side // stride, generator=generator)
        for channels, stride in zip(row.channels(read, CLASSES), row.strides(read), strict=True)
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(values):
    exponents = [math.exp(each) for each in values]
    return [each / sum(exponents) for each in exponents]


def around(x, y, width, height):
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def yolov8_of_a_cell(values, column, row, level):
    stride = YOLOV8["strides"][level]
    distances = [sum(j * p for j, p in enumerate(softmax(values[4 * i : 4 * i + 4]))) for i in range(4)]
    x, y = column + 0.5, row + 0.5
    box = [x - distances[0], y - distances[1], x + distances[2], y + distances[3]]
    yield [stride * each for each in box], [sigmoid(each) for each in values[16:]]


def ssd_of_a_cell(values, column, row, level):
    step, size, after = SSD["steps"][level], *SSD["sizes"][level : level + 2]
    mean = math.sqrt(size * after)
    sides = [(size, size), (mean, mean)]
    sides += [(size * math.sqrt(r), size / math.sqrt(r)) for r in SSD["ratios"][level][1:]]
    for (width, height), (tx, ty, tw, th, *logits) in zip(sides, by_eight(values), strict=True):
        x, y = (column + 0.5) * step + 0.1 * tx * width, (row + 0.5) * step + 0.1 * ty * height
        yield around(x, y, width * math.exp(0.2 * tw), height * math.exp(0.2 * th)), softmax(logits)[1:]


def yolo3_of_a_cell(values, column, row, level):
    stride = YOLO3["strides"][level]
    for (width, height), (tx, ty, tw, th, there, *logits) in zip(
        YOLO3["anchors"][level], by_eight(values), strict=True
    ):
        x, y = (column + sigmoid(tx)) * stride, (row + sigmoid(ty)) * stride
        scores = [sigmoid(there) * sigmoid(each) for each in logits]
        yield around(x, y, width * math.exp(tw), height * math.exp(th)), scores


def by_eight(values):
    """The values of a cell by anchor: four of the box, one more, three classes."""
    return [values[i : i + 8] for i in range(0, len(values), 8)]


@pytest.mark.parametrize(
    ("data", "of_a_cell"), [(YOLOV8, yolov8_of_a_cell), (SSD, ssd_of_a_cell), (YOLO3, yolo3_of_a_cell)]
)
def test_boxes_and_scores_are_those_of_the_formula_cell_by_cell(data, of_a_cell):
    heads = heads_for(data)
    boxes, scores = decode(heads, settings_of(data))
    for image in range(2):
        expected = [
            point
            for level, head in enumerate(heads)
            for row in range(head.shape[2])
            for column in range(head.shape[3])
            for point in of_a_cell(head[image, :, row, column].tolist(), column, row, level)
        ]
        torch.testing.assert_close(boxes[image], torch.tensor([box for box, _ in expected]), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(scores[image], torch.tensor([each for _, each in expected]), rtol=1e-5, atol=1e-6)


def test_the_boxes_of_ssd_are_those_that_torchvisions_coder_gives():
    heads, read = heads_for(SSD), settings_of(SSD)
    anchors, differences = [], []
    for head, step, sides in zip(heads, read.steps, ssd_anchors(read), strict=True):
        for row in range(head.shape[2]):
            for column in range(head.shape[3]):
                values = head[0, :, row, column].view(len(sides), 8)
                for side, value in zip(sides, values, strict=True):
                    anchors.append(around((column + 0.5) * step, (row + 0.5) * step, *side))
                    differences.append(value[:4])
    coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    expected = coder.decode_single(torch.stack(differences), torch.tensor(anchors))
    torch.testing.assert_close(decode(heads, read)[0][0], expected, rtol=1e-5, atol=1e-4)


def test_ssd_512_has_the_published_number_of_anchors():
    sizes = [51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492.0]
    few, many = [1.0, 2.0, 0.5], [1.0, 2.0, 0.5, 3.0, 1 / 3]
    steps = [16, 32, 64, 128, 256, 512]
    read = settings_of({**SSD, "steps": steps, "sizes": sizes, "ratios": [few, many, many, many, few, few]})
    counts = [len(each) for each in ssd_anchors(read)]
    assert counts == [4, 6, 6, 6, 4, 4]
    assert sum(count * (512 // step) ** 2 for count, step in zip(counts, steps, strict=True)) == 6_132


@pytest.mark.parametrize("data", ALL, ids=lambda data: data["decode"])
def test_heads_of_half_precision_and_huge_ones_give_finite_boxes(data):
    read = settings_of(data)
    exact, half = decode(heads_for(data), read), decode([each.half() for each in heads_for(data)], read)
    torch.testing.assert_close(half[1], exact[1], rtol=0.01, atol=0.01)
    assert half[0].dtype == torch.float32
    assert all(each.isfinite().all() for each in decode(heads_for(data, scale=1e4), read))


# What is found


def overlap(one, other):
    """Intersection over union."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared)


def slowly(boxes, scores, score, iou, candidates, most, side):
    """The rules written out for one image, pair by pair."""
    boxes, scores = boxes.tolist(), scores.tolist()
    pairs = [(value, a, c) for a, values in enumerate(scores) for c, value in enumerate(values) if value > score]
    pairs = sorted(pairs, key=lambda pair: -pair[0])[:candidates]
    kept = []
    for value, a, c in pairs:
        if all(c != other or overlap(boxes[a], boxes[b]) <= iou for _, b, other in kept):
            kept.append((value, a, c))
    found = []
    for value, a, c in kept:
        box = [min(max(each, 0.0), float(side)) for each in boxes[a]]
        if box[0] < box[2] and box[1] < box[3]:
            found.append((box, value, c))
    return found[:most]


@pytest.mark.parametrize("data", ALL, ids=lambda data: data["decode"])
@pytest.mark.parametrize(
    ("score", "iou", "candidates", "most"), [(0.001, 0.7, 30_000, 300), (0.3, 0.45, 60, 20), (0.5, 0.0, 1_000, 5)]
)
def test_detections_are_those_of_the_rules_written_out(data, score, iou, candidates, most):
    heads = heads_for(data)
    read = settings_of({**data, "score": score, "iou": iou, "candidates": candidates, "most": most})
    boxes, scores = decode(heads, read)
    for image, found in enumerate(detections(heads, read, (48, 48))):
        expected = slowly(boxes[image], scores[image], score, iou, candidates, most, 48)
        assert found["labels"].tolist() == [c for _, _, c in expected]
        torch.testing.assert_close(found["scores"], torch.tensor([value for _, value, _ in expected]))
        torch.testing.assert_close(found["boxes"], torch.tensor([box for box, _, _ in expected]))


@pytest.mark.parametrize("seed", range(3))
def test_a_huge_box_leaves_what_is_found_of_other_classes_alone(seed):
    classes, generator = 80, torch.Generator().manual_seed(seed)
    heads = torch.full((1, 5 + classes, 4, 4), -20.0)
    heads[0, :2] = 2 * torch.randn(2, 4, 4, generator=generator)
    heads[0, 2:4] = 0.2 * torch.randn(2, 4, 4, generator=generator) - 1
    heads[0, 4], heads[0, -1] = 20, torch.randn(4, 4, generator=generator)
    heads[0, -1, 3, 3] = -20
    read = settings_of({"decode": "yolo3", "strides": [32], "anchors": [[[116, 90]]], "resize": "stretch"})
    without = detections([heads], read, (128, 128), score=0.05, iou=0.4)[0]
    heads[0, 2:4, 3, 3], heads[0, 5, 3, 3] = 12, 1  # millions of pixels
    beside = detections([heads], read, (128, 128), score=0.05, iou=0.4)[0]

    assert len(without["boxes"]) == (beside["labels"] == classes - 1).sum()


def test_thresholds_of_the_call_are_taken_instead_of_the_settings():
    read = settings_of(YOLOV8)
    every, few = detections(heads_for(YOLOV8), read, (48, 48)), detections(heads_for(YOLOV8), read, (48, 48), score=0.8)
    assert len(every[0]["scores"]) > len(few[0]["scores"]) > 0
    assert all((each["scores"] > 0.8).all() for each in few)


def test_without_candidates_there_is_nothing_of_the_right_types():
    found = detections(heads_for(YOLOV8), settings_of(YOLOV8), (48, 48), score=1.0)[1]
    assert {name: (tuple(each.shape), each.dtype) for name, each in found.items()} == {
        "boxes": ((0, 4), torch.float32),
        "scores": ((0,), torch.float32),
        "labels": ((0,), torch.int64),
    }


def test_of_more_than_thirty_thousand_candidates_the_best_are_looked_at_and_the_best_of_those_given():
    data = {**YOLOV8, "strides": [4], "reg_max": 2}
    heads = [torch.randn(1, 8 + 20, 50, 50, generator=torch.Generator().manual_seed(0))]
    read = settings_of(data)
    assert decode(heads, read)[1].gt(read.score).sum() > read.candidates
    (found,) = detections(heads, read, (200, 200))
    assert len(found["scores"]) == read.most
    assert found["scores"].diff().le(0).all()
    assert found["scores"][0] == decode(heads, read)[1].max()


def test_detections_of_an_image_are_the_same_in_any_batch():
    heads, read = heads_for(YOLOV8, batch=3), settings_of(YOLOV8)
    together = detections(heads, read, (48, 48))
    for image in range(3):
        (alone,) = detections([head[image : image + 1] for head in heads], read, (48, 48))
        assert all(torch.equal(alone[key], together[image][key]) for key in alone)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("names", "told"), [((), "image 1 of the batch"), (("a.jpg", "b.jpg"), r"b\.jpg")])
def test_a_head_that_isnt_finite_is_an_error_which_names_image_and_scale(value, names, told):
    heads = heads_for(YOLOV8)
    heads[1][1, 5, 2, 0] = value
    with pytest.raises(DataError, match=f"^{told}: the head of stride 16 isn't finite; look at the weights") as caught:
        detections(heads, settings_of(YOLOV8), (48, 48), names=names)
    assert "\n" not in str(caught.value)


# What they mean is data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "pretrained_cfg has no 'detector': nothing says what its heads mean"),
        ({**YOLOV8, "decode": "yolov9"}, "detector: unknown decode 'yolov9', known are yolov8, ssd, yolo3"),
        ({**YOLOV8, "anchors": []}, "detector: unknown key 'anchors', known are decode, resize, "),
        ({**YOLOV8, "strides": []}, r"detector\.strides is \[\], expected "),
        ({**YOLOV8, "strides": [8, 0]}, r"detector\.strides\[1\] is 0, expected a whole number from 1 to 4,096"),
        ({**YOLOV8, "reg_max": 65}, r"detector\.reg_max is 65, expected a whole number from 1 to 64"),
        ({**YOLOV8, "resize": "crop"}, r"detector\.resize is 'crop', expected letterbox or stretch"),
        ({**YOLOV8, "score": math.nan}, r"detector\.score is nan, expected a number from 0 to 1"),
        ({**SSD, "sizes": [20.0, 45.0]}, "steps of 2, sizes of 1, ratios of 2 heads, expected as many of each"),
        ({**SSD, "variances": [0.1]}, r"detector\.variances is \[0\.1\], expected four numbers above 0"),
        ({**YOLO3, "strides": [8]}, "strides of 1, anchors of 2 heads, expected as many of each"),
        (
            {**YOLO3, "anchors": [[[1.0, -1.0]], [[1.0, 1.0]]]},
            r"anchors\[0\]\[0\] is \[1\.0, -1\.0\], expected width and",
        ),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused_by_their_place(data, message):
    with pytest.raises(StructureError, match=message) as caught:
        settings_of(data)
    assert "\n" not in str(caught.value)


PLAIN = strategies.none() | strategies.integers() | strategies.floats() | strategies.text(max_size=3)
NESTED = strategies.recursive(PLAIN, lambda inner: strategies.lists(inner, max_size=3), max_leaves=6)


@settings(max_examples=30, deadline=None)
@given(data=strategies.sampled_from(ALL), replaced=strategies.data(), value=NESTED)
def test_whatever_stands_in_settings_is_read_or_refused_in_one_line(data, replaced, value):
    key = replaced.draw(strategies.sampled_from(sorted(data)))
    told = ""
    try:
        settings_of({**data, key: value})
    except StructureError as error:
        told = str(error)
    assert "\n" not in told


def dense():
    return skeleton(zoo.Base("zoo/yolov8n", {"width": 0.125, "img_size": 64, "num_classes": 5}))


def test_a_detectors_own_settings_fit_its_heads():
    check_detector(dense())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"detector": None}, "has no 'detector'"),
        (
            {"num_classes": 6},
            "head 0 of the model is 69x8x8, pretrained_cfg.* expects 70x8x8 of yolov8 with 6 classes",
        ),
        ({"detector": {**YOLOV8, "strides": [8, 16]}}, "the model gives 3 heads, .* is for 2"),
        ({"detector": {**YOLOV8, "strides": [8, 16, 64]}}, "head 0 of the model is 69x8x8, .* expects 21x8x8"),
        ({"detector": {**YOLOV8, "reg_max": 16, "strides": [8, 16, 64]}}, "head 2 .* 69x2x2, .* expects 69x1x1"),
    ],
    ids=str,
)
def test_settings_of_another_model_are_refused_by_the_head_that_differs(changed, message):
    model = dense()
    model.pretrained_cfg = {**model.pretrained_cfg, **changed}
    with pytest.raises(StructureError, match=message) as caught:
        check_detector(model)
    assert "\n" not in str(caught.value)


def test_a_model_of_one_output_is_no_detector():
    model = nn.Conv2d(3, 69, 8, 8)
    model.pretrained_cfg = {**dense().pretrained_cfg}
    with pytest.raises(StructureError, match="the model gives 1 heads"):
        check_detector(model)
