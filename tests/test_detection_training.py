"""What detectors minimise: each formula against a slow one, written out for one box, one point, one side at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.models.heads import cells, distributions
from zoo.models.likeness import unlike
from zoo.models.settings import settings_of
from zoo.training.assignment import ALPHA, BETA, assigned, iou
from zoo.training.distances import BCE, CIOU, DFL, distribution_focal, yolov8_loss

KIND = settings_of({"decode": "yolov8", "strides": [4, 8], "reg_max": 4, "resize": "letterbox"})
CLASSES, SIDE = 3, 16


def drawn(seed, images=2, objects=3):
    """Heads of a detector for images of 16 px, objects of whole pixels, and labels, the last of each image none."""
    generator = torch.Generator().manual_seed(seed)
    heads = [torch.randn(images, 4 * 4 + CLASSES, SIDE // s, SIDE // s, generator=generator) for s in KIND.strides]
    corners = torch.randint(0, 10, (images, objects, 2), generator=generator)
    sides = torch.randint(2, 7, (images, objects, 2), generator=generator)
    labels = torch.randint(0, CLASSES, (images, objects), generator=generator)
    labels[:, -1] = -1
    return heads, torch.cat([corners, corners + sides], 2).float(), labels


def overlap(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)


def complete(a, b):
    """1 - CIoU: 1 - IoU + (distance of centres / diagonal of what surrounds both)² + α·v."""
    width, height = ([box[i + 2] - box[i] for box in (a, b)] for i in (0, 1))
    apart = sum(((a[i] + a[i + 2] - b[i] - b[i + 2]) / 2) ** 2 for i in (0, 1))
    diagonal = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
    v = 4 / math.pi**2 * (math.atan(width[1] / height[1]) - math.atan(width[0] / height[0])) ** 2
    both = overlap(a, b)
    return 1 - both + apart / diagonal + v * (v / (1 - both + v) if v else 0)


def boxes_of(heads):
    """Boxes [A, 4] and centres in pixels of one image's heads, and the logits of distances and classes."""
    boxes, places, logits, classes = [], [], [], []
    for head, stride in zip(heads, KIND.strides, strict=True):
        for row in range(head.shape[1]):
            for column in range(head.shape[2]):
                values = head[:, row, column].tolist()
                bins = [values[4 * side : 4 * side + 4] for side in range(4)]
                total = [sum(math.exp(x) for x in side) for side in bins]
                d = [sum(j * math.exp(x) for j, x in enumerate(s)) / t for s, t in zip(bins, total, strict=True)]
                x, y = column + 0.5, row + 0.5
                boxes.append([stride * each for each in (x - d[0], y - d[1], x + d[2], y + d[3])])
                places.append((x * stride, y * stride, stride))
                logits.append(bins)
                classes.append(values[16:])
    return boxes, places, logits, classes


