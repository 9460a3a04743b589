"""Magnitude: which weights become zero, counted by sorting; zeros stay, and cost as much as before until they go."""

import pytest
import torch
from torch import nn

import zoo
from zoo.compression.magnitude import CRITERIA, Magnitude, magnitude
from zoo.errors import BudgetError, DataError, UnknownName
from zoo.structure.plan import Mask
from zoo.training.schedule import Schedule
from zoo.verbs.verification import results_of

IMAGES = torch.rand(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def net(seed=0):
    torch.manual_seed(seed)
    body = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def masked(criterion, sparsity, model=None, **how):
    return magnitude(model or net(), Magnitude(criterion, sparsity, **how))


def weights(tensors):
    return {path: held for path, held in tensors.items() if held.ndim > 1}


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_in_each_layer_the_least_weights_become_zero_and_no_other_changes(sparsity):
    _, tensors = masked("l1_unstructured", sparsity)

    for path, weight in weights(net().state_dict()).items():
        gone = sorted(weight.flatten().tolist(), key=abs)[: round(sparsity * weight.numel())]
        kept = [0.0 if value in gone else value for value in weight.flatten().tolist()]
        assert tensors[path].flatten().tolist() == kept


def test_over_all_layers_the_least_weights_become_zero():
    _, tensors = masked("global_unstructured", 0.4)

    every = torch.cat([held.flatten() for held in weights(net().state_dict()).values()])
    least = every.abs().sort().values[round(0.4 * len(every))]
    found = torch.cat([held.flatten() for held in weights(tensors).values()])
    assert torch.equal(found, torch.where(every.abs() < least, 0.0, every))


def test_outputs_of_the_least_norm_become_zero_whole():
    _, tensors = masked("ln_structured", 0.25)

    for path, weight in weights(net().state_dict()).items():
        norms = weight.flatten(1).norm(dim=1)
        order = norms.argsort()
        assert set(tensors[path].flatten(1).norm(dim=1).eq(0).nonzero().flatten().tolist()) == set(
            order[: round(0.25 * len(norms))].tolist()
        )


def test_of_each_four_in_a_row_two_stay_over_the_inputs_of_one_place():
    _, tensors = masked("two_of_four", 0.5)

    conv, whole = tensors["3.weight"], net()[3].weight
    for output, row, column in ((0, 0, 0), (7, 1, 2), (15, 2, 1)):
        for first in (0, 4):
            four = slice(first, first + 4)
            kept, before = conv[output, four, row, column], whole[output, four, row, column]
            assert kept.count_nonzero() == 2
            assert kept.abs().sum() == before.abs().topk(2).values.sum()
    assert torch.equal(tensors["0.weight"], net()[0].weight)  # of nine in a row


@pytest.mark.parametrize("criterion", CRITERIA)
def test_biases_and_norms_stay_and_what_is_excluded(criterion):
    edit, tensors = masked(criterion, 0.5, exclude="7")

    before = net().state_dict()
    assert edit == Mask(("0", "3"))
    assert all(torch.equal(tensors[path], before[path]) for path in before if path not in ("0.weight", "3.weight"))


def test_a_weight_that_two_layers_share_is_masked_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight

    edit, tensors = masked("l1_unstructured", 0.5, model)

    assert edit.paths == ("0",)
    assert tensors["0.weight"].eq(0).sum() == 32


@pytest.fixture(scope="module")
def sparse():
    return zoo.compress(net(), method="magnitude", sparsity=0.7, example=(1, 16, 16))


def test_a_masked_model_costs_what_it_did_and_is_saved_with_its_zeros(sparse, tmp_path):
    folder = zoo.save(sparse, tmp_path / "sparse", name="sparse")
    loaded = zoo.load(folder)

    assert zoo.measure(loaded) == zoo.measure(net(), (1, 16, 16))
    zeros = sum(int(held.eq(0).sum()) for held in weights(loaded.state_dict()).values())
    assert zeros == round(0.7 * sum(held.numel() for held in weights(net().state_dict()).values()))
    assert results_of(folder).measured["nonzero"] == sum(each.numel() for each in loaded.parameters()) - zeros - 8
    assert "of them not zero" in (folder / "README.md").read_text()
    assert zoo.verify(folder).passed


def test_zeros_stay_while_it_is_trained(sparse):
    zeros = {path: held.eq(0) for path, held in weights(sparse.state_dict()).items()}
    images = [(torch.rand(4, 1, 16, 16), torch.arange(4)) for _ in range(3)]

    trained = zoo.distil(sparse, [], images, schedule=Schedule(epochs=2, batch_size=4, lr=0.1)).state_dict()

    assert all(torch.equal(trained[path].eq(0), where) for path, where in zeros.items())


def test_outputs_that_are_zero_are_the_first_to_go_when_it_is_pruned():
    half = {"criterion": "ln_structured", "sparsity": 0.5, "exclude": "head"}
    model = zoo.compress(net(), method="magnitude", example=(1, 16, 16), **half)

    narrowed = zoo.compress(model, budget=0.3, criterion="l2", round_to=1, data=IMAGES)

    first, second = (narrowed.get_submodule(path).weight for path in ("0", "3"))
    assert zoo.measure(narrowed).macs < 0.31 * zoo.measure(model).macs
    assert (len(first), len(second)) != (8, 16)
    for weight, most in ((first, 4), (second, 8)):
        assert weight.flatten(1).norm(dim=1).count_nonzero() == min(most, len(weight))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"criterion": "least"}, DataError, "criterion is 'least', expected one of"),
        ({"sparsity": 1.0}, DataError, "sparsity is 1.0, expected"),
        ({"criterion": "two_of_four", "sparsity": 0.7}, DataError, "sparsity is 0.7, expected 0.5 of two_of_four"),
        ({"exclude": "stam"}, UnknownName, "magnitude: exclude names 'stam', but the model has no such layer"),
        ({"exclude": "*"}, DataError, "the model has no linear layer or convolution that may change"),
    ],
)
def test_what_cannot_be_masked_is_told(how, error, message):
    with pytest.raises(error, match=message):
        magnitude(net(), Magnitude(**how))


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"method": "prune", "budget": 0.5}, DataError, "prune looks at images: pass data, such as a folder"),
        ({"method": "magnitude", "calibrate_steps": 1}, DataError, "calibrate looks at images: pass data"),
        ({"method": "magnitude", "budget": 0.5}, BudgetError, "as it has thresholds: set criterion, sparsity,"),
    ],
)
def test_only_what_looks_at_no_images_does_without_any(how, error, message):
    with pytest.raises(error, match=message):
        zoo.compress(net(), example=(1, 16, 16), **how)
