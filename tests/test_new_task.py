"""Another task is one file and its two rows: this is the file, and what the public verbs then do with its models.

A digit is read as a number: the model has one output, the target is the digit's value, and an answer within a half of
it is right.
"""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from msgspec import structs
from torch.nn import functional as F

import zoo
from zoo.catalog.entry import Base, Budget, Entry, Recipe
from zoo.catalog.report import Report
from zoo.errors import RepositoryError, UnknownName
from zoo.hub import repository
from zoo.pages.front_matter import eval_results
from zoo.structure.describing import describe
from zoo.structure.description import attach_
from zoo.tasks import TASKS, task_of
from zoo.tasks.task import Leading, Meaning
from zoo.training import STEPS, Steps
from zoo.training.distillation import Distil, distil_step
from zoo.training.schedule import Schedule
from zoo.verbs.building import make
from zoo.verbs.measuring import report_of
from zoo.verbs.recipes import recipe_for

NAME = "image-regression"
FEW = "digits[:192]"
PLAIN = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "color_jitter": None}


def rows(outputs, values):
    return {"errors": outputs[:, 0] - values}


def figures(rows):
    errors = rows["errors"].abs()
    return {"within": (errors < 0.5).double().mean().item(), "mae": errors.mean().item()}


def divergence(outputs, target):
    """Kullback and Leibler's of two normal distributions with these means and a deviation of 1, in nats."""
    return (outputs - target).square().sum(1) / 2


def agreement(outputs, target):
    return ((outputs - target).abs()[:, 0] < 0.5).double()


def step(model, batch, progress):
    images, values = batch
    return F.mse_loss(model(images)[:, 0].float(), values.float())


def loss(outputs, target, values, alpha, temperature, divergence):
    taught = F.mse_loss(outputs.float(), target.float())
    return alpha * taught + (1 - alpha) * F.mse_loss(outputs[:, 0].float(), values.float())


REGRESSION = replace(
    TASKS["image-classification"],
    matched=lambda data, model, spec, labels: data,
    name_=lambda model, data: None,
    check_same=lambda model, other, what: None,
    meaning=lambda model, size: Meaning(rows, figures, divergence, agreement),
    leading=Leading("within", "answers within a half", "accuracy", "Within a half"),
)
DENSE = Entry(
    "numbers",
    "own",
    "numbers",
    "resnet18",
    NAME,
    "recipe",
    Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "in_chans": 1, "num_classes": 1}),
    "apache-2.0",
    input=(1, 16, 16),
    recipe=Recipe(data="digits", schedule={"epochs": 3, "batch_size": 64, "lr": 0.01}, augment=PLAIN),
)


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, NAME, REGRESSION)
        patch.setitem(STEPS, NAME, Steps(step, partial(distil_step, loss=loss)))
        yield


@pytest.fixture(scope="module")
def dense(known, tmp_path_factory):
    """The repository of a dense model, and what was said while it was made."""
    lines = []
    return make(DENSE, tmp_path_factory.mktemp("built") / "numbers", say=lines.append), lines


@pytest.fixture(scope="module")
def pruned(dense, tmp_path_factory):
    """The repository of the same, pruned and distilled by a recipe."""
    folder, _ = dense
    schedule = {"batch_size": 64, "lr": 0.003}
    entry = recipe_for(str(folder), "prune", Budget(0.6), "digits", 1, {"images": 64}, schedule=schedule)
    return make(entry, tmp_path_factory.mktemp("built") / "pruned")


def outputs(model):
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(images)


def test_a_recipe_trains_it_by_its_own_step_and_its_figures_are_its_own(dense):
    folder, lines = dense
    said = json.loads((folder / "results.json").read_text())["measured"]
    start = zoo.create(DENSE.base.id)

    assert {"within", "mae"} < said.keys()
    assert "top1" not in said
    assert said["mae"] < 1.5, "the mean of all digits is off by 2.5"
    assert f"within {said['within']:.4f}" in lines[-1]
    assert task_of(start) is TASKS["image-classification"]
    assert task_of(zoo.load(folder)) is REGRESSION


def test_it_is_pruned_by_its_own_divergence_and_distilled_by_its_own_loss(dense, pruned):
    teacher, student = zoo.load(dense[0]), zoo.load(pruned)
    said = json.loads((pruned / "results.json").read_text())

    assert zoo.measure(student).macs <= 0.6 * zoo.measure(teacher).macs
    assert describe(student).task == NAME
    assert said["measured"]["mae"] < 2
    assert said["measured"]["kl"] == pytest.approx(
        report_of(student, "digits", against=teacher).measured["kl"], rel=1e-6
    )


def test_teachers_alone_bring_a_student_nearer_to_them(dense):
    teacher, student = zoo.load(dense[0]), zoo.compress(zoo.load(dense[0]), budget=0.15, data=FEW, images=64)
    before = report_of(student, "digits[:200]", against=teacher).measured["kl"]
    schedule = Schedule(epochs=3, batch_size=32, lr=0.003)
    zoo.distil(student, [teacher], "digits", how=Distil(alpha=1.0), schedule=schedule, augment=PLAIN)

    assert report_of(student, "digits[:200]", against=teacher).measured["kl"] < before / 2


