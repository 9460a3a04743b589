"""Low rank against explicit reconstructions, numpy's truncated SVD, and brute force over ranks."""

import copy
import itertools
import logging

import numpy as np
import pytest
import timm
import torch
from factored import built
from torch import nn

import zoo
from zoo.catalog.entry import Budget
from zoo.compression.low_rank.allocation import Choice, allocate_ranks, choice
from zoo.compression.low_rank.factorable import factorable
from zoo.compression.low_rank.fisher import spectra
from zoo.compression.low_rank.kfac import mean_divergence
from zoo.compression.low_rank.low_rank import LowRank, low_rank, spectral_factors
from zoo.errors import BudgetError, DataError, StructureError, UnknownName, ZooError
from zoo.measurement.macs import measure
from zoo.structure.plan import Factor, Rank

SETTINGS = {"ridge": 1e-2, "smoothing": 0.1, "draws": 1, "seed": 0}
LAYERS = {
    "linear that narrows": (lambda: nn.Linear(8, 5), (3, 8)),
    "linear that widens": (lambda: nn.Linear(5, 9), (3, 5)),
    "linear without bias": (lambda: nn.Linear(8, 5, bias=False), (3, 8)),
    "pointwise": (lambda: nn.Conv2d(8, 5, 1), (8, 6, 6)),
    "pointwise with stride": (lambda: nn.Conv2d(5, 9, 1, stride=2), (5, 7, 7)),
    "3 x 3": (lambda: nn.Conv2d(4, 9, 3, padding=1), (4, 6, 6)),
    "stride": (lambda: nn.Conv2d(4, 9, 3, stride=2, padding=1), (4, 7, 7)),
    "dilation": (lambda: nn.Conv2d(4, 9, 3, padding=2, dilation=2), (4, 7, 7)),
}


class Classifier(nn.Module):
    """One layer, its outputs made logits by the means over positions."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.weight.shape[0], 4)

    def forward(self, x):
        y = self.layer(x).tanh()
        return self.head(y.flatten(2).mean(2) if isinstance(self.layer, nn.Conv2d) else y.mean(1))


def drawn(name):
    """Return a classifier and batches whose channels have means and depend on one another, in double precision."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = Classifier(make()).double().eval()
    channels = shape[-1] if name.count("linear") else shape[0]
    axis = -1 if name.count("linear") else 1
    x = torch.randn(24, *shape).double().movedim(axis, -1) @ torch.randn(channels, channels).double()
    x = (x + torch.arange(channels) / 3).movedim(-1, axis).contiguous()
    return model, [x[:10], x[10:]]


def factored(model, path, spectrum, rank):
    """The layer as two, by the plan."""
    copied = copy.deepcopy(model)
    layer = copied.get_submodule(path)
    A, B, shift = spectral_factors(layer, spectrum, rank)
    Factor({path: Rank(rank)}).apply_(copied)
    pair = copied.get_submodule(path)
    with torch.no_grad():
        pair[0].weight.copy_(A)
        pair[1].weight.copy_(B)
        if layer.bias is not None:
            pair[1].bias.copy_(layer.bias + shift)
    return pair


def tail(spectrum, rank):
    """What a rank loses on the images that made the spectrum, in nats, were positions independent."""
    return float(spectrum.values[rank:].sum()) / 2


def flat(y, layer):
    return (y if isinstance(layer, nn.Linear) else y.movedim(1, -1)).reshape(-1, layer.weight.shape[0]).detach()


