"""The repositories in the wheel: small, accurate by a count of our own, within their budgets, and verified."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zoo
from zoo import catalog
from zoo.cli import main

NAMES = [name for name in catalog.names() if catalog.info(name).status == "embedded"]
FLOORS = {"digits_cnn": 0.985, "digits_vit": 0.97}


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
    assert sum(path.stat().st_size for path in catalog.EMBEDDED.rglob("*") if path.is_file()) < 4_500_000


def test_there_are_two_families_pruned_to_two_budgets_factored_to_one_and_made_of_integers():
    made = ("", "_lowrank_50", "_pruned_25", "_pruned_50")
    integer = ["digits_cnn_int8", "digits_cnn_pruned_25_int8", "digits_vit_int8"]
    assert sorted([*(f"{dense}{how}" for dense in FLOORS for how in made), *integer]) == NAMES
    assert sorted(path.name for path in catalog.EMBEDDED.iterdir() if path.suffix != ".work") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_accuracy_that_a_card_claims_is_found_by_another_loop(name, held_out):
    claimed = json.loads((catalog.EMBEDDED / name / "results.json").read_text())["measured"]["top1"]

    assert abs(claimed - top1(zoo.load(name), held_out)) <= 1 / 450 + 1e-9


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_the_dense_models_know_their_digits(name, floor, held_out):
    assert top1(zoo.load(name), held_out) >= floor


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FLOORS)))
def test_a_compressed_model_keeps_to_its_budget_and_loses_little(name, held_out):
    recipe, dense = catalog.info(name).recipe, catalog.info(name).base.id
    share = zoo.measure(zoo.load(name)).macs / zoo.measure(zoo.load(dense)).macs

    assert share <= (recipe.budget.macs if recipe.budget else 1.0)
    assert top1(zoo.load(name), held_out) >= top1(zoo.load(dense), held_out) - 0.02


@pytest.mark.parametrize("name", NAMES)
def test_every_claimed_figure_is_measured_again(name):
    found = zoo.verify(name)

    assert found.passed
    figures = ("params", "macs", "kmapp", "top1", *(("agreement", "kl") if name not in FLOORS else ()))
    figures += ("bytes",) if name.endswith("_int8") else ()
    claimed = {row.figure: row.verdict for row in found.rows if row.reported is not None}
    assert claimed == dict.fromkeys(figures, "agrees")


def test_the_command_verifies_them_all(capsys):
    with pytest.raises(SystemExit) as end:
        main(["verify", *NAMES, "--json"])
    found = json.loads(capsys.readouterr().out)

    assert end.value.code == 0
    assert [(each["name"], each["passed"], each["report"]["data"]["images"]) for each in found] == [
        (name, True, 450) for name in NAMES
    ]
