"""Pruning: damage against refits, allocation against every combination, and compress from end to end."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zoo
from zoo.catalog.entry import Base, Budget
from zoo.compression.allocation import allocate, widths
from zoo.compression.groups import Analysis, Cost, Group, analyse
from zoo.compression.prune import Prune, _eliminate, _reader_slices, prune
from zoo.compression.refit import columns, moments, refit
from zoo.errors import BudgetError, DataError, UnknownName
from zoo.hub import weights
from zoo.hub.repository import Description
from zoo.measurement import measure
from zoo.structure.base import initialised
from zoo.structure.plan import Plan, Swap, apply_

TOKENS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
CRITERIA = ["obs", "activation", "l2"]


BASES = {
    "cnn": Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 20], "num_classes": 5}),
    "vit": Base("timm/vit_tiny_patch16_224", {**TOKENS, "num_classes": 5}),
    "beit": Base("timm/beit_base_patch16_224", {**TOKENS, "num_classes": 5}),
}
SIZES = {"cnn": 32, "vit": 16, "beit": 16}


@pytest.fixture
def network(disturb):
    """Return a function that makes one of the bases, its every tensor random, as `load` gives it."""

    def make(kind):
        model = disturb(BASES[kind], SIZES[kind])
        model.zoo_entry = Description(kind, BASES[kind])
        return model

    return make


def images(size, count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(2, count // 2, 3, size, size, generator=generator))


def outputs(model, batch):
    with torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_damage_of_a_width_is_the_noise_that_refitted_readers_leave(kind, criterion, network):
    model = network(kind).double()
    batches = [batch.double() for batch in images(SIZES[kind], 400)]
    how = Prune(criterion=criterion, ridge=1e-9)
    groups = analyse(model, batches[0][:2]).groups
    seen = moments(model, {path for group in groups for path in group.readers}, batches)
    for group in groups:
        order, damage = _eliminate(dict(model.named_parameters()), group, seen, how)
        assert sorted(order.tolist()) == list(range(group.units))
        assert damage[-1] == 0
        assert damage == sorted(damage, reverse=True)
        for k in {1, group.units // 2, group.units - 1}:
            ratio = 0.0
            for path in group.readers:
                weight = model.get_parameter(f"{path}.weight")
                positions = _reader_slices(group, path)[order[:k]].flatten().sort().values
                ratio += refit(weight, seen[path], columns(weight, positions), 1e-9)[2]
            assert damage[k] == pytest.approx(ratio, rel=1e-3, abs=1e-6)


class Pair(nn.Module):
    """Two linear layers; some hidden units repeat others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 8).double(), nn.Linear(8, 5).double()
        with torch.no_grad():
            self.first.weight[3] = self.first.weight[0] - 2 * self.first.weight[1]
            self.first.weight[6] = self.first.weight[2] + self.first.weight[5]

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


def test_units_that_repeat_others_are_removed_first_and_the_outputs_stay_equal():
    model, batches = Pair().eval(), [torch.randn(64, 3, 2, 2, dtype=torch.float64)]
    (group,) = analyse(model, batches[0]).groups
    _, damage = _eliminate(
        dict(model.named_parameters()), group, moments(model, ["second"], batches), Prune(ridge=1e-10)
    )
    assert damage[6] < 1e-6 < 1e-4 < damage[5]
    edit, tensors = prune(model, batches, Budget(0.75), Prune(round_to=1, ridge=1e-10))
    pruned = weights.assign_(apply_(Pair(), Plan((edit,))), tensors, "pruned")
    assert pruned.first.out_features == 6
    other = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(outputs(pruned, other), outputs(model, other), rtol=0, atol=1e-4)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_units_kept_are_the_same_whatever_the_order_of_the_batches(criterion, network):
    cnn, batches = network("cnn"), images(32)
    left, right = (prune(cnn, order, Budget(0.5), Prune(criterion=criterion)) for order in (batches, batches[::-1]))
    assert left[0] == right[0]


