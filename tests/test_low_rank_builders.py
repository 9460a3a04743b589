"""Decomposed models are built: by the catalog's recipes, by the command line, and after a stop as if there was none."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

import zoo
from builders import family
from zoo import catalog
from zoo.catalog.entry import Base, Budget
from zoo.cli import main
from zoo.compression.low_rank import falor, lockd
from zoo.errors import DataError
from zoo.measurement.conventions import COUNTINGS
from zoo.measurement.divergence import symmetric_kl
from zoo.structure.base import initialised, skeleton
from zoo.structure.description import Description
from zoo.structure.plan import Factor, Plan, Rank, apply_
from zoo.tasks.classification.transforms import training_transform
from zoo.training.distillation import Distil
from zoo.training.losses import distillation
from zoo.training.schedule import Schedule, learning_rate
from zoo.verbs import beginning, building, recipes
from zoo.verbs.compressing import declared

PTDECO = [e for e in map(catalog.info, catalog.names(all=True)) if e.project == "ptdeco"]
# Architecture → what makes it cheap: few and narrow blocks, and small images.
FEW = {"depths": [1, 1, 1, 1], "num_classes": 10}
PUBLISHED = {
    **dict.fromkeys(["convnext_femto", "convnextv2_nano"], (FEW | {"dims": [16, 24, 32, 48]}, 32)),
    "rexnetr_200": ({"depth_mult": 0.3, "initial_chs": 8, "final_chs": 24, "num_classes": 10}, 32),
    "efficientformerv2_s2": (FEW | {"embed_dims": [16, 24, 32, 48], "img_size": 64, "num_vit": 1}, 64),
    "mobilevitv2_200": ({"num_classes": 10}, 32),
    "swinv2_cr_tiny_ns_224": (FEW | {"embed_dim": 24, "img_size": 64, "window_size": 2}, 64),
    "deit3_small_patch16_224": ({"depth": 2, "img_size": 64, "embed_dim": 96, "num_heads": 3, "num_classes": 10}, 64),
    "resnet18": ({"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 48], "num_classes": 10}, 32),
    "resnet50d": ({"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "num_classes": 10}, 32),
}
NARROW = {"mobilevitv2_200": "mobilevitv2_050"}  # which differ in a factor for the widths alone, that isn't an argument
LOAD = """
import sys, torch, zoo
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(sys.argv[1]))
for folder in sys.argv[2:]:
    with torch.inference_mode():
        save_file({"y": zoo.load(folder)(load_file(folder + ".x")["x"])}, folder + ".y")
