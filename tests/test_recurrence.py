"""Recurrent layers: cut and narrowed they compute what the dense one does of which nobody reads the other units."""

import copy
from functools import cache

import pytest
import torch
from analysed import checked
from torch import nn

import zoo
from zoo.catalog.entry import Base, Budget
from zoo.compression.channels.checking import cut, difference
from zoo.compression.channels.groups import narrow
from zoo.compression.prune import damage
from zoo.compression.prune.criteria import Evidence, l2
from zoo.compression.prune.prune import Prune, prune
from zoo.compression.prune.readers import fittable
from zoo.errors import StructureError
from zoo.measurement.macs import measure
from zoo.structure.description import Description
from zoo.structure.plan import Narrow, Plan, Width, apply_

SIDE, INPUTS, HIDDEN = 2, 6, 8
VARIANTS = {
    "one direction": (nn.LSTM, {"batch_first": True}),
    "both directions": (nn.LSTM, {"batch_first": True, "bidirectional": True}),
    "two layers": (nn.LSTM, {"num_layers": 2}),
    "two layers in both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "without biases": (nn.LSTM, {"batch_first": True, "bidirectional": True, "bias": False}),
    "gated": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "plain": (nn.RNN, {"num_layers": 2, "batch_first": True}),
}
GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


class Rows(nn.Module):
    """A classifier that reads an image pixel by pixel."""

    def __init__(self, kind=nn.LSTM, state=None, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, INPUTS, 1)
        self.rnn = kind(INPUTS, HIDDEN, **options)
        self.fc = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), 10)
        self.head = nn.Linear(10, 5)
        self.state = state

    def forward(self, x):
        x = self.stem(x).relu().flatten(2).transpose(1, 2)
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        x, _ = self.rnn(x, None if self.state is None else self.state(x))
        return self.head(self.fc(x).relu().mean(1 if self.rnn.batch_first else 0))


IMAGE = torch.zeros(2, 3, SIDE, SIDE)


@cache
def network(name):
    """Return a model of a variant and what can be cut of it."""
    torch.manual_seed(0)
    kind, options = VARIANTS[name]
    model = Rows(kind, **options).eval()
    return model, checked(model, IMAGE)


