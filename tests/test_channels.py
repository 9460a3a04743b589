"""Any architecture: the exported graph without its cut channels computes what the masked dense model computes."""

from functools import cache

import pytest
import timm
import torch
from analysed import analysed, checked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.compression.channels import checking, rules
from zoo.compression.channels.checking import CLOSE, cut, difference, rescaled
from zoo.compression.channels.groups import narrow
from zoo.compression.channels.ids import Ids, NotUnderstood
from zoo.measurement.macs import measure
from zoo.structure.plan import Plan, apply_

# Smallest of their kind: what each is here for, and how many groups a reader of its code finds: residual, others.
ARCHITECTURES = {
    "test_resnet": (4, 7),
    "test_vit": (1, 12),
    "test_vit2": (1, 16),
    "test_efficientnet": (0, 13),
    "test_convnext": (4, 9),
    "test_byobnet": (4, 10),
    "test_nfnet": (4, 21),
    "test_mambaout": (4, 14),
    "ese_vovnet19b_slim_dw": (0, 22),
    "test_coatnet": (4, 11),
}


@cache
def network(name):
    """Return a small model and its analysis."""
    model = timm.create_model(name, num_classes=5).eval()
    size = (3, 160, 160) if name.startswith("test") else (3, 224, 224)
    image = torch.zeros(2, *model.pretrained_cfg.get("input_size", size))
    return model, analysed(model, image), image


