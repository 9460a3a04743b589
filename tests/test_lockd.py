"""Lockd: loss, gates and kept channels against ptdeco's own, the start against its closed form, and the edit."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from zoo.compression.low_rank.factors import pair
from zoo.compression.low_rank.lockd import Lockd, Pairs, _decompose_, _edit, _full, gates, lockd
from zoo.errors import DataError, StructureError, UnknownName
from zoo.structure.plan import Factor
from zoo.structure.tensors import tensors_of
from zoo.training.schedule import Schedule

SLOW = Schedule(epochs=80, batch_size=8, lr=0.04, weight_decay=0.0, clip=0.0)
QUICK = Schedule(epochs=6, batch_size=8, lr=0.1, weight_decay=0.0, clip=0.0)


@pytest.fixture(autouse=True)
def _one_thread(_surroundings):
    torch.set_num_threads(1)


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def network(seed=0, m=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, m, 3, stride=2, padding=1),
            Tokens(),
            nn.Linear(m, 12),
            nn.Dropout(0.5),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(192, 6),
        ).eval()


def images(count=32, seed=1):
    """Of low rank: mixtures of four patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, 3, 8, 8, generator=generator)
    return torch.tensordot(torch.randn(count, 4, generator=generator), patterns, 1)


def loader(epoch=0, x=None):
    x = images() if x is None else x
    return DataLoader([(image, 0) for image in x], 8, generator=torch.Generator().manual_seed(epoch))


