"""The repositories in the wheel: small, accurate by a count of our own, within their budgets, and verified."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from cocos import by_pycocotools
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import zoo
from zoo import catalog
from zoo.cli import main
from zoo.tasks.datasets import dataset

EVERY = [name for name in catalog.names() if catalog.info(name).status == "embedded"]
DETECTORS = ["scenes_yolov8", "scenes_yolov8_pruned_50"]
NAMES = [name for name in EVERY if name not in DETECTORS]
FLOORS = {"digits_cnn": 0.985, "digits_vit": 0.97}
DENSE = (*FLOORS, "scenes_yolov8")


@pytest.fixture(scope="module")
def held_out():
    """The 450 digits that no model was trained on: PIL images of 8 x 8 px, and labels."""
    pixels, labels = load_digits(return_X_y=True)
    _, pixels, _, labels = train_test_split(pixels, labels, test_size=450, stratify=labels, random_state=0)
    return [Image.fromarray(np.rint(row * 255 / 16).astype(np.uint8).reshape(8, 8)) for row in pixels], labels


def top1(model, held_out):
    """The share of right answers, by a loop that shares nothing with the package's."""
    images, labels = held_out
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    with torch.inference_mode():
        answers = model(torch.stack([transform(image) for image in images])).argmax(1)
    return (answers.numpy() == labels).mean()


def test_together_they_are_small_enough_for_a_wheel():
    assert sum(path.stat().st_size for path in catalog.EMBEDDED.rglob("*") if path.is_file()) < 6_000_000


def test_there_are_two_families_pruned_to_two_budgets_factored_to_one_and_made_of_integers():
    made = ("", "_lowrank_50", "_pruned_25", "_pruned_50")
    integer = ["digits_cnn_int8", "digits_cnn_pruned_25_int8", "digits_vit_int8"]
    assert sorted([*(f"{dense}{how}" for dense in FLOORS for how in made), *integer]) == NAMES
    assert sorted(path.name for path in catalog.EMBEDDED.iterdir() if path.suffix != ".work") == EVERY


@pytest.mark.parametrize("name", NAMES)
def test_the_accuracy_that_a_card_claims_is_found_by_another_loop(name, held_out):
    claimed = json.loads((catalog.EMBEDDED / name / "results.json").read_text())["measured"]["top1"]

    assert abs(claimed - top1(zoo.load(name), held_out)) <= 1 / 450 + 1e-9


def test_the_average_precision_that_a_card_claims_is_found_in_what_it_predicts():
    name = DETECTORS[1]
    claimed = json.loads((catalog.EMBEDDED / name / "results.json").read_text())["measured"]
    scenes = dataset("digit_scenes", "test")[:]

    found = zoo.load(name).predict(scenes["image"], score=0.001)
    filled = pad_sequence([_rows(each) for each in found], batch_first=True, padding_value=-1.0)
    targets = pad_sequence([*map(_objects, scenes["label"])], batch_first=True, padding_value=-1.0)

    assert by_pycocotools(filled, targets, 10).stats[:3] == pytest.approx(
        [claimed[key] for key in ("map", "map50", "map75")], abs=1e-6
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detectors_card_tells_its_precisions_as_percentages(name):
    folder = catalog.EMBEDDED / name
    claimed = json.loads((folder / "results.json").read_text())["measured"]

    for card in (folder / "README.md", Path(__file__).parents[1] / "model_cards" / f"{name}.md"):
        for overlap in ("50", "75"):
            assert f"| mAP {overlap} | {100 * claimed[f'map{overlap}']:.2f} % |" in card.read_text()


def _rows(found):
    return torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None]], 1)


def _objects(label):
    columns = [torch.tensor(label[key], dtype=torch.float32)[:, None] for key in ("labels", "crowd", "area")]
    return F.pad(torch.cat([torch.tensor(label["boxes"]), *columns], 1), (0, 0, 1, 0))  # the first tells of the image


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_the_dense_models_know_their_digits(name, floor, held_out):
    assert top1(zoo.load(name), held_out) >= floor


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FLOORS)))
def test_a_compressed_model_keeps_to_its_budget_and_loses_little(name, held_out):
    recipe, dense = catalog.info(name).recipe, catalog.info(name).base.id
    share = zoo.measure(zoo.load(name)).macs / zoo.measure(zoo.load(dense)).macs

    assert share <= (recipe.budget.macs if recipe.budget else 1.0)
    assert top1(zoo.load(name), held_out) >= top1(zoo.load(dense), held_out) - 0.02


@pytest.mark.parametrize("name", EVERY)
def test_every_claimed_figure_is_measured_again(name):
    found = zoo.verify(name)

    assert found.passed
    leading = ("map", "map50", "map75") if name in DETECTORS else ("top1",)
    figures = ("params", "macs", "kmapp", "weights_bytes", *leading)
    figures += ("agreement", "kl") if name not in DENSE else ()
    figures += ("bytes",) if name.endswith("_int8") else ()
    claimed = {row.figure: row.verdict for row in found.rows if row.reported is not None}
    assert claimed == dict.fromkeys(figures, "agrees")


def test_the_command_verifies_several(capsys):
    with pytest.raises(SystemExit) as end:
        main(["verify", *NAMES[:2], "--json"])
    found = json.loads(capsys.readouterr().out)

    assert end.value.code == 0
    assert [(each["name"], each["passed"], each["report"]["data"]["images"]) for each in found] == [
        (name, True, 450) for name in NAMES[:2]
    ]