def drawn(analysis, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(group.units, generator=generator)[: max(1, group.units // 2)].sort().values
        for group in analysis.groups
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cut_graph_computes_what_the_masked_dense_model_computes(name):
    model, analysis, image = network(name)
    units = drawn(analysis, 0)
    program = cut(analysis, units)
    assert difference(model, analysis, units, program, image) < 1e-9
    full = [group.units for group in analysis.groups]
    kept = [len(each) for each in units]
    assert analysis.total(analysis.macs, kept) < 0.5 * analysis.total(analysis.macs, full)
    narrowed = analysis.kept(units).select(dict(model.named_parameters()))
    params = sum(tensor.numel() for tensor in narrowed.values())
    assert params == pytest.approx(analysis.total(analysis.params, kept))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_costs_add_up_to_what_measure_counts(name):
    model, analysis, image = network(name)
    counts = measure(model, image.shape[1:])
    assert sum(cost.count for cost in analysis.macs) == counts.macs
    assert sum(cost.count for cost in analysis.params) == counts.params


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "test_nfnet"])
def test_a_plan_holds_the_same_cut_and_costs_what_was_said(name):
    model, analysis, image = network(name)
    units = drawn(analysis, 1)
    kept = [len(each) for each in units]
    narrowed = apply_(timm.create_model(name, num_classes=5).eval(), Plan((narrow(model, analysis, units),)))
    assert difference(model, analysis, units, narrowed, image) < 1e-9
    counts = measure(narrowed, image.shape[1:])
    assert counts.macs == pytest.approx(analysis.total(analysis.macs, kept), rel=1e-9)
    assert counts.params == pytest.approx(analysis.total(analysis.params, kept), rel=1e-9)


@pytest.mark.parametrize(("name", "expected"), ARCHITECTURES.items())
def test_as_many_groups_are_found_as_a_reader_of_the_code_finds(name, expected):
    _, analysis, _ = network(name)
    residual = sum(group.residual for group in analysis.groups)
    assert (residual, len(analysis.groups) - residual) == expected
    assert set(analysis.frozen.values()) <= {"an output of the model"}
    names = [group.name for group in analysis.groups]
    assert len(set(names)) == len(names)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_units_may_go(data):
    model, analysis, image = network("test_vit")
    units = [
        torch.tensor(sorted(data.draw(st.sets(st.integers(0, group.units - 1), min_size=1))))
        for group in analysis.groups
    ]
    assert difference(model, analysis, units, cut(analysis, units), image) < 1e-9


def test_each_group_alone_may_go():
    model, analysis, image = network("test_byobnet")
    every = [torch.arange(group.units) for group in analysis.groups]
    for index, half in enumerate(drawn(analysis, 2)):
        units = [*every[:index], half, *every[index + 1 :]]
        assert difference(model, analysis, units, cut(analysis, units), image) < 1e-9, analysis.groups[index].name


class Net(nn.Module):
    """Two convolutions with something between."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.between = between

    def forward(self, x):
        return self.c(self.b(self.between(self.a(x)).relu()))


@torch.library.custom_op("zoo_tests::mixed", mutates_args=())
def mixed(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)


@mixed.register_fake
def _(x):
    return torch.empty_like(x)


IMAGE = torch.zeros(2, 3, 4, 4)


def test_an_operation_that_is_not_understood_freezes_what_it_reads():
    model = Net(mixed).eval()
    analysis = checked(model, IMAGE)
    assert [group.name for group in analysis.groups] == ["b"]
    assert "zoo_tests.mixed" in analysis.frozen["a"]


def test_a_wrong_rule_is_found_out_and_what_it_spoils_frozen(monkeypatch):
    model = Net(lambda x: x.softmax(1)).eval()
    assert [group.name for group in checked(model, IMAGE).groups] == ["b"]
    wrong = {torch.ops.aten.softmax.int: rules.identity}
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, **wrong})
    assert [group.name for group in analysed(model, IMAGE).groups] == ["a", "b"]
    analysis = checked(model, IMAGE)
    assert [group.name for group in analysis.groups] == ["b"]
    assert "masked" in analysis.frozen["a"]


@pytest.mark.parametrize(
    ("between", "units"),
    [
        pytest.param(lambda x: x.view(-1, 2, 4, 4, 4).transpose(1, 2).reshape(-1, 8, 4, 4), [2], id="a shuffle"),
        pytest.param(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), [4, 4], id="halves that change places"),
        pytest.param(lambda x: x.roll(1, 1), [], id="channels that move on"),
        pytest.param(lambda x: x.amax(1, keepdim=True).expand(-1, 8, -1, -1), [8], id="the largest of them"),
        pytest.param(lambda x: x / x.norm(dim=1, keepdim=True), [8], id="a norm over them"),
        pytest.param(lambda x: x.flip(2), [8], id="space that is turned"),
    ],
)
def test_movements_of_channels(between, units):
    model = Net(between).double().eval()
    analysis = analysed(model, IMAGE.double())
    assert [group.units for group in analysis.groups if group.name != "b"] == units
    chosen = drawn(analysis, 0)
    assert difference(model, analysis, chosen, cut(analysis, chosen), IMAGE) < 1e-9


def test_ids_that_are_joined_get_one_root_and_what_meets_the_frozen_is_frozen():
    ids = Ids()
    a, b, c = (ids.fresh(3) for _ in range(3))
    ids.join(a, b.flip(0), "")
    ids.join(c, None, "because")
    roots, reasons = ids.resolve()
    assert roots[a].tolist() == roots[b.flip(0)].tolist() == a.tolist()
    assert all(reasons[root] == "because" for root in roots[c].tolist())
    assert ids.fresh(1) is None


APART, ALIKE = [[g] for g in range(8)], [[0, 1], [2, 3, 4, 5, 6], [7]]


@pytest.mark.parametrize(
    ("kinds", "agrees", "guilty", "most"),
    [
        pytest.param(APART, lambda those: True, [], 1, id="none"),
        pytest.param(APART, lambda those: 5 not in those, [5], 6, id="one"),
        pytest.param(APART, lambda those: not {2, 5} & set(those), [2, 5], 10, id="two"),
        pytest.param(APART, lambda those: not {2, 5} <= set(those), [5], 6, id="one beside another"),
        pytest.param(APART, lambda those: not those, list(range(8)), 16, id="all"),
        pytest.param(ALIKE, lambda those: 5 not in those, [5], 8, id="one of a kind"),
        pytest.param(ALIKE, lambda those: not {2, 5} & set(those), [2, 5], 9, id="two of a kind"),
        pytest.param(ALIKE, lambda those: not {3, 5} <= set(those), [5], 8, id="one beside another of its kind"),
        pytest.param(ALIKE, lambda those: not {*range(2, 7)} & set(those), list(range(2, 7)), 9, id="all of a kind"),
    ],
)
def test_guilty_groups_are_found_by_bisection_of_kinds(kinds, agrees, guilty, most):
    asked = []
    assert sorted(checking._guilty(kinds, lambda those: asked.append(those) or agrees(those))) == guilty
    assert len(asked) <= most


class Attention(nn.Module):
    """Heads, some of whose first tokens aren't rotated."""

    def __init__(self, still=0, heads=4, scale=None):
        super().__init__()
        self.qkv, self.proj, self.head = nn.Linear(3, 3 * 16), nn.Linear(16, 8), nn.Linear(8, 5)
        self.still, self.heads, self.scale = still, heads, scale

    def rotated(self, x):
        return torch.cat([x[:, :, : self.still], x[:, :, self.still :].roll(1, -1)], 2).type_as(x)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.heads > 1:
            q, k = self.rotated(q), self.rotated(k)
        x = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.head(self.proj(x.transpose(1, 2).flatten(2)).mean(1))


@pytest.mark.parametrize("still", [0, 1])
def test_heads_are_found_even_beside_a_slice_of_nothing(still):
    model = Attention(still).double().eval()
    analysis = analysed(model, IMAGE.double())
    assert [(group.name, group.units) for group in analysis.groups] == [("qkv", 4), ("proj", 8)]
    chosen = drawn(analysis, 0)
    assert difference(model, analysis, chosen, cut(analysis, chosen), IMAGE) < 1e-9


@pytest.mark.parametrize("scale", [None, 0.25])
def test_an_attention_that_is_scaled_by_its_width_can_only_be_narrowed_as_a_graph(scale):
    model = Attention(heads=1, scale=scale).double().eval()
    analysis = analysed(model, IMAGE.double())
    (g,) = [g for g, group in enumerate(analysis.groups) if group.name == "qkv"]
    units = [torch.arange(0, group.units, 2 if i == g else 1) for i, group in enumerate(analysis.groups)]
    narrowed = apply_(model, Plan((narrow(model, analysis, units),)))
    dense = Attention(heads=1, scale=scale).double().eval()
    assert (difference(dense, analysis, units, narrowed, IMAGE) > CLOSE) == rescaled(analysis, units) == (scale is None)
    assert difference(dense, analysis, units, cut(analysis, units), IMAGE) < 1e-9


@pytest.mark.parametrize("error", [TypeError, AttributeError, IndexError, RuntimeError, AssertionError])
def test_a_mistake_in_a_rule_is_not_taken_for_an_operation_that_is_not_understood(error, monkeypatch):
    def mistaken(walk, node):
        raise error("a mistake")

    monkeypatch.setattr(rules, "RULES", {**rules.RULES, torch.ops.aten.softmax.int: mistaken})
    with pytest.raises(error, match="a mistake"):
        analysed(Net(lambda x: x.softmax(1)).eval(), IMAGE)


def test_what_a_rule_does_not_understand_is_frozen(monkeypatch):
    def puzzled(walk, node):
        raise NotUnderstood

    monkeypatch.setattr(rules, "RULES", {**rules.RULES, torch.ops.aten.softmax.int: puzzled})
    assert "isn't understood: aten.softmax.int" in str(analysed(Net(lambda x: x.softmax(1)).eval(), IMAGE).frozen)


@pytest.mark.parametrize("largest", [torch.maximum, torch.max], ids=["maximum", "max of two"])
def test_the_larger_of_two_tensors_is_taken_channel_by_channel(largest):
    class Larger(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.last(largest(self.a(x), self.b(x)))

    (group,) = analysed(Larger().eval(), torch.randn(2, 3, 4, 4)).groups
    assert group.writers == ("a", "b")