"""
SHAPES = [("attn.qkv", 1152, 384), ("attn.proj", 384, 384), ("mlp.fc1", 1536, 384), ("mlp.fc2", 384, 1536)]
SHORT = {"epochs": 1, "steps": 3, "batch_size": 16, "checkpoint_seconds": 0}
# Method → options with which it decomposes the digits' ViT in a second.
QUICK = {
    "falor": {"nsr_final_threshold": 0.5, "kl_final_threshold": 0.5, "images": 32},
    "lockd": {"initial_logit": 0.05, "start_steps": 1, "images": 16, "schedule": {**SHORT, "lr": 0.1}},
    "dwain": {"max_accepted_ppl_diff": 9.0, "trade_off_factor": 99.0, "min_rank": 8, "images": 16, "schedule": SHORT},
}
DENSE = ["patch_embed.proj", "head", "blocks.3.attn.qkv", *(f"blocks.{i}.{p}" for i in range(3) for p, *_ in SHAPES)]
QUICKER = {method: {**options, "exclude": DENSE} for method, options in QUICK.items()}
ROUGH = {"prune": {"images": 16, "criterion": "l2", "ridge": 1.0}, "low_rank": {"images": 16}}
MINI = """
[family]
architecture = "test_resnet"
task = "image-classification"
base = "timm/test_resnet.r160_in1k"
license = "apache-2.0"
dataset = "ILSVRC/imagenet-1k"
input = [3, 160, 160]
[family.recipe]
data = "ILSVRC/imagenet-1k"
teachers = ["timm/test_resnet.r160_in1k"]
distil = { alpha = 1.0, temperature = 1.0, divergence = "symmetric" }
schedule = { epochs = 200, batch_size = 1024 }
[[model]]
name = "test_resnet_lockd"
recipe = { method = "lockd", options = { nsr_threshold = 0.1, schedule = { warmup = 0.0 } } }
reported = [{ top1 = 0.5, input = 160, params_m = 0.3, kmapp = 3.0, counting = "ptdeco" }]
[[model]]
name = "test_resnet_falor"
recipe = { method = "falor", options = { nsr_final_threshold = 0.045 } }
reported = [{ top1 = 0.5, input = 160, params_m = 0.3, kmapp = 3.0, counting = "ptdeco" }]
"""


class Stopped(BaseException):
    """A build is stopped, as by a kill."""


def outputs_in_another_process(folders):
    """What models give for the images in `<folder>.x`, loaded where nothing else was done."""
    threads = str(torch.get_num_threads())  # or sums would round otherwise
    done = subprocess.run([sys.executable, "-c", LOAD, threads, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [load_file(f"{folder}.y")["y"] for folder in folders]


def saved(model, folder, images):
    """Save a model, and images beside it; what it gives for them."""
    zoo.save(model, folder)
    save_file({"x": images}, f"{folder}.x")
    with torch.inference_mode():
        return model(images)


def factors(model):
    return {path: rank for edit in model.zoo_entry.plan.edits for path, rank in getattr(edit, "layers", {}).items()}


# The published models.


def random_base(name):
    """The architecture with random weights, none of which hides a branch."""
    args, side = PUBLISHED[name]
    base = Base(f"timm/{NARROW.get(name, name)}", args)
    model = initialised(base, 0).eval()
    for path, weight in model.named_parameters():
        if path.endswith("weight") and not weight.any():
            torch.nn.init.ones_(weight)
    model.zoo_entry = Description(name, base)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side)}
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return model, images


@pytest.fixture(scope="module")
def both():
    """A model that is pruned and then decomposed, and images."""
    images = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    pruned = zoo.compress(zoo.load("digits_vit"), budget=0.7, data=[images], criterion="l2", ridge=1.0)
    return zoo.compress(pruned, budget=0.7, data=[images], method="low_rank"), images


def test_every_published_architecture_is_among_those_that_are_tried():
    assert PUBLISHED.keys() == {entry.architecture for entry in PTDECO}


def test_every_published_architecture_is_decomposed_and_loads_elsewhere_without_a_difference(tmp_path, both):
    expected = {tmp_path / "both": saved(both[0], tmp_path / "both", both[1])}
    for name in PUBLISHED:
        model, images = random_base(name)
        smaller = zoo.compress(model, budget=0.65, data=[images], method="low_rank")
        counts, dense = (zoo.measure(each, images.shape[1:]) for each in (smaller, model))
        assert 0.6 < counts.macs / dense.macs <= 0.65, name
        assert factors(smaller), name
        expected[tmp_path / name] = saved(smaller, tmp_path / name, images)
    found = outputs_in_another_process(expected)
    differences = {n.name: float((y - z).abs().max()) for (n, y), z in zip(expected.items(), found, strict=True)}
    assert differences == dict.fromkeys(["both", *PUBLISHED], 0.0)


def test_a_model_that_is_pruned_and_then_decomposed_is_one_plan(tmp_path, both):
    loaded = zoo.load(zoo.save(both[0], tmp_path / "both"))
    assert loaded.zoo_entry.name == "digits_vit_pruned_70_lowrank_70"
    assert [edit.edit for edit in loaded.zoo_entry.plan.edits] == ["narrow", "factor"]
    assert zoo.measure(loaded).macs <= 0.49 * zoo.measure(zoo.create("digits_vit")).macs


@pytest.mark.parametrize(
    ("name", "saved_m", "kmapp"),
    [("deit3_small_patch16_224_lockd_nt010", 7.53, 57.74), ("deit3_small_patch16_224_falor_nft005", 7.55, 57.89)],
)
def test_params_and_kmapp_that_a_decomposed_transformer_saves_agree_with_the_closed_form(name, saved_m, kmapp):
    """A Linear of p params works on T = 197 tokens: Δkmapp = Δparams·2T/(H·W·1024), as the source's rows have it."""
    entry = catalog.info(name)
    (row,), (baseline,) = entry.reported, entry.baselines
    assert baseline.figures["params_m"] - row.figures["params_m"] == pytest.approx(saved_m)
    assert baseline.figures["kmapp"] - row.figures["kmapp"] == pytest.approx(kmapp, abs=0.04)  # of two decimals each

    dense, smaller = (skeleton(entry.base) for _ in range(2))
    # Ranks that free so many params: all blocks alike, (m + n)·k of m·n stay.
    ranks = {"attn.qkv": 176, "attn.proj": 133, "mlp.fc1": 200, "mlp.fc2": 200}
    layers = {f"blocks.{i}.{path}": Rank(k) for i in range(12) for path, k in ranks.items()}
    apply_(smaller, Plan((Factor(layers),)))
    freed = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in smaller.parameters())
    assert freed == sum(m * n - (m + n) * ranks[p] for p, m, n in SHAPES) * 12
    assert freed == pytest.approx(1e6 * saved_m, rel=0.01)
    found = COUNTINGS["ptdeco"](dense, entry.input) - COUNTINGS["ptdeco"](smaller, entry.input)
    assert found == pytest.approx(freed * 2 * 197 / (224 * 224 * 1024), rel=1e-9)
    assert found * 1e6 * saved_m / freed == pytest.approx(kmapp, abs=0.01)


