"""What is excluded stays whole: names, patterns and words mean the same to every method."""

import json

import pytest
import torch
from click.testing import CliRunner
from conftest import CNN
from torch import nn

import zoo
from zoo.cli import cli
from zoo.compression.exclusion import excluded
from zoo.compression.low_rank.factorable import chosen
from zoo.errors import UnknownName
from zoo.structure.description import Description
from zoo.structure.plan import Factor


def images(size, count=24):
    return list(torch.randn(2, count // 2, 3, size, size, generator=torch.Generator().manual_seed(0)))


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
    return model


@pytest.mark.parametrize("what", PATTERNS)
def test_names_patterns_and_words_stand_for_layers(what):
    exclude, expected = PATTERNS[what]
    left = chosen(tree(), LAYERS, exclude, "falor")
    assert left == [path for path in LAYERS if path not in expected]


@pytest.mark.parametrize(("word", "name", "otherwise"), [("head", "classifier", "2"), ("stem", "first_conv", "0")])
def test_words_mean_what_the_configuration_says_else_the_last_and_the_first_layer(word, name, otherwise):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert excluded(model, [word], "prune") == {otherwise}
    model.pretrained_cfg = {name: ("0", "2")}
    assert excluded(model, [word], "prune") == {"0", "2"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer1.*", "exclude names 'layer1.*', but the model has no such layer; head and stem are words for some"),
        ("stages.3.conv1", "no such layer; near it are stages.1.conv1, stages.0.conv1, "),
        ("stage.*", "no such layer; near it are stages, stages.1, stages.0, and head and stem are words for some"),
    ],
)
def test_what_means_no_layer_is_refused_with_the_nearest_names(pattern, message):
    with pytest.raises(UnknownName) as caught:
        excluded(tree(), [pattern], "prune")
    assert message in str(caught.value)


@pytest.mark.parametrize("exclude", [["layer2.*"], "layer1.0.conv2", ["head", "stem"]], ids=str)
@pytest.mark.parametrize("method", ["prune", "low_rank", "falor"])
def test_no_excluded_layer_changes_its_shape_and_others_do(method, exclude, cnn):
    """Layers of `layer1` and the stem write into one residual stream, so all of them stay whole together."""
    cnn.zoo_entry = Description("cnn", CNN)
    loose = {"nsr_final_threshold": 9.0, "kl_final_threshold": 9.0}
    options = {"budget": 0.95} if method != "falor" else loose
    smaller = zoo.compress(cnn, method=method, data=images(32), exclude=exclude, **options)
    before, after = cnn.state_dict(), smaller.state_dict()
    whole = [path for path in excluded(cnn, exclude, method) if f"{path}.weight" in before]
    assert whole
    assert all(after[f"{path}.weight"].shape == before[f"{path}.weight"].shape for path in whole)
    assert any(path not in before or after[path].shape != before[path].shape for path in after)
    edits = smaller.zoo_entry.plan.edits
    assert not {path for edit in edits if isinstance(edit, Factor) for path in edit.layers} & set(whole)


def test_layers_are_excluded_on_the_command_line(tmp_path):
    arguments = ["compress", "digits_cnn", "--budget", "0.6", "--data", "digits", "--epochs", "0", "--out"]
    settings = ["--set", 'exclude=["layer1", "head"]', "--set", "images=32", "--set", "criterion=l2"]
    found = CliRunner().invoke(cli, [*arguments, str(tmp_path / "out"), *settings], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "out" / "config.json").read_text())["zoo"]["recipe"]["options"]["exclude"]
    dense, smaller = zoo.load("digits_cnn"), zoo.load(tmp_path / "out")
    whole = [path for path in excluded(dense, ["layer1", "head"], "prune") if f"{path}.weight" in dense.state_dict()]
    assert whole
    for path in whole:
        assert smaller.get_parameter(f"{path}.weight").shape == dense.get_parameter(f"{path}.weight").shape
