"""Data with some of a model's classes, found by name: accuracy over all classes of the model, and over those alone."""

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import zoo
from zoo.verbs.measuring import report_of

CLASSES = ["truck", "cat", "ship"]


def table(names, count=40):
    """Random pictures with labels of these names in turn."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    labels = [number % len(names) for number in range(count)]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, kinds)


def by_hand(model, data, numbers):
    """The shares that are right among all classes, and among those of these numbers."""
    transform = zoo.transform(model)
    with torch.inference_mode():
        logits = torch.cat([model(transform(row["image"])[None]) for row in data])
    labels = [numbers[row["label"]] for row in data]
    among = [max(sorted(numbers), key=row.__getitem__) for row in logits.tolist()]
    right = zip(logits.argmax(1).tolist(), among, labels, strict=True)
    return np.mean([(first == label, second == label) for first, second, label in right], axis=0).tolist()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    network = zoo.create(zoo.Base("timm/test_resnet", {"num_classes": 3}))
    seen = {"input_size": (3, 32, 32), "label_names": CLASSES, "crop_pct": 1.0}
    network.pretrained_cfg = {**network.pretrained_cfg, **seen}
    return network


@pytest.mark.parametrize("streamed", [False, True])
def test_of_some_classes_both_conventions_are_told_and_how_many_classes_there_are(model, streamed):
    data = table(["Ship", "truck"])
    report = report_of(model, data.to_iterable_dataset() if streamed else data)
    top1, subset = by_hand(model, data, [2, 0])

    assert report.measured["top1"] == pytest.approx(top1)
    assert report.measured["top1_subset"] == pytest.approx(subset)
    assert subset > top1
    assert report.data["classes"] == 2


@pytest.mark.parametrize("names", [CLASSES, sorted(CLASSES)], ids=["in order", "in another order"])
def test_of_all_classes_there_is_one_accuracy(model, names):
    report = report_of(model, table(names))

    assert "top1_subset" not in report.measured
    assert "classes" not in report.data


@pytest.mark.parametrize("known", [True, False], ids=["names", "no names"])
def test_a_subset_of_imagenets_classes_is_known_by_its_wordnet_ids(known):
    """As ImageNet-A, ImageNet-R and Imagenette are stored."""
    wordnet = timm.data.ImageNetInfo().label_names()
    numbers = [0, 217, 482, 701]
    torch.manual_seed(0)
    network = zoo.create("timm/test_resnet")
    described = timm.data.ImageNetInfo().label_descriptions()
    seen = {"input_size": (3, 32, 32), "crop_pct": 1.0, **({"label_names": described} if known else {})}
    network.pretrained_cfg = {**network.pretrained_cfg, **seen}
    data = table([wordnet[number] for number in numbers])
    report = report_of(network, data)

    assert [report.measured[key] for key in ("top1", "top1_subset")] == pytest.approx(by_hand(network, data, numbers))
    assert report.data["classes"] == 4