@pytest.mark.parametrize("entry", PTDECO, ids=lambda entry: entry.name)
def test_a_published_recipe_says_what_the_source_does(entry):
    recipe = entry.recipe
    assert recipe.budget is None
    own = {key: value for key, value in recipe.options.items() if key != "schedule"}
    kind = {"lockd": lockd.Lockd, "falor": falor.Falor}[recipe.method]
    how = declared(kind, own, recipe.method)
    modules = dict(skeleton(entry.base).named_modules())
    assert set(how.exclude) <= modules.keys()
    assert all(isinstance(modules[path], torch.nn.Linear | torch.nn.Conv2d) for path in how.exclude)

    learns = declared(Distil, recipe.distil, "distil")
    assert (learns.alpha, learns.temperature, learns.divergence) == (1.0, 1.0, "symmetric")
    assert recipe.teachers == (entry.base.id,)
    schedule = declared(Schedule, recipe.schedule, "schedule")
    warm = [learning_rate(schedule, epoch, 200) for epoch in range(200)].index(schedule.lr) + 1
    assert (schedule.epochs, warm, schedule.weight_decay, schedule.clip) == (200, 5, 0.0, 0.0)

    side = entry.input[-1]
    assert round(side / entry.preprocessing["crop_pct"]) == 256
    assert entry.preprocessing["interpolation"] == "bicubic"
    scaled = entry.architecture == "mobilevitv2_200"
    assert (entry.preprocessing["mean"] == (0.0, 0.0, 0.0)) == (entry.preprocessing["std"] == (1.0, 1.0, 1.0)) == scaled
    assert dict(recipe.augment) == {"scale": [0.1, 1.0], "ratio": [0.8, 1.25], "hflip": 0.5, "color_jitter": 0.0}
    training_transform({"input_size": entry.input, **entry.preprocessing}, recipe.augment)


# The source's loss.


def test_the_sources_loss_is_the_larger_divergence_of_each_image_and_no_cross_entropy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 5)) * 3
    for temperature in (1.0, 2.0):
        p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum(1, keepdims=True) for z in (teacher, student))
        each = np.maximum((p * np.log(p / q)).sum(1), (q * np.log(q / p)).sum(1))
        for labels in (torch.zeros(6, dtype=torch.int64), torch.arange(6) % 5):
            found = distillation(*map(torch.tensor, (student, teacher)), labels, 1.0, temperature, "symmetric")
            assert float(found) == pytest.approx(temperature**2 * each.mean(), rel=1e-9)
    assert (each > (p * np.log(p / q)).sum(1)).any() or (each > (q * np.log(q / p)).sum(1)).any()


