"""The catalog: TOML in, entries out, and what must hold of every entry."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from zoo import catalog
from zoo.catalog import Size
from zoo.catalog.entry import STATUSES, Budget
from zoo.catalog.methods import METHODS
from zoo.errors import CatalogError, UnknownName

ROOT = Path(__file__).parent.parent

FAMILY = """
[family]
architecture = "resnet18"
task = "image-classification"
base = "timm/resnet18.a1_in1k"
license = "apache-2.0"
"""
ENTRIES = {name: catalog.info(name) for name in catalog.names(all=True)}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes a user's catalog of one family, `mine.toml`, after the family's table."""

    def write(text, family=FAMILY):
        (tmp_path / "mine.toml").write_text(family + text, encoding="utf-8")
        monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))

    return write


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "digits_cnn_pruned_25"], ["--version"]])
def test_looking_at_the_catalog_imports_none_of_the_heavy_packages(arguments):
    code = (
        "import sys, zoo.cli\n"
        "try: zoo.cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'timm', 'huggingface_hub', 'safetensors') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines()[-1] == "[]"


# What a user may get wrong.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[model]]\nname = "a"\nlicence = "mit"', ["mine.toml: a", "unknown key 'licence'", "license"]),
        ('[[model]]\nname = "a"\nrecipe = {epochs = 3}', ["mine.toml: a.recipe", "unknown key 'epochs'", "schedule"]),
        ('[[model]]\nname = "a"\nrecipe.budget = {mac = 0.5}', ["mine.toml: a.recipe.budget", "unknown key 'mac'"]),
        ('[[model]]\nname = "a"\nrecipe.budget = {params = 0.5}', ["mine.toml: a.recipe.budget", "missing", "'macs'"]),
        (
            '[[model]]\nname = "a"\nrecipe.budget.macs = 50',
            ["a.recipe.budget.macs is 50, expected a share above 0"],
        ),
        (
            '[[model]]\nname = "a"\nrecipe.budget.macs = "half"',
            ["a.recipe.budget.macs is 'half', expected a share"],
        ),
        ('[[model]]\nname = "a"\nrecipe.budget = 0.5', ["mine.toml: a.recipe.budget is 0.5, expected a table"]),
        ('[[model]]\nname = "a"\nrecipe = "prune"', ["mine.toml: a.recipe is 'prune', expected a table"]),
        ('[[model]]\nname = "a"\nrecipe.teachers = "b"', ["mine.toml: a.recipe.teachers is 'b', expected a list"]),
        ('[[model]]\nname = "a"\nreported = [{top2 = 0.8}]', ["mine.toml: a.reported", "unknown key 'top2'", "top1"]),
        (
            '[[model]]\nname = "a"\nreported = [{top1 = "80 %"}]',
            ["a.reported[0].top1 is '80 %', expected a finite number"],
        ),
        (
            '[[model]]\nname = "a"\nreported = [{input = "224"}]',
            ["a.reported[0].input is '224', expected a whole number"],
        ),
        (
            '[[model]]\nname = "a"\nreported = [{kmapp = nan}]',
            ["a.reported[0].kmapp is nan, expected a finite number"],
        ),
        (
            '[[model]]\nname = "a"\nreported = [{counting = "z"}]',
            ["a.reported[0].counting is 'z'", "ptdeco, torch-dag"],
        ),
        ('[[model]]\nname = "a"\nrecipe.teachers = [1]', ["mine.toml: a.recipe.teachers[0] is 1, expected text"]),
        ('[[model]]\nname = "a"\nrecipe.schedule = 3', ["mine.toml: a.recipe.schedule is 3, expected a table"]),
        ('[[model]]\nname = "a"\nrecipe.seed = true', ["mine.toml: a.recipe.seed is True, expected a whole number"]),
        ('[[model]]\nname = "a"\ninput = [3]', ["mine.toml: a.input is [3], expected channels, height and width"]),
        ('[[model]]\nname = "a"\nfamily = "b"', ["mine.toml: a: family isn't set here"]),
        ('[[model]]\nname = "a"\nproject = "b"', ["mine.toml: a: project isn't set here"]),
        ('[[model]]\nname = "a"\nbaselines = {of = "b"}', ["mine.toml: a.baselines is {'of': 'b'}, expected a list"]),
        ('[[model]]\nname = "a"\nbaselines = [{from = "b"}]', ["mine.toml: a.baselines", "unknown key 'from'", "of"]),
        ("[[model]]\nname = 7", ["mine.toml: 7.name is 7, expected a name of letters"]),
        ('[[model]]\nname = "a"\nlicense = ["mit"]', ["mine.toml: a.license is ['mit'], expected text"]),
        ('[[model]]\nname = "a"\nrecipe.seed = "x"', ["mine.toml: a.recipe.seed is 'x', expected a whole number"]),
        ('[[model]]\nname = "a"\norigin = {repo = "x/y"}', ["mine.toml: a.origin", "missing", "'format'"]),
        ('[[model]]\nname = "a"\nbase = {name = "x"}', ["mine.toml: a.base", "unknown key 'name'", "id, args"]),
        ('[[model]]\nname = "a"\ninput = 224', ["mine.toml: a.input is 224, expected channels, height and width"]),
        ('[[model]]\nname = "a"\nstatus = "ready"', ["mine.toml: a.status", "'ready'", *STATUSES]),
        ('[[model]]\nname = "a"\nrecipe.method = "shrink"', ["mine.toml: a.recipe.method", "'shrink'", *METHODS]),
        ("[[model]]\nnote = 'x'", ["mine.toml: model without a name", "missing", "'name'"]),
        ('[[models]]\nname = "a"', ["mine.toml: unknown key 'models'", "family, model"]),
        ('[model]\nname = "a"', ["mine.toml: model is {'name': 'a'}, expected a list"]),
        ("[[model]\n", ["mine.toml", "line 7"]),
    ],
)
def test_a_mistake_in_a_catalog_names_file_entry_and_key(own, text, expected):
    own(text)

    with pytest.raises(CatalogError) as caught:
        catalog.names()

    assert [part for part in expected if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_family_without_what_every_entry_needs_is_refused(own):
    own('[[model]]\nname = "a"', family="[family]\ntask = 'image-classification'\n")

    with pytest.raises(CatalogError, match=re.escape("mine.toml: a: missing") + ".*'architecture'"):
        catalog.names()


def test_a_name_may_stand_in_one_family_only(own, tmp_path):
    (tmp_path / "other.toml").write_text(FAMILY + '[[model]]\nname = "a"')
    own('[[model]]\nname = "a"')

    with pytest.raises(CatalogError, match=f"a stands in {tmp_path.name}/mine and in {tmp_path.name}/other"):
        catalog.names()


def test_a_catalog_folder_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "nowhere"))

    with pytest.raises(CatalogError, match="nowhere isn't there; unset ZOO_CATALOG or create it"):
        catalog.names()


