"""Repaired channels against the statistics that they should have."""

import copy

import pytest
import torch
from analysed import analysed
from test_invariance import IMAGES, Net
from torch import nn

from zoo.compression.repair import calling, located, narrowed, places, repaired, running, watch
from zoo.measurement.divergence import kl
from zoo.structure.tensors import tensors_of


def divergence(outputs, target):
    return float(kl(outputs, target).mean())


def cut(model, share=0.5):
    """Return the analysis, and every group cut to a share of its units as they stand."""
    analysis = analysed(model, IMAGES[0])
    units = [torch.arange(round(share * group.units)) for group in analysis.groups]
    return analysis, units, analysis.kept(units).select(tensors_of(model))


def test_repaired_signals_have_the_dense_models_moments_and_the_model_is_nearer_to_it():
    model = Net()
    analysis, units, tensors = cut(model)
    kept, whole = analysis.kept(units), analysis.kept([torch.arange(g.units) for g in analysis.groups])
    dense = watch(running(whole), tensors_of(model), [torch.cat(IMAGES)])
    of, run = narrowed(dense, kept), running(kept)
    found = repaired(run, places(analysis.traced), tensors, [torch.cat(IMAGES)], of)
    before, after = (watch(run, each, [torch.cat(IMAGES)]) for each in (tensors, found))
    for name, moments in after.moments[0].items():
        mean, square = of.moments[0][name]
        place = places(analysis.traced)[name]
        # a norm's signal is about its running mean and over its running deviation
        old, new = ((t[place.scale] + place.eps).sqrt() if place.eps else torch.ones(1) for t in (tensors, found))
        torch.testing.assert_close(moments[0] / new, mean / old, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(moments[1] / new**2, square / old**2, rtol=1e-3, atol=1e-3)
    assert divergence(after.output, dense.output) < divergence(before.output, dense.output) / 2
    assert divergence(before.output, dense.output) > 0.001


@pytest.mark.parametrize("norms", [True, False], ids=["batch norms", "biases"])
def test_a_module_is_repaired_like_a_program(norms):
    model = Net(norms)
    worse = copy.deepcopy(model)
    with torch.no_grad():
        for conv in worse.convs:
            conv.weight.mul_(torch.rand(len(conv.weight), 1, 1, 1) + 0.5)
    layers, images = {f"convs.{i}": f"convs.{i}" for i in range(4)}, [torch.cat(IMAGES)]
    by_path = located(model, layers, IMAGES[0])
    assert set(by_path) == ({f"norms.{i}" for i in range(4)} if norms else set(layers))
    found = []
    analysis = analysed(model, IMAGES[0])
    whole = analysis.kept([torch.arange(group.units) for group in analysis.groups])
    for run, where in ((calling(model, by_path), by_path), (running(whole), places(analysis.traced))):
        found.append(repaired(run, where, tensors_of(worse), images, watch(run, tensors_of(model), images)))
    for path, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][path], rtol=1e-4, atol=1e-5)
    wanted, before, after = (watch(run, t, images).output for t in (tensors_of(model), tensors_of(worse), found[0]))
    assert divergence(after, wanted) < divergence(before, wanted) / 100


def test_what_a_module_calls_twice_is_no_place():
    norm, layer = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    model = nn.Sequential(norm, layer, norm, layer, nn.Conv2d(3, 3, 1)).eval()
    assert set(located(model, {"1": "1", "4": "4"}, IMAGES[0])) == {"4"}


def test_what_is_whole_stays_as_it_is():
    model = Net()
    analysis, units, tensors = cut(model, 1.0)
    run = running(analysis.kept(units))
    found = repaired(run, places(analysis.traced), tensors, IMAGES, watch(run, tensors, IMAGES))
    assert found.keys() == tensors.keys()
    for path, tensor in tensors.items():
        torch.testing.assert_close(found[path], tensor)


def test_a_layer_that_others_than_its_norm_read_takes_no_shift():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = self.conv(x)
            return self.last((self.norm(y) + y).relu())

    shared = nn.BatchNorm2d(3)
    twice = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), shared, nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False), shared)
    alone = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
    assert analysed(Skip().eval(), IMAGES[0]).normalised == {}
    assert analysed(twice.eval(), IMAGES[0]).normalised == {}
    assert analysed(alone.eval(), IMAGES[0]).normalised == {"0": "1.running_mean"}
