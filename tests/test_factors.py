"""Factoring: which layers two others can stand for, and that the two are the layer at full rank."""

import copy

import numpy as np
import pytest
import torch
from factored import built, images, outputs
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.catalog.entry import Base
from zoo.compression.low_rank.factorable import chosen, factorable, grows
from zoo.compression.low_rank.factors import factored, nsr, pair, replaced
from zoo.errors import UnknownName
from zoo.structure.plan import Factor, Rank

TOKENS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2}


@pytest.fixture(autouse=True)
def _one_thread(_surroundings):
    torch.set_num_threads(1)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


class Awkward(nn.Module):
    """Layers that two others could stand for, and every kind of those for which they couldn't."""

    class Doubled(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(2 * x, self.weight, self.bias)

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.transposed = nn.ConvTranspose2d(8, 8, 1)
        self.doubled = self.Doubled(8, 8, 1)
        self.normalised = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.twice = nn.Linear(8, 8)
        self.tied, self.to_it = nn.Linear(8, 8), nn.Linear(8, 8)
        self.to_it.weight = self.tied.weight
        self.read = nn.Linear(8, 8)
        self.read_besides = nn.Linear(8, 8)
        self.asked_its_type = nn.Linear(8, 8)
        self.measured = nn.Linear(8, 8)
        self.named = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        x = self.normalised(self.doubled(self.transposed(self.grouped(self.plain(x))))).mean((2, 3))
        x = self.to_it(self.tied(self.twice(self.twice(x))))
        x = F.linear(x, self.read.weight) + self.read_besides(x) * self.read_besides.weight.sum()
        x = self.shared(self.asked_its_type(x.to(self.asked_its_type.weight.dtype)))
        x = self.measured(x) / self.measured.out_features + self.named(input=x)
        return self.last(x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0])


def test_a_layer_is_factorable_if_two_others_could_stand_for_it():
    model = seeded(Awkward)
    before = copy.deepcopy(model.state_dict())
    assert factorable(model, images()[0]) == ["plain", "twice", "last"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("architecture", ["beit_base_patch16_224", "eva02_tiny_patch14_224", "deit3_small_patch16_224"])
def test_what_is_factorable_of_a_timm_model_still_runs_when_it_is_factored(architecture, disturb):
    model = disturb(Base(f"timm/{architecture}", {**TOKENS, "num_classes": 5}), 16)
    found = factorable(model, images(side=16)[0])
    assert ("blocks.0.attn.qkv" in found) == architecture.startswith("deit3")
    assert {"patch_embed.proj", "blocks.0.attn.proj", "head"} <= set(found)
    Factor({path: Rank(1) for path in found}).apply_(model)
    assert outputs(model, images(side=16)[0]).shape == (8, 5)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), Rank(4)),
    "without a bias": (lambda: nn.Linear(6, 4, bias=False), Rank(4)),
    "first": (lambda: nn.Conv2d(6, 4, (3, 2), stride=2, padding=1, dilation=2, padding_mode="reflect"), Rank(4)),
    "last": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1), Rank(4, "last")),
}


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_factors_of_full_rank_are_the_layer(kind, flat):
    make, rank = LAYERS[kind]
    layer = seeded(make)
    m, n = layer.weight.shape[:2]
    if rank.spatial == "first":
        A, B = layer.weight.detach(), torch.eye(m)
    else:
        A, B = torch.eye(n), layer.weight.detach()
    model = nn.Sequential(layer)
    parts = factored(layer, A.flatten(1) if flat else A, B.flatten(1) if flat else B, "0")
    save(parts)  # refuses what isn't contiguous or is shared
    smaller = built(model, Factor({"0": rank}), replaced(model, parts, ["0"]))
    x = torch.randn(3, n) if isinstance(layer, nn.Linear) else torch.randn(3, n, 9, 8)
    torch.testing.assert_close(outputs(smaller, x), outputs(model, x))


def test_a_bias_of_ones_own_takes_the_layers_place():
    parts = factored(nn.Linear(6, 4), torch.zeros(2, 6), torch.zeros(4, 2), "a.b", torch.arange(4.0))
    assert list(parts) == ["a.b.0.weight", "a.b.1.weight", "a.b.1.bias"]
    assert parts["a.b.1.bias"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("layer", "spatial", "most"),
    [
        (nn.Linear(12, 12), "first", 5),  # 2 · 12 k < 144
        (nn.Linear(12, 4), "first", 2),  # 16 k < 48
        (nn.Conv2d(4, 4, 3), "first", 3),  # 40 k < 144
        (nn.Conv2d(4, 4, 3), "last", 3),
        (nn.Conv2d(4, 4, 3, stride=3), "last", 1),  # its 1 x 1 runs on nine times the positions: 72 k < 144
    ],
)
def test_a_layer_grows_above_the_rank_that_costs_as_much(layer, spatial, most):
    assert [grows(layer, Rank(k, spatial)) for k in (most, most + 1)] == [False, True]
    params = sum(p.numel() for p in pair(layer, Rank(most, spatial)).parameters() if p.ndim > 1)
    assert params < layer.weight.numel()


@given(seed=st.integers(0, 99), channel=st.sampled_from([1, -1]))
def test_the_noise_to_signal_ratio_is_what_its_formula_says(seed, channel):
    y, found = np.random.default_rng(seed).normal(size=(2, 5, 4, 3)) * 0.1
    axes = tuple({0, 1, 2} - {channel % 3})
    expected = (((found - y) ** 2).mean(axes) / (y.var(axes, ddof=1) + 1e-3)).mean()
    assert nsr(torch.tensor(found), torch.tensor(y), channel).item() == pytest.approx(expected, rel=1e-9)


def test_excluded_layers_are_named_in_full():
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert chosen(model, ["stem", "head"], ["head"], (), "falor") == ["stem"]
    with pytest.raises(UnknownName, match=r"dwain: exclude names 'stem\.0', but the model has no such layer"):
        chosen(model, ["stem", "head"], ["stem.0"], (), "dwain")