# What a family shares.


def test_a_model_has_what_its_family_shares_and_replaces_what_it_says_itself(own):
    own('[[model]]\nname = "a"\n[[model]]\nname = "b"\nlicense = "mit"\nnote = "naïve"')

    assert astuple("a") == ("mine", "resnet18", "apache-2.0", None)
    assert astuple("b") == ("mine", "resnet18", "mit", "naïve")


def astuple(name):
    entry = catalog.info(name)
    return entry.family, entry.architecture, entry.license, entry.note


def test_the_tables_of_a_recipe_are_extended_not_replaced(own):
    own(
        """
        [family.recipe]
        method = "prune"
        data = "digits"
        teachers = ["x", "y"]
        budget = { macs = 0.5, params = 0.6 }
        options = { round_to = 8 }
        schedule = { epochs = 9, lr = 0.1 }
        [[model]]
        name = "a"
        [model.recipe]
        teachers = ["z"]
        budget = { macs = 0.25 }
        options = { floor = 0.2 }
        schedule = { lr = 0.3 }
        """
    )
    recipe = catalog.info("a").recipe

    assert (recipe.method, recipe.data) == ("prune", "digits")
    assert recipe.teachers == ("z",)
    assert Budget(0.25, 0.6) == recipe.budget
    assert recipe.options == {"round_to": 8, "floor": 0.2}
    assert recipe.schedule == {"epochs": 9, "lr": 0.3}


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "recipe"),
        ('origin = {repo = "x/y", format = "torch-dag"}', "origin"),
        ('origin = {repo = "x/y", format = "torch-dag"}\nrepo = "zoo/a"', "published"),
        ('status = "embedded"', "embedded"),
    ],
)
def test_the_status_follows_from_where_the_weights_are(own, text, status):
    own(f'[[model]]\nname = "a"\n{text}')

    assert status == catalog.info("a").status


# Looking up.


def test_a_users_catalog_adds_entries_and_replaces_those_of_the_same_name(own):
    own('[[model]]\nname = "digits_cnn"\nnote = "mine"\n[[model]]\nname = "another"')

    assert catalog.info("digits_cnn").note == "mine"
    assert sorted([*ENTRIES, "another"]) == catalog.names(all=True)
    assert ENTRIES["digits_vit"] == catalog.info("digits_vit")


