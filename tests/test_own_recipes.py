"""A file of recipes of one's own: the catalog's keys over a base in a folder, made by zoo build and by builders."""

import pytest

import zoo
from builders import __main__ as builders
from builders import family
from zoo.cli import building, main
from zoo.errors import CatalogError
from zoo.verbs.recipes import recipes_in

FILE = """
[family]
base = "./mine"
[family.recipe]
method = "prune"
options = { images = 32 }
data = "digits"
seed = 3
[[model]]
name = "mine_half"
recipe = { budget = { macs = 0.5 } }
[[model]]
name = "mine_taught"
[model.recipe]
budget = { macs = 0.7 }
teachers = ["./mine"]
schedule = { epochs = 1, lr = 0.01, batch_size = 32, steps = 2 }
augment = { hflip = 0.0 }
distil = { alpha = 0.5 }
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a dense network of one's own and a file of recipes."""
    monkeypatch.chdir(tmp_path)
    network = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "in_chans": 1, "num_classes": 10}
    model = zoo.create(zoo.Base("timm/resnet18", network))
    seen = {"input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0, "license": None}
    model.pretrained_cfg = {**model.pretrained_cfg, **seen}
    zoo.save(model, "mine")
    (tmp_path / "my.toml").write_text(FILE)
    return tmp_path


def test_what_a_recipe_does_not_say_its_base_says_and_what_it_says_is_done(here):
    half, taught = recipes_in(here / "my.toml")

    assert (half.name, half.task, half.input) == ("mine_half", "image-classification", (1, 16, 16))
    assert (half.base.id, half.architecture, half.project, half.license) == ("./mine", "resnet18", "own", None)
    assert (half.recipe.budget.macs, half.recipe.seed, half.recipe.options) == (0.5, 3, {"images": 32})
    assert (taught.recipe.teachers, taught.recipe.distil) == (("./mine",), {"alpha": 0.5})
    assert taught.recipe.schedule == {"epochs": 1, "lr": 0.01, "batch_size": 32, "steps": 2}
    assert taught.recipe.augment == {"hflip": 0.0}


def test_zoo_build_makes_all_models_of_a_file(here, capsys):
    building.build.main(["my.toml", "--data", "digits[:200]", "--out", "made"], standalone_mode=False)

    assert capsys.readouterr().out == "made/mine_half\nmade/mine_taught\n"
    for name in ("mine_half", "mine_taught"):
        model = zoo.load(here / "made" / name)
        assert model.zoo_entry.name == name
        assert model.zoo_entry.recipe["base"] == "./mine"


def test_builders_take_the_same_file(here, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        family, "build", lambda entries, run: seen.append(([e.name for e in entries], run.models)) or []
    )
    builders.main.main(["my.toml", "mine_half"], standalone_mode=False)

    assert seen == [(["mine_half", "mine_taught"], ("mine_half",))]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('base = "./mine"', "", "my.toml: mine_half.base is None, expected a model's name, such as ./mine"),
        (
            'base = "./mine"',
            'base = "./yours"',
            "my.toml: mine_half.base: no folder yours|my.toml: mine_half.base: yours",
        ),
        ("seed = 3", "sed = 3", "my.toml: mine_half.recipe.*sed"),
        ("macs = 0.5", "macs = 5", "my.toml: mine_half.recipe.budget.macs is 5"),
        ("macs = 0.5", "maks = 0.5", "my.toml: mine_half.recipe.budget"),
        ("images = 32", "imags = 32", "my.toml: .*imags"),
        ("images = 32", 'round_to = "x"', "my.toml: .*round_to"),
        ("alpha = 0.5", "alfa = 0.5", "my.toml: .*alfa"),
        ("epochs = 1", "epoch = 1", "my.toml: .*epoch"),
        ('method = "prune"', 'method = "pruned"', "my.toml: mine_half.recipe.method is 'pruned'"),
        ('"mine_taught"', '"mine_half"', "my.toml has mine_half twice"),
        ("[[model]]", "[[models]]", "my.toml: model"),
        ("seed = 3", "seed = ", "my.toml: Invalid value"),
    ],
)
def test_an_error_names_file_entry_and_key(here, before, after, message):
    assert before in FILE
    (here / "my.toml").write_text(FILE.replace(before, after))
    with pytest.raises(CatalogError, match=message) as error:
        recipes_in(here / "my.toml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told(here, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["build", "none.toml"])
    assert capsys.readouterr().err == "error: none.toml: No such file or directory\n"
