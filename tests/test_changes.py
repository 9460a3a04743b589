"""What became of each layer: shapes, ranks and costs before and after, and why others stay."""

import json
import logging
import re
from dataclasses import replace

import pytest
import timm
import torch
from click.testing import CliRunner
from conftest import CNN, VIT, disturbed
from torch import nn

import zoo
from zoo.catalog.changes import Changes, Layer, became
from zoo.cli import cli
from zoo.compression.low_rank.factorable import ASKED, KERNEL, PLAIN, SHARED, UNCALLED, examined, left_whole
from zoo.compression.low_rank.falor import Falor
from zoo.errors import StructureError
from zoo.measurement.parts import macs_of
from zoo.printable import logger, told
from zoo.structure.description import Description, attach_, configure_
from zoo.structure.graph.exported import lift
from zoo.structure.graph.graph import graph_module
from zoo.structure.graph.tracing import export
from zoo.structure.tensors import assign_, tensors_of


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed from another one."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Attention(nn.Module):
    """Two matrices, of which one is read by hand, and a product of activations."""

    def __init__(self):
        super().__init__()
        self.qk, self.v = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x):
        q, k = nn.functional.linear(x, self.qk.weight).chunk(2, -1)
        return (q @ k.mT) @ self.v(x)


# 9 positions: 4·2·9, standardised 4·4·9; 6·4·9, 3·4·9, and the products 9·9·3 twice.
BY_HAND = {"0.weight": 72, "1.weight": 144, "4.qk.weight": 216, "4.v.weight": 108, "": 486}


def test_macs_are_those_of_the_parameter_that_they_are_done_with():
    flat = nn.Flatten(2), nn.Unflatten(1, (1, 4))
    model = nn.Sequential(nn.Conv2d(2, 4, 1), Standardised(4, 4, 1), flat[0], Transposed(), Attention())
    hooks = len(model[1]._forward_hooks)
    assert macs_of(model, (2, 3, 3)) == BY_HAND
    assert len(model[1]._forward_hooks) == hooks == 0


class Transposed(nn.Module):
    """Channels last."""

    def forward(self, x):
        return x.mT


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_byobnet"])
def test_macs_by_parameter_add_up_to_what_is_measured(name):
    model = timm.create_model(name).eval()
    assert macs_of(model).total() == zoo.measure(model).macs


@pytest.mark.parametrize("name", ["digits_cnn_pruned_25", "digits_vit_pruned_50", "digits_vit_lowrank_50"])
def test_changes_are_what_the_two_models_differ_in(name):
    dense, smaller = zoo.create(name.rpartition("_")[0].rpartition("_")[0]), zoo.create(name)
    found = zoo.changes(dense, smaller)
    before, after = zoo.measure(dense), zoo.measure(smaller)
    assert found.macs == (before.macs, after.macs)
    assert found.params == (before.params, after.params)
    for which in (0, 1):
        assert sum(layer.macs[which] for layer in found.layers) + found.other[0][which] == found.macs[which]
        assert sum(layer.params[which] for layer in found.layers) + found.other[1][which] == found.params[which]
    was, now = dense.state_dict(), smaller.state_dict()
    for layer in found.layers:
        assert was[f"{layer.path}.weight"].shape[:2] == (layer.outputs[0], layer.inputs[0])
        if layer.rank is None:
            assert now[f"{layer.path}.weight"].shape[:2] == (layer.outputs[1], layer.inputs[1])
        else:
            assert len(now[f"{layer.path}.0.weight"]) == layer.rank
        assert bool(layer.stays) == (layer.rank is None and layer.outputs[0] == layer.outputs[1])


def test_a_graph_has_the_changes_of_the_plan_that_it_computes():
    dense, smaller = zoo.create("digits_cnn"), zoo.create("digits_cnn_pruned_25")
    graph, tensors = lift(export(smaller, torch.zeros(2, *smaller.pretrained_cfg["input_size"])), tensors_of(smaller))
    same = assign_(graph_module(graph), tensors, "graph").eval()
    attach_(same, replace(smaller.zoo_entry, graph=graph))
    configure_(same, smaller.pretrained_cfg)
    assert zoo.changes(dense, same) == zoo.changes(dense, smaller)


def test_what_has_no_layer_of_the_dense_model_is_refused():
    with pytest.raises(StructureError, match=r"^changes: digits_vit has no layer of digits_cnn"):
        zoo.changes(zoo.create("digits_cnn"), zoo.create("digits_vit"))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Layer("a", (64, 40), (3, 3), None, (1, 1), (1, 1)), "64 → 40"),
        (Layer("a", (64, 64), (24, 8), None, (1, 1), (1, 1)), "inputs 24 → 8"),
        (Layer("a", (64, 64), (24, 24), 8, (1, 1), (1, 1)), "rank 8 of 24"),
        (Layer("a", (64, 64), (24, 24), None, (1, 1), (1, 1)), "as it was"),
    ],
)
def test_what_became_of_a_layer_in_a_few_words(layer, expected):
    assert became(layer) == expected


def reasons(model, method, **options):
    """Layer → why it stays, of a model that was made by a method without changing anything."""
    attach_(model, replace(model.zoo_entry, recipe={"method": method, "options": options}))
    return {layer.path: layer.stays for layer in zoo.changes(model, model).layers}