def wrapped(model, how=None):
    """The layers' pairs at random, and the module that trains them, over a copy of the model."""
    how, frozen = how or Lockd(), copy.deepcopy(model).requires_grad_(False)
    layers = {p: m for p, m in frozen.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    pairs = {path: pair(layer, _full(layer)) for path, layer in layers.items()}
    return pairs, Pairs(frozen, pairs, how)


def ptdeco_lockd(model, pairs, logits):
    """The same pairs and logits in ptdeco's wrappers."""
    decomposition = pytest.importorskip("ptdeco.lockd.decomposition")
    theirs = copy.deepcopy(model)
    decomposition.wrap_in_place(theirs)
    for (path, factors), s in zip(pairs.items(), logits, strict=True):
        layer = theirs.get_submodule(path)
        names = ("conv_1", "conv_2") if hasattr(layer, "conv_1") else ("lin_0", "lin_1")
        for name, factor in zip(names, factors, strict=True):
            getattr(layer, name).load_state_dict(factor.state_dict())
        layer.logits.data.copy_(s)
    return theirs


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_and_its_gradient_are_ptdecos(weight):
    losses = pytest.importorskip("ptdeco.lockd.losses")
    model, x = network(), images(8)
    pairs, student = wrapped(model, Lockd(nsr_threshold=0.2, proportion_weight=weight))
    for s in student.logits:
        s.data.normal_()
    theirs = ptdeco_lockd(model, pairs, student.logits)
    torch.manual_seed(5)
    loss = student(x)
    torch.manual_seed(5)
    torch.testing.assert_close(theirs(x), model(x))
    expected = losses.get_nsr_loss(theirs, 0.2) + weight * losses.get_proportion_loss(theirs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    layers = [layer for layer in theirs.modules() if hasattr(layer, "logits")]
    for s, layer in zip(student.logits, layers, strict=True):
        torch.testing.assert_close(s.grad, layer.logits.grad)
    assert all(p.grad is not None for p in student.parameters())


def test_gates_are_ptdecos_and_closed_below_zero():
    decomposition = pytest.importorskip("ptdeco.lockd.decomposition")
    s = torch.linspace(-2, 3, 50)
    torch.manual_seed(3)
    g = gates(s, 0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(g, decomposition.sample_from_logits(s))
    assert (g[s < 0] == 0).all()
    assert (g[s > 0] > 0).all()


def test_kept_channels_and_their_weights_are_ptdecos():
    decomposition = pytest.importorskip("ptdeco.lockd.decomposition")
    model = network()
    pairs, student = wrapped(model)
    for s in student.logits:
        s.data = torch.where(torch.arange(len(s)) % 3 == 0, 0.5, -0.5)
    theirs = ptdeco_lockd(model, pairs, student.logits)
    config = decomposition.decompose_in_place(theirs, 10.0)
    edit, found = _edit(model, pairs, list(student.logits), Lockd())
    assert list(edit.layers) == list(config) == ["0", "3", "5", "9"]
    for path in config:
        for i, factor in enumerate(theirs.get_submodule(path)):
            assert torch.equal(found[f"{path}.{i}.weight"], factor.weight)
            assert factor.bias is None or torch.equal(found[f"{path}.{i}.bias"], factor.bias)
    ours = copy.deepcopy(model)
    edit.apply_(ours)
    assert found.keys() == tensors_of(ours).keys()
    for name, tensor in tensors_of(ours).items():
        tensor.data.copy_(found[name])
    torch.testing.assert_close(ours.eval()(images()), theirs.eval()(images()))


def test_a_layer_stays_dense_where_it_would_keep_none_or_too_many_channels_or_grow():
    model = network()
    pairs, student = wrapped(model)
    logits = [torch.full_like(s, -1.0) for s in student.logits]
    logits[1][:6] = 1  # 6 of 8: fewer params, but its 1 x 1 runs before the stride
    logits[2][:5] = 1  # 5 of 8, where 5 · (8 + 12) > 8 · 12
    logits[3][:5] = 1  # 5 of 6, above the threshold
    edit, found = _edit(model, pairs, logits, Lockd())
    assert not edit.layers
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors_of(model).items())
    logits[0][1] = 1
    edit, found = _edit(model, pairs, logits, Lockd(proportion_threshold=1.0))
    assert {path: rank.rank for path, rank in edit.layers.items()} == {"0": 1, "9": 5}
    assert torch.equal(found["0.0.weight"], pairs["0"][0].weight[1:2])
    assert torch.equal(found["9.1.weight"], pairs["9"][1].weight[:, :5])


CONVOLUTIONS = {
    "more outputs": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
    "not square": lambda: nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(1, 0)),
    "a linear layer": lambda: nn.Linear(4, 6),
    "a linear layer that narrows": lambda: nn.Linear(6, 4),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_pair_starts_as_the_layer_itself(kind):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[kind]()
    x = (
        torch.randn(8, layer.weight.shape[1], 7, 8)
        if isinstance(layer, nn.Conv2d)
        else torch.randn(8, 5, layer.weight.shape[1])
    )
    x.select(1 if x.ndim == 4 else 2, 0).zero_()  # an input that is always zero
    model = nn.Sequential(layer)
    pairs = {"0": pair(layer, _full(layer))}
    _decompose_(model, pairs, [x])
    y = torch.randn_like(x)
    torch.testing.assert_close(pairs["0"](y), layer(y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_the_first_channels_of_the_start_leave_the_smallest_error_that_any_could(shape):
    torch.manual_seed(0)
    m, n = shape
    layer = nn.Linear(n, m).double()
    x = torch.randn(400, n, dtype=torch.float64) @ torch.randn(n, n, dtype=torch.float64)
    pairs = {"0": pair(layer, _full(layer))}
    _decompose_(nn.Sequential(layer), pairs, [x])
    A, B = (factor.weight.detach() for factor in pairs["0"])
    y = (x @ layer.weight.T).detach()
    power = np.linalg.svd(y.numpy(), compute_uv=False) ** 2
    for k in (1, 3, 5):
        error = (y - x @ A[:k].T @ B[:, :k].T).square().sum().item()
        assert error == pytest.approx(power[k:].sum(), rel=1e-3, abs=1e-3)


def test_a_convolution_with_fewer_outputs_starts_nearer_than_its_weights_alone_would_put_it():
    torch.manual_seed(0)
    layer = nn.Conv2d(12, 4, 3, padding=1)
    x = torch.randn(16, 12, 8, 8) * torch.linspace(0.05, 2, 12)[:, None, None]
    pairs = {"0": pair(layer, _full(layer))}
    _decompose_(nn.Sequential(layer), pairs, [x])
    W = layer.weight.detach().movedim(1, -1).reshape(-1, 12)
    U = torch.linalg.svd(W, full_matrices=False).U[:, :4]
    W_k = (U @ U.T @ W).reshape(4, 3, 3, 12).movedim(-1, 1)
    plain = (F.conv2d(x, W_k, layer.bias, padding=1) - layer(x)).square().mean()
    assert (pairs["0"](x) - layer(x)).square().mean() < 0.8 * plain


def test_layers_of_low_rank_features_shrink_until_they_reach_the_threshold():
    model = network()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    model.train()[9].weight.requires_grad_(False)
    state = torch.get_rng_state()
    edit, found = lockd(model, loader, Lockd(nsr_threshold=0.3), SLOW)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert [p.requires_grad for p in model[9].parameters()] == [False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert not any(m._forward_hooks for m in model.modules())
    assert "3" in edit.layers
    assert len(edit.layers) >= 2
    assert all(rank.spatial == ("last" if path in "03" else "first") for path, rank in edit.layers.items())
    smaller = copy.deepcopy(model).eval()
    edit.apply_(smaller)
    for name, tensor in tensors_of(smaller).items():
        tensor.data.copy_(found[name])
    x = images()
    for path in edit.layers:
        i, model = int(path), model.eval()
        with torch.no_grad():
            inputs = model[:i](x)
            y, z = (each[i](inputs).double() for each in (model, smaller))
        axes = (0, 2, 3) if y.ndim == 4 else tuple(range(y.ndim - 1))
        y, z = y.numpy(), z.numpy()
        assert (((z - y) ** 2).mean(axes) / (y.var(axes, ddof=1) + 1e-3)).mean() < 0.4


def test_a_seed_decides_gates_and_random_starts():
    model, how = network(), Lockd(start="random", initial_logit=0.2, proportion_threshold=1.0)
    found = []
    for seed in (1, 1, 2):
        torch.rand(1)  # the caller's own generator decides nothing
        found.append(lockd(model, loader, how, QUICK, seed=seed))
    first, again, other = found
    assert first[0].layers
    assert first[0] == again[0]
    assert all(torch.equal(again[1][name], tensor) for name, tensor in first[1].items())
    assert other[0] != first[0] or any(not torch.equal(other[1][n], t) for n, t in first[1].items())


BAD = {
    "no images": (lambda epoch: [], {}, DataError, "no images"),
    "one image": (lambda epoch: DataLoader([(i, 0) for i in images(3)], 1), {}, DataError, "batch 0 has 1 image"),
    "all the same": (lambda epoch: loader(0, torch.zeros(8, 3, 8, 8)), {}, DataError, "the same for every image"),
    "not finite": (lambda epoch: loader(0, images() * math.nan), {}, DataError, "aren't finite"),
    "unknown layer": (loader, {"exclude": ["trunk"]}, UnknownName, "exclude names 'trunk'"),
    "nothing left": (loader, {"exclude": list("0359")}, StructureError, "no layer that can be factored"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_leaves_the_model_and_the_disk_as_they_were(kind, tmp_path):
    data, options, error, message = BAD[kind]
    model = network()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    with pytest.raises(error, match=message) as caught:
        lockd(model, data, Lockd(**options), QUICK, state=tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(model).items())
    assert not list(tmp_path.iterdir())


class Hidden(nn.Sequential):
    """What isn't finite inside doesn't leave it."""

    def forward(self, x):
        return super().forward(x).nan_to_num(0.0, 0.0, 0.0) + x


class Overflow(nn.Module):
    def forward(self, x):
        return x.exp() * torch.inf


@pytest.mark.parametrize("where", ["1.1", "1.0"])
def test_an_input_or_a_weight_that_is_not_finite_names_the_layer(where):
    inside = [Overflow(), nn.Linear(192, 192)] if where == "1.1" else [nn.Linear(192, 192)]
    model = nn.Sequential(nn.Flatten(), Hidden(*inside), nn.Linear(192, 4))
    if where == "1.0":
        model[1][0].weight.data[0, 0] = math.inf
    with pytest.raises(DataError, match=rf"weight of {where} isn't finite"):
        lockd(model, loader)


@pytest.mark.parametrize(
    "options",
    [{"nsr_threshold": 0}, {"temperature": math.inf}, {"initial_logit": -1}, {"start": "pca"}, {"start_steps": 0}],
)
def test_a_declaration_outside_its_range_is_refused(options):
    with pytest.raises(DataError, match=f"lockd: {next(iter(options))} is"):
        Lockd(**options)


def test_a_state_of_another_threshold_or_model_is_refused(tmp_path):
    state = tmp_path / "state"
    lockd(network(), loader, None, QUICK, state=state)
    for model, how in ((network(), Lockd(nsr_threshold=0.2)), (network(1), Lockd())):
        with pytest.raises(DataError, match="belongs to another run"):
            lockd(model, loader, how, QUICK, state=state)


def test_the_edit_is_one_of_a_plan():
    edit, _ = lockd(network(), loader, Lockd(initial_logit=0.1), QUICK)
    assert isinstance(edit, Factor)