LISTED = """
[[model]]
name = "x_minim_pruned"
repo = "zoo/x"
recipe.method = "prune"
reported = [{ top1 = 0.7, params_m = 2, kmapp = 10.0 }]
[[model]]
name = "minim_dense"
base = "timm/resnet50d.a1_in1k"
[[model]]
name = "minim_origin"
origin = { repo = "x/y", format = "torch-dag" }
task = "object-detection"
input = [3, 100, 100]
reported = [{ map = 0.5, input = 200 }, { map = 0.4, params_m = 1.5, kmapp = 20.0, counting = "ptdeco", input = 100 }]
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": "minim*"}, ["minim_origin"]),
        ({"pattern": "*_pruned"}, ["x_minim_pruned"]),
        ({"pattern": "mini?_origin"}, ["minim_origin"]),
        ({}, ["minim_origin", "x_minim_pruned"]),
        ({"all": True}, ["minim_dense", "minim_origin", "x_minim_pruned"]),
        ({"all": True, "method": "prune"}, ["x_minim_pruned"]),
        ({"method": "falor"}, []),
        ({"status": "recipe"}, ["minim_dense"]),
        ({"status": "published"}, ["x_minim_pruned"]),
        ({"task": "object-detection"}, ["minim_origin"]),
        ({"all": True, "base": "resnet50d"}, ["minim_dense"]),
        ({"all": True, "base": "timm/resnet18.*"}, ["minim_origin", "x_minim_pruned"]),
        ({"project": "mrt"}, []),
        ({"max_params": 1.5e6, "all": True}, ["minim_origin"]),
        ({"max_macs": 103e6}, ["minim_origin"]),
        ({"max_macs": 250e6, "max_params": 1e6}, []),
        ({"sort": "macs", "all": True}, ["minim_origin", "x_minim_pruned", "minim_dense"]),
        ({"sort": "params"}, ["minim_origin", "x_minim_pruned"]),
        ({"sort": "top1"}, ["x_minim_pruned", "minim_origin"]),
        ({"pattern": "nothing"}, []),
    ],
)
def test_names_are_filtered_and_sorted(own, arguments, expected):
    own(LISTED)

    assert expected == catalog.names(**{"pattern": "minim", **arguments})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"sort": "size"}, "no order 'size', known are name, macs, params, top1"),
        ({"method": "shrink"}, "no method 'shrink', known are dwain, falor, "),
        ({"status": "ready"}, "no status 'ready', known are embedded, origin, "),
        ({"project": "nobody"}, "no project 'nobody', known are mrt, ptdeco, "),
    ],
)
def test_what_is_not_on_a_closed_list_is_an_error(wanted, expected):
    with pytest.raises(UnknownName, match=expected):
        catalog.names(**wanted)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x_minim_pruned", Size(2e6, 10 * 1000 * 224 * 224 / 2, 0.7, reported=("params", "macs", "top1"))),
        ("minim_origin", Size(1.5e6, 20 * 1024 * 100 * 100 / 2, map=0.4, reported=("params", "macs", "map"))),
        ("minim_dense", Size()),
        ("digits_cnn", Size(163494, 2346368, 447 / 450)),
    ],
)
def test_sizes_are_measured_here_or_else_reported_and_say_which(own, name, expected):
    own(LISTED)

    assert expected == catalog.size(catalog.info(name))


def test_a_users_model_does_not_inherit_what_was_measured_of_another_by_its_name(own):
    own('[[model]]\nname = "digits_cnn"')

    assert Size() == catalog.size(catalog.info("digits_cnn"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digits_cn", "did you mean digits_cnn"),
        ("digit_vit_pruned_25", "did you mean digits_vit_pruned_25"),
        ("qqq!", "zoo list --all shows all of them"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, hint):
    with pytest.raises(UnknownName, match=f"no model '{name}' in the catalog; {hint}"):
        catalog.info(name)


def test_looking_a_model_up_does_not_go_through_the_users_whole_catalog(own):
    own("".join(f'[[model]]\nname = "a{number}"\n' for number in range(2000)))
    assert catalog.info("a1").name == "a1"
    tracemalloc.start()
    try:
        assert catalog.info("a1999").name == "a1999"
        assert tracemalloc.get_traced_memory()[1] < 10_000  # bytes; a table of 2000 names takes ten times that
    finally:
        tracemalloc.stop()