def test_pruning_says_what_is_excluded_what_goes_with_it_and_what_is_an_output():
    found = reasons(zoo.create("digits_cnn"), "prune", exclude=["layer2.0.conv2"])
    assert found["fc"] == "an output of the model"
    assert found["layer2.0.conv2"] == "it is excluded"
    alike = {path for path, why in found.items() if why == "its channels are those of a layer that stays whole"}
    assert alike == {"layer2.0.conv1", "layer2.0.downsample.0"}
    assert found["layer4.0.conv1"] == "it may change, but needn't here"
    only = reasons(zoo.create("digits_cnn"), "prune", only=["layer4"])
    assert {path for path, why in only.items() if "may change" in why} == {"layer4.0.conv1"}
    assert only["conv1.0"] == "it isn't among the only ones"


class Layers(nn.Module):
    """A layer of each kind that two can't stand for."""

    def __init__(self):
        super().__init__()
        self.plain, self.kernel, self.grouped = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2)
        self.uncalled, self.read = nn.Linear(4, 4), nn.Linear(4, 4)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.grouped(self.kernel(self.plain(x))).mean((2, 3))
        return self.two(self.one(nn.functional.linear(x, self.read.weight)))


def test_factoring_says_of_each_layer_why_two_cannot_stand_for_it():
    model, image = Layers().eval(), torch.zeros(2, 2, 4, 4)
    expected = {"grouped": PLAIN, "uncalled": UNCALLED, "read": UNCALLED, "one": SHARED, "two": SHARED}
    assert examined(model, image) == {"plain": "", "kernel": "", **expected}
    asked = nn.Sequential(nn.Linear(4, 4), Attention()).eval()
    asked[1].qk.register_forward_pre_hook(lambda *_: None)
    assert examined(asked, torch.zeros(2, 3, 4))["1.qk"] in (ASKED, UNCALLED)
    found = left_whole("falor", False, model, image, Falor(exclude="plain"))
    assert found == {**expected, "kernel": KERNEL, "plain": "it is excluded"}


@pytest.mark.parametrize(("base", "side"), [(CNN, 32), (VIT, 16)])
def test_compress_says_what_became_of_a_model(base, side, caplog):
    caplog.set_level(logging.INFO)
    model = disturbed(base, side)
    attach_(model, Description("dense", base))
    smaller = zoo.compress(model, budget=0.8, data=torch.randn(24, 3, side, side), method="low_rank")
    found = zoo.changes(model, smaller)
    assert str(found) in caplog.messages
    assert re.match(r"low_rank: 24 images, some [0-9.e-]+ to [0-9.e-]+ s here$", caplog.messages[1])
    assert f"macs {found.macs[1]:,} ({found.macs[1] / found.macs[0]:.1%} of {found.macs[0]:,})" in str(found)


def test_what_is_logged_is_seen_on_stderr_where_nobody_configured_logging(capsys, monkeypatch):
    root, log = logging.root, logger("zoo.compression")
    monkeypatch.setattr(root, "handlers", [])
    log.info("before")
    with told():
        log.info("within")
    log.info("after")
    assert capsys.readouterr().err == "within\n"
    root.addHandler(logging.NullHandler())
    with told():
        log.info("the handler's business")
    assert capsys.readouterr().err == ""


# The command.


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `zoo compress digits_cnn` on a few images; exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def compress(*arguments):
        line = ["compress", "digits_cnn", "--data", "digits[:64]", *arguments]
        return CliRunner().invoke(cli, line, catch_exceptions=False)

    return compress


def test_a_plan_is_printed_and_drawn_and_trained_later(run, tmp_path):
    line = "--budget", "0.5", "--method", "low_rank", "--epochs", "1", "--out", "out"
    found = run(*line, "--plan-only", "--json")
    told = json.loads(found.stdout)
    assert "low_rank" in found.stderr
    assert "then: distil from digits_cnn, 1 epochs" in found.stderr
    assert told["macs"][1] <= 0.5 * told["macs"][0]
    assert (tmp_path / "out.plan.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out").exists()
    made = run(*line)
    assert "2 low_rank" not in made.stderr  # it goes on from there
    layers = {layer["path"]: layer["rank"] for layer in told["layers"]}
    kept = zoo.load(tmp_path / "out")
    assert {path: rank for path, rank in layers.items() if rank} == {
        path: rank.rank for path, rank in kept.zoo_entry.plan.edits[0].layers.items()
    }


def test_a_plan_without_a_folder_leaves_nothing(run, tmp_path):
    found = run("--method", "falor", "--set", "images=16", "--plan-only")
    assert found.exit_code == 0
    assert KERNEL in found.stdout
    assert [*tmp_path.iterdir()] == []


def test_of_a_method_that_learns_its_plan_only_what_it_cannot_change_is_known(run):
    found = json.loads(run("--method", "dwain", "--exclude", "head", "--plan-only", "--json").stdout)
    stays = {layer["path"]: layer["stays"] for layer in found["layers"]}
    assert (stays["fc"], stays["conv1.0"]) == ("it is excluded", KERNEL)
    assert stays["layer2.0.downsample.0"] == "training will tell"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--budget", "0.5"), "Missing option '--out'"),
        (("--sweep", "0.5,0.8", "--plan-only"), "--plan-only looks at one --budget"),
    ],
)
def test_what_a_plan_needs_is_said(run, arguments, expected):
    found = run(*arguments)
    assert (found.exit_code, expected in found.output) == (2, True)


def test_changes_are_told_with_where_most_was_saved():
    layer = Layer("a", (64, 40), (3, 3), None, (100, 60), (9, 6))
    found = Changes("dense", "small", (100, 60), (10, 7), (layer,), ((0, 0), (1, 1)))
    expected = "small: macs 60 (60.0% of 100), params 7 (70.0% of 10); 1 of 1 layers are smaller; a 64 → 40"
    assert str(found) == expected