def rows(x, layer):
    """What the layer multiplies its weight with, taken from it by impulses: patches for each output."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    m, size = layer.weight.shape[0], layer.weight[0].numel()
    probe = copy.deepcopy(layer)
    columns = []
    for i in range(size):
        with torch.no_grad():
            probe.weight.zero_()
            probe.weight.view(m, -1)[0, i] = 1
            columns.append(probe(x)[:, 0].flatten() - (0 if probe.bias is None else probe.bias[0]))
    return torch.stack(columns, 1).detach()


def fisher(model, batches, smoothing=0.0):
    """The Fisher information of the layer's output, one class at a time: no random signs."""
    total = 0
    for x in batches:
        y = model.layer(x).detach().requires_grad_()
        logits = model.head(y.tanh().flatten(2).mean(2) if isinstance(model.layer, nn.Conv2d) else y.tanh().mean(1))
        p = (1 - smoothing) * logits.softmax(1).detach() + smoothing / 4
        for c in range(4):
            u = p[:, c : c + 1].sqrt() * (nn.functional.one_hot(torch.tensor(c), 4) - p)
            g = flat(torch.autograd.grad(logits, y, u, retain_graph=True)[0], model.layer)
            total = total + g.T @ g
    return total / sum(map(len, batches))


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_the_two_layers_equal_the_one(name):
    model, batches = drawn(name)
    spectrum = spectra(model, {"layer": model.layer}, batches, batches, **SETTINGS)["layer"]
    pair = factored(model, "layer", spectrum, min(model.layer.weight.shape[0], model.layer.weight[0].numel()))
    for x in batches:
        assert torch.allclose(pair(x), model.layer(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_the_tail_is_the_weighted_error_that_the_factors_make(name):
    model, batches = drawn(name)
    layer = model.layer
    spectrum = spectra(model, {"layer": layer}, batches, batches, **SETTINGS)["layer"]
    weighting = spectrum.encoder.T @ spectrum.encoder  # Eᵀ E = L U Uᵀ Lᵀ = G
    if spectrum.inputs:
        W = layer.weight.detach().flatten(1)
        back = torch.linalg.pinv(W)
        weighting = back.T @ weighting @ back
    for rank in (1, 2, min(layer.weight.shape[0], layer.weight[0].numel()) - 1):
        pair = factored(model, "layer", spectrum, rank)
        missed = torch.cat([flat(layer(x) - pair(x), layer) for x in batches])
        error = (missed @ weighting * missed).sum(1).mean()
        assert error == pytest.approx(2 * tail(spectrum, rank), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in LAYERS if "without" not in name])
def test_every_rank_keeps_the_mean_output(name):
    model, batches = drawn(name)
    spectrum = spectra(model, {"layer": model.layer}, batches, batches, **SETTINGS)["layer"]
    pair = factored(model, "layer", spectrum, 2)
    wanted, found = (torch.cat([flat(f(x), model.layer) for x in batches]).mean(0) for f in (model.layer, pair))
    assert torch.allclose(wanted, found, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_the_map_is_the_truncated_svd_of_the_weighted_layer(name):
    model, batches = drawn(name)
    layer = model.layer
    spectrum = spectra(model, {"layer": layer}, batches, batches, **SETTINGS)["layer"]
    W = layer.weight.detach().flatten(1).numpy()
    x = torch.cat([rows(x, layer) for x in batches]).numpy()
    x = x - (x.mean(0) if layer.bias is not None else 0)
    S = np.linalg.svd(x / len(x) ** 0.5, full_matrices=False)
    root = S.Vh.T * S.S  # S Sᵀ = C
    weighting = (spectrum.encoder.T @ spectrum.encoder).numpy()
    Lt = np.linalg.cholesky(weighting).T
    if spectrum.inputs:
        U, s, _ = np.linalg.svd(Lt @ root)
        map_ = np.linalg.solve(Lt, U[:, :2] @ U[:, :2].T @ Lt)
        wanted = W @ map_
    else:
        U, s, _ = np.linalg.svd(Lt @ W @ root)
        wanted = np.linalg.solve(Lt, U[:, :2] @ U[:, :2].T @ Lt @ W)
    A, B, _ = spectral_factors(layer, spectrum, 2)
    found = B.flatten(1).numpy() @ A.flatten(1).numpy()
    assert np.allclose(s**2, spectrum.values.numpy()[: len(s)], rtol=1e-6, atol=1e-9 * s[0] ** 2)
    assert np.allclose(found, wanted, atol=1e-7 * np.abs(W).max())


@pytest.mark.parametrize("name", ["linear that narrows", "linear that widens", "3 x 3"])
def test_random_signs_estimate_the_fisher_information_of_the_prediction(name):
    model, batches = drawn(name)
    wanted = fisher(model, batches, 0.1)
    if name == "linear that widens":  # seen from the input
        W = model.layer.weight.detach()
        wanted = W.T @ wanted @ W
    settings = SETTINGS | {"ridge": 1e-9, "draws": 200}
    found = spectra(model, {"layer": model.layer}, batches, batches, **settings)["layer"]
    found = found.encoder.T @ found.encoder
    assert torch.linalg.norm(found - wanted) < 0.15 * torch.linalg.norm(wanted)


def test_half_the_tail_is_the_divergence_at_the_prediction_where_the_error_is_small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4)).double().eval()
    x = torch.randn(4000, 12).double() / 10
    found = spectra(model, {"0": model[0]}, [x], [x], ridge=1e-9, smoothing=0.0, draws=4, seed=0)["0"]
    kl = mean_divergence([model(x)], [factored(model, "0", found, 2)(x)])
    assert 2 * kl == pytest.approx(2 * tail(found, 2), rel=0.15)


def instances():
    generator = np.random.default_rng(0)
    for targets in (1, 2):
        for _ in range(20):
            yield targets, generator.integers(1 << 30)


