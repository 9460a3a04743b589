"""A method is one file and one row: the table is all that the rest of the package knows of methods."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import zoo
from zoo import cli
from zoo.catalog.entry import Budget
from zoo.catalog.methods import METHODS, Method, available
from zoo.cli import making
from zoo.compression import Algorithm, Given, algorithm
from zoo.errors import BudgetError, UnknownName
from zoo.structure.describing import describe
from zoo.training.schedule import Machine, Schedule
from zoo.verbs.beginning import processes
from zoo.verbs.recipes import check_recipe, recipe_for
from zoo.verbs.training_costs import learning_costs

ROW = Method(
    "halved",
    "Halves",
    "https://example.org/halves",
    words="layers cut in half",
    tags=("low-rank", "halved"),
    suffix="half",
    advice="name a layer by ending",
)
IMAGES = "digits[:32]"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def halved(monkeypatch):
    """A method of one file, tests/halved.py, and one row; its name."""
    monkeypatch.setitem(METHODS, "halved", ROW)
    return "halved"


@pytest.fixture
def command(halved):
    """The command line of a process that began with the row."""
    importlib.reload(making)
    yield making.compress
    METHODS.pop(halved)
    importlib.reload(making)


def test_a_method_of_one_file_and_one_row_compresses_and_names_what_it_makes(halved):
    vit = zoo.load("digits_vit")
    smaller = zoo.compress(vit, data=IMAGES, method=halved, ending="fc1", schedule={"epochs": 1})

    assert smaller.zoo_entry.name == "digits_vit_half"
    assert smaller.zoo_entry.recipe == {"method": halved, "options": {"ending": "fc1", "schedule": {"epochs": 1}}}
    dense, first, second = (
        net.get_parameter(f"blocks.0.mlp.fc1.{name}").detach()
        for net, name in ((vit, "weight"), (smaller, "0.weight"), (smaller, "1.weight"))
    )
    missed = torch.linalg.matrix_norm(dense - second @ first, 2)  # the first singular value that is cut off
    assert float(missed) == pytest.approx(float(torch.linalg.svdvals(dense)[len(first)]), rel=1e-4)
    assert zoo.measure(smaller).macs < zoo.measure(vit).macs


def test_its_file_meets_the_projects_checks():
    """Those of the package; mypy is told of it in pyproject.toml, as of the package."""
    as_ones_own = ["--config", "pyproject.toml", "--stdin-filename", "halved.py", "-"]
    text = (ROOT / "tests" / "halved.py").read_text()
    command = [sys.executable, "-m", "ruff", "check", *as_ones_own]
    ran = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert "tests/halved.py" in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]


def test_its_row_and_its_declaration_say_what_a_recipe_may_hold(halved):
    def recipe(budget=None, **options):
        return recipe_for("digits_vit", halved, budget, IMAGES, 0, options)

    entry = recipe(ending="fc1", images=8, schedule={"epochs": 1})
    check_recipe(entry.name, entry.recipe)
    assert entry.name == "digits_vit_half"
    for wrong, error, message in (
        (recipe(ends="fc1"), UnknownName, "halved has no option 'ends', known are ending"),
        (recipe(schedule={"lrr": 1}), UnknownName, "halved's schedule has no option 'lrr'"),
        (recipe(Budget(0.5)), BudgetError, "takes no budget"),
    ):
        with pytest.raises(error, match=message):
            check_recipe("mine", wrong.recipe)


def test_it_says_what_to_change_where_it_left_a_model_as_it_was(halved, caplog):
    zoo.compress(zoo.load("digits_vit"), data=IMAGES, method=halved, ending="nowhere")
    assert "halved: no layer was decomposed; name a layer by ending" in caplog.messages


def test_it_says_so_too_where_it_left_a_model_hardly_smaller(halved, caplog):
    smaller = zoo.compress(zoo.load("digits_vit"), data=IMAGES, method=halved, ending="head")
    left = zoo.measure(smaller).macs / zoo.measure(zoo.load("digits_vit")).macs
    assert 0.99 < left < 1
    assert f"halved: {100 * left:.1f} % of the macs are left; name a layer by ending" in caplog.messages


def test_its_costs_are_said_before_it_trains(halved):
    recipe = recipe_for("digits_vit", halved, None, IMAGES, 0, {}).recipe
    said = learning_costs(zoo.load("digits_vit"), recipe, Machine(workers=0), processes())
    assert re.match(r"halved: 12 steps of 8 images, GMACs of one: ", said)  # 3 epochs of 32 images


def test_the_command_line_takes_it_and_the_card_tells_it(command, tmp_path, monkeypatch):
    assert "halved" in CliRunner().invoke(command, ["--help"]).output
    monkeypatch.setitem(cli.cli.commands, "compress", command)
    arguments = ["compress", "digits_vit", "--method", "halved", "--data", IMAGES, "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(cli.cli, [*arguments, "--set", "ending=fc2"])

    assert run.exit_code == 0, run.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- halved\n" in card
    assert "layers cut in half" in card
    assert describe(zoo.load(tmp_path / "out")).name == "digits_vit_half"


@pytest.mark.parametrize("method", available())
def test_a_file_has_a_declaration_of_defaults_and_runs_what_is_given(method):
    found = algorithm(method)
    assert isinstance(found, Algorithm)
    assert dataclasses.is_dataclass(found.declaration())
    assert [each.annotation for each in inspect.signature(found.run).parameters.values()] == [Given]
    assert (found.schedule is None) == (found.trained is None)
    assert isinstance(found.schedule, Schedule | None)


def test_every_row_names_its_source():
    assert all(row.title and row.url.startswith("https://") and row.tags and row.words for row in METHODS.values())
