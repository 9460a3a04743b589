"""Making models: what `save` accepts, what `make` leaves and what `push` copies."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from msgspec import structs

import zoo
from zoo import catalog
from zoo.catalog.entry import Base, Budget, Entry, Recipe
from zoo.catalog.report import Report
from zoo.errors import (
    BudgetError,
    MissingExtra,
    RepositoryError,
    StructureError,
    UnknownName,
    WeightsError,
)
from zoo.pages.card import render
from zoo.structure.describing import describe
from zoo.verbs.beginning import NOTE, beside
from zoo.verbs.building import make

FILES = ["README.md", "config.json", "model.safetensors", "results.json"]
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "in_chans": 1}
BASE = Base("timm/resnet18", {**SMALL, "num_classes": 10})
DENSE = Entry(
    "small",
    "own",
    "small",
    "resnet18",
    "image-classification",
    "recipe",
    BASE,
    "apache-2.0",
    input=(1, 16, 16),
    recipe=Recipe(data="digits", schedule={"epochs": 0}),
)
ROUGH = {"images": 16, "criterion": "l2", "ridge": 1.0}
PRUNED = Entry(
    "vit_60",
    "own",
    "vit",
    "vit_tiny_patch16_224",
    "image-classification",
    "recipe",
    Base("digits_vit"),
    "apache-2.0",
    input=(1, 16, 16),
    recipe=Recipe("prune", Budget(0.6), data="digits", schedule={"epochs": 0}, options=ROUGH),
)


class Stopped(BaseException):
    """A build is stopped, as by Ctrl-C."""


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config(folder):
    return json.loads((folder / "config.json").read_text())


def outputs(model):
    channels, height, width = model.pretrained_cfg["input_size"]
    with torch.inference_mode():
        return model.eval()(torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0)))


def stop_at(step):
    """A listener that stops the build when a step begins."""

    def say(line):
        if line.startswith(step):
            raise Stopped

    return say


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The repository of `PRUNED`, and what was said while it was made."""
    lines = []
    return make(PRUNED, tmp_path_factory.mktemp("built") / "vit_60", say=lines.append), lines


# Saving.


@pytest.mark.parametrize(
    ("arguments", "args"),
    [({}, {}), ({"num_classes": 7}, {"num_classes": 7})],
    ids=["as it is", "another head"],
)
def test_a_plain_timm_model_is_saved_without_a_base(tmp_path, arguments, args):
    model = timm.create_model("mobilenetv3_small_050", **arguments)
    zoo.save(model, tmp_path / "model")
    loaded = zoo.load(tmp_path / "model")

    assert files(tmp_path / "model") == FILES
    assert loaded.zoo_entry.base.architecture == "mobilenetv3_small_050"
    assert loaded.zoo_entry.base.args == args
    assert torch.equal(outputs(loaded), outputs(model))


def test_a_model_made_with_arguments_is_saved_with_its_base(tmp_path):
    model = timm.create_model("resnet18", **SMALL, num_classes=10)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 16, 16), "mean": (0.5,), "std": (0.5,)}
    zoo.save(model, tmp_path / "model", base=BASE)

    assert torch.equal(outputs(zoo.load(tmp_path / "model")), outputs(model))


@pytest.mark.parametrize(
    ("base", "error", "message"),
    [
        ("timm/resnet18", WeightsError, "the plan expects"),
        ("timm/resnet34", WeightsError, "the plan expects"),
        ("timm/mobilenetv3_small_050", WeightsError, "the plan expects"),
        ("timm/resnet19", UnknownName, "has no architecture 'resnet19'"),
        ("resnet18", StructureError, "base 'resnet18' isn't known, expected timm/<architecture>"),
        (Base("timm/resnet18", {"depth": 3}), StructureError, "can't be built with {'depth': 3}"),
    ],
)
def test_a_base_that_is_not_the_models_is_refused_in_one_line_and_leaves_nothing(tmp_path, base, error, message):
    model = timm.create_model("resnet18", **SMALL, num_classes=10)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (1, 16, 16)}

    with pytest.raises(error, match=re.escape(message)) as caught:
        zoo.save(model, tmp_path / "new" / "model", base=base)
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_module_that_is_not_timms_needs_a_base(tmp_path):
    with pytest.raises(StructureError, match="pass base='timm/<architecture>'"):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "model")


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit_pruned_25"])
def test_an_embedded_model_keeps_name_plan_and_weights_when_saved_again(tmp_path, name):
    model = zoo.load(name)
    zoo.save(model, tmp_path / "again")
    saved, original = config(tmp_path / "again")["zoo"], config(catalog.EMBEDDED / name)["zoo"]

    for key in ("name", "base", "plan", "recipe", "weights_sha256", "fingerprint"):
        assert saved[key] == original[key]
    assert torch.equal(outputs(zoo.load(tmp_path / "again")), outputs(model))


