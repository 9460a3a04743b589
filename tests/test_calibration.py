"""What compress is given: images, budgets and models that it takes, and one line for each that it refuses."""

import copy

import pytest
import torch
from analysed import analysed
from torch import nn

import zoo
from zoo.compression.calibration import batched, check_finite
from zoo.compression.prune import refit
from zoo.compression.prune.obs import eliminate
from zoo.compression.prune.refit import Moments, moments, ridged
from zoo.errors import BudgetError, DataError, StructureError
from zoo.training.schedule import Schedule

METHODS = {"prune": 0.6, "low_rank": 0.7, "falor": None}
QUICK = {"images": 32, "schedule": {"epochs": 1, "steps": 2, "batch_size": 16}}


@pytest.fixture(scope="module")
def model():
    return zoo.load("digits_cnn")


def images(count=64, side=32, channels=1):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


X = images()
REFUSED = {
    "another size": ([images(8, 64)], "images are 1 x 64 x 64, the model takes 1 x 32 x 32; pass them through zoo.tr"),
    "another size behind": ([X, images(8, 40)], "images are 1 x 40 x 40, the model takes 1 x 32 x 32; "),
    "colour": ([images(8, 32, 3)], "images are 3 x 32 x 32, the model takes 1 x 32 x 32"),
    "black": ([X * 0], "all 64 images are the same; pass images that differ"),
    "one repeated": ([X[:1].repeat(64, 1, 1, 1)], "all 64 images are the same"),
    "one in each batch": ([X[:1]] * 3, "all 3 images are the same"),
    "one": ([X[:1]], "1 image; pass at least two that differ, some hundred make reliable statistics"),
    "no batch": ([], "no images; pass at least one batch"),
    "an empty batch": ([X[:0]], "no images; pass at least one batch"),
    "bytes": ([X.to(torch.uint8)], "batch 0 is torch.uint8, expected floats; pass the images through zoo.transform"),
    "single images": (list(X), "batch 0 is [1, 32, 32], expected a list of batches [B, C, H, W]"),
    "one image alone": (X[0], "batch 0 is [1, 32, 32], expected a list of batches [B, C, H, W]"),
    "an array": ([X, X.numpy()], "batch 1 is of type ndarray, expected a list of batches [B, C, H, W]"),
    "arrays of arrays": (X.numpy(), "batch 0 is of type ndarray, expected a list"),
    "a number": (3, "found int, expected a list of batches [B, C, H, W]"),
    "images and labels apart": ((X, torch.zeros(64)), "batch 1 is [64], expected a list of batches"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", REFUSED)
def test_images_that_cannot_be_used_are_refused_by_every_method_in_one_line(model, method, case):
    data, words = REFUSED[case]
    with pytest.raises(DataError) as caught:
        zoo.compress(model, budget=METHODS[method], data=data, method=method)
    assert str(caught.value).startswith("calibration: " + words)
    assert "\n" not in str(caught.value)


TAKEN = {
    "a batch": X,
    "with labels": [(X[:32], torch.zeros(32)), [X[32:], torch.zeros(32)]],
    "single images in batches": X.split(1),
    "a generator": (batch for batch in X.split(63)),
    "double precision": [X.double()],
    "with an empty batch": [torch.empty(0, 1, 32, 32), X],
}


@pytest.mark.parametrize("case", TAKEN)
def test_every_shape_that_images_come_in_gives_the_same_batches_of_at_least_two(model, case):
    found = batched(model, TAKEN[case])
    assert torch.equal(torch.cat(found), X)
    assert min(map(len, found)) > 1
    assert {batch.dtype for batch in found} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_any_precision_takes_images_of_another_and_keeps_its_own(model, method, dtype):
    cast = copy.deepcopy(model).to(dtype)
    smaller = zoo.compress(cast, budget=METHODS[method], data=X, method=method)
    assert {parameter.dtype for parameter in smaller.parameters()} == {dtype}
    with torch.no_grad():
        assert smaller(X[:2].to(dtype)).isfinite().all()


@pytest.mark.parametrize(("count", "said"), [(16, True), (63, True), (64, False)])
def test_few_images_are_warned_of(model, caplog, count, said):
    batched(model, X[:count])
    expected = [f"calibration: {count} images; some hundred make reliable statistics"]
    assert [record.getMessage() for record in caplog.records] == (expected if said else [])


def test_images_that_hardly_differ_and_images_of_one_grey_each_are_enough_to_finish(model):
    for few, ridge in ((X[:2], 1e-4), (1 + 1e-6 * X, 1e-13), (X[:, :, :1, :1].expand_as(X), 1e-4)):
        smaller = zoo.compress(model, budget=0.5, data=few, ridge=ridge)
        with torch.no_grad():
            assert smaller(X).isfinite().all()


class Hidden(nn.Module):
    """Two linear layers; what lies between has four degrees of freedom."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)))


def test_a_covariance_of_rounding_alone_is_made_definite_and_no_other_is_touched(monkeypatch):
    torch.manual_seed(0)
    hidden, x = Hidden().eval(), torch.randn(4000, 1, 2, 2)
    (group,) = analysed(hidden, x[:2]).groups
    seen = moments(hidden, ["second"], [x])
    assert torch.linalg.eigvalsh(seen["second"].covariance.double()).min() < 0
    tensors = dict(hidden.named_parameters())
    with torch.no_grad():
        order, damage, _ = eliminate(tensors, group, seen, 1e-13)
        assert sorted(order.tolist()) == list(range(32))
        assert all(0 <= each < float("inf") for each in damage)
        monkeypatch.setattr(refit, "ROUNDING", 0.0)
        with pytest.raises(DataError, match="prune: the covariance of the calibration images is singular; raise ridge"):
            eliminate(tensors, group, seen, 1e-13)
    monkeypatch.undo()
    C = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    added = ridged(Moments(torch.zeros(2), C, 9), 1e-4) - C
    torch.testing.assert_close(added, torch.diag(torch.tensor([3e-4, 1e-4], dtype=torch.float64)), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("method", ["prune", "low_rank"])
@pytest.mark.parametrize("budget", ["half", "0.5", [0.5], True, 0, -1, 1.5, float("nan"), float("inf")])
def test_a_budget_that_is_no_share_is_refused(model, method, budget):
    with pytest.raises(BudgetError, match="expected a share above 0, at most 1"):
        zoo.compress(model, budget=budget, data=X, method=method)


@pytest.mark.parametrize("method", ["prune", "low_rank"])
@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit"])
def test_a_budget_of_all_returns_the_dense_tensors_whatever_the_images(method, name):
    dense = zoo.load(name)
    side = dense.pretrained_cfg["input_size"][-1]
    assert same(dense, zoo.compress(dense, budget=1, data=9 * images(2, side), method=method))


def broken(path, value):
    model = zoo.load("digits_cnn")
    model.state_dict()[path].view(-1)[0] = value
    return model


MODELS = {
    "a name": (lambda: "digits_cnn", "expected a model, found str: pass one, e.g. zoo.load('digits_cnn')"),
    "nothing": (lambda: None, "expected a model, found NoneType: pass one, e.g. zoo.load("),
    "not timm's": (
        lambda: nn.Conv2d(1, 2, 3),
        "the model doesn't say what it was made from; pass base='timm/<architecture>' to zoo.save, or load its weights "
        "into a model of timm.create_model",
    ),
    "a weight of NaN": (lambda: broken("conv1.3.weight", float("nan")), "ResNet: conv1.3.weight isn't finite"),
    "infinity": (lambda: broken("fc.bias", float("-inf")), "ResNet: fc.bias isn't finite"),
    "statistics of NaN": (lambda: broken("bn1.running_var", float("nan")), "ResNet: bn1.running_var isn't finite"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_compressed_is_refused_in_one_line(method, case):
    make, words = MODELS[case]
    with pytest.raises(StructureError) as caught:
        zoo.compress(make(), budget=METHODS[method], data=X, method=method)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_a_mask_of_infinities_is_no_broken_weight(model):
    masked = copy.deepcopy(model)
    masked.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    check_finite(masked)


def test_a_model_that_does_not_say_what_size_it_takes_is_refused(model):
    silent = copy.deepcopy(model)
    silent.pretrained_cfg = {}
    with pytest.raises(StructureError, match=r"ResNet names no input size; set model.pretrained_cfg\['input_si"):
        zoo.compress(silent, budget=0.5, data=X)


CALLS = {
    **{method: {"budget": budget, "method": method} for method, budget in METHODS.items()},
    "taylor": {"budget": 0.6, "criterion": "taylor"},
    "lockd": {"method": "lockd", "data": "digits", **QUICK},
    "dwain": {"method": "dwain", "data": "digits", **QUICK},
}


@pytest.mark.parametrize("case", CALLS)
def test_compress_does_the_same_where_the_caller_has_no_gradients(model, case):
    expected = zoo.compress(model, **{"data": X, **CALLS[case]})
    with torch.inference_mode():
        found = zoo.compress(model, **{"data": X, **CALLS[case]})
        assert not torch.is_grad_enabled()
    assert same(found, expected)
    found(X[:2]).sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_distil_trains_whatever_the_callers_gradient_mode(model, mode):
    student = copy.deepcopy(model)
    with mode():
        zoo.distil(student, [model], "digits", schedule=Schedule(epochs=1, steps=2, batch_size=16))
    assert not same(student, model)


LOOSENED = {
    "falor": ({"data": X, "nsr_final_threshold": 1e-9}, "raise nsr_final_threshold or kl_final_threshold"),
    "lockd": ({"data": "digits", **QUICK}, "raise nsr_threshold, proportion_threshold or the schedule's epochs"),
    "dwain": (
        {"data": "digits", **QUICK},
        "raise trade_off_factor, max_accepted_ppl_diff or nsr_final_threshold, or lower min_rank",
    ),
}


@pytest.mark.parametrize("method", LOOSENED)
def test_a_method_that_decomposed_nothing_returns_the_model_and_says_what_to_loosen(model, caplog, method):
    options, words = LOOSENED[method]
    found = zoo.compress(model, method=method, **options)
    assert same(found, model)
    assert f"{method}: no layer was decomposed; {words}" in [record.getMessage() for record in caplog.records]


def test_a_method_that_decomposed_something_says_no_such_thing(model, caplog):
    zoo.compress(model, method="falor", data=X, nsr_final_threshold=0.9, kl_final_threshold=9.0)
    zoo.compress(model, method="low_rank", budget=1, data=X)
    assert not [record for record in caplog.records if record.name.startswith("zoo")]
