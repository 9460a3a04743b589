"""What must hold of every entry of the catalog."""

import importlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import timm
import torchvision
from msgspec import structs, to_builtins
from timm.models._registry import _model_to_module

import zoo
from zoo import catalog
from zoo.catalog.entry import Base
from zoo.catalog.methods import available
from zoo.catalog.papers import papers
from zoo.compression.low_rank.falor import Falor
from zoo.compression.low_rank.lockd import Lockd
from zoo.compression.low_rank.low_rank import LowRank
from zoo.compression.prune.prune import Prune
from zoo.errors import RepositoryError, UnknownName
from zoo.files import sha256
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.macs import measure
from zoo.models.architectures import ARCHITECTURES
from zoo.structure.base import skeleton
from zoo.tasks import task_named
from zoo.training.distillation import Distil
from zoo.training.schedule import Schedule
from zoo.verbs.compressing import declared

ROOT = Path(__file__).parent.parent
ENTRIES = {name: catalog.info(name) for name in catalog.names(all=True)}
COMPRESSED = {name: entry for name, entry in ENTRIES.items() if entry.recipe.method}
EMBEDDED = {name: entry for name, entry in ENTRIES.items() if entry.status == "embedded"}


def every(entries):
    return pytest.mark.parametrize("entry", entries.values(), ids=list(entries))


@every({name: entry for name, entry in ENTRIES.items() if "_pruned_" in name and entry.recipe.budget})
def test_the_number_in_a_name_is_the_kept_share_of_the_macs(entry):
    kept = int(entry.name.rpartition("_")[2])

    assert abs(kept - 100 * entry.recipe.budget.macs) <= 1 or f"{100 * entry.recipe.budget.macs:.0f} %" in entry.note


@every({name: entry for name, entry in ENTRIES.items() if entry.project == "torch-dag"})
def test_a_budget_is_the_share_of_the_base_that_the_source_reports(entry):
    own = (entry.base and entry.base.id, entry.architecture)
    dense = next(row.figures for row in entry.baselines if row.of in own and "kmapp" in row.figures)
    pruned = next(row.figures for row in entry.reported if "kmapp" in row.figures)

    assert pytest.approx(pruned["kmapp"] / dense["kmapp"], abs=5e-4) == entry.recipe.budget.macs
    assert pytest.approx(pruned["params_m"] / dense["params_m"], abs=5e-4) == entry.recipe.budget.params


@every({name: e for name, e in ENTRIES.items() if e.project == "timm" and e.recipe.budget})
def test_a_budget_of_timm_is_the_share_that_its_network_has(entry):
    ours, dense = measure(zoo.create(entry.name), entry.input), measure(skeleton(entry.base), entry.input)

    assert pytest.approx(ours.macs / dense.macs, abs=6e-4) == entry.recipe.budget.macs
    assert pytest.approx(ours.params / dense.params, abs=6e-4) == entry.recipe.budget.params


@every(COMPRESSED)
def test_a_name_says_base_and_method(entry):
    base = re.escape(entry.base.architecture) if entry.base and entry.base.id.startswith("timm/") else r"\w+"
    suffix = {
        "prune": r"_pruned_\d\d",
        "magnitude": r"_pruned_\d\d",
        "lockd": r"_lockd_nt\d{3}",
        "falor": r"_falor_nft\d{3}",
        "low_rank": r"_lowrank_\d\d",
        "integer": "_int8",
    }[entry.recipe.method]

    # A quantized model keeps the name of the network that its source gave it.
    assert re.fullmatch((r"\w+" if entry.project == "mrt" else base.removeprefix("tf_")) + suffix, entry.name)


@every(COMPRESSED)
def test_a_recipe_is_accepted_by_its_method(entry):
    thresholds = {"lockd": "nsr_threshold", "falor": "nsr_final_threshold", "magnitude": "sparsity"}
    recipe = entry.recipe
    declared(Schedule, recipe.schedule, "schedule")
    declared(Distil, recipe.distil, "distil")

    options = {key: value for key, value in recipe.options.items() if key != "schedule"}
    declarations = {"prune": Prune, "low_rank": LowRank, "lockd": Lockd, "falor": Falor}
    if declaration := declarations.get(recipe.method):
        declared(declaration, options, recipe.method)
        declared(Schedule, recipe.options.get("schedule", {}), "schedule")
    if recipe.method in ("prune", "low_rank"):
        assert recipe.budget
    elif threshold := thresholds.get(recipe.method):
        assert 0 < recipe.options[threshold] < 1
    else:
        assert (recipe.method, dict(recipe.options)) == ("integer", {})


