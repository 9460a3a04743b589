"""The step against autograd with every class enumerated."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.compression.low_rank.kfac import SMOOTHING, mean_divergence, newton_


class Net(nn.Module):
    """Two layers; the second one's inputs change with the first."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(5, 4)

    def forward(self, x):
        y = self.second(self.first(x).tanh())
        return self.head(y.flatten(2).mean(2) if y.ndim == 4 else y)


def nets(kind):
    """Return a dense net, the same with two layers for each of its two, and batches, in double precision."""
    torch.manual_seed(0)
    if kind == "3 x 3":
        dense = Net(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2))
        pairs = [nn.Sequential(nn.Conv2d(n, 2, 3, padding=p, stride=s, bias=False), nn.Conv2d(2, m, 1))
                 for n, m, p, s in ((3, 6, 1, 1), (6, 5, 0, 2))]  # fmt: skip
        x = torch.randn(30, 3, 7, 7)
    else:
        bias = kind == "linear"
        dense = Net(nn.Linear(8, 6, bias=bias), nn.Linear(6, 5, bias=bias))
        pairs = [nn.Sequential(nn.Linear(n, 3, bias=False), nn.Linear(3, m, bias=bias)) for n, m in ((8, 6), (6, 5))]
        x = torch.randn(30, 8) + 1
    factored = copy.deepcopy(dense)
    factored.first, factored.second = pairs
    return dense.double().eval(), factored.double().eval(), list(x.double().split(10))


def layer_input(net, x):
    """What the last second factor reads."""
    return net.second[0](net.first(x).tanh())


def flat(y):
    return y.detach().movedim(1, -1).reshape(-1, y.shape[1]).numpy()


def test_the_divergence_is_that_of_torch():
    a, b = torch.randn(2, 6, 4).double()
    wanted = F.kl_div(b.log_softmax(1), a.log_softmax(1), reduction="batchmean", log_target=True)
    assert mean_divergence(list(a.split(4)), list(b.split(4))) == pytest.approx(float(wanted))


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "3 x 3"])
def test_a_step_goes_along_the_gradient_of_the_divergence_to_where_it_bends_up(kind):
    dense, factored, batches = nets(kind)
    x, wanted = torch.cat(batches), [dense(b).detach() for b in batches]
    old = copy.deepcopy(factored)
    layer = old.second[1]
    p = torch.cat(wanted).softmax(1)
    q = old(x).softmax(1).detach()
    J = F.kl_div(old(x).log_softmax(1), p, reduction="batchmean")
    parameters = list(layer.parameters())
    gradient = torch.cat([g.flatten(1) if g.ndim > 1 else g[:, None] for g in torch.autograd.grad(J, parameters)], 1)
    newton_(factored, [factored.second[1]], batches, wanted, damping=1e6)
    assert F.kl_div(factored(x).log_softmax(1), p, reduction="batchmean") < J
    moved = [b - a for a, b in zip(parameters, factored.second[1].parameters(), strict=True)]
    step = torch.cat([d.detach().flatten(1) if d.ndim > 1 else d.detach()[:, None] for d in moved], 1)
    # So damped, each output goes along its gradient, of each input over the mean square of that input.
    with torch.no_grad():
        z = torch.from_numpy(flat(layer_input(old, x)))
    power = torch.cat([z.square().mean(0), torch.ones(step.shape[1] - z.shape[1], dtype=z.dtype)])
    assert torch.nn.functional.cosine_similarity(step * power, gradient).tolist() == pytest.approx([-1] * 5, abs=1e-4)
    even = (1 - SMOOTHING) * (p + q) / 2 + SMOOTHING / 4
    named = {name: d.detach() for (name, _), d in zip(layer.named_parameters(), moved, strict=True)}
    with torch.no_grad():
        ahead, behind = copy.deepcopy(old), copy.deepcopy(old)
        for net, h in ((ahead, 1e-6), (behind, -1e-6)):
            for name, parameter in net.second[1].named_parameters():
                parameter += h * named[name]
        δ = (ahead(x) - behind(x)) / 2e-6
    bend = ((even * δ * δ).sum(1) - (even * δ).sum(1) ** 2).mean()
    assert bend.item() == pytest.approx(-(step * gradient).sum().item(), rel=0.02)  # what α is best to second order


def test_a_step_of_independent_outputs_is_newtons():
    torch.manual_seed(0)
    x = torch.randn(4000, 3).double() / 20
    dense, factored = (nn.Sequential(nn.Linear(3, 4)).double().eval() for _ in range(2))
    with torch.no_grad():
        for value, other in zip(factored.parameters(), dense.parameters(), strict=True):
            value.copy_(other + torch.randn_like(other) / 10)
    wanted = [dense(x).detach()]
    before = mean_divergence(wanted, [factored(x)])
    newton_(factored, [factored[0]], [x], wanted, damping=1e-3)
    assert mean_divergence(wanted, [factored(x)]) < 0.2 * before


def test_where_nothing_is_missing_no_step_is_taken():
    dense, _, batches = nets("linear")
    same = copy.deepcopy(dense)
    newton_(same, [same.second], batches, [dense(b).detach() for b in batches], 0.1)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), same.parameters(), strict=True))
