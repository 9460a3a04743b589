"""Builders: one script per family, whose smoke test runs the very code of the real one."""

import ast
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import zoo
from builders import family
from builders.__main__ import FAMILIES, main
from builders.smoke import IMAGES, WARNING, stand_in
from zoo import catalog
from zoo.catalog.entry import Entry
from zoo.compression.low_rank import dwain, lockd
from zoo.errors import UnknownName
from zoo.tasks.classification.transforms import training_transform
from zoo.tasks.datasets import dataset
from zoo.training.distillation import Distil
from zoo.training.schedule import Machine, Schedule
from zoo.verbs import recipes
from zoo.verbs.compressing import declared
from zoo.verbs.training_costs import TrainingCost, cost, cost_of_learning

FOLDER = Path(family.__file__).parent
IMAGENET = [name for name in FAMILIES if name not in ("digits", "cifar_resnet20", "int8", "yolov8n")]
OTHERS = ("__init__", "__main__", "costs", "family", "jobs", "smoke", "magnitude_benchmark")  # no families
SCRIPTS = {path.stem: path for path in FOLDER.glob("*.py") if path.stem not in OTHERS}
MINI = """
[family]
architecture = "test_resnet"
task = "image-classification"
base = "timm/test_resnet.r160_in1k"
license = "apache-2.0"
dataset = "ILSVRC/imagenet-1k"
input = [3, 160, 160]
[family.recipe]
method = "prune"
data = "ILSVRC/imagenet-1k"
teachers = ["timm/test_resnet.r160_in1k", "timm/test_vit.r160_in1k"]
options = { round_to = 4 }
distil = { shares = [0.5, 0.5] }
schedule = { epochs = 200, batch_size = 1024, ema = 0.9 }
augment = { auto_augment = "rand-m7-mstd0.5-inc1" }
[[model]]
name = "test_resnet_pruned_60"
recipe = { budget = { macs = 0.6 } }
reported = [{ top1 = 0.5, input = 160, params_m = 0.3, kmapp = 3.0, counting = "torch-dag" }]
"""


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """The entry of a family whose architectures take seconds, beside a script that builds it."""
    (tmp_path / "catalog" / "torch-dag").mkdir(parents=True)
    (tmp_path / "catalog" / "torch-dag" / "mini.toml").write_text(MINI)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    monkeypatch.chdir(tmp_path)
    return catalog.info("test_resnet_pruned_60")


def documented(name):
    return ast.get_docstring(ast.parse(SCRIPTS[name].read_text()))


def entries(name, models=()):
    """The entries that a script would build, in its order."""
    found = []

    def collect(family_entries, run, *out):
        found.extend(family_entries)
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "build", collect)
        list(importlib.import_module(f"builders.{name}").build(family.Run(models=models)))
    return found


def test_every_family_of_the_catalog_that_can_be_built_has_one_script():
    assert set(FAMILIES) == SCRIPTS.keys()
    built = [entry.name for name in IMAGENET for entry in entries(name)]
    every = map(catalog.info, catalog.names(all=True))
    wanted = [e.name for e in every if e.project in ("torch-dag", "ptdeco") and e.task == "image-classification"]
    assert sorted(built) == sorted(wanted)
    assert sorted(entry.name for entry in entries("digits")) == sorted(
        catalog.names("digits_*") + catalog.names("scenes_*", all=True)
    )
    assert [entry.name for entry in entries("cifar_resnet20")] == ["cifar_resnet20_v1"]
    assert next(entry.name for entry in entries("yolov8n")) == "yolov8n"


def test_of_what_mrt_quantized_all_whose_weights_are_published_are_built_and_each_that_is_named():
    with_weights, every = (entries("int8", models) for models in ((), ("any",)))
    assert all(entry.base.source in ("timm", "torchvision") for entry in with_weights)
    assert (len(with_weights), len(every)) == (35, 64)
    assert [e for e in every if e not in with_weights] == [e for e in every if "no weights of it" in (e.note or "")]


@pytest.mark.parametrize("name", IMAGENET)
def test_a_script_opens_with_its_command_its_cost_and_the_figures_that_the_source_reports(name):
    text = documented(name)
    command, cost = re.search(r"^    accelerate launch -m builders (\S+) (.*)$", text, re.M).groups()
    assert command == name
    options = {option for param in main.params for option in param.opts}
    assert {word for word in cost.split() if word.startswith("--")} <= options
    assert re.search(
        r"^Cost: GPU hours \d+.* estimated, as none was run: .* assumed of\s+one\s+A100", text, re.M | re.S
    )
    figures = dict(re.findall(r"^    (\w+) +(\d\d\.\d\d) %$", text, re.M))
    expected = {
        e.name: f"{100 * next(r.figures['top1'] for r in e.reported if r.input == e.input[-1]):.2f}"
        for e in entries(name)
    }
    assert figures == expected