@every(ENTRIES)
def test_the_base_is_one_that_can_be_had_or_a_note_says_why_there_is_none(entry):
    if entry.base is None:
        assert "no base here yet" in entry.note.lower()
        assert entry.status in ("recipe", "origin")
    elif entry.base.id.startswith("timm/"):
        name = entry.base.id.removeprefix("timm/")
        assert name in timm.list_models(pretrained=True) or ("." not in name and timm.is_model(name))
    elif entry.base.id.startswith("zoo/"):
        assert entry.base.id.removeprefix("zoo/") in ARCHITECTURES
        assert entry.recipe.method is None or entry.origin or "no weights of it" in entry.note
    elif entry.base.id.startswith("torchvision/"):
        assert entry.base.id.partition("/")[2] in torchvision.models.list_models()
    else:
        assert entry.base.id in ENTRIES.keys() - {entry.name}


def dense_of(entry):
    """The architecture that a model was made from in the end."""
    base = entry.base
    while base is not None and base.id in ENTRIES:
        base = ENTRIES[base.id].base
    return base


@every(ENTRIES)
def test_the_architecture_is_that_of_the_base(entry):
    dense = dense_of(entry)

    assert dense is None or entry.architecture == dense.id.partition("/")[2].partition(".")[0]


TEACHERS = {entry.recipe.teachers: entry for entry in ENTRIES.values() if entry.recipe.teachers}


@pytest.mark.parametrize("teachers", TEACHERS, ids=lambda teachers: teachers[-1])
def test_teachers_exist_and_grow(teachers):
    entry = TEACHERS[teachers]
    assert entry.name not in teachers
    assert all(name in ENTRIES or name.removeprefix("timm/") in timm.list_models(pretrained=True) for name in teachers)

    if len(teachers) > 1:
        macs = [measure(skeleton(Base(name)), entry.input).macs for name in teachers]
        assert macs == sorted(set(macs))


@every(ENTRIES)
def test_figures_are_in_their_units(entry):
    for row in (*entry.reported, *entry.baselines):
        assert row.figures
        for figure, value in row.figures.items():
            share = figure in ("top1", "top5", "map", "map50", "speedup")
            assert 0 < value <= (1 if share else 5000)
        assert ("kmapp" in row.figures) == (row.counting is not None)
        assert row.counting is None or row.counting in COUNTINGS
        assert row.figures.get("top1", 0) <= row.figures.get("top5", 1)
    assert all(row.of is None for row in entry.reported)
    assert all(row.of for row in entry.baselines)


LICENSES = ("apache-2.0", "bsd-3-clause", "cc-by-nc-4.0", "agpl-3.0", "cvnets-license")


@every(ENTRIES)
def test_a_licence_follows_the_base(entry):
    if (entry.base is None and entry.origin is None) or "no weights of it" in (entry.note or ""):
        assert entry.license is None
        return
    assert entry.license in LICENSES
    if entry.base and entry.base.id.startswith("timm/") and "." in entry.base.id:
        config = timm.get_pretrained_cfg(entry.base.id.removeprefix("timm/"))
        assert config.license in (entry.license, None)


@every(ENTRIES)
def test_source_and_input_are_set(entry):
    assert entry.source.startswith("https://")
    assert len(entry.input) == 3


@every({name: entry for name, entry in ENTRIES.items() if entry.origin})
def test_an_origin_is_named_in_full_and_its_hashes_are_hexadecimal(entry):
    assert re.fullmatch(r"[\w-]+/[\w.-]+", entry.origin.repo)
    assert entry.origin.format in ("torch-dag", "timm")
    assert entry.origin.commit is None or re.fullmatch("[0-9a-f]{7}|[0-9a-f]{40}", entry.origin.commit)
    assert entry.origin.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.origin.sha256)


@every({name: entry for name, entry in ENTRIES.items() if catalog.obstacle(entry)})
def test_a_model_that_cannot_be_loaded_says_so_with_the_way_to_build_it(entry):
    with pytest.raises(RepositoryError) as caught:
        zoo.load(entry.name)

    assert str(caught.value).startswith(f"{entry.name} can't be loaded: ")
    weights = entry.base is not None and (entry.recipe.method is None or entry.base.source != "zoo")
    buildable = weights and entry.recipe.method in (*available(), None)
    assert (f"zoo build {entry.name}" in str(caught.value)) == buildable
    if catalog.stand_in(entry):
        assert zoo.create(entry.name).zoo_entry.structure == "stand-in"
        return
    if entry.base and entry.recipe.method is None and entry.status == "recipe":  # dense: it is what its base is
        assert zoo.create(entry.name).zoo_entry.base == entry.base
        return
    with pytest.raises((RepositoryError, UnknownName)):
        zoo.create(entry.name) if not (entry.origin and entry.origin.format == "timm") else zoo.load(entry.name)


# The published countings.

