"""Recipes: what can't be followed is said before the first step; what was made is neither replaced nor made again."""

import json
import re
import shutil
from dataclasses import replace as replace_field
from pathlib import Path

import click
import pytest
from msgspec.structs import replace
from PIL import Image

import zoo
from zoo.catalog.entry import Budget, Recipe
from zoo.cli import building, making
from zoo.errors import DataError, RepositoryError, StructureError, ZooError
from zoo.structure.describing import describe
from zoo.verbs import beginning
from zoo.verbs.building import make
from zoo.verbs.recipes import at_most, declarations_of, finished, is_built, recipe_for, shown

ROUGH = {"images": 16, "criterion": "l2", "ridge": 1.0}


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rounding": 4}, "prune has no option 'rounding', known are criterion, round_to, floor, ridge"),
        ({"machine": 1}, "prune has no option 'machine', known are criterion, round_to, floor, ridge"),
        ({"round_to": 0}, "prune: round_to is 0, expected a whole number of at least 1"),
        ({"images": "few"}, "images is 'few', expected a whole number of at least 1"),
        ({"images": 0}, "images is 0, expected a whole number of at least 1"),
        ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
        ({"method": "low_rank", "ranks": 4}, "low_rank has no option 'ranks', known are "),
        ({"method": "falor", "ranks": 4}, "falor has no option 'ranks', known are "),
        ({"method": "lockd", "ranks": 4}, "lockd has no option 'ranks', known are "),
        ({"data": "classes"}, "classes: no split for test: expected validation or val or valid or test, found train"),
        ({"data": "classes"}, "expected images in its train/CLASS and validation/CLASS"),
        ({"data": "classes/a"}, "classes/a: no classes were found; expected images in its train/CLASS"),
        ({"data": "texts"}, "texts: no images could be read"),
        ({"data": "./missing"}, "./missing: no such folder; expected images in its train/CLASS and "),
    ],
)
def test_what_is_wrong_with_options_or_data_is_said_before_the_first_step(tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("classes/a", "classes/b")):
        (tmp_path / name).mkdir(parents=True)
        for shade in range(2):
            Image.new("L", (8, 8), 2 * number + shade).save(tmp_path / name / f"{shade}.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "thesis.txt").touch()
    before, lines = sorted(tmp_path.rglob("*")), []
    method, data = options.pop("method", "prune"), options.pop("data", "digits")
    budget = None if method in ("falor", "lockd") else Budget(0.5)

    with pytest.raises(ZooError, match=re.escape(expected)) as caught:
        make(recipe_for("digits_cnn", method, budget, data, 0, options), tmp_path / "new" / "model", say=lines.append)
    assert "\n" not in str(caught.value)
    assert lines == []
    assert sorted(tmp_path.rglob("*")) == before


ARGUMENTS = [
    ({"schedule": 5}, "schedule is 5, expected a table"),
    ({"schedule": 0}, "schedule is 0, expected a table"),
    ({"schedule": [["lr", 1]]}, "schedule is [['lr', 1]], expected a table"),
    ({"augment": 5}, "augment is 5, expected a table"),
    ({"augment": False}, "augment is False, expected a table"),
    ({"images": "x"}, "images is 'x', expected a whole number of at least 1"),
    ({"images": -1}, "images is -1, expected a whole number of at least 1"),
    ({"seed": "x"}, "seed is 'x', expected a whole number of at least 0"),
    ({"seed": -1}, "seed is -1, expected a whole number of at least 0"),
]


@pytest.mark.parametrize("method", ["lockd", "falor"])
@pytest.mark.parametrize(("said", "expected"), ARGUMENTS)
def test_what_compress_takes_is_held_against_its_types_in_python_in_a_recipe_and_on_the_command_line(
    method, said, expected, tmp_path
):
    ((key, value),) = said.items()
    line = ["digits_cnn", "--method", method, "--data", "digits", "--out", str(tmp_path / "new")]
    for ask in (
        lambda: zoo.compress(zoo.load("digits_cnn"), method=method, data="digits", **said),
        lambda: make(recipe_for("digits_cnn", method, None, "digits", 0, said), tmp_path / "new"),
        lambda: making.compress.main([*line, "--set", f"{key}={json.dumps(value)}"], standalone_mode=False),
    ):
        with pytest.raises(DataError, match=f"^{method}: {re.escape(expected)}$"):
            ask()
    assert files(tmp_path) == []


@pytest.mark.parametrize("recipe", [{}, {"seed": 3}], ids=["alone", "beside another of the method"])
@pytest.mark.parametrize(("said", "expected"), ARGUMENTS[3:4] + ARGUMENTS[7:])
def test_seed_and_augmentation_of_a_whole_recipe_are_too(recipe, said, expected, tmp_path):
    with pytest.raises(DataError, match=f"^digits_cnn_pruned_50: {re.escape(expected)}$"):
        make(recipe_for("digits_cnn", "prune", Budget(0.5), "digits", 1, recipe, **said), tmp_path / "new")
    assert files(tmp_path) == []


def test_a_negative_seed_of_the_command_line_is_one_line(tmp_path):
    line = ["digits_cnn", "--budget", "0.5", "--data", "digits", "--out", str(tmp_path / "new"), "--seed", "-1"]
    with pytest.raises(DataError, match=r"^digits_cnn_pruned_50: seed is -1, expected a whole number of at least 0$"):
        making.compress.main(line, standalone_mode=False)


def test_data_of_other_classes_are_refused_before_the_model_is_compressed(tmp_path):
    lines = []
    with pytest.raises(ZooError, match="noise has 1000 classes, the model 10"):
        make(recipe_for("digits_cnn", "prune", Budget(0.5), "noise", 0, {}), tmp_path / "new", say=lines.append)

    assert lines == ["1 load the base digits_cnn"]
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (0.5, "digits_cnn_pruned_50"),
        (0.333, "digits_cnn_pruned_33"),
        (0.01, "digits_cnn_pruned_1"),
        (0.004, "digits_cnn_pruned_0.4"),
        (1e-5, "digits_cnn_pruned_0.001"),
    ],
)
def test_a_name_says_the_share_in_percent_and_never_none_of_it(budget, name):
    assert recipe_for("digits_cnn", "prune", Budget(budget), "digits", 0, {}).name == name