@pytest.mark.parametrize(("targets", "seed"), list(instances()))
def test_the_allocation_is_close_to_the_best_of_all(targets, seed):
    generator = np.random.default_rng(seed)
    choices = {}
    for name in "abcd":
        full, size = 12, generator.integers(1, 9)
        ranks = list(range(1, 9))
        tail = torch.tensor(np.sort(generator.exponential(size=full))[::-1].copy()).flip(0).cumsum(0).flip(0)
        params = torch.tensor([*(float(size * k) for k in ranks), float(size * full)])
        damage = torch.cat([tail[ranks], torch.zeros(1)]).double()
        choices[name] = Choice([*ranks, 0], damage, params.double() * int(generator.integers(1, 5)), params.double())
    total = {what: int(sum(getattr(c, what)[-1] for c in choices.values())) for what in ("macs", "params")}
    budget = Budget(0.45, 0.5 if targets == 2 else None)
    picks = np.array(list(itertools.product(*(range(len(c.ranks)) for c in choices.values()))))
    kept = {
        what: sum(getattr(c, what).numpy()[picks[:, g]] for g, c in enumerate(choices.values()))
        for what in ("macs", "params", "damage")
    }
    fits = (kept["macs"] <= 0.45 * total["macs"]) & ((targets == 1) | (kept["params"] <= 0.5 * total["params"]))
    best = kept["damage"][fits].min()
    ranks = allocate_ranks(choices, total["macs"], total["params"], budget)
    at = {name: choices[name].ranks.index(rank) for name, rank in ranks.items()}
    for what, share in (("macs", 0.45), *((("params", 0.5),) if targets == 2 else ())):
        assert sum(float(getattr(choices[n], what)[i]) for n, i in at.items()) <= share * total[what] + 1e-6
    found = sum(float(choices[n].damage[i]) for n, i in at.items())
    assert best - 1e-9 <= found <= 1.1 * best


