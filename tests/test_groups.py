"""What must be cut together and what it costs: the narrowed model against the masked dense one and a second counter."""

import copy
from functools import cache

import pytest
import timm
import torch
from analysed import analysed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.compression.channels.checking import cut, difference
from zoo.compression.channels.groups import narrow
from zoo.errors import StructureError
from zoo.measurement.macs import measure
from zoo.structure.plan import Plan, Swap, apply_
from zoo.structure.tensors import assign_, tensors_of

SIZE = (3, 32, 32)
SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 20], "num_classes": 5}
TOKENS = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 4, "num_classes": 5}
NETWORKS = {
    "resnet18": SMALL,
    "resnet50": SMALL,
    "mobilenetv3_small_050": {"num_classes": 5},
    "tinynet_e": {"num_classes": 5},
    "vit_tiny_patch16_224": TOKENS,
    "vit_base_patch16_224": {**TOKENS, "qk_norm": True, "init_values": 0.5, "qkv_bias": False},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 5},
    "beit_base_patch16_224": {**TOKENS, "init_values": 0.5},
}


@cache
def network(name):
    """Return a small model in double precision whose norms, biases and scales are all at work, and its analysis."""
    torch.manual_seed(0)
    model = timm.create_model(name, **NETWORKS[name]).double().eval()
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.3 * torch.rand_like(tensor))
    if name.startswith("beit"):
        apply_(model, Plan((Swap({f"blocks.{i}.attn": "BeitAttention" for i in range(2)}),)))
    return model, analysed(model, torch.zeros(2, *SIZE, dtype=torch.float64))


def narrowed(model, analysis, units):
    """Return the model with only these units of each group, and nothing refitted."""
    edit = narrow(model, analysis, units)
    cut = analysis.kept(units).select({name: tensor.detach() for name, tensor in tensors_of(model).items()})
    return assign_(apply_(copy.deepcopy(model), Plan((edit,))), cut, "cut")