@pytest.mark.parametrize("name", IMAGENET)
def test_the_hours_of_a_script_follow_from_its_assumption_and_the_recipes(name):
    """At least as many as the students alone take, from the source's own kmapp."""
    text = re.sub(r"\s+", " ", documented(name))
    hours = [int(n) for n in re.search(r"GPU hours (\d+)(?: to (\d+))?", text).groups() if n]
    rate = 1e12 * float(re.search(r"at (\d+) TMACs a second", text)[1])
    for entry in entries(name):
        kmapp, side = next((r.figures["kmapp"], r.input) for r in entry.reported if "kmapp" in r.figures)
        macs = kmapp * 1000 * entry.input[-1] ** 2 / 2 if side else 0
        students = 3 * macs * 1_281_167 * entry.recipe.schedule["epochs"] / rate / 3600
        assert 0.95 * students < max(hours)
    assert "digits" in documented("digits")
    assert "Cost: no GPU hours" in documented("digits")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_has_no_numbers_of_its_own(name):
    source = SCRIPTS[name].read_text()
    assert 15 <= len(source.splitlines()) <= 80
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    assert not [value for value in constants if type(value) in (int, float) and value != 1]


@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_can_be_followed_and_says_what_of_it_is_ours(name):
    for entry in entries(name):
        recipe = entry.recipe
        declared(Schedule, recipe.schedule, "schedule")
        how = declared(Distil, recipe.distil, "distil")
        assert (how.shares is None) == (len(recipe.teachers) == 1)
        assert how.shares is None or len(how.shares) == len(recipe.teachers)
        assert "Unpublished, so ours:" in recipe.note
        assert ("HKD" in recipe.note) == (len(recipe.teachers) > 1 or entry.name.startswith("resnet50d_pruned_"))
        training_transform({"input_size": entry.input}, recipe.augment)


def test_a_smoke_test_compresses_distils_evaluates_saves_and_verifies_and_says_what_it_is(mini, tmp_path):
    lines = []
    run = family.Run(smoke=True, out=tmp_path / "out", say=lines.append)
    (folder,) = family.build([mini], run)

    model = zoo.load(folder)
    assert folder.name == model.zoo_entry.name == "test_resnet_pruned_60_smoke"
    assert model.zoo_entry.base.id == "timm/test_resnet.r160_in1k"
    dense = zoo.create("timm/test_resnet.r160_in1k")
    size = model.pretrained_cfg["input_size"]
    assert zoo.measure(model, size).macs <= 0.61 * zoo.measure(dense, size).macs
    card = (folder / "README.md").read_text()
    assert f"# test_resnet_pruned_60_smoke\n\n**{WARNING}**\n" in card
    results = json.loads((folder / "results.json").read_text())
    assert results["data"]["images"] == IMAGES
    assert results["data"]["dataset"] == f"noise[:{IMAGES}]"
    said = "\n".join(lines)
    order = ("1 load", "2 evaluate", "dense: ", "3 prune", "4 distil", "5 evaluate", "6 write", "params", "top1   ")
    assert [said.index(word) for word in order] == sorted(said.index(word) for word in order)
    assert re.search(r"2 steps of 4 images, GMACs of one: .* forward, .* backward, .* of the teachers", said)
    assert re.search(r"images/s here, the loader alone", said)

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    lines.clear()
    assert [folder] == list(family.build([mini], run))
    assert f"made already: {folder}" in lines
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert after["README.md"].count(WARNING.encode()) == before["README.md"].count(WARNING.encode())


def test_only_plans_are_written_when_only_plans_are_asked_for(mini, tmp_path):
    lines = []
    run = family.Run(smoke=True, plan_only=True, out=tmp_path / "out", say=lines.append)
    (file,) = family.build([mini], run)

    plan = json.loads(file.read_text())
    assert plan["base"]["id"] == "timm/test_resnet.r160_in1k"
    assert plan["plan"]
    said = "\n".join(lines)
    assert "3 distil" not in said
    assert re.search(r"^then: distil from .* 2 steps of 4 images, GMACs of one: .* about \d+ s$", said, re.M)
    kept = zoo.create(tmp_path / "out" / "test_resnet_pruned_60_smoke.work" / "start")
    counts = zoo.measure(kept, (3, 160, 160))
    assert re.search(rf"params_m +reported +0\.3 +measured +{counts.params / 1e6:.6g}", said)
    assert re.search(r"kmapp \(torch-dag\) +reported +3 +measured", said)
    assert f"{counts.macs / 1e6:,.6g}" in said


