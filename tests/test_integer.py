"""Integer models: the same bytes whatever runs them, a certificate that holds, and one path with every other method."""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import CNN, disturbed
from safetensors.torch import load_file
from torch import nn

import zoo
from zoo.compression.integer.rounding import gptq, nearest
from zoo.compression.integer.steps import Step, best, spanning
from zoo.errors import DataError, StructureError, UnknownName
from zoo.hub import weights
from zoo.structure.description import Description, attach_, config_of
from zoo.structure.graph import integer
from zoo.structure.graph.certificate import certificate, outputs_sha256
from zoo.tasks import task_of
from zoo.tasks.datasets import dataset

HASHES = """
import hashlib, sys, torch, zoo
from pathlib import Path
from zoo.hub.weights import load_weights
images = load_weights(Path(sys.argv[1]))["images"]
for name in sys.argv[2:]:
    with torch.no_grad():
        print(hashlib.sha256(zoo.load(name)(images).numpy().tobytes()).hexdigest())
"""
LOWERED = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}


@pytest.fixture(scope="module")
def images():
    """What `digits_cnn` is evaluated on, [450, 1, 32, 32]."""
    model = zoo.load("digits_cnn")
    loader = task_of(model).loader(dataset("digits", "test"), task_of(model).evaluation_transform(config_of(model)), 90)
    return torch.cat([batch for batch, _ in loader])


@pytest.fixture(scope="module")
def made():
    return zoo.compress(zoo.load("digits_cnn"), data="digits", method="integer", images=128)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return zoo.save(made, tmp_path_factory.mktemp("integer") / "made")


def outputs(model, images):
    with torch.no_grad():
        return model(images)


def snr(found, expected):
    """Signal to noise in dB."""
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


# The same bytes


@pytest.mark.parametrize("batch", [1, 7, 16, 17])
@pytest.mark.parametrize("onednn", [True, False], ids=["oneDNN", "no oneDNN"])
def test_the_size_of_a_batch_makes_no_difference(made, images, batch, onednn):
    expected = outputs(made, images)[:batch]
    torch._C._set_mkldnn_enabled(onednn)  # without it, and from 16 images on, torch takes Winograd's convolutions
    try:
        assert torch.equal(outputs(made, images[:batch]), expected)
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_what_runs_it_and_how_images_come_makes_no_difference(made, images, monkeypatch):
    few = images[:17]
    expected = outputs(made, few)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert torch.equal(outputs(made, few), expected)
    assert torch.equal(outputs(made, few.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(outputs(copy.deepcopy(made), few.double()), expected)
    assert torch.equal(outputs(made, few + 1e-4), expected)  # images are taken back to the pixels they came from
    assert torch.equal(outputs(made, ((few * 0.5 + 0.5) * 255).round().to(torch.uint8)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outputs(made, few), expected)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        assert torch.equal(outputs(made, few), expected)
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"
    monkeypatch.setattr(integer, "_keeps_single", lambda x: False)  # in double precision
    assert torch.equal(outputs(made, few), expected)


def test_the_instructions_of_the_processor_make_no_difference_but_to_floats(made, folder, images, tmp_path):
    weights.save_weights(tmp_path / "images", {"images": images[:17].contiguous()})
    found = []
    for settings in ({}, LOWERED):
        ran = subprocess.run(
            [sys.executable, "-c", HASHES, str(tmp_path / "images"), str(folder), "digits_cnn"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(ran.stdout.split())
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]  # or this would prove nothing


# Accuracy


def test_eight_bits_decide_as_the_floats_do(made, images):
    found, expected = (outputs(model, images) for model in (made, zoo.load("digits_cnn")))
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.995
    assert snr(found, expected) > 30


def test_of_four_bits_rounding_by_the_images_keeps_more_than_the_nearest(images):
    dense = zoo.load("digits_cnn")
    expected, kept = outputs(dense, images), {}
    for rounding in ("gptq", "nearest"):
        how = {"weight_bits": 4, "rounding": rounding, "images": 128}
        kept[rounding] = snr(outputs(zoo.compress(dense, data="digits", method="integer", **how), images), expected)
    assert kept["gptq"] > kept["nearest"] + 2


def test_gptq_gives_the_nearest_where_inputs_dont_go_along_and_else_what_loses_less():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 6, 12, generator=generator).double() * 3
    assert torch.equal(gptq(weight, torch.eye(12).double()[None], 7), nearest(weight, 7))
    inputs = torch.randn(200, 4, generator=generator).double() @ torch.randn(4, 12, generator=generator).double()
    hessian = (inputs.T @ inputs)[None] / 200
    lost = {}
    for name, rounded in (("gptq", gptq(weight, hessian, 7)), ("nearest", nearest(weight, 7))):
        assert torch.equal(rounded, rounded.round())
        assert rounded.abs().max() <= 7
        lost[name] = float(((weight - rounded) @ inputs.T).square().sum())
    assert lost["gptq"] < 0.5 * lost["nearest"]


def test_a_step_is_the_one_of_all_that_loses_least():
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).double()
    low, high = float(values.min()), float(values.max())

    def lost(step, zero):
        q = ((values / step).round() + zero).clamp(0, 255)
        return float((values - (q - zero) * step).square().sum())

    chosen = best(values, low, high, free=True)
    steps = torch.linspace(0.3, 1.2, 50) * (high - low) / 255
    least = min(lost(float(step), zero) for step in steps for zero in range(100, 156))
    assert lost(chosen.step, chosen.zero) <= 1.05 * least
    whole = best(values, low, high, free=False)
    assert torch.tensor(whole.step).log2() % 1 == 0
    assert best(values.abs(), 0.0, high, free=True).zero == 0
    assert best(values * 0, 0.0, 0.0, free=False) == Step(2.0**-60, 0)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0), (0.3, 0.3), (0.45, 0.225), (0.0, 1 / 255)])