def masked(model, groups, units, images):
    """Return the dense model's outputs when whoever reads a cut unit reads zeros instead."""

    def zero(keep, channel_dim):
        def hook(layer, args):
            shape = [1] * args[0].ndim
            shape[channel_dim] = -1
            return (args[0] * keep.view(shape), *args[1:])

        return hook

    hooks = []
    for group, kept in zip(groups, units, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[kept] = False
        for piece in group.slices:
            path = piece.tensor.removesuffix(".weight")
            if piece.dim == 1 and path in group.readers:
                layer = model.get_submodule(path)
                keep = torch.ones(layer.weight.shape[1], dtype=images.dtype)
                keep[piece.index[gone].flatten()] = 0
                hooks.append(layer.register_forward_pre_hook(zero(keep, 1 if isinstance(layer, nn.Conv2d) else -1)))
    try:
        with torch.no_grad():
            return model(images)
    finally:
        for hook in hooks:
            hook.remove()


def drawn(groups, seed, whole=lambda group: False):
    """Return units drawn for each group, all of those that are to stay whole."""
    generator = torch.Generator().manual_seed(seed)
    counts = [
        group.units if whole(group) else int(torch.randint(1, group.units, (), generator=generator)) for group in groups
    ]
    return [
        torch.randperm(group.units, generator=generator)[:count].sort().values
        for group, count in zip(groups, counts, strict=True)
    ]


def stream(name):
    """Whether a group is a residual stream under layer norms, whose statistics a zero would change."""
    return lambda group: group.residual and not name.startswith(("resnet", "mobilenet", "tinynet"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_model_without_its_cut_units_computes_what_the_masked_dense_model_computes(name, batch):
    model, analysis = network(name)
    images = torch.randn(batch, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    for seed in range(3):
        units = drawn(analysis.groups, seed, stream(name))
        with torch.no_grad():
            found = narrowed(model, analysis, units)(images)
            dense = model(images)
        expected = masked(model, analysis.groups, units, images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        assert (expected - dense).abs().max() > 1e-6, "the cut units mattered"


@pytest.mark.parametrize("name", NETWORKS)
def test_each_group_alone_can_be_cut(name):
    model, analysis = network(name)
    images = torch.randn(1, *SIZE, dtype=torch.float64)
    every = [torch.arange(group.units) for group in analysis.groups]
    for index, group in enumerate(analysis.groups):
        if stream(name)(group):
            continue
        units = [*every[:index], torch.arange(0, group.units, 2), *every[index + 1 :]]
        with torch.no_grad():
            found = narrowed(model, analysis, units)(images)
        torch.testing.assert_close(found, masked(model, analysis.groups, units, images), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_add_up_to_what_measure_counts(name):
    model, analysis = network(name)
    counts = measure(model, SIZE)
    assert counts.macs == sum(cost.count for cost in analysis.macs)
    assert counts.params == sum(cost.count for cost in analysis.params)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_costs_of_any_widths_are_what_measure_counts_of_the_narrowed_model(name, data):
    model, analysis = network(name)
    kept = [
        group.units if stream(name)(group) else data.draw(st.integers(1, group.units), label=group.name)
        for group in analysis.groups
    ]
    edit = narrow(model, analysis, [torch.arange(k) for k in kept])
    counts = measure(apply_(copy.deepcopy(model), Plan((edit,))), SIZE)
    assert counts.macs == pytest.approx(analysis.total(analysis.macs, kept), rel=1e-9)
    assert counts.params == pytest.approx(analysis.total(analysis.params, kept), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "resnet18": ["conv1", *(f"layer{i}.0.conv1" for i in range(1, 5))],
        "resnet50": ["conv1", *(f"layer{i}.0.conv{j}" for i in range(1, 5) for j in (1, 2))],
        "vit_tiny_patch16_224": [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "mlp.fc1")],
        "beit_base_patch16_224": [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "mlp.fc1")],
        "convnext_atto": [f"stages.{i}.blocks.0.mlp.fc1" for i in range(4)],
    }.items(),
)
def test_widths_inside_blocks_are_told_from_residual_streams(name, expected):
    _, analysis = network(name)
    assert sorted(expected) == sorted(group.name for group in analysis.groups if not group.residual)


def test_a_depthwise_convolution_and_its_squeeze_and_excite_are_cut_with_the_expansion():
    _, analysis = network("mobilenetv3_small_050")
    group = next(group for group in analysis.groups if group.name == "blocks.2.0.conv_pw")
    assert group.depthwise == ("blocks.2.0.conv_dw",)
    assert group.writers == ("blocks.2.0.conv_pw", "blocks.2.0.se.conv_expand")
    assert group.readers == ("blocks.2.0.se.conv_reduce", "blocks.2.0.conv_pwl")


def test_nothing_is_said_to_depend_on_a_group_that_is_not_there():
    _, analysis = network("resnet50")
    full = [group.units for group in analysis.groups]
    assert analysis.total(analysis.macs, full) == sum(cost.count for cost in analysis.macs)
    axes = (axis for cost in (*analysis.macs, *analysis.params) for axis in cost.axes)
    assert {index for axis in axes for index in axis} == set(range(len(full)))


class Wired(nn.Module):
    """Three convolutions put together as a test says."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.wiring = forward

    def forward(self, x):
        return self.wiring(self, x)


@pytest.mark.parametrize(
    ("wiring", "expected"),
    [
        pytest.param(lambda m, x: m.c(m.b(m.a(x))), ["a", "b"], id="in sequence"),
        pytest.param(lambda m, x: m.c((y := m.a(x)).relu() * m.b(y).sigmoid()), ["a"], id="a gate on what it reads"),
        pytest.param(lambda m, x: m.c((y := m.a(x)) + m.b(y)), ["a"], id="a sum"),
        pytest.param(lambda m, x: m.c(m.b(m.a(x)).softmax(1)), ["a"], id="a softmax over channels"),
        pytest.param(
            lambda m, x: m.c(m.a(x).mean(1, keepdim=True) * m.b.weight[0]), ["a", "b.weight"], id="a mean over channels"
        ),
        pytest.param(lambda m, x: m.c(m.b(m.a(x)) * m.scale), ["a", "b"], id="a scale that is no layer's"),
        pytest.param(lambda m, x: m.c(m.a(x).roll(1, 1)), [], id="channels in another order"),
        pytest.param(lambda m, x: m.c(y := m.a(x)).sum((1, 2, 3), keepdim=True) + y, ["c"], id="an output"),
        pytest.param(lambda m, x: m.c(m.b(m.b(m.a(x)))), ["a"], id="a layer that is used twice"),
        pytest.param(
            lambda m, x: m.c(m.b(m.a(x)) * m.b(x.mean(1, keepdim=True) + m.scale)), ["a", "b"], id="two inputs"
        ),
        pytest.param(lambda m, x: m.c(m.a(x) + 1), ["a"], id="a number is added"),
    ],
)
def test_what_a_space_meets_decides_whether_it_can_be_cut(wiring, expected):
    model = Wired(wiring).double().eval()
    analysis = analysed(model, torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    assert sorted(expected) == sorted(group.name for group in analysis.groups)
    units = drawn(analysis.groups, 0)
    found = difference(model, analysis, units, cut(analysis, units), torch.zeros(2, 3, 4, 4))
    assert found < 1e-12


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "size"), [(Branching(), (3, 8, 8)), (nn.Conv2d(4, 4, 1), (3, 8, 8))], ids=["branches", "other channels"]
)
def test_a_model_that_cannot_be_exported_is_refused_in_one_line(model, size):
    with pytest.raises(StructureError, match="can't be exported: ") as caught:
        analysed(model.eval(), torch.zeros(1, *size))
    assert "\n" not in str(caught.value)
