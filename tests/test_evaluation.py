"""The evaluation loop: figures of every image once, whatever the batches, and models left as they were."""

import datasets
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn

from zoo.errors import DataError
from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.evaluation import evaluate
from zoo.tasks.loader import loader

GREY = {"input_size": [1, 16, 16], "mean": [0.3], "std": [0.35], "interpolation": "bilinear", "crop_pct": 1.0}
TRANSFORM = evaluation_transform(GREY)


@pytest.fixture(scope="module")
def test():
    return dataset("digits", "test")


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def test_evaluation_agrees_with_the_same_figures_computed_at_once(test):
    model, reference = classifier(0).eval(), classifier(1).eval()
    images, labels = next(iter(loader(test, TRANSFORM, 450)))
    with torch.no_grad():
        logits, target = model(images), reference(images)
    kl = nn.functional.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)

    found = evaluate(model, loader(test, TRANSFORM, 64), against=reference)
    assert [row["class"] for row in found.pop("forgotten")]
    assert {
        "top1": pytest.approx(accuracy_score(labels, logits.argmax(1))),
        "images": 450,
        "kl": pytest.approx(kl.item(), rel=1e-5),
        "agreement": pytest.approx(accuracy_score(target.argmax(1), logits.argmax(1))),
    } == found


@pytest.mark.parametrize(("side", "sizes"), [(16, [30, 30]), (224, [8, 8, 8, 8, 7, 7, 7, 7])])
def test_a_cpu_takes_the_fewer_images_at_once_the_larger_they_are(test, side, sizes):
    """The figures are those of the whole batch."""
    model, seen = nn.Sequential(nn.AdaptiveAvgPool2d(16), *classifier()).eval(), []
    batches = loader(test, evaluation_transform({**GREY, "input_size": [1, side, side]}), 60, limit_batches=1)
    (images, labels) = next(iter(batches))
    with torch.no_grad():
        expected = accuracy_score(labels, model(images).argmax(1))
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))

    assert evaluate(model, batches)["top1"] == expected
    assert seen == sizes


def test_of_hidden_labels_a_model_is_compared_with_its_reference_alone(test):
    hidden = loader(datasets.Dataset.from_dict({"image": test["image"], "label": [-1] * len(test)}), TRANSFORM, 64)
    model, reference = classifier(0), classifier(1)
    found = evaluate(model, loader(test, TRANSFORM, 64), against=reference)

    assert evaluate(model, hidden, against=reference) == {key: found[key] for key in ("agreement", "kl", "images")}
    assert evaluate(model, hidden, against=model) == {"agreement": 1, "kl": 0, "images": len(test)}


def test_evaluation_counts_every_image_once_when_shortened_or_streamed(test):
    model = classifier()

    assert evaluate(model, loader(test, TRANSFORM, 64, limit_batches=2)) == evaluate(
        model, loader(test.select(range(128)), TRANSFORM, 100)
    )
    assert evaluate(model, loader(test, TRANSFORM, 64)) == evaluate(
        model, loader(test.to_iterable_dataset(), TRANSFORM, 64)
    )


def test_evaluation_leaves_every_modules_mode_as_it_was(test):
    model, reference = classifier().train(), classifier().eval()
    model[2].eval()
    before = [module.training for module in model.modules()]
    evaluate(model, loader(test, TRANSFORM, 64, limit_batches=1), against=reference)

    assert before == [module.training for module in model.modules()]
    assert not any(module.training for module in reference.modules())
    assert model[2].num_batches_tracked == 0


def test_evaluation_takes_a_model_of_half_precision_and_one_without_parameters(test):
    batch = loader(test, TRANSFORM, 64, limit_batches=1)

    assert evaluate(classifier().bfloat16(), batch)["images"] == 64
    assert evaluate(nn.Flatten(), batch)["images"] == 64


def test_no_progress_bar_is_drawn_where_there_is_no_terminal(test, capfd):
    evaluate(classifier(), loader(test, TRANSFORM, 64), progress="evaluate")

    assert tuple(capfd.readouterr()) == ("", "")


def test_evaluation_without_images_or_with_hidden_or_unknown_labels_is_an_error(test):
    with pytest.raises(DataError, match="expected images to evaluate on, found none"):
        evaluate(classifier(), loader(test.select([]), TRANSFORM, 64))
    hidden = datasets.Dataset.from_dict({"image": test["image"][:4], "label": [-1] * 4})
    with pytest.raises(DataError, match="the targets are hidden in this split, so nothing can be measured"):
        evaluate(classifier(), loader(hidden, TRANSFORM, 64))
    some = datasets.Dataset.from_dict({"image": test["image"][:4], "label": [0, -1, 1, 2]})
    with pytest.raises(DataError, match="expected labels from 0, found -1: some are hidden in this split"):
        evaluate(classifier(), loader(some, TRANSFORM, 64))
    beyond = datasets.Dataset.from_dict({"image": test["image"][:4], "label": [0, 1, 10, 2]})
    with pytest.raises(DataError, match="found label 10, the model has 10 classes: use other data"):
        evaluate(classifier(), loader(beyond, TRANSFORM, 64))