def test_it_is_verified_by_its_own_figures(pruned):
    found = zoo.verify(pruned)
    claims = json.loads((pruned / "results.json").read_text())

    assert found.passed
    assert {"within", "mae"} <= {row.figure for row in found.rows if row.verdict == "agrees"}
    claims["measured"]["within"] += 0.05
    (pruned / "results.json").write_text(json.dumps(claims))
    assert [row.figure for row in zoo.verify(pruned).rows if row.verdict == "differs"] == ["within"]


def test_its_card_leads_with_its_own_figure(dense):
    folder, _ = dense
    card, said = (folder / "README.md").read_text(), json.loads((folder / "results.json").read_text())["measured"]

    assert f"pipeline_tag: {NAME}" in card
    assert "name: Within a half" in card
    assert f"| answers within a half on 450 images (digits, test) | {100 * said['within']:.2f} % |" in card


def test_a_card_goes_by_the_models_own_task_whatever_its_name_and_whatever_else_was_measured(dense, tmp_path):
    model = zoo.load(dense[0])
    attach_(model, replace(describe(model), name="digits_cnn", recipe={}))
    data = {"dataset": "org/numbers", "split": "test", "images": 450}
    report = Report("digits_cnn", {"top1": 0.125, "within": 0.875}, data)
    card = (zoo.save(model, tmp_path / "model", report=report) / "README.md").read_text()

    assert f"pipeline_tag: {NAME}" in card
    assert f"type: {NAME}" in card
    assert "name: Within a half" in card
    assert "value: 0.875" in card
    assert "image-classification" not in card
    (text,) = eval_results(report, NAME).values()
    assert "value: 0.875" in text
    assert eval_results(structs.replace(report, measured={"top1": 0.125}), NAME) == {}


def test_a_repository_says_its_task_and_one_of_before_is_a_classifiers(dense, tmp_path):
    folder, _ = dense
    config = json.loads((folder / "config.json").read_text())
    older = zoo.load("digits_cnn")

    assert config["zoo"]["task"] == NAME
    assert describe(older).task == "image-classification"
    assert task_of(older) is TASKS["image-classification"]


def test_an_unknown_task_is_one_line_wherever_it_is_asked(tmp_path):
    model = zoo.load("digits_cnn")
    attach_(model, replace(describe(model), task="odour-\x1b[2J"))
    folder = zoo.save(model, tmp_path / "model")

    line = r"no task 'odour-\\x1b\[2J': this version knows image-classification"
    loaded = zoo.load(folder)
    for ask in (
        lambda: zoo.transform(loaded),
        lambda: zoo.compress(loaded, budget=0.5, data=FEW),
        lambda: zoo.distil(loaded, [], FEW),
        lambda: zoo.verify(folder, data=FEW),
        lambda: make(structs.replace(DENSE, task="odour-\x1b[2J"), tmp_path / "built"),
    ):
        with pytest.raises(UnknownName, match=line):
            ask()
    assert zoo.verify(folder, structure_only=True).passed


def test_a_task_that_nothing_trains_for_is_one_line_before_anything_begins(dense, tmp_path, monkeypatch):
    monkeypatch.delitem(STEPS, NAME)
    model, state = zoo.load(dense[0]), tmp_path / "state"

    line = rf"^no training for the task '{NAME}': this version trains for {', '.join(STEPS)}$"
    for ask in (
        lambda: zoo.distil(model, [], "no such data", state=state),
        lambda: make(structs.replace(DENSE, name="others"), tmp_path / "built"),
    ):
        with pytest.raises(UnknownName, match=line):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_task_that_is_no_name_is_refused(tmp_path):
    folder = zoo.save(zoo.load("digits_cnn"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["task"] = ["image-classification"]
    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(RepositoryError, match=r"zoo\.task is \[.*\], expected text"):
        repository.read_config(folder)


@pytest.mark.parametrize(("method", "budget"), [("prune", 0.7), ("low_rank", 0.7), ("falor", None)])
def test_a_method_compares_outputs_as_the_task_does(method, budget, monkeypatch):
    name, asked = "image-classification", []
    meaning = Meaning(rows, figures, lambda *pair: asked.append(pair) or divergence(*pair), agreement)
    monkeypatch.setitem(TASKS, name, replace(TASKS[name], meaning=lambda model, size: meaning))
    zoo.compress(zoo.load("digits_cnn_pruned_25"), method=method, budget=budget, data="digits[:64]", images=64)

    assert asked
    assert all(outputs.shape == target.shape for outputs, target in asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "low_rank", "budget": 0.7},
            "low_rank can't compress models for image-regression: prune, falor, lockd",
        ),
        ({"method": "dwain"}, "dwain can't compress models for image-regression"),
        (
            {"budget": 0.7, "criterion": "taylor"},
            "taylor ranks by classes, the model is for image-regression: take obs",
        ),
    ],
)
def test_what_needs_classes_is_refused_in_one_line(options, message, dense):
    folder, _ = dense
    with pytest.raises(UnknownName, match=message):
        zoo.compress(zoo.load(folder), data=FEW, images=32, **options)
