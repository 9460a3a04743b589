"""What the benches compare: one share for all, and Torch-Pruning; models of one base, data and training alone."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analysed import analysed
from torch import nn

from zoo.catalog.entry import Base, Budget
from zoo.compression.prune.prune import Prune
from zoo.training.schedule import Schedule

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
RESNET = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [16, 32, 48, 64], "num_classes": 5})


@pytest.fixture
def bench(monkeypatch):
    """Return a function that imports a file of the benches."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


@pytest.mark.parametrize("streams", [False, True])
def test_one_share_is_the_same_for_all_that_is_cut_within_two_steps_and_meets_the_budget(bench, disturb, streams):
    analysis = analysed(disturb(RESNET, 32), torch.randn(1, 3, 32, 32))
    kept = bench("uniform_share").one_share(analysis, Budget(0.8), Prune(round_to=2), streams)
    total = sum(cost.count for cost in analysis.macs)
    shares = [k / g.units for k, g in zip(kept, analysis.groups, strict=True) if streams or not g.residual]
    whole = [k / g.units for k, g in zip(kept, analysis.groups, strict=True) if g.residual and not streams]
    assert 0.77 * total < analysis.total(analysis.macs, kept) <= 0.8 * total
    assert whole == [1.0] * len(whole)
    assert max(shares) < 1
    assert max(shares) - min(shares) <= 2 * 2 / 16


@torch.no_grad()
def test_norms_that_were_folded_say_again_what_their_inputs_are_and_the_function_stays(bench, disturb):
    rows = bench("torch_pruning_rows")
    model = disturb(RESNET, 32)
    images = [torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    for norm in rows.norms_of(model):  # as folding leaves them
        nn.init.zeros_(norm.running_mean)
        nn.init.constant_(norm.running_var, 1 - norm.eps)
    found = rows.unfolded(model, images)
    expected, again = model(images[0]), found(images[0])
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    rows.recalibrate_(found, images)
    torch.testing.assert_close(found(images[0]), expected, rtol=0.05, atol=0.05 * float(expected.std()))


def test_models_that_were_made_of_other_data_or_in_other_steps_are_never_taken_for_these(bench, tmp_path, monkeypatch):
    which = bench("which")
    monkeypatch.setattr(which, "CACHE", tmp_path / "which")
    asked = which.Asked("digits_cnn", "digits", ("a/small", "tiny"), 3, first=None, training=Schedule(steps=5), batch=1)
    which.same(asked)
    which.same(replace(asked, seeds=1, batch=16, smaller=()))
    others = [{"data": "others"}, {"base": "digits_vit"}, {"first": Schedule(steps=5)}]
    for other in (*others, {"training": None}, {"training": Schedule(steps=6)}):
        with pytest.raises(SystemExit, match=r"holds models of .* move it away"):
            which.same(replace(asked, **other))
    with pytest.raises(SystemExit, match="small, small: names must differ"):
        which.same(replace(asked, smaller=("a/small", "b/small")))
