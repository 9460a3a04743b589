"""What images held back tell of low rank: the loss of ranks, how far changes go, and the divergence in the end."""

import logging

import pytest
import torch
from factored import built
from test_low_rank import LAYERS, SETTINGS, drawn, factored, flat
from torch import nn

from zoo.catalog.entry import Budget
from zoo.compression.low_rank.fisher import _probes, spectra
from zoo.compression.low_rank.kfac import mean_divergence
from zoo.compression.low_rank.low_rank import LowRank, _nearer_, low_rank
from zoo.measurement.curvature import CLASSES


@pytest.mark.parametrize("name", LAYERS)
def test_the_loss_charges_errors_for_what_an_image_has_in_common_and_for_the_rest_on_images_held_back(name):
    model, batches = drawn(name)
    held = [batches[0] + 0.1, batches[1] * 1.5]
    spectrum = spectra(model, {"layer": model.layer}, batches, held, **SETTINGS)["layer"]
    layer, gradients = model.layer, []
    for number, x in enumerate(held):  # the same random signs
        y = model.layer(x).detach().requires_grad_()
        logits = model.head(y.tanh().flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else y.tanh().mean(1))
        for u in _probes(CLASSES, logits.detach().float(), 0.1, 4, number):
            g = torch.autograd.grad(logits, y, u.double(), retain_graph=True)[0]
            gradients.append(flat(g, layer).view(len(x), -1, len(layer.weight)))
    for rank in (1, 3):
        pair, loss = factored(model, "layer", spectrum, rank), 0.0
        errors = [flat(layer(x) - pair(x), layer).view(len(x), -1, len(layer.weight)) for x in held]
        common = torch.cat([error.mean(1) for error in errors])
        rest = torch.cat([(error - error.mean(1, keepdim=True)).flatten(0, 1) for error in errors])
        for g in gradients:
            spread = (g - g.mean(1, keepdim=True)).flatten(0, 1)
            loss += (g.sum(1) @ common.T).square().mean(1).sum() + (spread @ rest.T).square().mean(1).sum()
        loss = float(loss) / 2 / (4 * 24)
        assert float(spectrum.loss[rank]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("images", [32, 64])
def test_what_is_told_of_few_images_is_within_a_factor_of_two_of_what_others_show(images, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    ).eval()
    with torch.no_grad():
        model[5].weight.mul_(10)
    fresh, shown = torch.randn(1000, 3, 8, 8), list(torch.randn(images, 3, 8, 8).split(16))
    with caplog.at_level(logging.INFO):
        edit, tensors = low_rank(model, shown, Budget(0.7), LowRank(round_to=1))
    smaller = built(model, edit, tensors)
    found = mean_divergence([model(fresh).detach()], [smaller(fresh).detach()])
    told = float(caplog.text.split("kl to dense ")[-1].split()[0])
    assert 0.5 < told / found < 2
    assert found > 0.01


def test_a_change_is_taken_as_far_as_it_helps_and_else_left():
    layer = nn.Linear(1, 1, bias=False)
    for value, better in ((4.0, 1.0), (8.0, 2.0), (-5.0, 0.0), (1.0, 1.0)):

        def change_(value=value):
            with torch.no_grad():
                layer.weight.fill_(value)

        with torch.no_grad():
            layer.weight.zero_()
        left = _nearer_(layer, change_, lambda: (float(layer.weight.detach()) - 1.2) ** 2, 1.44)
        assert float(layer.weight.detach()) == better
        assert left == pytest.approx((better - 1.2) ** 2)