@pytest.mark.parametrize(("m", "n", "step"), [(64, 64, 8), (48, 96, 8), (9, 500, 1), (16, 16, 16), (200, 30, 8)])
def test_ranks_are_rounded_and_never_grow_a_layer(m, n, step):
    torch.manual_seed(0)
    layer = nn.Linear(n, m)
    model = nn.Sequential(layer, nn.Linear(m, 3)).eval()
    spectrum = spectra(model, {"0": layer}, [torch.randn(50, n)], [torch.randn(50, n)], **SETTINGS)["0"]
    found = choice(layer, spectrum, step)
    expected = min(step, max(1, min(m, n) // 8))
    assert all(k % expected == 0 and k * (m + n) < m * n for k in found.ranks[:-1])
    assert found.ranks[-1] == 0
    assert found.params[-1] == found.params.max() == m * n
    assert found.damage.tolist() == pytest.approx([*(float(spectrum.loss[k]) for k in found.ranks[:-1]), 0])


@pytest.mark.parametrize("budget", [Budget(0.8), Budget(0.6), Budget(0.9, 0.6), Budget(1.0)])
@pytest.mark.parametrize("net", ["cnn", "vit"])
def test_the_budget_is_met_as_measured_on_the_applied_plan(net, budget, request, caplog):
    model = request.getfixturevalue(net)
    torch.manual_seed(0)
    batches = [torch.randn(8, *model.pretrained_cfg["input_size"]) for _ in range(3)]
    with caplog.at_level(logging.INFO):
        edit, tensors = low_rank(model, batches, budget, LowRank(round_to=2))
    counts, dense = measure(built(model, edit, tensors)), measure(model)
    assert counts.macs <= budget.macs * dense.macs
    assert counts.params <= (budget.params or 1) * dense.params
    if budget.macs < 1:
        assert counts.macs > (budget.macs - 0.05) * dense.macs or budget.params
        assert "kl to dense" in caplog.text
    else:
        assert edit == Factor({})
    factored_model = copy.deepcopy(model)
    edit.apply_(factored_model)
    expected = {**dict(factored_model.named_parameters()), **dict(factored_model.named_buffers())}
    assert tensors.keys() == expected.keys()
    assert all(tensors[path].shape == tensor.shape for path, tensor in expected.items())
    assert all(tensors[path].is_contiguous() for path in tensors)


def test_statistics_in_several_passes_equal_those_of_one(cnn):
    batches = [torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    layers = {path: cnn.get_submodule(path) for path in factorable(cnn, batches[0])}
    whole = spectra(cnn, layers, batches, batches, **SETTINGS)
    chunked = spectra(cnn, layers, batches, batches, **SETTINGS, max_bytes=1)
    assert list(whole) == list(chunked) == list(layers)
    for path, spectrum in whole.items():
        assert torch.allclose(spectrum.values, chunked[path].values, rtol=1e-5, atol=1e-9)


READ_BY_PARENT = {
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 3},
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (1, 1),
        "num_heads": (2, 4),
    },
}


@pytest.mark.parametrize("name", READ_BY_PARENT)
def test_layers_whose_weights_their_parents_read_are_left_alone(name):
    model = timm.create_model(name, num_classes=5, **READ_BY_PARENT[name]).eval()
    side = READ_BY_PARENT[name]["img_size"]
    batches = [torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = factorable(model, batches[0])
    read = [path for path, m in model.named_modules() if path.endswith("attn.qkv") and isinstance(m, nn.Linear)]
    if name.startswith(("beit", "swinv2")):
        assert read
        assert not set(read) & set(found)
    edit, tensors = low_rank(model, batches, Budget(0.93), LowRank(round_to=1))
    assert edit.layers
    assert torch.isfinite(built(model, edit, tensors)(batches[0])).all()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(x + self.twice(self.twice(x).tanh()))


def test_a_layer_used_twice_is_counted_and_watched_twice():
    torch.manual_seed(0)
    model, x = Twice().eval().double(), torch.randn(40, 8).double()
    found = spectra(model, {"twice": model.twice}, [x], [x], **SETTINGS)["twice"]
    assert found.positions == 2
    seen = torch.cat([model.twice(x), model.twice(model.twice(x).tanh())]) - model.twice.bias
    assert torch.allclose(found.mean, seen.mean(0).detach(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_kept(vit, dtype):
    model = vit.to(dtype)
    batches = [torch.randn(8, 3, 16, 16, dtype=dtype) for _ in range(2)]
    edit, tensors = low_rank(model, batches, Budget(0.7), LowRank(round_to=1))
    assert {tensors[f"{path}.0.weight"].dtype for path in edit.layers} == {dtype}
    assert torch.isfinite(built(model, edit, tensors)(batches[0])).all()


def test_a_pruned_model_is_factored_on():
    model = zoo.load("digits_cnn_pruned_50")
    batches = [torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    edit, tensors = low_rank(model, batches, Budget(0.7), LowRank(round_to=1))
    assert measure(built(model, edit, tensors)).macs <= 0.7 * measure(model).macs
    wholly = model.zoo_entry.plan + type(model.zoo_entry.plan)((edit,))
    rebuilt = zoo.structure.plan.apply_(zoo.structure.base.skeleton(model.zoo_entry.base), wholly)
    assert {path: t.shape for path, t in rebuilt.named_parameters()} == {
        path: tensors[path].shape for path, _ in rebuilt.named_parameters()
    }


FINE = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
BAD = {
    "no batches": ([], 0.8, {}, DataError, "0 images"),
    "an empty batch": ([torch.zeros(0, 3, 32, 32)], 0.8, {}, DataError, "0 images"),
    "one image": ([FINE[0][:1]], 0.8, {}, DataError, "1 images"),
    "not finite": ([FINE[0] * float("nan")], 0.8, {}, DataError, "isn't finite"),
    "a budget below the smallest ranks": (FINE, 0.001, {}, BudgetError, "can't be met"),
    "an unknown layer": (FINE, 0.8, {"exclude": ("layer9.conv",)}, UnknownName, "layer9.conv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line_and_the_model_is_left_as_it_was(name, cnn):
    batches, share, options, error, text = BAD[name]
    before = {path: tensor.clone() for path, tensor in cnn.state_dict().items()}
    with pytest.raises(error, match=text) as caught:
        low_rank(cnn, batches, Budget(share), LowRank(**options))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, cnn.state_dict()[path]) for path, tensor in before.items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in cnn.modules())


def test_constant_features_and_models_without_logits_are_refused():
    with pytest.raises(DataError, match="varies"):
        low_rank(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).eval(), [torch.ones(6, 8)], Budget(0.8))
    with pytest.raises(StructureError, match="expected logits"):
        low_rank(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), FINE, Budget(0.8))


@pytest.mark.parametrize("options", [{"round_to": 0}, {"ridge": -1}, {"smoothing": 2}, {"seed": 0.5}, {"steps": 0}])
def test_a_wrong_declaration_is_refused(options):
    with pytest.raises(ZooError, match=next(iter(options))):
        LowRank(**options)


def test_excluded_layers_are_left_alone(vit):
    batches = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))]
    edit, _ = low_rank(vit, batches, Budget(0.8), LowRank(round_to=1, exclude=("blocks.0.mlp.fc1", "head")))
    assert edit.layers
    assert not {"blocks.0.mlp.fc1", "head"} & set(edit.layers)
