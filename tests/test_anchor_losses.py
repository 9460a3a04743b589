"""What detectors with anchors minimise: each formula against a slow one, an anchor and an object at a time."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zoo.models.heads import anchored, ssd_anchors
from zoo.models.settings import settings_of
from zoo.training.cells import yolo3_loss
from zoo.training.multibox import ssd_loss

CLASSES, SIDE, IMAGES = 2, 32, 2
SSD = settings_of(
    {
        "decode": "ssd",
        "steps": [8, 16],
        "sizes": [9.0, 15.0, 26.0],
        "ratios": [[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]],
        "variances": [0.1, 0.1, 0.2, 0.2],
        "resize": "stretch",
    }
)
YOLO3 = settings_of(
    {
        "decode": "yolo3",
        "strides": [8, 16],
        "anchors": [[[6.0, 9.0], [10.0, 8.0]], [[14.0, 20.0], [25.0, 16.0]]],
        "resize": "stretch",
    }
)


def drawn(seed, counts, strides, spread):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count * (5 + CLASSES), SIDE // stride) for count, stride in zip(counts, strides, strict=True)]
    heads = [spread * torch.randn(IMAGES, channels, side, side, generator=generator) for channels, side in shapes]
    corners, sides = (most * torch.rand(IMAGES, 3, 2, generator=generator) for most in (20, 9))
    objects = torch.cat([corners, corners + 3 + sides], 2)
    labels = torch.randint(0, CLASSES, (IMAGES, 3), generator=generator)
    labels[0, 1] = -1
    return heads, objects, labels


def overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - both)


def cross_entropy(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_anchors_learn_the_objects_they_overlap_and_the_hardest_of_the_background(seed):
    heads, objects, labels = drawn(seed, (4, 4), SSD.steps, 1.0)
    values, corners, steps, sides = (each.tolist() for each in anchored(heads, SSD.steps, ssd_anchors(SSD)))
    total, learns = 0.0, 0
    for image in range(IMAGES):
        boxes = []
        for (column, row), (step,), (width, height) in zip(corners, steps, sides, strict=True):
            x, y = (column + 0.5) * step, (row + 0.5) * step
            boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        real = [(m, objects[image, m].tolist()) for m in range(3) if labels[image, m] >= 0]
        number = {}
        for a, box in enumerate(boxes):
            most, m = max((overlap(box, each), -m) for m, each in real)
            if most >= 0.5:
                number[a] = -m
        for m, each in real:
            second, best = sorted((overlap(box, each), a) for a, box in enumerate(boxes))[-2:]
            assume(best[0] > second[0] + 1e-6)  # else rounding decides
            number[best[1]] = m
        nats = {}
        for a, said in enumerate(values[image]):
            right = int(labels[image, number[a]]) + 1 if a in number else 0
            nats[a] = math.log(sum(math.exp(x) for x in said[4:])) - said[4 + right]
        for a, m in number.items():
            (x1, y1, x2, y2), (width, height) = objects[image, m].tolist(), sides[a]
            middle = [(boxes[a][i] + boxes[a][i + 2]) / 2 for i in (0, 1)]
            wanted = [((x1 + x2) / 2 - middle[0]) / width / 0.1, ((y1 + y2) / 2 - middle[1]) / height / 0.1]
            wanted += [math.log((x2 - x1) / width) / 0.2, math.log((y2 - y1) / height) / 0.2]
            off = [abs(t - w) for t, w in zip(values[image][a], wanted, strict=False)]
            total += sum(0.5 * d * d if d < 1 else d - 0.5 for d in off) + nats[a]
        others = sorted((nats[a] for a in nats if a not in number), reverse=True)
        total += sum(others[: 3 * len(number)])
        learns += len(number)

    assert ssd_loss(heads, SSD, objects, labels).of_batch().item() == pytest.approx(total / learns, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_cells_learn_what_lies_in_them_by_the_anchor_of_its_shape(seed):
    heads, objects, labels = drawn(seed, (2, 2), YOLO3.strides, 0.3)
    values, corners, strides, anchors = (each.tolist() for each in anchored(heads, YOLO3.strides, YOLO3.anchors))
    total = 0.0
    for image in range(IMAGES):
        real = [m for m in range(3) if labels[image, m] >= 0]
        there = {}
        for m in real:
            x1, y1, x2, y2 = objects[image, m].tolist()
            x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1

            def alike(a):
                common = min(width, anchors[a][0]) * min(height, anchors[a][1])  # noqa: B023
                here = [math.floor(each / strides[a][0]) for each in (x, y)] == corners[a]  # noqa: B023
                return (common / (width * height + math.prod(anchors[a]) - common), -a) if here else (-1, -a)  # noqa: B023

            a = max(range(len(anchors)), key=alike)
            said, stride, g = values[image][a], strides[a][0], 2 - width * height / SIDE**2
            total += g * cross_entropy(said[0], x / stride - corners[a][0])
            total += g * cross_entropy(said[1], y / stride - corners[a][1])
            total += g * sum(abs(said[2 + i] - math.log((width, height)[i] / anchors[a][i])) for i in (0, 1))
            total += sum(cross_entropy(said[5 + c], float(c == labels[image, m])) for c in range(CLASSES))
            there[a] = m
        for a, said in enumerate(values[image]):
            x, y = ((corners[a][i] + 1 / (1 + math.exp(-said[i]))) * strides[a][0] for i in (0, 1))
            half = [anchors[a][i] * math.exp(said[2 + i]) / 2 for i in (0, 1)]
            box = (x - half[0], y - half[1], x + half[0], y + half[1])
            near = any(overlap(box, objects[image, m].tolist()) > 0.7 for m in real)
            total += cross_entropy(said[4], float(a in there)) if a in there or not near else 0

    assert yolo3_loss(heads, YOLO3, objects, labels).of_batch().item() == pytest.approx(total / IMAGES, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "kind", "counts"), [(ssd_loss, SSD, (4, 4)), (yolo3_loss, YOLO3, (2, 2))], ids=["ssd", "yolo3"]
)
def test_images_without_objects_are_learnt_from_or_left(loss, kind, counts):
    strides = kind.steps if kind is SSD else kind.strides
    heads, objects, labels = drawn(0, counts, strides, 1.0)
    heads = [each.requires_grad_() for each in heads]

    for boxes, names in ((objects, torch.full_like(labels, -1)), (objects[:, :0], labels[:, :0])):
        found = loss(heads, kind, boxes, names).of_batch()
        found.backward()
        assert found.isfinite()
    assert all(each.grad.isfinite().all() for each in heads)
