"""What leaves a model's function alone leaves what is cut of it alone: the same units or ranks, the same outputs."""

import copy

import pytest
import torch
from analysed import analysed
from factored import built, outputs
from torch import nn

from zoo.catalog.entry import Budget
from zoo.compression.low_rank.low_rank import LowRank, low_rank
from zoo.compression.prune.prune import Prune, prune
from zoo.compression.repair import running, watch

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


def scaled(model):
    """Return the same function with channels of every scale between its layers."""
    found, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    for norm, reader in ((found.norms[0], found.convs[1]), (found.norms[2], found.convs[3])):
        scale = torch.empty(len(norm.weight)).uniform_(0.05, 20, generator=generator)
        norm.weight.data *= scale
        norm.bias.data *= scale
        reader.weight.data /= scale[:, None, None]
    return found


def permuted(model):
    """Return the same function with the channels between two layers in another order."""
    found = copy.deepcopy(model)
    for tensor in (found.convs[2].weight, *found.norms[2].state_dict(keep_vars=True).values()):
        if tensor.ndim:
            tensor.data = tensor.data[ORDER]
    found.convs[3].weight.data = found.convs[3].weight.data[:, ORDER]
    return found


def renamed(model):
    """Return the same modules by other names, in another order."""

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a_head, self.z, self.b = model.head, model.norms, model.convs

        forward = Net.forward
        head, norms, convs = (property(lambda self, name=name: self._modules[name]) for name in ("a_head", "z", "b"))

    return Renamed().eval()


ORDER = torch.randperm(16, generator=torch.Generator().manual_seed(3))
FORMS = {
    "the batch norms folded into the convolutions": lambda model: folded(model, removed=False),
    "no batch norm left": lambda model: folded(model, removed=True),
    "the statistics frozen at other values": frozen,
    "channels scaled between layers": scaled,
    "channels in another order": permuted,
    "other names": renamed,
}


def pruned(model, budget, batches=IMAGES):
    """Return the units kept of each group, and the outputs of what is left."""
    analysis = analysed(model, IMAGES[0])
    found = prune(model, analysis, batches, Budget(budget), Prune(round_to=1))
    with torch.no_grad():
        run = running(analysis.kept(found.units))
        logits = watch(run, found.tensors, IMAGES).output
    assert min(map(len, found.units)) < 16
    return [sorted(units.tolist()) for units in found.units], logits


def factored(model, budget, batches=IMAGES):
    """Return the shape and the rank of each layer factored, and the outputs of the factored model."""
    edit, tensors = low_rank(model, batches, Budget(budget), LowRank(round_to=1))
    smaller = built(model, edit, tensors)
    assert len(edit.layers) > 1
    shapes = [[*model.get_submodule(path).weight.shape, rank.rank] for path, rank in edit.layers.items()]
    return shapes, torch.cat([outputs(smaller, x) for x in IMAGES]).double()


METHODS = {"prune": pruned, "low_rank": factored}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [0.8, 0.4])
def test_the_same_function_is_cut_alike(form, budget, method):
    other = FORMS[form](Net())
    with torch.no_grad():
        torch.testing.assert_close(other(IMAGES[0]), Net()(IMAGES[0]), rtol=1e-4, atol=1e-5)
    (units, logits), (found, theirs) = (METHODS[method](model, budget) for model in (Net(), other))
    if (form, method) == ("channels in another order", "prune"):
        found = [sorted(ORDER[kept].tolist()) if g == 2 else kept for g, kept in enumerate(found)]
    assert sorted(found) == sorted(units)  # other names put the groups in another order
    torch.testing.assert_close(theirs, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_cut_is_the_same_whatever_the_batches(size, method):
    (units, logits), (found, theirs) = (
        METHODS[method](Net(), 0.5, batches) for batches in (IMAGES, torch.cat(IMAGES).split(size))
    )
    assert found == units
    torch.testing.assert_close(theirs, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_is_the_same_on_one_thread_and_on_two(method):
    found = []
    for threads in (1, 2):  # the suite's fixture puts two back
        torch.set_num_threads(threads)
        found.append(METHODS[method](Net(), 0.5))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
