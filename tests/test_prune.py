"""Pruning: damage against refits, allocation against every combination, and compress from end to end."""

import math
import re

import pytest
import torch
from analysed import analysed, refitted
from torch import nn

import zoo
from zoo.catalog.entry import Base, Budget
from zoo.compression.channels.groups import Analysis, Group, narrow
from zoo.compression.prune import damage, obs
from zoo.compression.prune import prune as pruning
from zoo.compression.prune import refit as refitting
from zoo.compression.prune.criteria import CRITERIA, Evidence, gradients
from zoo.compression.prune.damage import Ranking
from zoo.compression.prune.dense import dense_of
from zoo.compression.prune.obs import eliminate, inputs
from zoo.compression.prune.prune import Prune, choose, finished, prune
from zoo.compression.prune.refit import columns, moments
from zoo.errors import BudgetError, DataError, UnknownName
from zoo.measurement.divergence import divergence
from zoo.measurement.macs import measure
from zoo.structure.base import initialised
from zoo.structure.description import Description
from zoo.structure.plan import Plan, Swap, apply_
from zoo.structure.tensors import assign_
from zoo.verbs.compressing import calibration

TOKENS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 2}


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
    groups, rank = analysed(model, batches[0][:2]).groups, CRITERIA[criterion]
    slopes = gradients(model, groups, batches[:1])
    seen = moments(model, {path for group in groups for path in group.readers}, batches)
    for group in groups:
        tensors = {path: tensor.detach() for path, tensor in model.named_parameters()}
        score = rank and rank(group, Evidence(tensors, seen, slopes))
        order, damage, _ = eliminate(tensors, group, seen, 1e-9, score)
        assert sorted(order.tolist()) == list(range(group.units))
        assert damage[-1] == 0
        assert damage == sorted(damage, reverse=True)
        for k in {1, group.units // 2, group.units - 1}:
            ratio = 0.0
            for path in group.readers:
                weight = model.get_parameter(f"{path}.weight")
                positions = inputs(group, path)[order[:k]].flatten().sort().values
                ratio += refitted(weight, seen[path], columns(weight, positions), 1e-9)[2]
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
    (group,) = analysed(model, batches[0]).groups
    _, damage, _ = eliminate(dict(model.named_parameters()), group, moments(model, ["second"], batches), 1e-10)
    assert damage[6] < 1e-6 < 1e-4 < damage[5]
    analysis = analysed(model, batches[0])
    found = prune(model, analysis, batches, Budget(0.75), Prune(round_to=1, ridge=1e-10))
    edit = narrow(model, analysis, found.units)
    pruned = assign_(apply_(Pair(), Plan((edit,))), found.tensors, "pruned")
    assert pruned.first.out_features == 6
    other = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(outputs(pruned, other), outputs(model, other), rtol=0, atol=1e-4)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_units_kept_are_the_same_whatever_the_order_of_the_batches(criterion, network):
    cnn, batches = network("cnn"), images(32)
    analysis, how = analysed(cnn, batches[0][:2]), Prune(criterion=criterion)
    left, right = (prune(cnn, analysis, order, Budget(0.5), how).units for order in (batches, batches[::-1]))
    assert [kept.tolist() for kept in left] == [kept.tolist() for kept in right]


FINE = Prune(round_to=1)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_of_all_cuts_the_one_nearest_to_the_dense_model_on_images_held_back_is_taken(kind, network, monkeypatch):
    """The oracle builds every cut by its plan and compares outputs itself."""
    model, cuts = network(kind), []
    cut_to = pruning.cut_to
    monkeypatch.setattr(pruning, "cut_to", lambda *rest: cuts.append(cut_to(*rest)) or cuts[-1])
    analysis = analysed(model, images(SIZES[kind])[0][:2])
    dense = dense_of(model, analysis, images(SIZES[kind]), Prune().ridge, divergence)
    chosen, held = choose(dense, Budget(0.4), FINE)[0][0], torch.cat([*dense.held])
    target = outputs(model, held).log_softmax(1)
    for each in cuts:
        plan = Plan((narrow(model, analysis, each.units),))
        tensors = dense.cut(each.units, each.fitted)
        logits = outputs(assign_(apply_(initialised(BASES[kind]), plan).eval(), tensors, "cut"), held).log_softmax(1)
        assert each.nats == pytest.approx(float((target.exp() * (target - logits)).sum(1).mean()), rel=1e-2)
    assert len(cuts) > 3
    assert chosen.nats == min(each.nats for each in cuts) < cuts[0].nats


@pytest.mark.parametrize("repairs", [True, False])
def test_of_the_nearest_cuts_the_one_nearest_once_signals_are_repaired_is_left(repairs, network, monkeypatch):
    model = network("cnn")
    dense = dense_of(model, analysed(model, images(32)[0][:2]), images(32), Prune().ridge, divergence)
    cuts, _ = choose(dense, Budget(0.4), FINE)
    assert [each.nats for each in cuts] == sorted(each.nats for each in cuts)
    assert len({each.widths for each in cuts}) == len(cuts) in range(2, pruning.NEAREST + 1)
    last, off = cuts[-1], type(dense).off

    def nearer(self, units, tensors):
        """Repaired, the last of them puts out what the dense model does, or repair helps none."""
        return off(self, units, tensors) * (0.0 if repairs and units is last.units else 1e6)

    monkeypatch.setattr(type(dense), "off", nearer)
    assert finished(dense, cuts).units is (last if repairs else cuts[0]).units


@torch.no_grad()
@pytest.mark.parametrize(("count", "budget"), [(256, 0.3), (512, 0.12)])
def test_the_divergence_that_is_told_holds_within_a_factor_of_two_for_other_images(count, budget, caplog):
    model, images = zoo.load("digits_vit"), torch.cat(calibration(zoo.load("digits_vit"), "digits", 1024))
    with caplog.at_level("INFO", logger="zoo.compression.prune"):
        pruned = zoo.compress(model, budget=budget, data=images[:count])
    told = next(float(found[1]) for line in caplog.messages if (found := re.match("prune: about (\\S+) nats", line)))
    off = divergence(pruned(images[count:]).double(), model(images[count:]).double()).mean()
    assert told / 2 < off < told * 2


@torch.no_grad()
def test_what_images_held_back_miss_is_measured_at_the_outputs_of_the_fitted_layer():
    model = Pair().eval()
    shown, others = torch.randn(2, 64, 3, 2, 2, dtype=torch.float64)
    (group,) = analysed(model, shown).groups
    fit, held = (moments(model, ["second"], [batch]) for batch in (shown, others + 0.3))
    order, noise, judged = eliminate(dict(model.named_parameters()), group, fit, 1e-6, None, held)
    assert len(judged) == len(obs.JUDGED)
    x = model.first((others + 0.3).flatten(1))
    signal = model.second(model.first(shown.flatten(1))).var(0, correction=0)
    for own, missed in judged:
        k = min(range(8), key=lambda k: abs(noise[k] - own))
        kept = order[:k].sort().values
        weight, shift, _ = refitted(model.second.weight, fit["second"], kept, 1e-6)
        off = x[:, kept] @ weight.T + model.second.bias + shift - model.second(x)
        assert missed == pytest.approx(float((off.square().mean(0) / signal).mean()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_the_part_of_a_group_is_half_the_slope_of_the_divergence_in_its_error(kind, network):
    """The oracle scales the change of one group's readers a little up and down, and takes the difference."""
    model, batches = network(kind).double(), [batch.double() for batch in images(SIZES[kind], 64)]
    dense = dense_of(model, analysed(model, batches[0][:2]), batches, 1e-6, divergence)
    units = [torch.arange(max(1, group.units // 2)) for group in dense.analysis.groups]
    fitted, held = dense.fitted(units), torch.cat([*dense.held])
    parts, slopes = damage.together(dense, units, fitted), []
    for group in dense.analysis.groups:
        nats = []
        for alpha in (1 + 1e-4, 1 - 1e-4):
            tensors = {path: tensor.detach().clone() for path, tensor in model.state_dict().items()}
            for path, (weight, mean) in fitted.items():
                change = weight - tensors[f"{path}.weight"]
                if path in group.readers:
                    change[:, inputs(group, path).flatten()] *= alpha
                tensors[f"{path}.weight"] += change
                shift = change.flatten(1).double() @ mean
                norm = dense.analysis.normalised.get(path)
                tensors[norm or f"{path}.bias"] += shift if norm else -shift
            logits = torch.func.functional_call(model, tensors, (held,))
            nats.append(float(divergence(logits, dense.target).mean()))
        slopes.append(0.5 * (nats[0] - nats[1]) / 2e-4)
    for part, slope in zip(parts.tolist(), slopes, strict=True):
        assert part >= slope - 1e-6
        assert part == pytest.approx(slope, rel=1e-3) or part < parts.max()  # raised to its standard error
    assert parts.max() == pytest.approx(max(slopes), rel=1e-3)


def test_a_round_weighs_halfway_and_lets_no_width_change_by_more_than_a_half():
    rankings = [Ranking(torch.arange(2), {1: 0.5, 2: 0.0}, True), Ranking(torch.arange(2), {1: 0.1, 2: 0.0}, True)]
    unknown, e = torch.full((2,), torch.nan, dtype=torch.float64), math.e
    first = damage.weighed(rankings, (1, 1), torch.tensor([0.5, 0.1 * e], dtype=torch.float64), unknown)
    assert first.tolist() == pytest.approx([0, 1])
    then = damage.weighed(rankings, (1, 1), torch.tensor([0.5 * e**2, 0.1 * e], dtype=torch.float64), first)
    assert then.tolist() == pytest.approx([1.5, 1.5])  # what both have in common, and half of the rest
    assert damage.curves(rankings, torch.tensor([torch.nan, 1.0]))[0] == {1: pytest.approx(0.5 * e), 2: 0.0}
    assert damage.curves(rankings, unknown)[0] == {1: 0.5, 2: 0.0}
    group, curve = Group("g", 96, (), (), ()), dict.fromkeys(range(1, 97), 1.0)
    assert [*pruning.near(group, curve, 40, 8)] == [24, 32, 40, 48, 56, 64]
    assert [*pruning.near(group, curve, 33, 8)] == [16, 24, 32, 33, 40, 48, 56]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(0.01), r"0\.01 of the macs can't be met: what can be cut leaves at least 0\.\d+"),
        (Budget(0.9, 0.01), r"0\.01 of the params can't be met: what can be cut leaves at least 0\.\d+"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(budget, message, network):
    with pytest.raises(BudgetError, match=message):
        prune(network("cnn"), analysed(network("cnn"), images(32)[0][:2]), images(32), budget)


@pytest.mark.parametrize(
    ("kind", "criterion", "budget"),
    [
        *(("cnn", each, Budget(0.6, 0.7)) for each in CRITERIA),
        *(("vit", "obs", each) for each in (Budget(0.6, 0.7), Budget(0.5), Budget(1.0))),
    ],
    ids=lambda each: each if isinstance(each, str) else f"{each.macs} {each.params or ''}".strip(),
)
def test_a_pruned_model_meets_its_budget_within_a_step_and_the_dense_one_stays(kind, budget, criterion, network):
    model, size = network(kind), SIZES[kind]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = zoo.compress(model, budget=budget, data=images(size), criterion=criterion, round_to=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    dense, found = measure(model, (3, size, size)), measure(pruned, (3, size, size))
    shares = [(found.macs / dense.macs, budget.macs), (found.params / dense.params, 1.05 * (budget.params or 1))]
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
    pruned = zoo.compress(model, budget=0.5, data="digits", images=64, seed=3, floor=0.1)
    loaded = zoo.load(zoo.save(pruned, tmp_path / "pruned"))
    batch = torch.randn(4, 1, 32, 32)
    assert torch.equal(outputs(pruned, batch), outputs(loaded, batch))
    assert pruned.zoo_entry.plan == loaded.zoo_entry.plan
    assert pruned.zoo_entry.name == "digits_pruned_50"
    budget = {"macs": 0.5, "params": None}
    said = {"floor": 0.1, "images": 64, "seed": 3}
    assert pruned.zoo_entry.recipe == {"method": "prune", "budget": budget, "options": said}
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
        ({"criterion": "luck"}, "no criterion 'luck', known are obs, activation, taylor, l1, l2"),
        ({"rounding": 4}, "prune has no option 'rounding', known are criterion, round_to, floor, ridge"),
        ({"method": "magic"}, "no method 'magic': this version compresses by prune"),
    ],
)
def test_unknown_words_are_answered_with_those_that_are_known(options, message, network):
    with pytest.raises(UnknownName, match=message):
        zoo.compress(network("cnn"), budget=0.5, data=images(32), **options)


def test_a_model_without_channels_to_cut_is_refused():
    with pytest.raises(BudgetError, match="no channels that can be cut"):
        prune(nn.Conv2d(3, 4, 1).eval(), Analysis((), (), ()), images(8), Budget(0.5))


@torch.no_grad()
def test_units_that_go_together_do_the_damage_of_units_that_go_one_after_another(monkeypatch):
    model, batches = Pair().eval(), [torch.randn(64, 3, 2, 2, dtype=torch.float64)]
    (group,) = analysed(model, batches[0]).groups
    seen, tensors = moments(model, ["second"], batches), dict(model.named_parameters())
    score = torch.arange(8.0)
    together = eliminate(tensors, group, seen, 1e-6, score)
    monkeypatch.setattr(obs, "AT_ONCE", 1)
    alone = eliminate(tensors, group, seen, 1e-6, score)
    assert together[0].tolist() == alone[0].tolist() == list(range(7, -1, -1))
    assert together[1] == pytest.approx(alone[1], rel=1e-9)


@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_taylor_is_the_change_of_the_loss_when_a_unit_fades(kind, network):
    model, batch = network(kind).double(), images(SIZES[kind])[0].double()
    group = analysed(model, batch[:2]).groups[-1]
    expected = torch.zeros(group.units, dtype=torch.float64)
    labels, step = outputs(model, batch).argmax(1), 1e-5
    for unit in range(group.units):
        change = 0.0
        for path in group.readers:
            weight = model.get_parameter(f"{path}.weight")
            before = weight.detach().clone()
            losses = []
            for sign in (1, -1):
                weight.data[:, inputs(group, path)[unit]] *= 1 + sign * step
                losses.append(nn.functional.cross_entropy(outputs(model, batch), labels, reduction="none"))
                weight.data.copy_(before)
            change = change + (losses[0] - losses[1]) / (2 * step)
        expected[unit] = change.abs().mean()
    torch.testing.assert_close(gradients(model, [group], [batch])[group.name], expected, rtol=1e-5, atol=1e-9)


def test_moments_that_do_not_fit_together_are_collected_in_portions_and_choose_the_same_units(network, monkeypatch):
    model, batches = network("cnn"), images(32)
    analysis = analysed(model, batches[0][:2])

    collected, collect = [], refitting.moments
    monkeypatch.setattr(refitting, "moments", lambda *rest: collected.append(rest[1]) or collect(*rest))

    def chosen():
        collected.clear()
        dense = dense_of(model, analysis, batches, Prune().ridge, divergence)
        return [units.tolist() for units in choose(dense, Budget(0.5), Prune())[0][0].units], len(collected)

    together, once = chosen()
    monkeypatch.setattr(refitting, "MAX_BYTES", 1)
    portions, often = chosen()
    assert together == portions
    assert once == 2
    assert often > 2 * len(analysis.groups)


def test_a_model_is_whole_again_after_its_outputs_failed(network):
    model, batches = network("cnn"), images(32)
    analysis = analysed(model, batches[0][:2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(*args):
        raise DataError("no")

    with pytest.raises(DataError):
        prune(model, analysis, batches, Budget(0.5), Prune(), fail)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