DENSE = {
    (row.counting, row.of): (row.figures, (3, row.input, row.input))
    for entry in ENTRIES.values()
    for row in entry.baselines
    if row.counting and row.of.startswith("timm/")
}


@pytest.mark.parametrize(("counting", "base"), DENSE, ids=lambda part: str(part).removeprefix("timm/"))
def test_a_published_counting_is_reproduced(counting, base):
    """Two of ptdeco's are printed without digits."""
    figures, size = DENSE[counting, base]
    tolerance = {"ptdeco": 5e-4, "torch-dag": 5e-3}[counting]
    rounding = 0.5 if isinstance(figures["kmapp"], int) else 0.005
    model = skeleton(Base(base))

    assert COUNTINGS[counting](model, size) == pytest.approx(figures["kmapp"], rel=tolerance, abs=rounding)
    assert measure(model, size).params / 1e6 == pytest.approx(figures["params_m"], abs=0.06)


def test_the_published_countings_cover_every_dense_model_of_their_sources():
    assert Counter(counting for counting, _ in DENSE) == {"ptdeco": 9, "torch-dag": 14}


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_what_was_measured_is_of_a_model_of_the_catalog_and_its_structure_measures_the_same(path):
    measured = catalog.results(ENTRIES[path.stem])["measured"]
    entry = ENTRIES[path.stem]
    counts = measure((zoo.load if entry.recipe.method == "integer" else zoo.create)(path.stem))

    assert (measured["params"], measured["macs"]) == (counts.params, counts.macs)
    assert measured["kmapp"] == pytest.approx(counts.kmapp, abs=5e-5)


@every(ENTRIES)
def test_a_published_entry_is_pinned_to_a_commit(entry):
    assert entry.status != "published" or re.fullmatch("[0-9a-f]{40}", entry.revision)


@every(EMBEDDED)
def test_an_embedded_entry_has_a_repository_that_agrees_with_it(entry):
    folder = catalog.EMBEDDED / entry.name
    config = json.loads((folder / "config.json").read_text())
    recipe = json.loads(json.dumps(to_builtins(entry.recipe)))
    dense = dense_of(entry)

    assert entry.name == config["architecture"] == config["zoo"]["name"]
    assert json.loads(json.dumps(to_builtins(dense))) == config["zoo"]["base"]
    assert bool(entry.recipe.method) == bool(config["zoo"]["plan"] or "graph" in config["zoo"])
    assert list(entry.input) == config["pretrained_cfg"]["input_size"]
    made = {key: value for key, value in config["zoo"]["recipe"].items() if key not in ("base", "base_method")}
    assert made == {key: recipe[key] for key in made}
    assert all(key in config["zoo"]["recipe"] for key, value in recipe.items() if value)
    assert sha256(folder / "model.safetensors") == config["zoo"]["weights_sha256"]


@every(EMBEDDED)
def test_an_embedded_entry_has_a_card_and_a_measured_accuracy(entry):
    results = json.loads((catalog.EMBEDDED / entry.name / "results.json").read_text())

    assert entry.name == results["name"]
    assert entry.dataset == results["data"]["dataset"]
    assert 0.4 < results["measured"][task_named(entry.task).leading.figure] <= 1
    assert all(math.isfinite(figure) for figure in results["measured"].values())
    assert f"# {entry.name}" in (catalog.EMBEDDED / entry.name / "README.md").read_text().splitlines()


def test_the_paper_of_an_architecture_is_one_that_timm_s_own_file_names():
    known = [entry for entry in map(catalog.info, catalog.names(all=True)) if entry.base and "timm/" in entry.base.id]

    for entry in known:
        title, _, address = papers(entry)["architecture"].rpartition(", ")
        file = importlib.import_module(f"timm.models.{_model_to_module[entry.base.architecture]}").__doc__
        assert title in file
        assert address in file


@pytest.mark.parametrize(
    ("architecture", "known"),
    [
        ("resnetv2_50", False),
        ("resnetrs50", False),
        ("beitv2_base_patch16_224", False),
        ("beit3_base_patch16_224", False),
        ("efficientnetv2_rw_t", False),
        ("vitamin_small_224", False),
        ("resnet50d", True),
        ("resnetblur50", True),
        ("rexnetr_100", True),
        ("poolformerv2_s12", True),
        ("densenetblur121d", True),
        ("ecaresnetlight", True),
        ("vit_tiny_patch16_224", True),
    ],
)
def test_an_architecture_that_only_begins_like_another_has_not_its_paper(architecture, known):
    entry = structs.replace(catalog.info("digits_vit"), base=Base(f"timm/{architecture}"))
    assert ("architecture" in papers(entry)) == known


def test_a_paper_that_is_not_known_is_left_out():
    assert papers(catalog.info("mnist_int8")).keys() == {"method"}
    assert papers(catalog.info("digits_cnn")).keys() == {"architecture"}
