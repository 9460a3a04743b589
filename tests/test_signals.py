"""Rows of signals, and each stage of the low-rank method doing its part on a trained network."""

import copy
import logging

import pytest
import torch
from factored import built, outputs
from torch import nn

import zoo
from zoo.catalog.entry import Budget
from zoo.compression import correction, low_rank, signals
from zoo.compression.low_rank import LowRank
from zoo.compression.newton import divergence
from zoo.errors import StructureError
from zoo.tasks.classification import evaluation_transform, loader
from zoo.tasks.datasets import dataset


def digits(model, images=128):
    transform = evaluation_transform(model.pretrained_cfg)
    return [x for x, _ in loader(dataset("digits", "train", limit=images), transform, 32)]


def kl(model, other, batches):
    return divergence([outputs(model, x) for x in batches], [outputs(other, x) for x in batches])


@pytest.mark.parametrize(("name", "share"), [("digits_cnn", 0.4), ("digits_cnn", 0.8), ("digits_vit", 0.3)])
def test_each_stage_takes_the_divergence_down_and_what_is_told_is_that_of_the_result(name, share, monkeypatch, caplog):
    model = zoo.load(name)
    batches = digits(model)

    def factored():
        with caplog.at_level(logging.INFO):
            edit, tensors = low_rank.low_rank(model, batches, Budget(share), LowRank(round_to=2))
        return kl(model, built(model, edit, tensors), batches)

    found = {"all": factored()}
    told = float(caplog.text.split("kl to dense ")[-1].split()[0])
    assert told == pytest.approx(found["all"], rel=1e-3)
    monkeypatch.setattr(low_rank, "newton_", lambda *rest: (0.0, 0.0))
    found["without the step"] = factored()
    monkeypatch.setattr(low_rank, "_recalibrate_", lambda *rest: None)
    found["without recalibration"] = factored()

    def not_corrected(model, factored, paths, batches, *rest):
        return [outputs(model, x) for x in batches]

    monkeypatch.setattr(low_rank, "correct_", not_corrected)
    found["factors alone"] = factored()
    assert found["all"] < found["without the step"] <= found["without recalibration"] < found["factors alone"]


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


def test_rows_that_are_many_are_thinned_without_a_view_of_the_images_grid():
    columns = torch.arange(64 * 128 * 128)[:, None] % 128
    assert len(signals.thinned(columns)) == signals.MAX_ROWS
    counts = signals.thinned(columns).flatten().bincount(minlength=128)
    assert 64 < int(counts.min()) < int(counts.max()) < 256
    a, b = torch.randn(20_000, 2), torch.randn(20_000, 3)
    rows = signals.thinned(torch.cat([a, b], 1))
    assert torch.equal(torch.cat([signals.thinned(a), signals.thinned(b)], 1), rows)
    assert torch.equal(signals.thinned(a[:9]), a[:9])


@pytest.mark.parametrize("inplace", [False, True])
def test_the_dense_output_is_what_it_was_before_anything_wrote_over_it(inplace):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace), nn.Linear(6, 4)).eval()
    factored = copy.deepcopy(dense)
    factored[0] = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 6))
    before, batches = copy.deepcopy(factored), list(torch.randn(6, 32, 8))
    correction.correct_(dense, factored, ["0"], batches, 1e-6, 10**9)

    def missing(net):
        return sum(float((net[0](x) - dense[0](x)).square().sum()) for x in batches)

    with torch.no_grad():
        basis = [torch.cat([before[0][0](x), torch.ones(32, 1)], 1) for x in batches]
        best = torch.linalg.lstsq(torch.cat(basis).double(), torch.cat([dense[0](x) for x in batches]).double())
        least = float(
            (torch.cat(basis).double() @ best.solution - torch.cat([dense[0](x) for x in batches])).square().sum()
        )
        assert missing(factored) == pytest.approx(least, rel=1e-3)
        assert missing(before) > 1.5 * least