def test_no_two_pixels_become_one_for_lying_at_halves(mean, std):
    values = (torch.arange(256) / 255 - mean) / std
    step = spanning(min(float(values.min()), 0.0), max(float(values.max()), 0.0), free=True)
    q = (values.double() / step.step).round() + step.zero
    assert len(q.unique()) >= 254
    assert q.min() >= 0
    assert q.max() <= 255


# The certificate


ALTERED = {
    "two products could reach 33,150": {"weight": 0, "to": 65},
    r"could reach 2,1\d\d,\d\d\d,\d\d\d, expected below 2\^31": {"bias": 0, "to": 2**31 - 1},
    "an exponent of 20, expected at most 15": {"exponent": 0, "to": 20},
}


@pytest.mark.parametrize("message", ALTERED)
def test_what_could_overflow_is_refused_when_it_is_loaded(folder, tmp_path, message):
    (key, _), (_, value) = ALTERED[message].items()
    held = load_file(folder / "model.safetensors")
    if key == "exponent":
        held["layer4.0.conv1.weight"].fill_(64)  # beyond single precision
        held["layer4.0.conv1.bias"].fill_(2**24)
    held[f"layer4.0.conv1.{key}"].view(-1)[: 2 if key == "weight" else 1] = value
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "graph.json").write_text((folder / "graph.json").read_text())
    config["zoo"]["weights_sha256"] = weights.save_weights(tmp_path / "model.safetensors", held)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StructureError, match=rf"layer4.0.conv1.* {message}"):
        zoo.load(tmp_path)


def test_the_bound_of_a_layer_is_reached_by_the_worst_of_all_inputs(made):
    layer = made.get_submodule("conv1.0")
    held = certificate(made)["conv1.0"]
    worst = layer.weight.double().abs().flatten(1).sum(1) * 255 + layer.bias.double().abs()
    assert held.bound == int(worst.max())
    assert held.single == (held.bound < 2**24)


@pytest.mark.parametrize("told", [True, False], ids=["as an edit", "behind autograd's back"])
def test_the_arithmetic_of_a_layer_is_that_of_its_weights_as_they_are(made, told):
    layer = copy.deepcopy(made.get_submodule("layer4.0.conv1"))
    x = torch.full((1, layer.in_channels, 5, 5), 255, dtype=torch.uint8)
    layer(x)
    for name, value in (("weight", 64), ("bias", 2**24 + 1), ("exponent", 0)):
        held = layer.get_buffer(name)
        (held if told else held.data).fill_(value)
    layer.high = 2**31 - 1
    whole = 64 * (255 - layer.zero) * layer.in_channels
    assert int(layer(x)[0, 0, 1, 1]) == 9 * whole + 2**24 + 1


# One path


