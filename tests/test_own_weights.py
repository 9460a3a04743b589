"""Weights of a user's own: whatever file they lie in, of whatever base; what doesn't fit is told in a line."""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import zoo
from zoo.catalog.entry import Base
from zoo.cli import cli
from zoo.errors import StructureError, UnknownName, WeightsError, ZooError
from zoo.files import read_json
from zoo.hub.state_dicts import read_state_dict, unwrapped
from zoo.verbs.own_weights import with_weights

CLASSES = 37
NAMES = [f"class {number:02}" for number in reversed(range(CLASSES))]  # not in alphabetical order
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def net(seed=0, **args):
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", **{"num_classes": CLASSES, **args}).eval()


def write(value, path, **options):
    torch.save(value, path, **options)  # noqa: TID251  # as users do
    return path


def prefixed(values, prefix):
    return {f"{prefix}{name}": value for name, value in values.items()}


def same(a, b, images=IMAGES):
    with torch.no_grad():
        return torch.equal(a(images), b(images))


def halves(model):
    return {name: value / 2 if value.is_floating_point() else value for name, value in model.state_dict().items()}


# What is in a file


WRAPPED = {
    "as it is": lambda values: values,
    "of DataParallel": lambda values: prefixed(values, "module."),
    "of a compiled model": lambda values: prefixed(values, "_orig_mod."),
    "of DataParallel of a compiled one": lambda values: prefixed(values, "module._orig_mod."),
    "of an average of DataParallel": lambda values: {
        "n_averaged": torch.tensor(3),
        **prefixed(values, "module.module."),
    },
    "of Lightning": lambda values: {
        "epoch": 3,
        "state_dict": prefixed(values, "model."),
        "hyper_parameters": {"lr": 0.1},
    },
    "under model": lambda values: {"model": values, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "under ema alone": lambda values: {"ema": {"module": values, "decay": 0.99}},
    "with what training leaves": lambda values: {
        "state_dict": values,
        "args": argparse.Namespace(lr=0.1, out=Path("out"), size=torch.Size([3])),
        "best": np.float64(0.5),
        "curves": defaultdict(list, {"loss": [1.5, np.float32(0.5)], "steps": defaultdict(int, {"a": 3})}),
        "confusion": np.arange(6).reshape(2, 3),
        "others": [np.zeros((0, 3)), np.array(["cat", "dog"]), np.array([{"a": 1}, None]), np.bool_(True)],
        "random": np.random.default_rng(0).permutation(4).astype(np.uint32),
        "scheduler": {"last_lr": [0.1], "device": torch.device("cpu")},
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_in_what_wraps_them(name, legacy, tmp_path):
    model = net()
    file = write(WRAPPED[name](model.state_dict()), tmp_path / "it.pth", _use_new_zipfile_serialization=not legacy)
    assert same(with_weights("timm/test_resnet", file), model)


def test_weights_in_safetensors_are_read(tmp_path):
    model = net()
    save_file(prefixed(model.state_dict(), "module."), tmp_path / "it.safetensors")
    assert same(with_weights("timm/test_resnet", tmp_path / "it.safetensors"), model)


def test_of_weights_and_their_average_the_weights_are_taken_unless_a_key_says_otherwise(tmp_path, caplog):
    model = net()
    file = write({"state_dict_ema": halves(model), "state_dict": model.state_dict()}, tmp_path / "it.pth")
    with caplog.at_level("INFO", "zoo"):
        assert same(with_weights("timm/test_resnet", file), model)
    assert f"{file}: the weights under state_dict are taken; --key takes others: state_dict_ema" in caplog.text
    averaged = with_weights("timm/test_resnet", file, key="state_dict_ema")
    assert torch.equal(averaged.fc.weight, model.fc.weight / 2)


@pytest.mark.parametrize(
    ("held", "key", "message"),
    [
        ({"lr": 0.1}, None, "has no weights: expected a state dict, name → tensor, or one under 'state_dict'"),
        ({"model": {"a": torch.zeros(1)}}, "ema", "has no weights under 'ema', there are model"),
        ({"a": 1}, "ema", "has no weights under 'ema', there are none"),
        ({"g": {"a": torch.ones(1)}, "d": {"a": torch.ones(1)}}, None, "has several state dicts, say which .*: g, d"),
        (nn.Linear(2, 2), None, r"it names torch.nn.modules.linear.Linear, .*: torch.save\(model.state_dict\(\), FILE"),
    ],
    ids=["nothing", "another key", "a key of nothing", "two", "a module"],
)
def test_a_file_without_the_weights_asked_for_is_refused_in_a_line(held, key, message, tmp_path):
    file = write(held, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(file, key)


def test_a_prefix_that_the_model_has_itself_stays():
    assert unwrapped({"model.a": 1}, ["model.a"]) == {"model.a": 1}


class Command:
    def __reduce__(self):
        return exec, ("open('pwned', 'w')",)


@pytest.mark.parametrize(
    "held", [{"curves": defaultdict(Command)}, {"hooks": np.array([Command()])}], ids=["default", "array"]
)
def test_what_numpy_and_a_defaultdict_hold_is_no_way_around_that(held, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write({"state_dict": net().state_dict(), **held}, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match="which isn't among the classes and functions expected"):
        with_weights("timm/test_resnet", file)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_would_run_a_command_is_refused_and_runs_none(legacy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = {"state_dict": net().state_dict(), "hook": Command()}
    file = write(held, tmp_path / "it.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"it names .*exec, which isn't among the classes and functions expected"):
        with_weights("timm/test_resnet", file)
    assert not Path("pwned").exists()


# What they are of


def changed(change):
    values = net().state_dict()
    change(values)
    return values


WRONG = {
    "another shape": (
        lambda values: values.update({"layer1.0.conv1.weight": torch.zeros(3)}),
        r"of another shape: layer1.0.conv1.weight is \(3,\), expected \(\d+, \d+, 3, 3\)$",
    ),
    "two missing": (
        lambda values: [values.pop(name) for name in ("fc.bias", "bn1.weight")],
        r"missing: bn1.weight \(\d+,\) and 1 more$",
    ),
    "one too many": (lambda values: values.update(odd=torch.zeros(2)), r"not the model's: odd \(2,\)$"),
    "renamed": (
        lambda values: values.update({"fc.weights": values.pop("fc.weight")}),
        r"missing: fc.weight \(1000, \d+\); not the model's: fc.weights \(37, ",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_in_a_line(name, tmp_path):
    change, message = WRONG[name]
    file = write(changed(change), tmp_path / "it.pth")
    with pytest.raises(WeightsError, match=rf"^{file} doesn't fit the model; .*{message}"):
        with_weights("timm/test_resnet", file)


def test_classes_and_channels_follow_from_the_file_and_are_said_everywhere(tmp_path):
    model = net(in_chans=1)
    filled = with_weights("timm/test_resnet", write(model.state_dict(), tmp_path / "it.pth"))
    assert same(filled, model, IMAGES[:, :1])
    assert filled.zoo_entry.base == Base("timm/test_resnet", {"num_classes": CLASSES, "in_chans": 1})
    config = filled.pretrained_cfg
    assert (config["num_classes"], config["input_size"][0], len(config["mean"])) == (CLASSES, 1, 1)
    assert zoo.load(zoo.save(filled, tmp_path / "saved")).num_classes == CLASSES


def test_a_fixed_size_of_images_is_named(tmp_path):
    model = timm.create_model("test_vit", num_classes=3, img_size=64).eval()
    file = write(model.state_dict(), tmp_path / "it.pth")
    assert same(with_weights("timm/test_vit", file, input=(3, 64, 64)), model)


def test_further_arguments_of_the_architecture_are_named(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3, stem_width=16).eval()
    file = write(model.state_dict(), tmp_path / "it.pth")
    assert same(with_weights("timm/resnet10t", file, args={"stem_width": 16}), model)


def test_weights_may_be_of_what_was_compressed_before(tmp_path):
    file = write(prefixed(halves(zoo.load("digits_cnn_pruned_50")), "module."), tmp_path / "it.pth")
    filled = with_weights("digits_cnn_pruned_50", file)
    assert filled.zoo_entry.plan.edits == zoo.load("digits_cnn_pruned_50").zoo_entry.plan.edits
    assert torch.equal(filled.fc.weight, zoo.load("digits_cnn_pruned_50").fc.weight / 2)
    assert "license" not in filled.pretrained_cfg
    with pytest.raises(StructureError, match="its structure is known, so layers can't be set: leave them out"):
        with_weights("digits_cnn_pruned_50", file, args={"layers": [1, 1, 1, 1]})


# A function of the user's own


PACKAGE = """
from torch import nn


def make(width=8):
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(784 * width, 10))


def number():
    return 3
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's in the current folder."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "nets.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def test_a_function_of_the_current_folder_is_called(package):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(784 * 4, 10))
    file = write(model.state_dict(), package / "it.pth")
    images = torch.randn(2, 1, 28, 28)
    assert same(with_weights("my_package.nets:make", file, args={"width": 4}), model.eval(), images)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("no_package.nets:make", UnknownName, "no module 'no_package' in /"),
        ("my_package.others:make", UnknownName, "no module 'my_package.others' in /"),
        ("my_package.nets:build", UnknownName, "has no attribute 'build'"),
        ("my_package.nets:number", StructureError, "my_package.nets:number returns a int, expected a torch.nn.Module"),
    ],
)
def test_a_function_that_is_not_there_or_makes_no_model_is_told_in_a_line(name, kind, message, package):
    file = write({"a": torch.zeros(1)}, package / "it.pth")
    with pytest.raises(kind, match=message):
        with_weights(name, file)


# From the command line


def run(*arguments):
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_weights_with_names_of_their_classes_are_saved_and_evaluated_by_a_command(tmp_path):
    model = net()
    file = write({"state_dict": prefixed(model.state_dict(), "module.")}, tmp_path / "best.pth")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    noise, rows = np.random.default_rng(0), []
    for split in ("train", "validation"):
        for name in NAMES:
            place = tmp_path / "photographs" / split / name
            place.mkdir(parents=True)
            image = Image.fromarray(noise.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(place / "0.png")
            rows += [(image, NAMES.index(name))] if split == "validation" else []
    out = tmp_path / "flowers"
    arguments = ["--labels", tmp_path / "classes.txt", "--input", "3x64x64", "--mean", "0.5", "--std", "0.5,0.25,0.5"]
    place = ["--data", tmp_path / "photographs", "--license", "mit", "--out", out]
    assert run("save", "timm/test_resnet", "--weights", file, *arguments, *place).output.strip() == str(out)

    config, loaded = read_json(out / "config.json"), zoo.load(out)
    assert (config["num_classes"], config["pretrained_cfg"]["num_classes"]) == (CLASSES, CLASSES)
    assert config["label_names"] == NAMES
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0.5] * 3, [0.5, 0.25, 0.5])
    assert config["pretrained_cfg"]["license"] == "mit"
    assert same(loaded, model)
    transform = zoo.transform(loaded)
    with torch.no_grad():
        right = sum(int(model(transform(image)[None]).argmax()) == number for image, number in rows)
    assert json.loads((out / "results.json").read_text())["measured"]["top1"] == pytest.approx(right / len(rows))


def test_a_function_of_ones_own_is_saved_by_a_command_as_a_graph_that_takes_other_weights_too(package):
    sys.path.insert(0, str(package))
    from my_package.nets import make

    torch.manual_seed(0)
    model, images = make(4).eval(), torch.randn(2, 1, 28, 28)
    file = write({"model": prefixed(model.state_dict(), "module.")}, package / "it.pth")
    said = ["--mean", "0.286", "--std", "0.353", "--set", "width=4", "--name", "shirts"]
    with pytest.raises(StructureError, match=r"nets:make doesn't say which images it takes: pass --input, e.g. --in"):
        run("save", "my_package.nets:make", "--weights", file, *said, "--out", package / "shirts")
    said += ["--input", "1x28x28"]
    run("save", "my_package.nets:make", "--weights", file, *said, "--out", package / "shirts")
    (package / "my_package" / "nets.py").unlink()
    loaded = zoo.load(package / "shirts")
    assert (loaded.num_classes, loaded.pretrained_cfg["mean"]) == (10, [0.286])
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images))
    other = write(halves(model), package / "other.pth")
    assert torch.equal(with_weights(package / "shirts", other).state_dict()["3.bias"], model[3].bias / 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--input", "224"), "'224' isn't CHANNELSxHEIGHTxWIDTH, e.g. 3x224x224."),
        (("--mean", "a"), "'a' isn't a number or several with commas between them."),
        (("--num-classes", "0"), "0 is not in the range x>=1"),
        ((), "Missing option '--weights'"),
    ],
)
def test_what_is_typed_wrong_is_said(option, message, tmp_path):
    weights = ["--weights", tmp_path / "it.pth"] if option else []
    result = run("save", "timm/test_resnet", *weights, *option, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("base", "option", "message"),
    [
        ("timm/test_resnet", ("--data", "./none"), "./none: no such folder"),
        ("timm/test_resnet", ("--name", "a/b"), "the model's name is 'a/b', expected a name of letters, digits"),
        ("timm/resnetty", (), "timm has no architecture 'resnetty'"),
        ("./none", (), "no folder none: expected a model repository"),
    ],
)
def test_what_can_be_known_before_the_weights_are_read_is_said_first(base, option, message, tmp_path):
    file = tmp_path / "it.pth"
    file.write_bytes(b"no weights")
    with pytest.raises(ZooError, match=re.escape(message)):
        run("save", base, "--weights", file, *option, "--out", tmp_path / "out")