def slowly_assigned(scores, boxes, places, objects, labels, topk):
    """Of each point the number of its object and the score that it shall have."""
    t, asks = {}, {}
    for m, (box, label) in enumerate(zip(objects, labels, strict=True)):
        for a, (x, y, _) in enumerate(places):
            if label >= 0 and box[0] < x < box[2] and box[1] < y < box[3]:
                t[m, a] = scores[a][label] ** ALPHA * overlap(box, boxes[a]) ** BETA
        mine = sorted((a for (n, a) in t if n == m and t[n, a] > 0), key=lambda a: -t[m, a])
        asks |= {(m, a): overlap(box, boxes[a]) for a in mine[:topk]}
    owner = {}
    for (m, a), share in asks.items():
        if a not in owner or share > asks[owner[a], a]:
            owner[a] = m
    score = {}
    for a, m in owner.items():
        mine = [p for p, n in owner.items() if n == m]
        score[a] = t[m, a] / max(t[m, p] for p in mine) * max(asks[m, p] for p in mine)
    return owner, score


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), topk=st.integers(1, 12))
def test_points_learn_the_objects_that_they_score_and_overlap_best(seed, topk):
    heads, objects, labels = drawn(seed)
    heads = [each.double() for each in heads]
    for image in range(2):
        boxes, places, _, classes = boxes_of([head[image] for head in heads])
        scores = [[1 / (1 + math.exp(-x)) for x in each] for each in classes]
        owner, score = slowly_assigned(scores, boxes, places, objects[image].tolist(), labels[image].tolist(), topk)
        found = assigned(
            torch.tensor([scores]).double(),
            torch.tensor([boxes]).double(),
            torch.tensor(places)[:, :2].double(),
            labels[image : image + 1],
            objects[image : image + 1].double(),
            topk,
        )

        assert found.object[0].tolist() == [owner.get(a, -1) for a in range(len(boxes))]
        assert found.score[0].tolist() == pytest.approx([score.get(a, 0.0) for a in range(len(boxes))], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_loss_is_its_formula(seed):
    heads, objects, labels = drawn(seed)
    located = named = weights = 0.0
    for image in range(2):
        boxes, places, logits, classes = boxes_of([head[image] for head in heads])
        scores = [[1 / (1 + math.exp(-x)) for x in each] for each in classes]
        truth, named_as = objects[image].tolist(), labels[image].tolist()
        owner, score = slowly_assigned(scores, boxes, places, truth, named_as, 10)
        for a, each in enumerate(scores):
            wanted = [0.0] * CLASSES
            if a in owner:
                w, box, (x, y, stride) = score[a], truth[owner[a]], places[a]
                wanted[named_as[owner[a]]] = w
                sides = [(x - box[0]) / stride, (y - box[1]) / stride, (box[2] - x) / stride, (box[3] - y) / stride]
                focal = distribution_focal(torch.tensor([logits[a]]), torch.tensor([sides])).item()
                located += w * (CIOU * complete(boxes[a], box) + DFL * focal)
                weights += w
            named -= sum(t * math.log(p) + (1 - t) * math.log(1 - p) for t, p in zip(wanted, each, strict=True))

    found = yolov8_loss(heads, KIND, objects, labels).of_batch().item()

    assert found == pytest.approx((located + BCE * named) / max(1.0, weights), rel=1e-4)


@pytest.mark.parametrize("distance", [0.0, 0.3, 1.0, 2.75, 2.99, 7.0])
def test_a_distance_between_two_bins_is_learned_by_both(distance):
    logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    kept, expected = min(distance, 2.99), 0.0
    for side in logits[0].tolist():
        total = sum(math.exp(x) for x in side)
        nats = [-math.log(math.exp(x) / total) for x in side]
        low = math.floor(kept)
        expected += ((low + 1 - kept) * nats[low] + (kept - low) * nats[low + 1]) / 4

    assert distribution_focal(logits, torch.full((1, 4), distance)).item() == pytest.approx(expected, rel=1e-5)


def test_images_without_objects_teach_that_there_are_none():
    heads, objects, labels = drawn(0)
    heads = [each.requires_grad_() for each in heads]
    _, classes = distributions(heads, KIND)
    none = BCE * torch.nn.functional.softplus(classes).sum()

    for boxes, names in ((objects, torch.full_like(labels, -1)), (objects[:, :0], labels[:, :0])):
        loss = yolov8_loss(heads, KIND, boxes, names).of_batch()
        loss.backward()
        assert loss.item() == pytest.approx(none.item(), rel=1e-5)
    assert all(each.grad.isfinite().all() for each in heads)


def test_overlaps_of_all_pairs_are_those_of_each():
    objects, boxes = torch.rand(2, 3, 4).cumsum(2), torch.rand(2, 5, 4).cumsum(2)
    for image in range(2):
        expected = [[overlap(a, b) for b in boxes[image].tolist()] for a in objects[image].tolist()]
        assert torch.allclose(iou(objects, boxes)[image], torch.tensor(expected), atol=1e-6)


def test_heads_are_no_way_from_themselves_and_farther_the_more_a_sure_box_moves():
    heads, _, _ = drawn(1)
    sure, unsure = ([head.clone() for head in heads] for _ in range(2))
    sure[0][:, 16:, 1, 1], unsure[0][:, 16:, 1, 1] = 5.0, -9.0

    def moved(target, by):
        student = [head.clone() for head in target]
        student[0][:, 3, 1, 1] += by
        return unlike(student, target, KIND)

    assert unlike(sure, sure, KIND).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert (moved(sure, 2.0) > moved(sure, 1.0)).all()
    assert (moved(sure, 2.0) > 100 * moved(unsure, 2.0)).all()


def test_points_lie_in_the_middle_of_cells():
    heads, _, _ = drawn(0)
    centres, strides = cells(heads, KIND)

    assert (centres * strides)[:5].tolist() == [[2, 2], [6, 2], [10, 2], [14, 2], [2, 6]]
    assert (centres * strides)[-1].tolist() == [12, 12]
