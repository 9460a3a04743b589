"""MRT's scheme, against whole numbers of Python: its rounding, its layers and sums, and what it is compared with."""

import copy

import pytest
import torch
from conftest import CNN, disturbed
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from zoo.compression.integer.mrt import threshold
from zoo.errors import StructureError
from zoo.structure.graph.certificate import certificate
from zoo.structure.graph.mrt import MRTAdd, MRTConv2d, MRTLinear, MRTMul, half_up


def shifted(accumulator, multiplier, shift):
    """Python's shift of whole numbers rounds down, of negative ones too: add a half before."""
    return (accumulator * multiplier + (1 << (shift - 1))) >> shift


def clipped(value, zero=128):
    return min(max(value + zero, 1), 255)


@given(st.integers(1 - 2**31, 2**31 - 1), st.integers(1, 2**15 - 1), st.integers(1, 50))
def test_halves_are_rounded_up_as_the_shift_of_whole_numbers_does(accumulator, multiplier, shift):
    found = half_up(torch.tensor([accumulator], dtype=torch.float64), multiplier, shift)
    assert int(found) == shifted(accumulator, multiplier, shift)


byte = st.integers(0, 255) | st.sampled_from([0, 255])
weight = st.integers(-127, 127) | st.sampled_from([-127, 127])
eight = st.lists(byte, min_size=8, max_size=8)


@given(eight, st.lists(weight, min_size=8, max_size=8), st.integers(-(2**30), 2**30), st.integers(10, 40))
def test_layers_are_those_of_whole_numbers_and_of_32_bits_that_wrap(x, w, bias, shift):
    told = {"zero": 128, "out_zero": 128, "low": 1, "multiplier": 23_456, "shift": shift}
    for layer, shape in ((MRTLinear(8, 1, **told), [8]), (MRTConv2d(2, 1, [2, 2], **told), [2, 2, 2])):
        layer.weight, layer.bias = torch.tensor([w], dtype=torch.int8).view(1, *shape), torch.tensor([bias]).int()
        accumulator = sum(a * (b - 128) for a, b in zip(w, x, strict=True)) + bias
        assert abs(accumulator) <= int(layer.bound()) < 2**31
        wrapped = (torch.tensor(w).int() * (torch.tensor(x).int() - 128)).sum(dtype=torch.int32) + layer.bias
        assert int(wrapped) == accumulator
        found = layer(torch.tensor([x], dtype=torch.uint8).view(1, *shape))
        assert found.flatten().tolist() == [clipped(shifted(accumulator, 23_456, shift))]


@given(byte, byte, st.integers(1, 2**15 - 1), st.integers(1, 2**15 - 1), st.integers(1, 20), st.integers(1, 20))
def test_sums_and_products_are_those_of_whole_numbers(a, b, m, n, k, shift):
    x, y = (torch.tensor([each], dtype=torch.uint8) for each in (a, b))
    total = MRTAdd([128, 3], [m, n], [k, shift], 128, 1)(x, y)
    assert int(total) == clipped(shifted(a - 128, m, k) + shifted(b - 3, n, shift))
    product = MRTMul([128, 3], m, k, 128, 1)(x, y)
    assert int(product) == clipped(shifted((a - 128) * (b - 3), m, k))


def test_the_threshold_is_that_of_mrt():
    values = torch.tensor([-1.0, 1.0] * 500 + [100.0])
    spread = abs(float(values.mean())) + 5 * float(values.std())
    assert threshold(values, -1.0, 100.0, free=True, deviations=0.0).step == 100 / 127
    assert threshold(values, -1.0, 100.0, free=True, deviations=5.0).step == pytest.approx(spread / 127)
    assert threshold(values, -1.0, 100.0, free=True, deviations=500.0).step == 100 / 127


@pytest.fixture(scope="module")
def models():
    model, images = disturbed(CNN, 32), torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (images.mul(255).round() / 255 - mean) / std
    return model, images, zoo.compress(model, data=images, method="integer", scheme="mrt")


def test_a_network_of_mrt_computes_alike_in_every_batch_and_has_its_bytes(models):
    model, images, small = models
    with torch.no_grad():
        whole = small(images)
        assert torch.equal(whole, torch.cat([small(each) for each in images.split(7)]))
        lost = (whole - model(images)).square().sum() / model(images).square().sum()
    assert float(lost) < 0.05
    kinds = {type(each).__name__ for each in small.modules()}
    assert {"MRTConv2d", "MRTLinear", "MRTAdd"} <= kinds
    assert not {"QConv2d", "QLinear", "QAdd"} & kinds
    assert all(each.bound < 2**31 for each in certificate(small).values())


class Taken(nn.Module):
    def forward(self, x):
        return x - x.flip(3)


def test_what_is_taken_off_is_added_with_the_other_sign():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Taken(), nn.Conv2d(8, 5, 6), nn.Flatten()).eval()
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    images = torch.randint(256, (24, 3, 8, 8)) / 255
    small = zoo.compress(model, data=images, method="integer", scheme="mrt", example=(3, 8, 8))
    with torch.no_grad():
        assert (small(images) - model(images)).norm() < 0.05 * model(images).norm()
    assert sum(isinstance(each, MRTAdd) for each in small.modules()) == 1


def test_what_could_overflow_is_not_certified(models):
    altered = copy.deepcopy(models[2])
    layer = next(each for each in altered.modules() if isinstance(each, MRTConv2d))
    layer.bias.fill_(2**31 - 1)
    with pytest.raises(StructureError, match=r"expected below 2\^31"):
        certificate(altered)