def test_a_model_compressed_twice_is_saved_and_loaded_with_both_edits(tmp_path):
    images = [torch.randn(16, 1, 32, 32)]
    how = {"budget": 0.6, "data": images, "criterion": "l2", "ridge": 1.0}
    twice = zoo.compress(zoo.compress(zoo.load("digits_cnn"), **how), **how)
    zoo.save(twice, tmp_path / "twice")
    loaded = zoo.load(tmp_path / "twice")

    assert len(loaded.zoo_entry.plan.edits) == 2
    assert zoo.measure(loaded).macs <= 0.36 * zoo.measure(zoo.load("digits_cnn")).macs
    assert torch.equal(outputs(loaded), outputs(twice))


def test_saving_over_a_repository_replaces_it_and_over_anything_else_is_refused(tmp_path):
    zoo.save(zoo.load("digits_cnn"), tmp_path / "model")
    (tmp_path / "model" / "model.onnx").touch()
    zoo.save(zoo.load("digits_cnn_pruned_25"), tmp_path / "model")

    assert files(tmp_path / "model") == [*FILES, "widths.png"]
    assert config(tmp_path / "model")["zoo"]["name"] == "digits_cnn_pruned_25"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    with pytest.raises(RepositoryError, match="papers exists and isn't a model repository"):
        zoo.save(zoo.load("digits_cnn"), tmp_path / "papers")
    assert files(tmp_path / "papers") == ["thesis.tex"]


# Building.


def test_a_dense_entry_of_no_epochs_is_its_base_initialised_from_the_seed(tmp_path):
    folder = make(DENSE, tmp_path / "small")
    loaded = zoo.load(folder)
    with torch.random.fork_rng():
        torch.manual_seed(DENSE.recipe.seed)
        expected = timm.create_model("resnet18", **SMALL, num_classes=10)

    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.pretrained_cfg["input_size"] == [1, 16, 16]


def test_a_pruned_entry_of_no_epochs_is_what_compress_returns(pruned):
    folder, lines = pruned
    expected = zoo.compress(zoo.load("digits_vit"), budget=0.6, data="digits", **ROUGH)

    assert [line[:6] for line in lines[:-1]] == ["1 load", "2 eval", "dense:", "3 prun", "4 eval", "5 writ"]
    assert torch.equal(outputs(zoo.load(folder)), outputs(expected))
    assert config(folder)["zoo"]["recipe"] == {
        "method": "prune",
        "budget": {"macs": 0.6, "params": None},
        "options": ROUGH,
        "data": "digits",
        "schedule": {"epochs": 0},
        "base": "digits_vit",
    }
    assert files(folder.parent) == ["vit_60"]


def test_the_last_line_says_what_came_of_it_beside_the_dense_base(pruned):
    folder, lines = pruned
    dense = zoo.measure(zoo.load("digits_vit"))
    counts, measured = zoo.measure(zoo.load(folder)), json.loads((folder / "results.json").read_text())["measured"]
    top1 = json.loads((catalog.EMBEDDED / "digits_vit" / "results.json").read_text())["measured"]["top1"]

    assert lines[-1] == (
        f"macs {counts.macs:,} ({100 * counts.macs / dense.macs:.1f}% of {dense.macs:,}), "
        f"params {counts.params:,} ({100 * counts.params / dense.params:.1f}% of {dense.params:,}), "
        f"top1 {measured['top1']:.4f} (dense {top1:.4f}), "
        f"agreement {measured['agreement']:.4f}, kl {measured['kl']:.4f} nats"
    )


def test_the_card_holds_the_measured_figures_beside_those_of_the_dense_base(pruned):
    folder, _ = pruned
    card = (folder / "README.md").read_text()
    results = json.loads((folder / "results.json").read_text())["measured"]
    dense = json.loads((catalog.EMBEDDED / "digits_vit" / "results.json").read_text())["measured"]
    rows = {line.split()[1]: line for line in card.splitlines() if line.startswith("| ")}

    for row, figure in (("parameters", "params"), ("multiply-accumulates", "macs")):
        assert f"{results[figure]:,}" in rows[row]
        assert f"{dense[figure]:,}" in rows[row]
    assert f"{100 * results['top1']:.2f} %" in rows["top-1"]
    assert f"{100 * dense['top1']:.2f} %" in rows["top-1"]
    assert results["kl"] > 0
    assert zoo.verify(folder).passed


def test_what_a_kill_has_left_at_the_very_end_of_a_build_goes_when_it_is_asked_for_again(pruned, tmp_path):
    folder, lines = shutil.copytree(pruned[0], tmp_path / "vit_60"), []
    removed = tmp_path / ".vit_60.work.12345678.zoo-aside.folder"
    for half in (beside(folder) / "start", removed / "start"):
        half.mkdir(parents=True)
    (beside(folder) / NOTE).write_text("{}")
    removed.with_suffix("").touch()

    make(PRUNED, folder, say=lines.append)
    assert lines == [f"made already: {folder}"]
    assert files(tmp_path) == ["vit_60"]