@given(units=st.integers(1, 300), round_to=st.integers(1, 32), floor=st.floats(0, 1))
def test_widths_rise_in_steps_to_all_units_and_keep_above_the_floor(units, round_to, floor):
    found = widths(units, round_to, floor)
    step = min(round_to, max(1, units // 8))
    assert found[-1] == units
    assert found == sorted(set(found))
    assert all(k % step == 0 and k >= floor * units for k in found[:-1])
    assert found[0] >= 1


@pytest.mark.parametrize(
    ("units", "round_to", "floor", "expected"),
    [(1, 8, 0.1, [1]), (8, 8, 0.5, [4, 5, 6, 7, 8]), (30, 8, 0.5, [15, 18, 21, 24, 27, 30]), (64, 32, 0, [8, 16])],
)
def test_few_units_take_steps_of_an_eighth(units, round_to, floor, expected):
    assert expected == widths(units, round_to, floor)[: len(expected)]


def problem(units, chain, damages):
    """Return layers in a chain, each width between two of them, and a damage that falls as units are kept."""
    groups = tuple(Group(f"g{i}", n, (), (), ()) for i, n in enumerate(units))
    neighbours = [(0,), *((i, i + 1) for i in range(len(units) - 1)), (len(units) - 1,)]
    macs = tuple(Cost(count, tuple({g: 1.0} for g in pair)) for count, pair in zip(chain, neighbours, strict=False))
    params = tuple(Cost(1 + count // 7, cost.axes) for count, cost in zip(chain[::-1], macs, strict=False))
    curves = [
        dict(zip(range(1, n + 1), sorted(itertools.accumulate(d[:n]), reverse=True), strict=True))
        for n, d in zip(units, damages, strict=True)
    ]
    return Analysis(groups, macs, params), [{k: v - min(c.values()) for k, v in c.items()} for c in curves]


problems = st.integers(1, 3).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(2, 6), min_size=n, max_size=n),
        st.lists(st.integers(10, 1000), min_size=n + 1, max_size=n + 1),
        st.lists(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(drawn=problems, share=st.floats(0.05, 1), params=st.none() | st.floats(0.05, 1))
def test_an_allocation_meets_its_budget_and_is_close_to_the_best_there_is(drawn, share, params):
    analysis, damage = problem(*drawn)
    budget = Budget(share, params)
    full = [group.units for group in analysis.groups]
    costs = [(analysis.macs, share)] + ([(analysis.params, params)] if params is not None else [])

    def fits(kept):
        return all(analysis.total(c, kept) <= (s + 1e-9) * analysis.total(c, full) for c, s in costs)

    possible = [kept for kept in itertools.product(*damage) if fits(kept)]
    if not possible:
        with pytest.raises(BudgetError, match="can't be met"):
            allocate(analysis, damage, budget)
        return
    kept = allocate(analysis, damage, budget)
    assert all(k in curve for k, curve in zip(kept, damage, strict=True))
    assert fits(kept)
    for g in range(len(kept)):
        assert not any(fits([*kept[:g], k, *kept[g + 1 :]]) for k in damage[g] if k > kept[g]), "nothing left to give"
    best, worst = (f(sum(c[k] for c, k in zip(damage, kept, strict=True)) for kept in possible) for f in (min, max))
    found = sum(curve[k] for curve, k in zip(damage, kept, strict=True))
    assert found <= best + 0.8 * (worst - best) + 1e-9


def test_with_one_price_for_every_unit_the_least_damaging_are_taken():
    analysis = Analysis(
        tuple(Group(name, 3, (), (), ()) for name in "ab"), (Cost(3, ({0: 1.0},)), Cost(3, ({1: 1.0},))), (Cost(6, ()),)
    )
    damage = [{1: 9.0, 2: 4.0, 3: 0.0}, {1: 2.0, 2: 1.0, 3: 0.0}]
    assert allocate(analysis, damage, Budget(4 / 6)) == [3, 1]
    assert allocate(analysis, damage, Budget(3 / 6)) == [2, 1]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(0.01), r"0\.01 of the macs can't be met: what can be cut leaves at least 0\.\d+"),
        (Budget(0.9, 0.01), r"0\.01 of the params can't be met: what can be cut leaves at least 0\.\d+"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(budget, message, network):
    with pytest.raises(BudgetError, match=message):
        prune(network("cnn"), images(32), budget)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
@pytest.mark.parametrize("budget", [Budget(0.5), Budget(0.8, 0.6), Budget(1.0)], ids=["macs", "params too", "all"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_pruned_model_meets_its_budget_within_a_step_and_the_dense_one_stays(kind, budget, criterion, network):
    model, size = network(kind), SIZES[kind]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = zoo.compress(model, budget=budget, data=images(size), criterion=criterion, round_to=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    dense, found = measure(model, (3, size, size)), measure(pruned, (3, size, size))
    shares = [(found.macs / dense.macs, budget.macs), (found.params / dense.params, budget.params or 1)]
    assert all(share <= asked + 1e-9 for share, asked in shares)
    assert any(share > asked - 0.08 for share, asked in shares)
    assert outputs(pruned, images(size)[0]).isfinite().all()


def test_units_chosen_and_refitted_do_less_damage_than_the_smallest_weights_cut(network):
    model, batches = network("vit"), images(16, 400)
    target = outputs(model, batches[0])

    def noise(**options):
        found = outputs(zoo.compress(model, budget=0.6, data=batches, **options), batches[0])
        return ((found - target).square().sum() / (target - target.mean(0)).square().sum()).item()

    assert noise() < noise(criterion="l2", ridge=1e6) / 2


def test_a_compressed_model_that_is_saved_and_loaded_gives_equal_outputs(tmp_path):
    base = Base("timm/resnet18", {**BASES["cnn"].args, "in_chans": 1, "num_classes": 10})
    model = initialised(base).eval()
    own = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    model.pretrained_cfg, model.zoo_entry = {**model.pretrained_cfg, **own}, Description("digits", base)
    pruned = zoo.compress(model, budget=0.5, data="digits", images=64, floor=0.1)
    loaded = zoo.load(zoo.save(pruned, tmp_path / "pruned"))
    batch = torch.randn(4, 1, 32, 32)
    assert torch.equal(outputs(pruned, batch), outputs(loaded, batch))
    assert pruned.zoo_entry.plan == loaded.zoo_entry.plan
    assert pruned.zoo_entry.name == "digits_pruned_50"
    budget = {"macs": 0.5, "params": None}
    assert pruned.zoo_entry.recipe == {"method": "prune", "budget": budget, "options": {"floor": 0.1}}
    assert not pruned.training


@pytest.mark.parametrize("kind", BASES)
def test_a_model_that_is_pruned_twice_is_one_plan(kind, network, tmp_path):
    size = SIZES[kind]
    once = zoo.compress(network(kind), budget=0.7, data=images(size), round_to=1)
    twice = zoo.compress(once, budget=0.7, data=images(size), round_to=1)
    assert measure(twice, (3, size, size)).macs <= 0.49 * measure(network(kind), (3, size, size)).macs
    loaded = zoo.load(zoo.save(twice, tmp_path / "twice"))
    assert torch.equal(outputs(twice, images(size)[0]), outputs(loaded, images(size)[0]))
    swaps = [edit for edit in twice.zoo_entry.plan.edits if isinstance(edit, Swap)]
    expected = [Swap({f"blocks.{i}.attn": "BeitAttention" for i in range(2)})] if kind == "beit" else []
    assert expected == swaps


def test_swapped_classes_that_keep_all_their_heads_compute_what_they_did(network):
    model = network("beit")
    whole = zoo.compress(model, budget=1.0, data=images(16))
    torch.testing.assert_close(outputs(whole, images(16)[0]), outputs(model, images(16)[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "luck"}, "no criterion 'luck', known are obs, activation, l2"),
        ({"rounding": 4}, "prune has no option 'rounding', known are criterion, round_to, floor, ridge"),
        ({"method": "magnitude"}, "no method 'magnitude': this version compresses by prune"),
        ({"method": "magic"}, "no method 'magic': this version compresses by prune"),
    ],
)
def test_unknown_words_are_answered_with_those_that_are_known(options, message, network):
    with pytest.raises(UnknownName, match=message):
        zoo.compress(network("cnn"), budget=0.5, data=images(32), **options)


@pytest.mark.parametrize(("kind", "size"), [("cnn", 64), ("vit", 16), ("beit", 16)])
def test_one_calibration_image_is_enough_to_finish(kind, size, network):
    pruned = zoo.compress(network(kind), budget=0.5, data=[images(size)[0][:1]])
    assert outputs(pruned, images(size)[0]).isfinite().all()


@pytest.mark.parametrize("data", [[], [torch.empty(0, 3, 32, 32)]], ids=["no batch", "an empty batch"])
def test_no_calibration_images_are_refused(data, network):
    with pytest.raises(DataError, match="no images; pass at least one batch"):
        zoo.compress(network("cnn"), budget=0.5, data=data)


def test_a_model_without_channels_to_cut_is_refused():
    with pytest.raises(BudgetError, match="no channels that can be cut"):
        prune(nn.Conv2d(3, 4, 1).eval(), images(8), Budget(0.5))