def test_the_gradient_of_the_sources_loss_is_finite_for_saturated_logits_and_zero_at_the_teacher():
    student = torch.tensor([[0.0, 400.0], [1.0, 2.0]], requires_grad=True)
    symmetric_kl(student, torch.tensor([[400.0, 0.0], [1.0, 2.0]])).mean().backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad[0].abs().sum() > 0
    assert student.grad[1].abs().max() < 1e-6


def test_a_divergence_that_is_not_there_is_named():
    with pytest.raises(DataError, match="divergence is 'reverse', expected kl or symmetric"):
        Distil(divergence="reverse")


# Building by thresholds.


@pytest.mark.parametrize("method", [*ROUGH, *QUICK])
def test_a_recipe_is_named_as_what_compress_returns(method):
    budget = None if method in QUICK else Budget(0.6)
    options = {**QUICKER, **ROUGH}[method]
    made = zoo.compress(zoo.load("digits_vit"), budget=budget, data="digits", method=method, **options)
    entry = recipes.recipe_for("digits_vit", method, budget, "digits", 0, options)
    assert entry.name == made.zoo_entry.name


@pytest.mark.parametrize("method", QUICK)
def test_a_build_that_is_killed_while_it_compresses_ends_as_if_it_was_not(tmp_path, monkeypatch, method):
    entry = recipes.recipe_for("digits_vit", method, None, "digits[:64]", 0, QUICKER[method])
    rename, writes = os.replace, []

    def replaced(source, target):
        rename(source, target)
        if str(target).endswith(f"/{beginning.STATE}"):
            writes.append(target)
            if len(writes) == stop:
                raise Stopped

    monkeypatch.setattr("zoo.files.os.replace", replaced)
    stop = None
    whole = building.make(entry, tmp_path / "whole")
    steps = len(writes)
    assert steps >= 3
    writes.clear()
    stop = 2
    with pytest.raises(Stopped):
        building.make(entry, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    stop = None
    building.make(entry, tmp_path / "model")

    assert len(writes) == steps
    assert factors(zoo.load(whole))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "whole"]
    recipe = json.loads((whole / "config.json").read_text())["zoo"]["recipe"]
    expected = {"base": "digits_vit", "method": method, "options": QUICKER[method], "data": "digits[:64]"}
    assert recipe == {**expected, "schedule": {"epochs": 0}}


@pytest.fixture
def run(capsys):
    """The command line in this process: (exit code, the last line of stdout, stderr)."""

    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return end.value.code, out.strip(), err

    return command


def test_the_command_compresses_by_thresholds_without_a_budget(run, tmp_path):
    settings = [f"{key}={json.dumps(value)}" for key, value in QUICKER["falor"].items()]
    code, out, _ = run(
        *("compress", "digits_vit", "--method", "falor", "--data", "digits", "--out", str(tmp_path / "out")),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert (code, out) == (0, str(tmp_path / "out"))
    model = zoo.load(tmp_path / "out")
    assert model.zoo_entry.name == "digits_vit_falor"
    assert "layers" in (tmp_path / "out" / "README.md").read_text()
    assert zoo.measure(model).params < zoo.measure(zoo.create("digits_vit")).params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "falor", "--budget", "0.5"], "--method falor has thresholds, which --set sets, and takes no"),
        (["--method", "lockd", "--params", "0.5"], "--method lockd has thresholds, which --set sets, and takes no"),
        (["--method", "low_rank"], "--method low_rank needs --budget SHARE"),
        (["--params", "0.5"], "--method prune needs --budget SHARE"),
    ],
)
def test_a_budget_in_the_wrong_place_is_a_mistake_in_usage(run, tmp_path, arguments, said):
    code, _, err = run("compress", "digits_vit", *arguments, "--data", "digits", "--out", str(tmp_path / "out"))
    assert code == 2
    assert said in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