def test_it_is_saved_loaded_counted_and_verified_as_any_other(made, folder, images):
    loaded, dense = zoo.load(folder), zoo.load("digits_cnn")
    assert torch.equal(outputs(loaded, images), outputs(made, images))
    counts, expected = zoo.measure(loaded), zoo.measure(dense)
    assert counts.macs == expected.macs
    norms = sum(p.numel() for m in dense.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    channels = sum(m.num_features for m in dense.modules() if isinstance(m, nn.BatchNorm2d))
    assert counts.params == expected.params - norms + channels  # a bias in place of each norm
    rows = {row.figure: row.verdict for row in zoo.verify(folder, structure_only=True).rows}
    assert rows["bytes"] == "agrees"
    card = (folder / "README.md").read_text()
    assert "Its dense architecture is `timm/resnet18` with layers [1, 1, 1, 1], " in card
    assert "It computes in integers alone" in card
    assert "15 layers whose weights and activations" in card


def test_other_bytes_than_where_it_was_saved_are_told(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["zoo"]["outputs_sha256"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config))
    found = zoo.verify(other, structure_only=True)
    assert not found.passed
    assert {row.figure for row in found.rows if row.verdict == "differs"} == {"bytes"}


def test_what_means_nothing_to_integers_is_refused(made, folder):
    for option in ({"dtype": torch.float16}, {"num_classes": 3}, {"in_chans": 3}, {"features_only": True}):
        with pytest.raises(StructureError, match="computes in integers, and can't be given another dtype, in_chans"):
            zoo.load(folder, **option)
    with pytest.raises(StructureError, match="computes in integers, and can't be compressed: do so with its base"):
        zoo.compress(made, data="digits", budget=0.5)
    with pytest.raises(StructureError, match="computes in integers, and can't be trained"):
        zoo.distil(copy.deepcopy(made), [zoo.load("digits_cnn")], "digits")
    with pytest.raises(UnknownName, match="nothing is trained after integer: distil its base"):
        zoo.compress(zoo.load("digits_cnn"), data="digits", method="integer", calibrate_steps=3)
    with pytest.raises(DataError, match="weight_bits is 5, expected 8 or 6 or 4"):
        zoo.compress(zoo.load("digits_cnn"), data="digits", method="integer", weight_bits=5)


@pytest.mark.parametrize("method", ["prune", "low_rank"])
def test_what_was_compressed_before_becomes_integers_too(method, tmp_path):
    model = disturbed(CNN, 32)
    attach_(model, Description("dense", CNN))
    data = torch.rand(48, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
    smaller = zoo.compress(model, budget=0.6, data=data, method=method)
    whole = zoo.compress(smaller, data=data, method="integer")
    assert whole.zoo_entry.recipe["base_method"] == method
    assert snr(outputs(whole, data), outputs(smaller, data)) > 15
    loaded = zoo.load(zoo.save(whole, tmp_path / "made"))
    assert outputs_sha256(loaded) == outputs_sha256(whole)


# Bad input


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, x):
        return torch.sin(self.conv(x)).mean((2, 3))


def test_an_operation_without_a_twin_is_named():
    with pytest.raises(StructureError, match=r"integer: node 'sin' is aten.sin, which has no twin: expected layers"):
        zoo.compress(Waves(), data=torch.rand(8, 3, 8, 8), method="integer")


def test_images_that_tell_nothing_are_refused():
    model = zoo.load("digits_cnn")
    with pytest.raises(DataError, match="all 4 images are the same"):
        zoo.compress(model, data=torch.ones(4, 1, 32, 32), method="integer")
    with pytest.raises(DataError, match="1 image; pass at least two"):
        zoo.compress(model, data=torch.ones(1, 1, 32, 32), method="integer")


def test_weights_that_are_no_numbers_are_refused():
    model = zoo.load("digits_cnn")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(StructureError, match=r"conv1\.0\.weight isn't finite"):
        zoo.compress(model, data="digits", method="integer")


def test_a_bias_beyond_32_bits_raises_its_step_and_says_so(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    with torch.no_grad():
        model[0].weight[0] *= 1e-4
        model[0].bias[0] = -1e7  # never above 0, and far below what a byte of this layer counts
    model.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    caplog.set_level(logging.WARNING)
    made = zoo.compress(model, data=torch.rand(16, 3, 8, 8), method="integer")
    assert "0: the bias of 1 outputs is beyond 32 bits of their weights' step: that is raised" in caplog.messages
    assert certificate(made)["0"].bound < 2**31


def test_logits_of_any_size_have_a_step_that_is_stored(made, images, tmp_path):
    large = zoo.load("digits_cnn")
    with torch.no_grad():
        for held in large.get_classifier().parameters():
            held *= 2.0**40
    whole = zoo.compress(large, data="digits", method="integer", images=128)
    loaded = zoo.load(zoo.save(whole, tmp_path / "large"))

    assert torch.equal(outputs(loaded, images[:8]), 2.0**40 * outputs(made, images[:8]))