def halved(model, analysis, seed=0):
    """Every group's half that is drawn, and the model with as many units."""
    generator = torch.Generator().manual_seed(seed)
    units = [torch.randperm(g.units, generator=generator)[: g.units // 2].sort().values for g in analysis.groups]
    edit = narrow(model, analysis, units)
    return units, apply_(copy.deepcopy(model), Plan((edit,)))


@pytest.mark.parametrize("name", VARIANTS)
def test_inputs_and_hidden_units_are_one_group_each_and_their_cut_equals_the_masked_model(name):
    model, analysis = network(name)
    assert [(group.name, group.units) for group in analysis.groups] == [("stem", 6), ("rnn", 8), ("fc", 10)]
    assert analysis.frozen == {"head": "an output of the model"}
    units, narrowed = halved(model, analysis)
    assert difference(model, analysis, units, cut(analysis, units), IMAGE) < 1e-12
    assert difference(model, analysis, units, narrowed, IMAGE) < 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_a_narrowed_layer_equals_the_dense_one_of_which_nobody_reads_the_other_units(name):
    model, analysis = network(name)
    units, narrowed = halved(model, analysis, 1)
    narrowed.load_state_dict(analysis.kept(units).select(dict(model.state_dict())))
    inputs, hidden, outputs = (
        torch.isin(torch.arange(group.units), each) for group, each in zip(analysis.groups, units, strict=True)
    )
    dense, images = copy.deepcopy(model), torch.randn(3, 3, SIDE, SIDE)
    readers = {"head.weight": outputs, "fc.weight": hidden}
    for path, _ in dense.rnn.named_parameters():
        if path.startswith("weight"):
            readers[f"rnn.{path}"] = inputs if path.startswith("weight_ih_l0") else hidden
    for path, read in readers.items():
        weight = dense.get_parameter(path).data
        weight *= read.repeat(weight.shape[1] // len(read))  # of each direction
    torch.testing.assert_close(narrowed(images), dense(images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_macs_are_those_of_every_gate_step_layer_and_direction(name):
    (model, analysis), (kind, options) = network(name), VARIANTS[name]
    directions, layers = 2 if options.get("bidirectional") else 1, options.get("num_layers", 1)

    def macs(inputs, hidden, outputs):
        first, later = inputs + hidden, directions * hidden + hidden
        recurrent = GATES[kind] * hidden * directions * (first + (layers - 1) * later)
        return SIDE**2 * (3 * inputs + recurrent + directions * hidden * outputs) + outputs * 5

    units, narrowed = halved(model, analysis)
    kept = [len(each) for each in units]
    for cut_or_not, found, expected in (
        (model, sum(cost.count for cost in analysis.macs), macs(6, 8, 10)),
        (narrowed, analysis.total(analysis.macs, kept), macs(3, 4, 5)),
    ):
        assert found == pytest.approx(expected, rel=1e-12)
        assert measure(cut_or_not, IMAGE.shape[1:]).macs == expected
    params = sum(parameter.numel() for parameter in narrowed.parameters())
    assert analysis.total(analysis.params, kept) == pytest.approx(params, rel=1e-12)


class Learned(nn.Module):
    """An initial state that is learned."""

    def __init__(self, width=HIDDEN):
        super().__init__()
        self.h, self.c = (nn.Parameter(torch.randn(1, 1, width)) for _ in range(2))

    def forward(self, x):
        return tuple(each.expand(-1, x.shape[0], -1) for each in (self.h, self.c))


def test_a_learned_initial_state_is_cut_with_its_units():
    model = Rows(state=Learned(), batch_first=True).eval()
    analysis = checked(model, IMAGE)
    assert {"state.h", "state.c"} <= {piece.tensor for piece in analysis.groups[1].slices}
    units, narrowed = halved(model, analysis)
    assert difference(model, analysis, units, narrowed, IMAGE) < 1e-12


class Last(Rows):
    """Reads the last state of each direction alone."""

    def forward(self, x):
        _, (h, c) = self.rnn(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.fc((h + c).transpose(0, 1).flatten(1)))


def test_the_last_states_are_cut_as_the_outputs_are():
    model = Last(batch_first=True, bidirectional=True).eval()
    analysis = checked(model, IMAGE)
    assert [group.name for group in analysis.groups] == ["stem", "rnn", "fc"]
    units, narrowed = halved(model, analysis)
    assert difference(model, analysis, units, narrowed, IMAGE) < 1e-12


class Same(nn.Module):
    """An initial state that follows from the image."""

    def forward(self, x):
        h = x.mean((1, 2))[None, :, None].expand(-1, -1, HIDDEN).roll(1, 2)
        return h, h


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"proj_size": 3}, "an operation that isn't understood: aten.lstm.input"),
        ({"state": Same()}, "meets something that can't be cut at roll"),
    ],
    ids=["projected", "a state of the image"],
)
def test_what_no_unit_can_leave_is_frozen(options, reason):
    model = Rows(**options, batch_first=True).eval()
    if "proj_size" in options:
        model.fc = nn.Linear(3, 10)
    analysis = checked(model, IMAGE)
    assert "rnn" not in {group.name for group in analysis.groups}
    assert reason in {*analysis.frozen.values()}
    assert sum(cost.count for cost in analysis.macs) == measure(model, IMAGE.shape[1:]).macs


@pytest.mark.parametrize(
    ("options", "width", "message"),
    [
        ({}, Width(9), "narrow: 0.outputs is 9, expected 1 to 8"),
        ({}, Width(0), "narrow: 0.outputs is 0, expected 1 to 8"),
        ({"bidirectional": True}, Width(16), "narrow: 0.outputs is 16, expected 1 to 8"),
        ({}, Width(inputs=7), "narrow: 0.inputs is 7, expected 1 to 6"),
        ({}, Width("4"), "narrow: 0.outputs is 4, expected 1 to 8"),
        ({"proj_size": 3}, Width(4), "narrow: 0 is a LSTM, which has no width that can be narrowed"),
    ],
    ids=str,
)
def test_widths_that_a_recurrent_layer_does_not_have_are_refused(options, width, message):
    with pytest.raises(StructureError) as caught:
        apply_(nn.Sequential(nn.LSTM(INPUTS, HIDDEN, **options)), Plan((Narrow({"0": width}),)))
    assert str(caught.value) == message


def test_two_edits_leave_the_first_units_of_every_gate_and_direction():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True)).eval()
    first, second = Narrow({"0": Width(5, 4)}), Narrow({"0": Width(3, 2)})
    once, twice = (apply_(copy.deepcopy(dense), plan) for plan in (Plan((second,)), Plan((first, second))))
    on_meta = apply_(copy.deepcopy(dense).to("meta"), Plan((second,)))
    assert [tuple(t.shape) for t in on_meta.parameters()] == [tuple(t.shape) for t in once.parameters()]
    assert repr(once[0]) == repr(twice[0]) == repr(on_meta[0]) == "LSTM(2, 3, num_layers=2, bidirectional=True)"
    weight = dense[0].weight_ih_l1_reverse.view(4, HIDDEN, 2, HIDDEN)[:, :3, :, :3].reshape(12, 6)
    x = torch.randn(3, 2, 2)
    for model in (once, twice):
        assert torch.equal(model[0].weight_ih_l1_reverse, weight)
        assert torch.equal(model(x)[0], once(x)[0])


