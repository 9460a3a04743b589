"""Refitting against torch's own least squares."""

import copy

import pytest
import torch
from analysed import analysed, refitted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from zoo.compression.prune.refit import Moments, Parts, columns, fit, moments
from zoo.errors import DataError

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear on tokens": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "pointwise": (lambda: nn.Conv2d(6, 4, 1), (6, 5, 5)),
    "pointwise with stride": (lambda: nn.Conv2d(6, 4, 1, stride=2), (6, 5, 5)),
    "pointwise with padding": (lambda: nn.Conv2d(6, 4, 1, padding=1), (6, 5, 5)),
    "3 x 3": (lambda: nn.Conv2d(6, 4, 3, padding=1), (6, 5, 5)),
    "stride": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (6, 7, 7)),
    "dilation": (lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2), (6, 7, 7)),
    "oblong": (lambda: nn.Conv2d(6, 4, (1, 3), stride=(2, 1), padding=(0, 1)), (6, 5, 5)),
    "convolution without bias": (lambda: nn.Conv2d(6, 4, 3, bias=False), (6, 5, 5)),
    "convolution without bias before a norm": (lambda: nn.Conv2d(6, 4, 3, bias=False), (6, 5, 5)),
}
KEPT = torch.tensor([0, 2, 5])


def drawn(name, rows=40):
    """Return a layer and inputs whose channels have means and depend on one another."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    x = torch.randn(rows, *shape, dtype=torch.float64)
    channels = -1 if name.startswith("linear") else 1
    mixed = x.movedim(channels, -1) @ torch.randn(6, 6, dtype=torch.float64) + torch.arange(6) / 3
    after = [nn.BatchNorm2d(4)] if name.endswith("norm") else []
    return nn.Sequential(make(), *after).double().eval(), mixed.movedim(-1, channels).contiguous()


def shifts(name):
    """Whether the layer's mean may move: into its bias, or into the statistics of a norm after it."""
    return not name.endswith("without bias")


def without(layer, x, centred):
    """Return the layer's outputs with the columns fitted to the inputs kept, by torch.linalg.lstsq on raw rows."""
    y = layer(x)
    if isinstance(layer, nn.Linear):
        rows, wanted = x[..., KEPT].reshape(-1, len(KEPT)), y.reshape(-1, y.shape[-1])
    else:
        rows = F.unfold(x[:, KEPT], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        rows, wanted = rows.transpose(1, 2).flatten(0, 1), y.flatten(2).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1) if centred else rows
    found = torch.linalg.lstsq(rows, wanted).solution
    power = (wanted - wanted.mean(0) if centred else wanted).square().sum(0)
    ratio = ((wanted - rows @ found).square().sum(0) / power).mean()
    return (found[:-1].T, found[-1], ratio) if centred else (found.T, None, ratio)


def norm(name):
    """What the analysis finds of these models: whether a batch norm takes the layer's outputs."""
    return {"0": "1.running_mean"} if name.endswith("before a norm") else {}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_refitted_layer_is_the_least_squares_solution_on_the_raw_rows(name):
    model, x = drawn(name)
    layer = model[0]
    weight, shift, ratio = refitted(
        layer.weight, moments(model, ["0"], [x], norm(name))["0"], columns(layer.weight, KEPT), 1e-13
    )
    expected_weight, intercept, expected_ratio = without(layer, x, shifts(name))
    torch.testing.assert_close(weight, expected_weight, rtol=1e-6, atol=1e-8)
    assert 0.001 < expected_ratio < 1
    assert ratio == pytest.approx(expected_ratio.item(), rel=1e-6)
    if intercept is not None:
        bias = torch.zeros(4) if layer.bias is None else layer.bias
        torch.testing.assert_close(bias + shift, intercept, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_the_noise_to_signal_ratio_is_the_one_measured_at_the_outputs(name):
    model, x = drawn(name)
    layer, narrow = model[0], copy.deepcopy(model[0])
    weight, shift, ratio = refitted(
        layer.weight, moments(model, ["0"], [x], norm(name))["0"], columns(layer.weight, KEPT), 0.05
    )
    narrow.weight = nn.Parameter(weight.view(4, 3, *layer.weight.shape[2:]))
    narrow.bias = nn.Parameter(shift + (0 if layer.bias is None else layer.bias))
    found = narrow(x[..., KEPT] if isinstance(layer, nn.Linear) else x[:, KEPT])
    y = layer(x)
    over = [0, *range(2, y.ndim)] if isinstance(layer, nn.Conv2d) else list(range(y.ndim - 1))
    signal = y - y.mean(over, keepdim=True) if shifts(name) else y
    assert ratio == pytest.approx(((found - y).square().sum(over) / signal.square().sum(over)).mean().item(), rel=1e-9)


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(1, 39), max_size=3, unique=True).map(sorted))
def test_moments_over_several_batches_are_those_of_one(name, cuts):
    model, x = drawn(name)
    expected = moments(model, ["0"], [x])["0"]
    found = moments(model, ["0"], torch.tensor_split(x, cuts))["0"]
    for part in ("mean", "covariance", "power"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-9, atol=1e-12)


