"""Repaired channels against statistics measured on the spot, and pruning that no batch norm's form changes."""

import copy

import torch
from torch import nn

from zoo.compression.checking import gone
from zoo.compression.cutting import Kept
from zoo.compression.groups import analyse, select
from zoo.compression.prune import divergence
from zoo.compression.repair import narrowed, places, repair, running, watch
from zoo.structure import base

IMAGES = list(torch.randn(4, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).unbind())


class Net(nn.Module):
    """Two convolutions, a block with a skip connection, a head; each convolution with a batch norm, or with a bias."""

    def __init__(self, norms=True):
        super().__init__()
        torch.manual_seed(0)
        sizes = ((3, 16), (16, 24), (24, 16), (16, 24))
        self.convs = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1, bias=not norms) for n, m in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(m) if norms else nn.Identity() for _, m in sizes)
        self.head = nn.Linear(24, 5)
        for norm in self.norms if norms else ():
            for tensor in (norm.weight.data, norm.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (norm.bias.data, norm.running_mean):
                tensor.normal_(0, 0.3)
        self.eval()

    def forward(self, x):
        a, b, c, d = (nn.Sequential(conv, norm) for conv, norm in zip(self.convs, self.norms, strict=True))
        x = b(a(x).relu()).relu()
        return self.head((x + d(c(x).relu())).relu().mean((2, 3)))


def folded(model, removed):
    """Return the same function with each norm folded into its convolution, and an identity or nothing in its place."""
    found = Net(norms=not removed)
    found.head.load_state_dict(model.head.state_dict())
    for old, norm, conv, place in zip(model.convs, model.norms, found.convs, found.norms, strict=True):
        scale = norm.weight.data / (norm.running_var + norm.eps).sqrt()
        conv.weight.data = old.weight.data * scale[:, None, None, None]
        shift = conv.bias if removed else place.bias
        shift.data = norm.bias.data - scale * norm.running_mean
        if not removed:
            place.weight.data.fill_(1)
            place.running_mean.zero_()
            place.running_var.fill_(1 - place.eps)
    return found


def frozen(model):
    """Return the same function with other running statistics."""
    found = copy.deepcopy(model)
    for norm in found.norms:
        norm.running_mean += 3
        norm.running_var.mul_(9).add_(8 * norm.eps)
        norm.weight.data *= 3
        norm.bias.data += norm.weight.data * 3 / (norm.running_var + norm.eps).sqrt()
    return found


def cut(model, share=0.5):
    """Return the analysis, and every group cut to a share of its units as they stand."""
    analysis = analyse(model, IMAGES[0])
    units = [torch.arange(round(share * group.units)) for group in analysis.groups]
    return analysis, units, select(analysis.groups, units, base.tensors(model))


def test_repaired_signals_have_the_dense_models_moments_and_the_model_is_nearer_to_it():
    model = Net()
    analysis, units, tensors = cut(model)
    out, whole = gone(analysis, units), gone(analysis, [torch.arange(g.units) for g in analysis.groups])
    dense = watch(running(analysis.traced, whole), base.tensors(model), [torch.cat(IMAGES)])
    of, run = narrowed(dense, Kept(analysis.traced, out)), running(analysis.traced, out)
    found = repair(run, places(analysis.traced), tensors, [torch.cat(IMAGES)], of, divergence)
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


def test_what_is_near_enough_already_stays_as_it_is():
    model = Net()
    analysis, units, tensors = cut(model, 1.0)
    run = running(analysis.traced, gone(analysis, units))
    found = repair(run, places(analysis.traced), tensors, IMAGES, watch(run, tensors, IMAGES), divergence)
    assert all(torch.equal(found[path], tensor) for path, tensor in tensors.items())


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
    assert analyse(Skip().eval(), IMAGES[0]).normalised == {}
    assert analyse(twice.eval(), IMAGES[0]).normalised == {}
    assert analyse(alone.eval(), IMAGES[0]).normalised == {"0": "1.running_mean"}
