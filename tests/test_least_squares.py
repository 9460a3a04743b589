"""The correction against numpy's least squares, and the step against autograd with every class enumerated."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.compression.low_rank.kfac import SMOOTHING, mean_divergence, newton_
from zoo.compression.low_rank.least_squares import correct_
from zoo.errors import DataError

WHOLE = 1 << 30


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


@pytest.mark.parametrize("kind", ["linear", "linear without bias", "3 x 3"])
@pytest.mark.parametrize("damping", [1e-6, 0.3])
def test_the_correction_is_the_ridge_regression_of_what_is_missing_on_what_is_read(kind, damping):
    dense, factored, batches = nets(kind)
    x, before = torch.cat(batches), copy.deepcopy(factored)
    for path in ("first", "second"):
        inputs = [x if path == "first" else net.first(x).tanh() for net in (dense, before)]
        z = before.get_submodule(path)[0](inputs[1])
        r = flat(dense.get_submodule(path)(inputs[0]) - before.get_submodule(path)[1](z))
        z = flat(z)
        about = z - z.mean(0) if "without" not in kind else z
        price = damping * (about**2).sum(0)
        rows = np.concatenate([np.concatenate([z, np.ones((len(z), 1))], 1) if "without" not in kind else z])
        ridge = np.eye(z.shape[1], rows.shape[1]) * price[:, None] ** 0.5
        found, *_ = np.linalg.lstsq(
            np.concatenate([rows, ridge]), np.concatenate([r, np.zeros((len(ridge), r.shape[1]))])
        )
        correct_(dense, (now := copy.deepcopy(before)), ["first", "second"], batches, damping, WHOLE)
        layer, old = now.get_submodule(path)[1], before.get_submodule(path)[1]
        assert np.allclose((layer.weight - old.weight).detach().flatten(1).numpy(), found[: z.shape[1]].T, atol=1e-9)
        if "without" not in kind:
            assert np.allclose((layer.bias - old.bias).detach().numpy(), found[-1], atol=1e-9)


def test_what_does_not_fit_at_once_is_corrected_in_turn_and_the_dense_logits_come_back():
    dense, factored, batches = nets("linear")
    turns = copy.deepcopy(factored)
    logits = correct_(dense, factored, ["first", "second"], batches, 0.1, max_bytes=1)
    for path in ("first", "second"):
        correct_(dense, turns, [path], batches, 0.1, WHOLE)
    assert all(torch.equal(a, b) for a, b in zip(factored.parameters(), turns.parameters(), strict=True))
    assert all(torch.equal(y, dense(x)) for x, y in zip(batches, logits, strict=True))
    assert not any(module._forward_hooks for net in (dense, factored) for module in net.modules())


def test_a_correction_of_what_is_not_finite_is_refused():
    dense, factored, batches = nets("linear")
    with torch.no_grad():
        factored.first[0].weight.fill_(float("inf"))
    with pytest.raises(DataError, match="first sees isn't finite"):
        correct_(dense, factored, ["first", "second"], batches, 0.1, WHOLE)


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
    before, after = newton_(factored, [factored.second[1]], batches, wanted, damping=1e6)
    assert before == pytest.approx(J.item())
    assert after < before
    now = F.kl_div(factored(x).log_softmax(1), p, reduction="batchmean")
    assert after == pytest.approx(now.item())
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
    before, after = newton_(factored, [factored[0]], [x], wanted, damping=1e-3)
    assert after < 0.2 * before


def test_where_nothing_is_missing_no_step_is_taken():
    dense, _, batches = nets("linear")
    same = copy.deepcopy(dense)
    found = newton_(same, [same.second], batches, [dense(b).detach() for b in batches], 0.1)
    assert found == (0.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), same.parameters(), strict=True))