def test_a_unit_that_repeats_others_costs_nothing():
    model, x = drawn("linear")
    x[:, 1] = 2 * x[:, 0] - x[:, 2] + 3
    kept = torch.tensor([0, 2, 3, 4, 5])
    weight, shift, ratio = refitted(model[0].weight, moments(model, ["0"], [x])["0"], kept, 1e-12)
    assert ratio < 1e-9
    torch.testing.assert_close(x[:, kept] @ weight.T + model[0].bias + shift, model(x), rtol=0, atol=1e-8)


def test_kept_whole_a_layer_stays_as_it_is():
    model, x = drawn("3 x 3")
    layer = model[0]
    weight, shift, ratio = refitted(
        layer.weight, moments(model, ["0"], [x])["0"], columns(layer.weight, torch.arange(6)), 1e-13
    )
    torch.testing.assert_close(weight, layer.weight.flatten(1), rtol=0, atol=1e-8)
    assert shift.abs().max() < 1e-8
    assert ratio < 1e-9


def test_columns_of_a_convolution_are_the_patches_of_its_channels():
    weight = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    assert torch.equal(weight[:, [0, 2]].flatten(1), weight.flatten(1)[:, columns(weight, torch.tensor([0, 2]))])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_activations_that_are_not_finite_are_refused_by_the_layers_name(value):
    model, x = drawn("linear")
    x[3, 2] = value
    with pytest.raises(DataError, match="the input of 0 isn't finite"):
        moments(model, ["0"], [x])


def test_no_batches_are_refused():
    with pytest.raises(DataError, match="no images; pass at least one batch"):
        moments(drawn("linear")[0], ["0"], [])


def test_a_batch_norm_elsewhere_does_not_take_up_the_shift_of_a_layer_that_none_follows():
    torch.manual_seed(0)
    first, reader = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1, bias=False)
    model = nn.Sequential(nn.BatchNorm2d(3), first, nn.Softplus(), reader, nn.GroupNorm(1, 8), nn.Flatten()).eval()
    found = analysed(model, torch.randn(2, 3, 4, 4))
    followed = analysed(nn.Sequential(first, reader, nn.BatchNorm2d(8)).eval(), torch.randn(2, 3, 4, 4))
    assert found.normalised == {}
    assert followed.normalised == {"1": "2.running_mean"}


def test_where_no_cholesky_factor_exists_the_fit_is_still_that_of_the_equations():
    weight, C = torch.randn(4, 3, dtype=torch.float64), torch.diag(torch.tensor([2.0, -1.0, 3.0], dtype=torch.float64))
    fitted = fit(weight, Moments(torch.ones(3).double(), C, 9), torch.tensor([0, 1]), 1e-13)
    torch.testing.assert_close(fitted, weight[:, :2], rtol=1e-6, atol=1e-9)


def test_moments_of_two_parts_are_those_of_all_images_together():
    for name in ("3 x 3", "linear without bias"):
        model, x = drawn(name)
        each = [moments(model, ["0"], [part])["0"] for part in (x, x[:13], x[13:])]
        whole = Parts(*each[1:]).whole
        for part in ("mean", "covariance", "power"):
            torch.testing.assert_close(getattr(whole, part), getattr(each[0], part), rtol=1e-9, atol=1e-12)
        assert whole.rows == each[0].rows
