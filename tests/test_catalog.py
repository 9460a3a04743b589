"""The catalog: TOML in, entries out, and what must hold of every entry."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
import timm

from zoo import catalog
from zoo.catalog.entry import METHODS, STATUSES, Budget
from zoo.errors import CatalogError, UnknownName
from zoo.files import sha256

FAMILY = """
[family]
architecture = "resnet18"
task = "image-classification"
base = "timm/resnet18.a1_in1k"
license = "apache-2.0"
"""
ENTRIES = {name: catalog.info(name) for name in catalog.names(all=True)}
COMPRESSED = {name: entry for name, entry in ENTRIES.items() if entry.recipe.method}
EMBEDDED = {name: entry for name, entry in ENTRIES.items() if entry.status == "embedded"}


def every(entries):
    return pytest.mark.parametrize("entry", entries.values(), ids=list(entries))


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
        ('[[model]]\nname = "a"\nrecipe.budget.macs = 50', ["mine.toml: a.recipe.budget", "50 of the macs"]),
        ('[[model]]\nname = "a"\nrecipe.budget.macs = "half"', ["mine.toml: a.recipe.budget", "half of the macs"]),
        ('[[model]]\nname = "a"\nrecipe.budget = 0.5', ["mine.toml: a.recipe.budget", "float", "expected a table"]),
        ('[[model]]\nname = "a"\nrecipe = "prune"', ["mine.toml: a.recipe", "str", "expected a table"]),
        ('[[model]]\nname = "a"\nrecipe.teachers = "b"', ["mine.toml: a.recipe.teachers", "str", "expected a list"]),
        ('[[model]]\nname = "a"\nreported = [{top1 = 0.8}]', ["mine.toml: a.reported", "unknown key 'top1'"]),
        ('[[model]]\nname = "a"\norigin = {repo = "x/y"}', ["mine.toml: a.origin", "missing", "'format'"]),
        ('[[model]]\nname = "a"\nbase = {name = "x"}', ["mine.toml: a.base", "unknown key 'name'", "args, id"]),
        ('[[model]]\nname = "a"\ninput = 224', ["mine.toml: a.input", "int", "expected a list"]),
        ('[[model]]\nname = "a"\nstatus = "ready"', ["mine.toml: a.status", "'ready'", *STATUSES]),
        ('[[model]]\nname = "a"\nrecipe.method = "shrink"', ["mine.toml: a.recipe.method", "'shrink'", *METHODS]),
        ("[[model]]\nnote = 'x'", ["mine.toml: model without a name", "missing", "'name'"]),
        ('[[models]]\nname = "a"', ["mine.toml", "unknown table 'models'", "family, model"]),
        ('[model]\nname = "a"', ["mine.toml: model is a table, expected a list"]),
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

    with pytest.raises(CatalogError, match="a stands in mine and in other"):
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": "tiny*"}, ["tiny_origin"]),
        ({"pattern": "*_pruned"}, ["x_tiny_pruned"]),
        ({"pattern": "tin?_origin"}, ["tiny_origin"]),
        ({"pattern": "tiny"}, ["tiny_origin", "x_tiny_pruned"]),
        ({"pattern": "tiny", "all": True}, ["tiny_dense", "tiny_origin", "x_tiny_pruned"]),
        ({"pattern": "tiny", "all": True, "method": "prune"}, ["x_tiny_pruned"]),
        ({"pattern": "tiny", "method": "falor"}, []),
        ({"pattern": "nothing"}, []),
    ],
)
def test_names_are_filtered_by_pattern_status_and_method(own, arguments, expected):
    own(
        """
        [[model]]
        name = "x_tiny_pruned"
        repo = "zoo/x"
        recipe.method = "prune"
        [[model]]
        name = "tiny_dense"
        [[model]]
        name = "tiny_origin"
        origin = { repo = "x/y", format = "torch-dag" }
        """
    )

    assert expected == catalog.names(**arguments)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digits_cn", "did you mean digits_cnn"),
        ("digit_vit_pruned_25", "did you mean digits_vit_pruned_25"),
        ("zzz", "zoo list shows all of them"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, hint):
    with pytest.raises(UnknownName, match=f"no model '{name}' in the catalog; {hint}"):
        catalog.info(name)


# What holds of every entry.


@every(COMPRESSED)
def test_the_number_in_a_name_is_the_share_that_is_kept(entry):
    kept = int(entry.name.rpartition("_")[2])

    assert abs(kept - 100 * entry.recipe.budget.macs) <= 1 or entry.note


@every(ENTRIES)
def test_the_base_is_another_entry_or_an_architecture_that_timm_knows(entry):
    if entry.base is None:
        assert entry.note
    elif entry.base.id.startswith("timm/"):
        assert timm.is_model(entry.base.architecture)
    else:
        assert entry.base.id in ENTRIES.keys() - {entry.name}


@every(ENTRIES)
def test_the_architecture_is_one_that_timm_knows(entry):
    assert timm.is_model(entry.architecture) or entry.note


@every(ENTRIES)
def test_the_teachers_exist_and_none_teaches_itself(entry):
    for teacher in entry.recipe.teachers:
        assert teacher != entry.name
        assert teacher in ENTRIES or timm.is_model(teacher.removeprefix("timm/").partition(".")[0])


@every(ENTRIES)
def test_licence_source_and_input_are_set(entry):
    assert entry.license
    assert entry.source.startswith("https://")
    assert len(entry.input) == 3


@every(ENTRIES)
def test_a_published_entry_is_pinned_to_a_commit(entry):
    assert entry.status != "published" or re.fullmatch("[0-9a-f]{40}", entry.revision)


@every(EMBEDDED)
def test_an_embedded_entry_has_a_repository_that_agrees_with_it(entry):
    folder = catalog.EMBEDDED / entry.name
    config = json.loads((folder / "config.json").read_text())
    recipe = json.loads(json.dumps(asdict(entry.recipe)))
    dense = ENTRIES[entry.base.id].base if entry.base.id in ENTRIES else entry.base

    assert entry.name == config["architecture"] == config["zoo"]["name"]
    assert json.loads(json.dumps(asdict(dense))) == config["zoo"]["base"]
    assert bool(entry.recipe.method) == bool(config["zoo"]["plan"])
    assert list(entry.input) == config["pretrained_cfg"]["input_size"]
    assert config["zoo"]["recipe"] == {key: recipe[key] for key in config["zoo"]["recipe"]}
    assert all(key in config["zoo"]["recipe"] for key, value in recipe.items() if value)
    assert sha256(folder / "model.safetensors") == config["zoo"]["weights_sha256"]


@every(EMBEDDED)
def test_an_embedded_entry_has_a_card_and_a_measured_accuracy(entry):
    results = json.loads((catalog.EMBEDDED / entry.name / "results.json").read_text())

    assert entry.name == results["name"]
    assert entry.dataset == results["data"]["dataset"]
    assert 0.5 < results["measured"]["top1"] <= 1
    assert all(math.isfinite(figure) for figure in results["measured"].values())
    assert f"# {entry.name}" in (catalog.EMBEDDED / entry.name / "README.md").read_text().splitlines()
