"""Detectors as thinner layers: how their divergence bends against autograd's second derivatives, and what it makes."""

import pytest
import torch

import zoo
from zoo.measurement.divergence import as_one
from zoo.models.heads import decode
from zoo.models.likeness import BOXES, cross_entropy, unlike
from zoo.models.settings import settings_of
from zoo.structure.plan import Factor
from zoo.tasks.detection.figures import Detector

KINDS = {
    "yolov8": ({"decode": "yolov8", "strides": [8], "reg_max": 3}, 14),
    "ssd": ({"decode": "ssd", "steps": [8], "sizes": [8, 12], "ratios": [[1]], "variances": [0.1, 0.1, 0.2, 0.2]}, 14),
    "yolo3": ({"decode": "yolo3", "strides": [8], "anchors": [[[6, 9]]]}, 7),
}
NARROW = {"width": 0.0625, "class_width": 16, "reg_max": 4, "num_classes": 3, "img_size": 64}


def detector(kind):
    """What heads of one image mean that finds something, and their values [1, n, 1]."""
    settings, channels = KINDS[kind]
    of = Detector(settings_of({**settings, "resize": "stretch"}), [(channels, 1, 2)], (8, 16), 2)
    values = torch.randn(1, channels * 2, 1, generator=torch.Generator().manual_seed(0))
    return of, values + (1 if kind != "ssd" else 0)


def parabola(of, values, target):
    """The divergence with what boxes are off in place of how little they overlap."""
    (boxes, scores), (its_boxes, its_scores) = (decode(of.heads(each), of.settings) for each in (values, target))
    sides = its_boxes.view(-1, 2, 2).diff(dim=1).repeat(1, 2, 1).flatten(1)
    w = its_scores[0].max(1).values
    off = ((boxes - its_boxes)[0] / sides).square().sum(1) / 0.1
    return (cross_entropy(scores, its_scores).sum() + BOXES * (w * off).sum()) / max(1.0, float(w.sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_random_signs_have_the_second_derivatives_of_the_divergence(kind):
    of, y = detector(kind)
    n = y.numel()
    wanted = torch.autograd.functional.hessian(lambda x: parabola(of, x, y), y).view(n, n)
    many = y.expand(4000, -1, -1)
    u = of.probe(many, many, 0.0, torch.Generator().manual_seed(0)).view(-1, n)
    assert torch.linalg.norm(u.T @ u / len(u) - wanted) < 0.1 * torch.linalg.norm(wanted)
    step = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) / 100
    bent = of.bend(y, y, y + step, 0.0)
    assert bent.item() == pytest.approx((step.view(-1) @ wanted @ step.view(-1)).item(), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_alone_are_unlike_by_half_of_the_bend(kind):
    of, y = detector(kind)
    step = torch.zeros_like(y).view(of.shapes[0])
    classes = {"yolov8": slice(12, 14), "ssd": slice(4, 7), "yolo3": slice(5, 7)}[kind]
    step[classes] = 0.03
    step[classes.start] = -0.02
    moved = y + step.view_as(y)
    nats = unlike(of.heads(moved), of.heads(y), of.settings).item()
    assert nats == pytest.approx(of.bend(y, y, moved, 0.0).item() / 2, rel=0.05)


def test_a_detector_is_factored_to_a_budget_and_stays_one_that_becomes_integers():
    model = zoo.create(zoo.Base("zoo/yolov8n", NARROW))
    images = torch.rand(24, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = zoo.compress(model, method="low_rank", budget=0.8, data=images, round_to=1)
    assert isinstance(small.zoo_entry.plan.edits[0], Factor)
    assert zoo.measure(small).macs <= 0.8 * zoo.measure(model).macs
    assert [each.shape for each in small(images)] == [each.shape for each in model(images)]
    whole = zoo.compress(small, method="integer", data=images, rounding="nearest")
    assert zoo.measure(whole).macs == zoo.measure(small).macs
    assert as_one(whole(images)).shape == as_one(model(images)).shape
