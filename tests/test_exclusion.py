"""What is excluded stays whole: names, patterns and words mean the same to every method."""

import json

import datasets
import pytest
import torch
from click.testing import CliRunner
from conftest import CNN
from PIL import Image
from torch import nn

import zoo
from zoo.cli import cli
from zoo.compression.exclusion import excluded
from zoo.compression.low_rank.factorable import chosen
from zoo.errors import BudgetError, UnknownName
from zoo.structure.description import Description
from zoo.structure.plan import Factor


def images(size, count=24):
    return list(torch.randn(2, count // 2, 3, size, size, generator=torch.Generator().manual_seed(0)))


def labelled(size, count=24):
    """Return noise with the classes of the model, for a method that trains."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    kind = datasets.ClassLabel(names=[str(number) for number in range(5)])
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    rows = {"image": [Image.fromarray(each.numpy()) for each in pixels], "label": [n % 5 for n in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


SHORT = {"epochs": 1, "steps": 2, "batch_size": 8}
LOOSE = {
    "prune": lambda: {"budget": 0.95, "data": images(32)},
    "low_rank": lambda: {"budget": 0.95, "data": images(32)},
    "falor": lambda: {"nsr_final_threshold": 9.0, "kl_final_threshold": 9.0, "data": images(32)},
    "lockd": lambda: {"initial_logit": 0.05, "start_steps": 1, "schedule": {**SHORT, "lr": 0.1}, "data": labelled(32)},
    "dwain": lambda: {
        "max_accepted_ppl_diff": 9.0,
        "trade_off_factor": 99.0,
        "min_rank": 2,
        "schedule": SHORT,
        "data": labelled(32),
    },
}

LAYERS = ["stem.conv", "stages.0.conv1", "stages.0.conv2", "stages.1.conv1", "head.fc"]
PATTERNS = {
    "a layer": ("stages.0.conv1", ["stages.0.conv1"]),
    "a module and what it holds": (["stages.0"], ["stages.0.conv1", "stages.0.conv2"]),
    "a pattern, whose star passes dots": (["stages.*conv1"], ["stages.0.conv1", "stages.1.conv1"]),
    "several": (["stages.1.*", "stages.0.conv2"], ["stages.0.conv2", "stages.1.conv1"]),
    "what classifies": (["head"], ["head.fc"]),
    "what reads the image": ("stem", ["stem.conv"]),
    "nothing": ((), []),
}


def tree():
    """Return a model with a stem, two stages and a head."""
    model = nn.ModuleDict({"stem": nn.ModuleDict({"conv": nn.Conv2d(3, 4, 1)}), "stages": nn.ModuleDict()})
    model["stages"]["0"] = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1), "conv2": nn.Conv2d(4, 4, 1)})
    model["stages"]["1"] = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1)})
    model["head"] = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    model["act"] = nn.ReLU()
    return model


@pytest.mark.parametrize("what", PATTERNS)
def test_names_patterns_and_words_stand_for_layers(what):
    patterns, expected = PATTERNS[what]
    assert chosen(tree(), LAYERS, patterns, (), "falor") == [path for path in LAYERS if path not in expected]
    assert chosen(tree(), LAYERS, (), patterns, "falor") == (expected if patterns else LAYERS)


def test_of_both_what_only_names_and_exclude_does_not_may_change():
    assert chosen(tree(), LAYERS, "*conv1", "stages", "falor") == ["stages.0.conv2"]
    assert chosen(tree(), LAYERS, "stages", "stages.0", "falor") == []


@pytest.mark.parametrize(("word", "name", "otherwise"), [("head", "classifier", "2"), ("stem", "first_conv", "0")])
def test_words_mean_what_the_configuration_says_else_the_last_and_the_first_layer(word, name, otherwise):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert {path.partition(".")[0] for path in excluded(model, [word], (), "prune")} == {otherwise}
    model.pretrained_cfg = {name: ("0", "2")}
    assert {path.partition(".")[0] for path in excluded(model, [word], (), "prune")} == {"0", "2"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("act", "names 'act', but the model has no such layer"),  # it has nothing that could change
        ("layer1.*", "names 'layer1.*', but the model has no such layer; head and stem are words for some"),
        ("stages.3.conv1", "no such layer; near it are stages.1.conv1, stages.0.conv1, "),
        ("stage.*", "no such layer; near it are stages, stages.1, stages.0, and head and stem are words for some"),
    ],
)
def test_what_means_no_layer_is_refused_with_the_nearest_names(pattern, message):
    for exclude, only in ((pattern, ()), ((), [pattern])):
        with pytest.raises(UnknownName, match=f"^prune: {'exclude' if exclude else 'only'} names ") as caught:
            excluded(tree(), exclude, only, "prune")
        assert message in str(caught.value)


WHOLE = [
    {"exclude": ["layer2.*"]},
    {"exclude": "layer1.0.conv2"},
    {"exclude": ["head", "stem"]},
    {"only": ["layer[14].*", "layer2"], "exclude": "layer2.*conv2"},
]


@pytest.mark.parametrize("patterns", WHOLE, ids=str)
@pytest.mark.parametrize("method", ["prune", "low_rank", "falor", "lockd", "dwain"])
def test_no_excluded_layer_changes_its_shape_and_others_do(method, patterns, cnn):
    """Layers of `layer1` and the stem write into one residual stream, so all of them stay whole together."""
    cnn.zoo_entry = Description("cnn", CNN)
    smaller = zoo.compress(cnn, method=method, **patterns, **LOOSE[method]())
    before, after = cnn.state_dict(), smaller.state_dict()
    whole = excluded(cnn, patterns.get("exclude", ()), patterns.get("only", ()), method)
    assert whole
    assert all(after[path].shape == before[path].shape for path in whole)
    assert any(path not in before or after[path].shape != before[path].shape for path in after)
    edits = smaller.zoo_entry.plan.edits
    assert not {f"{path}.weight" for edit in edits if isinstance(edit, Factor) for path in edit.layers} & set(whole)


def test_where_nothing_that_may_change_can_be_fitted_it_is_cut_alone():
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2), nn.Flatten(), nn.Linear(1800, 4)]
    model = nn.Sequential(*layers).eval()
    smaller = zoo.compress(model, budget=0.7, data=images(16), example=(3, 16, 16), only=["0", "2"])
    shapes = {path: tuple(tensor.shape[:2]) for path, tensor in smaller.state_dict().items() if "weight" in path}
    assert shapes["0.weight"][0] == shapes["2.weight"][0] < 16
    assert (shapes["2.weight"][1], shapes["4.weight"]) == (8, (4, 1800))


def test_where_only_names_too_little_to_be_cut_it_is_said_what_goes_with_it(cnn):
    cnn.zoo_entry = Description("cnn", CNN)
    with pytest.raises(BudgetError, match=r"no channels that can be cut were found; what reads a layer's channels cha"):
        zoo.compress(cnn, budget=0.9, data=images(32), only="layer1.0.conv1")


def test_layers_are_excluded_on_the_command_line(tmp_path):
    arguments = ["compress", "digits_cnn", "--budget", "0.8", "--data", "digits", "--epochs", "0", "--out"]
    settings = ["--exclude", "layer1", "--exclude", "head", "--only", "layer*", "--only", "head"]
    quick = ["--set", "images=32", "--set", "criterion=l2"]
    found = CliRunner().invoke(cli, [*arguments, str(tmp_path / "out"), *settings, *quick], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    options = json.loads((tmp_path / "out" / "config.json").read_text())["zoo"]["recipe"]["options"]
    assert (options["exclude"], options["only"]) == (["layer1", "head"], ["layer*", "head"])
    dense, smaller = zoo.load("digits_cnn"), zoo.load(tmp_path / "out")
    for path in excluded(dense, ["layer1", "head"], ["layer*", "head"], "prune"):
        assert smaller.get_parameter(path).shape == dense.get_parameter(path).shape
    assert zoo.measure(smaller).macs <= 0.8 * zoo.measure(dense).macs


def test_patterns_are_said_in_one_way(tmp_path):
    line = ["compress", "digits_cnn", "--budget", "0.6", "--data", "digits", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(cli, [*line, "--exclude", "head", "--set", "exclude=stem"])
    assert (found.exit_code, "exclude is said twice" in found.output) == (2, True)