# Builders.


@pytest.fixture
def mini(tmp_path, monkeypatch):
    """A family whose architecture takes seconds."""
    (tmp_path / "catalog" / "ptdeco").mkdir(parents=True)
    (tmp_path / "catalog" / "ptdeco" / "mini.toml").write_text(MINI)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    monkeypatch.chdir(tmp_path)
    return family.entries("mini")


def test_a_smoke_test_of_a_decomposed_family_builds_what_loads(mini, tmp_path):
    lines = []
    run = family.Run(models=("test_resnet_lockd",), smoke=True, out=tmp_path / "out", say=lines.append)
    (folder,) = family.build(mini, run)

    assert folder.name == "test_resnet_lockd_smoke"
    said = [line[:5] for line in lines]
    assert [line for line in said if line[0].isdigit()] == ["1 loa", "2 eva", "3 loc", "4 dis", "5 eva", "6 wri"]
    assert factors(zoo.load(folder))
    assert zoo.measure(zoo.load(folder)).params < zoo.measure(zoo.create("timm/test_resnet.r160_in1k")).params


def test_the_plan_of_a_factored_model_is_written_beside_what_the_source_reports(mini, tmp_path):
    lines = []
    run = family.Run(models=("test_resnet_falor",), smoke=True, plan_only=True, out=tmp_path / "out", say=lines.append)
    (file,) = family.build(mini, run)

    plan = json.loads(file.read_text())
    assert [edit["edit"] for edit in plan["plan"]] == ["factor"]
    kept = zoo.create(tmp_path / "out" / "test_resnet_falor_smoke.work" / "start")
    counted = COUNTINGS["ptdeco"](kept, (3, 160, 160))
    said = "\n".join(lines)
    assert f"{counted:,.6g}" in next(line for line in lines[-1].splitlines() if "kmapp (ptdeco)" in line)
    assert f"{zoo.measure(kept).params / 1e6:,.6g}" in said
    assert "3 distil" not in said


@pytest.mark.parametrize("method", ["lockd", "dwain"])
def test_of_a_plan_that_must_be_learned_only_the_costs_are_said(mini, tmp_path, monkeypatch, method):
    monkeypatch.setattr("zoo.compression.low_rank.lockd.train", lambda *args, **named: pytest.fail("training"))
    monkeypatch.setattr("zoo.compression.low_rank.dwain.train", lambda *args, **named: pytest.fail("training"))
    (entry,) = (entry for entry in mini if entry.name == "test_resnet_lockd")
    options = {} if method == "dwain" else entry.recipe.options
    entry = replace(entry, recipe=replace(entry.recipe, method=method, options=options))
    lines = []
    run = family.Run(smoke=True, plan_only=True, out=tmp_path / "out", say=lines.append)
    assert list(family.build([entry], run)) == []

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stand-ins"]
    dense = zoo.measure(zoo.create("timm/test_resnet.r160_in1k"), (3, 160, 160)).macs
    learns, then = lines[-2:]
    assert re.match(rf"{method}: (at most )?[\d,]+ steps of 4 images, GMACs of one: ", learns)
    assert learns.endswith("; it learns the plan, which isn't known before")
    assert then.startswith("then, at most: distil from ")
    assert f"{dense / 1e9:.3g} forward" in then


def test_a_script_builds_both_projects_models_of_its_architecture_and_those_named_alone(monkeypatch):
    every = {entry.name: entry.project for entry in family.entries("deit3_small_patch16_224")}
    assert sorted(every.values()) == ["ptdeco"] * 2 + ["torch-dag"] * 3
    made = []
    monkeypatch.setattr(family, "one", lambda entry, run, out: made.append(entry.name))
    chosen = ("deit3_small_patch16_224_falor_nft005", "deit3_small_patch16_224_pruned_47")
    list(family.build(family.entries("deit3_small_patch16_224"), family.Run(models=chosen)))
    assert made == list(chosen)
