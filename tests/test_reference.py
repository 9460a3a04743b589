"""A cut passes its check only if it computes what the masked dense model computes, for one image and for two."""

import pytest
import torch
from analysed import analysed, checked
from torch import nn

from zoo.compression.channels import checking
from zoo.compression.channels.checking import CLOSE, cut, difference, halves

IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """What is returned beside the logits, and in which type it is computed, is up to `also`."""

    def __init__(self, also=lambda logits, x: logits):
        super().__init__()
        self.first, self.second, self.also = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), also
        self.head = nn.Linear(6, 5)
        self.register_buffer("anchors", torch.arange(14.0).view(7, 2))

    def forward(self, x):
        return self.also(self.head(self.second(self.first(x).relu()).relu().mean((2, 3))), self)


def anchors(logits, net):
    return logits, 2 * net.anchors


def a_scalar(logits, net):
    return logits, logits.mean()


def images_last(logits, net):
    return logits.T


def single_precision(logits, net):
    return (logits.float() * 1.5).to(torch.float32)


@pytest.mark.parametrize("also", [anchors, a_scalar, images_last, single_precision])
def test_whatever_shape_outputs_have_channels_can_be_cut(also):
    model = Net(also).eval()
    assert [group.name for group in checked(model, IMAGE).groups] == ["first", "second"]
    analysis = analysed(model, IMAGE)
    units = halves(analysis)
    assert difference(model, analysis, units, cut(analysis, units), IMAGE) < 1e-12


WRONG = {
    "for the first of two": lambda y: torch.cat([y[:1] * 1.01, y[1:]]) if len(y) == 2 else y,
    "for the second of two": lambda y: torch.cat([y[:1], y[1:] * 1.01]) if len(y) == 2 else y,
    "alone": lambda y: y * 1.01 if len(y) == 1 else y,
    "by little": lambda y: y * (1 + 1e-5),
    "by little, and hugely for the second": lambda y: y * torch.tensor([[1.01], [1e9]])[-len(y) :],
    "in how many it gives": lambda y: y[:, :-1],
    "not a number": lambda y: y / 0,
}


@pytest.mark.parametrize("how", WRONG)
def test_a_cut_that_is_wrong_fails_the_check(how, monkeypatch):
    model = Net().eval()
    analysis = analysed(model, IMAGE)
    units, run = halves(analysis), checking.reference.run_program
    program = cut(analysis, units)

    def spoilt(which, *rest):
        found = run(which, *rest)
        return [WRONG[how](y) for y in found] if which is program else found

    assert difference(model, analysis, units, program, IMAGE) < 1e-12
    monkeypatch.setattr(checking.reference, "run_program", spoilt)
    assert difference(model, analysis, units, program, IMAGE) > CLOSE


@pytest.mark.parametrize("error", [AttributeError, ZeroDivisionError, RuntimeError])
def test_a_cut_that_raises_fails_the_check(error):
    class Broken(Net):
        def forward(self, x):
            raise error

    model = Net().eval()
    analysis = analysed(model, IMAGE)
    assert difference(model, analysis, halves(analysis), Broken(), IMAGE) == float("inf")


def test_a_module_in_single_precision_is_checked_in_double():
    model = Net(single_precision).eval()
    analysis = analysed(model, IMAGE)
    whole = [torch.arange(group.units) for group in analysis.groups]
    assert difference(model, analysis, whole, model, IMAGE) < 1e-12
