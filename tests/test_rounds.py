"""Rounds: a method goes towards its budget in several, each on what the last one left."""

import logging

import pytest
import torch
from conftest import CNN, VIT, disturbed
from msgspec import structs

import zoo
from zoo.catalog.entry import Budget
from zoo.errors import BudgetError
from zoo.structure.description import Description, attach_


def compressed(base, side, budget, **how):
    model = disturbed(base, side)
    attach_(model, Description("dense", base))
    images = torch.randn(24, base.args.get("in_chans", 3), side, side, generator=torch.Generator().manual_seed(0))
    return model, zoo.compress(model, budget=budget, data=images, **how)


@pytest.mark.parametrize("method", ["prune", "low_rank"])
@pytest.mark.parametrize(("base", "side"), [(CNN, 32), (VIT, 16)], ids=["cnn", "vit"])
def test_rounds_end_at_the_budget_and_go_there_by_equal_shares(method, base, side, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    model, smaller = compressed(base, side, 0.64, method=method, rounds=2)
    dense, left = zoo.measure(model).macs, zoo.measure(smaller).macs
    assert 0.5 * dense < left <= 0.64 * dense
    shares = [float(line.split(": ")[1].split()[0]) for line in caplog.messages if line.startswith("round ")]
    assert len(shares) == 1
    assert 65 < shares[0] <= 80  # the square root of 0.64
    assert smaller.zoo_entry.recipe["options"] == {"rounds": 2}
    assert smaller.zoo_entry.recipe["budget"] == structs.asdict(Budget(0.64))
    image = torch.randn(2, 3, side, side)
    loaded = zoo.load(zoo.save(smaller, tmp_path / "made"))
    torch.testing.assert_close(loaded(image), smaller(image))


def test_params_are_met_at_the_end_too():
    model, smaller = compressed(CNN, 32, Budget(0.7, 0.6), rounds=3, criterion="l2", ridge=1.0)
    dense, left = zoo.measure(model), zoo.measure(smaller)
    assert left.macs <= 0.7 * dense.macs
    assert left.params / dense.params == pytest.approx(0.6, rel=0.06)


def test_one_round_is_what_no_word_of_rounds_is():
    first, second = (compressed(CNN, 32, 0.7, method="low_rank", **how)[1] for how in ({}, {"rounds": 1}))
    assert first.zoo_entry == second.zoo_entry
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_rounds_mean_nothing_without_a_budget():
    with pytest.raises(BudgetError, match=r"^falor takes no rounds: it has thresholds, and no budget to go towards$"):
        compressed(CNN, 32, None, method="falor", rounds=2)