@pytest.mark.parametrize("name", ["digits_vit_pruned_50", "digits_cnn_pruned_25", "digits_cnn_lowrank_50"])
def test_the_embedded_cards_say_what_saving_writes_today(name):
    """But for the versions and the machine, which are those of the day that they were built on."""
    folder, model = catalog.EMBEDDED / name, zoo.load(name)
    report = Report.from_json(json.loads((folder / "results.json").read_text()))
    base = Report.from_json(json.loads((folder.with_name(catalog.info(name).base.id) / "results.json").read_text()))

    card = render(catalog.info(name), describe(model), report, model.pretrained_cfg, base)
    assert (folder / "README.md").read_text() == card


@pytest.mark.parametrize("step", ["2", "4"])
def test_a_changed_recipe_starts_anew_wherever_the_former_was_stopped(tmp_path, step):
    def entry(budget):
        schedule = {"epochs": 1, "steps": 1}
        recipe = Recipe("prune", Budget(budget), data="digits[:64]", schedule=schedule, options=ROUGH)
        return structs.replace(PRUNED, recipe=recipe)

    with pytest.raises(Stopped):
        make(entry(0.9), tmp_path / "model", say=stop_at(step))
    assert not (tmp_path / "model").exists()
    make(entry(0.6), tmp_path / "model")

    assert zoo.measure(zoo.create(tmp_path / "model")).macs <= 0.6 * zoo.measure(zoo.create("digits_vit")).macs
    assert files(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"recipe": Recipe()}, UnknownName, "small: no data set is named"),
        ({"base": None, "note": "unreleased"}, UnknownName, "small: no base is named: it can"),
        (
            {"recipe": Recipe("magic", Budget(0.5), data="digits")},
            UnknownName,
            "no method 'magic': this version compresses by prune",
        ),
        ({"recipe": Recipe("prune", data="digits")}, BudgetError, "small: prune needs a budget"),
        ({"recipe": Recipe("falor", Budget(0.5), data="digits")}, BudgetError, "small: falor takes no budget"),
        (
            {"recipe": Recipe("falor", options={"data": "digits"}, data="digits")},
            UnknownName,
            "small: data is no option of falor",
        ),
        (
            {"recipe": Recipe("falor", options={"images": 2, "exclude": ["nowhere"]}, data="digits")},
            UnknownName,
            "falor: exclude names 'nowhere'",
        ),
        (
            {"recipe": Recipe("lockd", options={"schedule": {"epoch": 1}}, data="digits")},
            UnknownName,
            "lockd's schedule has no option 'epoch'",
        ),
        ({"recipe": Recipe(data="digits", schedule={"epoch": 1})}, UnknownName, "schedule has no option 'epoch'"),
        ({"recipe": Recipe(data="digits", distil={"beta": 1})}, UnknownName, "distil has no option 'beta'"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_and_leaves_nothing(tmp_path, change, error, message):
    entry = structs.replace(DENSE, **({"base": Base("digits_cnn")} if "recipe" in change else {}) | change)

    with pytest.raises(error, match=re.escape(message)):
        make(entry, tmp_path / "model")
    assert files(tmp_path) == []


def test_a_build_without_jinja2_goes_on_after_it_is_installed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "jinja2", None)
        with pytest.raises(MissingExtra, match=re.escape("pip install 'compressed-zoo[build]'")):
            make(DENSE, tmp_path / "small")
    assert not (tmp_path / "small").exists()
    make(DENSE, tmp_path / "small")

    assert files(tmp_path) == ["small"]


# Pushing.


def test_a_pushed_repository_is_a_whole_copy_and_is_replaced_when_pushed_again(tmp_path):
    for name in ("digits_cnn", "digits_cnn_pruned_25"):
        place = zoo.push(catalog.EMBEDDED / name, tmp_path / "hub" / "model")

        assert place == str(tmp_path / "hub" / "model")
        assert content(Path(place)) == content(catalog.EMBEDDED / name)
    assert files(tmp_path / "hub") == ["model"]


def test_altered_weights_are_not_pushed(tmp_path):
    zoo.push(catalog.EMBEDDED / "digits_cnn", tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")

    with pytest.raises(WeightsError, match=r"has sha256 .* expected"):
        zoo.push(tmp_path / "model", tmp_path / "hub" / "model")
    assert files(tmp_path) == ["model"]


def test_a_repository_without_weights_is_not_pushed(tmp_path):
    zoo.push(catalog.EMBEDDED / "digits_cnn", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()

    with pytest.raises(RepositoryError, match=r"has no model\.safetensors"):
        zoo.push(tmp_path / "model", tmp_path / "hub")
    assert files(tmp_path) == ["model"]