def test_a_smoke_test_keeps_depth_and_widths_and_makes_images_small_where_it_can(mini, tmp_path):
    small = stand_in(mini, tmp_path / "small")
    assert small.input == (3, 64, 64)
    whole = stand_in(mini, tmp_path / "whole", small=False)
    assert whole.input == (3, 160, 160)
    for entry in (small, whole):
        base = zoo.load(entry.base.id)
        expected = zoo.create("timm/test_resnet.r160_in1k").state_dict()
        assert {k: v.shape for k, v in base.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert small.origin is small.repo is small.revision is None


def test_a_smoke_test_of_a_network_with_ten_classes_sees_ten(tmp_path):
    (entry,) = entries("cifar_resnet20")

    assert stand_in(entry, tmp_path).recipe.data == f"digits[:{IMAGES}]"


def test_a_model_that_the_family_lacks_is_named():
    with pytest.raises(
        UnknownName, match=r"no model 'resnet51d' here, there are: resnet50d_lockd_nt005, resnet50d_pruned_"
    ):
        list(importlib.import_module("builders.resnet50d").build(family.Run(models=("resnet51d",))))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "Build the family or file NAME, or some MODELs of it"),
        (["yolov9"], 2, "'yolov9' is not one of 'digits'"),
        (["resnet50d", "resnet51d"], 1, "Error: no model 'resnet51d' here"),
        (["resnet50d", "--smoke", "--push", "org"], 2, "--push publishes models that were made"),
        (["resnet50d", "--smoke", "--steps", "5"], 2, "--steps is of the real recipes"),
        (["resnet50d", "--precision", "fp8"], 2, "'fp8' is not one of"),
    ],
)
def test_the_command_line_answers_in_one_line(arguments, code, said):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code
    assert said in result.output


def test_help_names_every_option_and_every_family():
    text = CliRunner().invoke(main, ["--help"]).output
    for word in (
        *FAMILIES,
        "--data",
        "--steps",
        "--push",
        "--out",
        "--smoke",
        "--plan-only",
        "--precision",
        "--workers",
    ):
        assert word in text


def test_a_cost_is_counted_by_hand():
    cost = TrainingCost(steps=10, batch_size=32, forward=1000, teachers=500, images_per_s=4.0, loaded_per_s=2.0)
    assert cost.macs == 10 * 32 * (1000 + 2000 + 500)
    assert cost.seconds == 10 * 32 / 2
    assert str(cost).endswith("the loader alone 2: about 160 s")
    assert str(replace(cost, compiled=True)).endswith("about 160 s, without torch.compile and its warm-up")


def test_a_costs_macs_are_those_that_measure_counts(mini):
    torch.manual_seed(0)
    model = zoo.create("timm/test_resnet.r160_in1k")
    data, how = dataset("noise[:8]", "train"), Distil(shares=(0.25, 0.75))
    teachers = [zoo.create(f"timm/{name}.r160_in1k") for name in ("test_resnet", "test_vit")]
    for each in (model, *teachers):
        each.pretrained_cfg = {**zoo.create("digits_cnn").pretrained_cfg, **PIXELS}
    transform = training_transform(model.pretrained_cfg, {})
    found = cost(model, teachers, data, transform, Schedule(3, batch_size=4), how=how)
    small, large = (zoo.measure(teacher).macs for teacher in teachers)
    assert found.steps == 3 * 2
    assert found.forward == zoo.measure(model).macs
    assert found.teachers == round(0.25 * small + 0.75 * large)
    assert 0 < found.images_per_s < 1e6
    assert 0 < found.loaded_per_s < 1e6


PIXELS = {"input_size": (3, 160, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3, "fixed_input_size": True}


def test_a_folder_of_another_recipe_is_not_taken_for_made(mini, tmp_path):
    assert isinstance(mini, Entry)
    assert not recipes.is_built(mini, tmp_path / "nowhere")
    zoo.save(zoo.load("digits_cnn"), tmp_path / "model")
    assert not recipes.is_built(mini, tmp_path / "model")


def macs_of_pairs(model, side):
    """Of the full-rank pair of each plain layer, from the sizes that its call sees."""
    counted = []

    def count(layer, args, y):
        m, n = layer.weight.shape[:2]
        r, positions = min(m, n), (args[0].numel() // n, y.numel() // m)
        counted.append(r * (n * positions[0] + m * layer.weight[0, 0].numel() * positions[1]))

    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) or (isinstance(layer, torch.nn.Conv2d) and layer.groups == 1):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 3, side, side))
    return sum(counted)


def test_the_cost_of_learning_is_that_of_the_pairs_and_of_a_training_for_each_layer(mini):
    model = zoo.create("timm/test_resnet.r160_in1k")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data, transform = dataset("noise[:8]", "train"), training_transform(model.pretrained_cfg, {})
    schedule, machine = Schedule(3, batch_size=4), Machine(compile=True, workers=0)
    random = torch.get_rng_state()
    of_pairs = cost_of_learning(model, lockd.trained, lockd.Lockd(), data, transform, schedule, machine=machine)
    of_layers = cost_of_learning(model, dwain.trained, dwain.Dwain(), data, transform, schedule, machine=machine)
    dense = zoo.measure(model).macs
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    pairs = macs_of_pairs(zoo.create("timm/test_resnet.r160_in1k"), 64)
    assert (of_pairs.steps, of_pairs.batch_size, of_pairs.forward, of_pairs.teachers) == (6, 4, pairs, dense)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    points = sum(m.weight[0, 0].numel() == 1 and getattr(m, "groups", 1) == 1 for m in layers)
    assert (of_layers.steps, of_layers.forward, of_layers.teachers) == (6 * points, dense, 0)
    for found in (of_pairs, of_layers):
        assert found.images_per_s > 0
        assert found.compiled