def test_a_model_that_is_made_is_left_alone_and_no_other_takes_its_place(tmp_path):
    dense = zoo.save(zoo.load("digits_cnn"), tmp_path / "dense")
    recipe = Recipe("prune", Budget(0.9), options=ROUGH, data="digits[:64]", schedule={"epochs": 0})
    entry = replace(recipe_for(str(dense), "prune", None, "digits", 0, {}), name="mine", recipe=recipe)
    folder, lines = make(entry, tmp_path / "model"), []
    before = content(folder)
    (tmp_path / "model.work").mkdir()
    (tmp_path / "model.work" / "recipe.json").write_text("{}")  # as if it had been stopped before this was removed
    again = make(entry, tmp_path / "model", say=lines.append)

    assert (again, lines) == (folder, [f"made already: {folder}"])
    assert files(tmp_path) == ["dense", "model"]
    others = [replace(entry, recipe=replace(recipe, budget=Budget(0.8))), replace(entry, name="other"), entry]
    for other in others:
        if other is entry:  # the base has other weights by now
            model = zoo.load(dense)
            model.get_parameter("fc.bias").data.add_(1)
            zoo.save(model, dense)
        with pytest.raises(
            RepositoryError,
            match="model holds mine, made by another recipe or of other weights, or not all of it: choose",
        ):
            make(other, tmp_path / "model")
    assert content(folder) == before


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An entry and its repository."""
    entry = recipe_for("digits_cnn", "prune", Budget(0.9), "digits[:64]", 0, ROUGH)
    return entry, make(entry, tmp_path_factory.mktemp("made") / "model")


def test_what_a_base_was_imported_from_is_told_and_makes_no_other_model(made, tmp_path):
    entry, folder = made
    came = {"format": "torch-dag", "repo": "org/net", "commit": "ab" * 20}
    base = replace_field(describe(zoo.load("digits_cnn")), recipe={"converted_from": came})
    assert shown(entry, base) == {**shown(entry), "converted_from": came}
    config = json.loads((shutil.copytree(folder, tmp_path / "model") / "config.json").read_text())
    config["zoo"]["recipe"]["converted_from"] = came
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert is_built(entry, tmp_path / "model")
    config["zoo"]["recipe"]["altered"] = True
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert not is_built(entry, tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", lambda path: path.unlink()),
        ("results.json", lambda path: path.unlink()),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ],
    ids=["no weights", "no results", "cut weights"],
)
def test_a_model_that_is_not_all_there_is_not_taken_for_made(made, tmp_path, file, damage):
    entry, folder = made[0], shutil.copytree(made[1], tmp_path / "model")
    assert finished(entry, folder)
    damage(folder / file)
    left = content(folder)

    with pytest.raises(RepositoryError, match=r"model holds digits_cnn_pruned_90, .* or not all of it: choose another"):
        make(entry, folder)
    assert content(folder) == left


def test_what_is_wrong_is_said_though_another_build_began_beside_it(tmp_path, monkeypatch):
    def refused(*args, **options):
        (tmp_path / "new" / "other.work").mkdir()
        raise StructureError("it can't be compressed")

    monkeypatch.setattr(beginning, "compress", refused)
    with pytest.raises(StructureError, match="it can't be compressed"):
        make(recipe_for("digits_cnn", "prune", Budget(0.5), "digits", 0, {}), tmp_path / "new" / "model")
    assert files(tmp_path / "new") == ["other.work"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"schedule": {"lr": -1.0}}, "schedule: lr is -1.0, expected a number of at least 0"),
        ({"schedule": {"lrr": 1.0}}, "schedule has no option 'lrr'"),
        ({"distil": {"alpha": 2}}, "distil: alpha is 2, expected a number from 0 to 1"),
        ({"distil": {"shares": (0.5, 0.5)}}, "distil: 2 shares for 1 teachers"),
        ({"augment": {"flip": 1}}, "augment: unknown flip; possible are:"),
        ({"teachers": ["digits_cn"]}, "digits_cn"),
        ({"teachers": [str(Path(__file__).parent / "data" / "repositories" / "cnn_timm_1.0.31")]}, "classes"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_anything_is_compressed(tmp_path, said, expected):
    lines = []
    entry = recipe_for("digits_cnn", "prune", Budget(0.5), "digits", 1, {}, **said)
    with pytest.raises(ZooError, match=re.escape(expected)) as caught:
        make(entry, tmp_path / "new", say=lines.append)
    assert "\n" not in str(caught.value)
    assert lines in ([], ["1 load the base digits_cnn"])
    assert files(tmp_path) == []


def test_the_command_line_says_what_a_training_is_and_its_recipe_carries_it(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(making, "made", lambda entry, out: made.append(entry.recipe))
    words = "--epochs 3 --batch-size 32 --lr 0.01 --weight-decay 0.1 --ema 0.99 --alpha 0.5 --temperature 3"
    more = "--divergence symmetric --teacher digits_cnn_pruned_50 --teacher digits_cnn --augment hflip=0 --seed 7"
    base = ["digits_cnn", "--budget", "0.5", "--data", "digits", "--out", str(tmp_path)]
    making.compress.main([*base, *words.split(), *more.split()], standalone_mode=False)
    making.compress.main([*base, "--steps", "40"], standalone_mode=False)
    recipe, short = made
    assert recipe.schedule == {"epochs": 3, "batch_size": 32, "lr": 0.01, "weight_decay": 0.1, "ema": 0.99}
    assert recipe.distil == {"alpha": 0.5, "temperature": 3.0, "divergence": "symmetric"}
    assert (recipe.teachers, recipe.augment, recipe.seed) == (("digits_cnn_pruned_50", "digits_cnn"), {"hflip": 0}, 7)
    assert (short.schedule, short.teachers) == ({"epochs": 40, "steps": 40}, ("digits_cnn",))
    with pytest.raises(click.UsageError, match="nothing is distilled: say how long, by --epochs or --steps"):
        making.compress.main([*base, "--lr", "0.1"], standalone_mode=False)


@pytest.mark.parametrize("ignored", ["--lr 0.5", "--teacher digits_cnn", "--alpha 0.5", "--batch-size 8", "--ema 0.9"])
@pytest.mark.parametrize("method", ["lockd", "dwain"])
def test_what_a_method_that_trains_would_ignore_is_refused(method, ignored, tmp_path):
    base = ["digits_cnn", "--method", method, "--data", "digits", "--out", str(tmp_path)]
    with pytest.raises(click.UsageError, match=rf"by --epochs or --steps; {method}'s own training is set by --set 's"):
        making.compress.main([*base, *ignored.split()], standalone_mode=False)


def test_what_the_message_says_sets_the_methods_own_training(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(making, "made", lambda entry, out: made.append(entry.recipe))
    base = ["digits_cnn", "--method", "lockd", "--data", "digits", "--out", str(tmp_path), "--augment", "hflip=0"]
    making.compress.main([*base, "--set", 'schedule={"lr": 0.1}'], standalone_mode=False)
    assert declarations_of(made[0])[1].lr == 0.1
    assert made[0].augment == {"hflip": 0}


@pytest.mark.parametrize(
    ("recipe", "steps", "expected"),
    [
        (Recipe("prune", Budget(0.9)), 7, {"distillation": 7}),
        (Recipe("prune", Budget(0.9), schedule={"steps": 5}), 7, {"distillation": 5}),
        (Recipe("lockd", schedule={"epochs": 0}), 7, {"method": 7}),
        (Recipe("dwain"), 70, {"method": 50, "distillation": 70}),  # dwain's own trainings have 50
    ],
)
def test_each_training_of_a_recipe_lasts_so_many_steps_at_most(recipe, steps, expected):
    entry = replace(recipe_for("digits_cnn", "prune", Budget(0.9), "digits", 0, {}), recipe=recipe)
    found = at_most(entry, steps).recipe

    assert found.schedule.get("steps") == expected.get("distillation")
    assert found.options.get("schedule", {}).get("steps") == expected.get("method")
    assert at_most(entry, None) == entry


def test_steps_of_a_recipe_that_trains_nothing_are_refused():
    with pytest.raises(ZooError, match="its recipe trains nothing: leave --steps out"):
        at_most(recipe_for("digits_cnn", "prune", Budget(0.9), "digits", 0, {}), 7)


def test_a_build_may_be_told_its_steps_and_they_are_part_of_its_recipe(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(building, "made", lambda entry, out: made.append(entry.recipe))
    building.build.main(["digits_cnn_pruned_50", "--steps", "3"], standalone_mode=False)
    assert made[0].schedule["steps"] == 3
