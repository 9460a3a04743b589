"""Rows of signals, and each stage of the low-rank method doing its part on a trained network."""

import copy
import logging
import subprocess
import sys

import pytest
import torch
from factored import built, outputs
from timm.layers import Conv2dSame
from torch import nn

import zoo
from zoo.catalog.entry import Budget
from zoo.compression import activations
from zoo.compression.calibration import parted
from zoo.compression.low_rank import low_rank
from zoo.compression.low_rank.kfac import mean_divergence
from zoo.compression.low_rank.low_rank import LowRank
from zoo.errors import StructureError
from zoo.tasks.classification.transforms import evaluation_transform
from zoo.tasks.datasets import dataset
from zoo.tasks.loader import loader


def digits(model, images=128):
    transform = evaluation_transform(model.pretrained_cfg)
    return [x for x, _ in loader(dataset("digits", "train", limit=images), transform, 32)]


def kl(model, other, batches):
    return mean_divergence([outputs(model, x) for x in batches], [outputs(other, x) for x in batches])


@pytest.mark.parametrize(("name", "share"), [("digits_cnn", 0.4), ("digits_cnn", 0.8), ("digits_vit", 0.3)])
def test_no_stage_takes_the_divergence_up_and_what_is_told_is_that_on_images_held_back(
    name, share, monkeypatch, caplog
):
    model = zoo.load(name)
    batches = digits(model)
    held = parted(batches)[1]

    def factored():
        with caplog.at_level(logging.INFO):
            edit, tensors = low_rank.low_rank(model, batches, Budget(share), LowRank(round_to=2))
        return kl(model, built(model, edit, tensors), held)

    found = {"all": factored()}
    told = float(caplog.text.split("kl to dense ")[-1].split()[0])
    assert told == pytest.approx(found["all"], rel=1e-3)
    monkeypatch.setattr(low_rank, "newton_", lambda *rest, **more: None)
    found["without the step"] = factored()
    monkeypatch.setattr(low_rank, "_repair_", lambda *rest: None)
    found["factors alone"] = factored()
    assert found["all"] <= found["without the step"] <= found["factors alone"]
    assert found["all"] < found["factors alone"]


def test_nothing_that_is_returned_is_the_models_own():
    model = zoo.load("digits_vit")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for share in (0.5, 1.0):
        edit, tensors = low_rank.low_rank(model, digits(model, 32), Budget(share))
        assert bool(edit.layers) is (share < 1)
        for tensor in tensors.values():
            tensor.fill_(7)
    assert all(torch.equal(before[path], tensor) for path, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_train_mode_is_refused():
    with pytest.raises(StructureError, match="train mode"):
        low_rank.low_rank(zoo.load("digits_cnn").train(), [torch.zeros(2, 1, 32, 32)], Budget(0.5))


def looked_at(total, split):
    """Return the draws of so many images in batches of so many."""
    return [draw for draw, _ in activations.drawing(torch.zeros(total, 1).split(split))]


def test_rows_that_are_many_are_thinned_without_a_view_of_the_images_grid():
    columns = torch.arange(64 * 128 * 128)[:, None] % 128
    (draw,) = looked_at(64, 64)
    assert len(activations.thinned(columns, draw)) == activations.MAX_ROWS
    counts = activations.thinned(columns, draw).flatten().bincount(minlength=128)
    assert 64 < int(counts.min()) < int(counts.max()) < 256
    a, b = torch.randn(64 * 300, 2), torch.randn(64 * 300, 3)
    rows = activations.thinned(torch.cat([a, b], 1), draw)
    assert torch.equal(torch.cat([activations.thinned(a, draw), activations.thinned(b, draw)], 1), rows)
    assert torch.equal(activations.thinned(a[:64], draw), a[:64])


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3)], ids=["linear", "convolution"])
def test_the_same_rows_of_an_image_are_looked_at_whatever_batch_it_is_in(layer):
    images = torch.randn(300, 3, 12, 12)
    read = images.flatten(2).transpose(1, 2) if isinstance(layer, nn.Linear) else images

    def seen(size):
        return torch.cat(
            [
                activations.patches(layer, x, draw)
                for draw, x in zip(looked_at(300, size), read.split(size), strict=True)
            ]
        )

    assert len(seen(300)) == 300 * activations.PER_IMAGE
    assert torch.equal(seen(300), seen(7))
    every = activations.patches(layer, read[:1], activations.Draw(range(1), 12 * 12))
    assert (seen(300)[: activations.PER_IMAGE, None] == every).all(2).any(1).all(), (
        "the first image's rows are some of all"
    )


def test_what_layers_read_and_put_out_is_shown_and_may_be_replaced():
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model, batches, shown = nn.Sequential(first, nn.ReLU(), last), list(torch.randn(2, 5, 3)), []
    results = []

    def doubled(path, layer, x, draw):
        return 2 * x if layer is last else None

    def noted(path, layer, x, y, draw):
        shown.append((path, draw.images, x, y))

    activations.observe(
        lambda batch: results.append(model(batch)), {"first": first, "last": last}, batches, before=doubled, after=noted
    )
    assert [(path, images) for path, images, *_ in shown] == [
        (path, images) for images in (range(5), range(5, 10)) for path in ("first", "last")
    ]
    for batch, result, (_, _, x, y), (_, _, read, _) in zip(batches, results, shown[::2], shown[1::2], strict=True):
        assert torch.equal(x, batch)
        assert torch.equal(y, first(batch))
        assert torch.equal(read, 2 * first(batch).relu())
        assert torch.equal(result, last(read))


def test_a_model_is_left_without_hooks_whatever_happens():
    layer = nn.Linear(3, 4)

    def fails(path, layer, x, draw):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        activations.observe(layer, {"": layer}, [torch.zeros(2, 3)], before=fails, after=lambda *rest: None)
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


MODES = ("zeros", "reflect", "replicate", "circular")
READERS = {
    "linear": lambda: nn.Linear(9, 4),
    **{mode: lambda mode=mode: nn.Conv2d(6, 4, (3, 2), (2, 1), 1, padding_mode=mode) for mode in MODES},
    "dilated": lambda: nn.Conv2d(6, 4, 3, dilation=(1, 2), padding=(0, 2), padding_mode="reflect"),
    "same, in a word": lambda: nn.Conv2d(6, 4, (4, 3), padding="same", dilation=2),
    "same, by timm": lambda: Conv2dSame(6, 4, 3, stride=2, dilation=2),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_layers_weight_times_what_it_reads_is_what_it_puts_out(kind):
    layer, x = READERS[kind]().double(), torch.randn(5, 6, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        found = (
            activations.patches(layer, x, activations.Draw(range(5), 10**6)) @ layer.weight.flatten(1).T + layer.bias
        )
        torch.testing.assert_close(found, activations.rows(layer, layer(x)))


def test_patches_of_a_large_image_cost_what_is_looked_at():
    """All of them would be 9 times the input of 32 MB."""
    script = """
import resource, torch
from zoo.compression import activations
layer, x = torch.nn.Conv2d(64, 64, 3, padding=1), torch.zeros(8, 64, 128, 128)
draw, _ = next(activations.drawing([torch.zeros(64, 1)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = activations.patches(layer, x, activations.Draw(range(8), draw.most))
print(len(rows), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, megabytes = map(float, found.stdout.split())
    assert count == 8 * max(activations.PER_IMAGE, activations.MAX_ROWS // 64)
    assert megabytes < 2.5 * 32