def test_what_a_recurrent_layer_reads_is_ranked_by_its_weights_and_tried_out():
    model = Rows(batch_first=True).eval()
    analysis = fittable(model, checked(model, IMAGE), IMAGE)
    readers = [(group.readers, group.unfitted) for group in analysis.groups]
    assert readers == [((), ("rnn",)), (("fc",), ("rnn",)), (("head",), ())]
    tensors = dict(model.state_dict())
    rows = torch.cat([tensors["rnn.weight_ih_l0"], tensors["rnn.weight_hh_l0"]], 1).view(4, HIDDEN, -1)
    score = l2(analysis.groups[1], Evidence(tensors, {}, {}))
    torch.testing.assert_close(score, rows.double().square().sum((0, 2)))


def test_units_that_only_the_next_step_reads_do_damage(monkeypatch):
    torch.manual_seed(0)
    model = Rows(batch_first=True).eval()
    with torch.no_grad():
        model.fc.weight[:, 4:] = 0
        model.rnn.weight_hh_l0.mul_(5)
        model.head.weight.mul_(20)
    tried, scaled = [], damage.scaled
    monkeypatch.setattr(damage, "scaled", lambda nsr, points: tried.append(points) or scaled(nsr, points))
    prune(model, checked(model, IMAGE), [torch.randn(16, 3, SIDE, SIDE)], Budget(0.5), Prune(round_to=1))
    noise, nats = sorted(tried[1])[1]  # with a half of the units
    assert noise < 1e-3
    assert nats > 1e-4


STAGES = {"layers": [1, 1], "patch_sizes": [7, 2], "embed_dims": [12, 16], "hidden_sizes": [6, 6], "mlp_ratios": [2, 2]}
SEQUENCER = Base("timm/sequencer2d_s", {**STAGES, "num_classes": 5})


def test_a_compressed_sequencer_is_a_plan_that_loads_and_gives_equal_outputs(disturb, tmp_path):
    model = disturb(SEQUENCER, 28)
    model.zoo_entry = Description("sequencer", SEQUENCER)
    batch = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    pruned = zoo.compress(model, budget=0.5, data=[batch], round_to=1)
    assert measure(pruned).macs <= 0.5 * measure(model).macs
    assert pruned.zoo_entry.graph is None
    loaded = zoo.load(zoo.save(pruned, tmp_path / "pruned"))
    assert torch.equal(loaded(batch), pruned(batch))
    layers = [module for module in loaded.modules() if isinstance(module, nn.LSTM)]
    assert len(layers) == 4
    for layer in layers:  # which keeps a list of its weights, too
        assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))
