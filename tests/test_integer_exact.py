"""Exact layers and networks: what they give is what whole numbers of 64 bits give, and of 32 bits that wrap."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

import zoo
from zoo.structure.base import Base
from zoo.structure.description import configure_
from zoo.structure.graph.certificate import certificate
from zoo.structure.graph.integer import QConv2d, QLinear


def halves_to_even(value, exponent):
    """value·2^-exponent of whole numbers, rounded."""
    if exponent <= 0:
        return value * 2**-exponent
    quotient, rest = np.divmod(value, 2**exponent)
    half = 2 ** (exponent - 1)
    return quotient + ((rest > half) | ((rest == half) & (quotient % 2 == 1)))


# Layers


@st.composite
def layers(draw):
    """A certified layer whose window is the whole of what it reads: [O, K] weights, of both signs and at their ends."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    outputs, inputs = groups * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    side = draw(st.sampled_from([1, 3, 7]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([1, 7, 64]))
    weight = generator.choice([-most, most], (outputs, inputs * side**2))
    weight = np.where(generator.random(weight.shape) < draw(st.sampled_from([0.0, 0.5])), weight, weight // 2)
    bias = generator.choice([-1, 1], outputs) * draw(st.sampled_from([0, 1, 2**24 + 2**9 + 1, 2**31 - 1]))
    room = 2**31 - 1 - 255 * np.abs(weight).sum(1)
    told = {"zero": draw(st.sampled_from([0, 1, 128, 255])), "low": -32767, "high": 32767}
    if draw(st.booleans()):
        told |= {"low": 0, "high": 255, "out_zero": draw(st.sampled_from([0, 3, 128, 255]))}
    if side == 1 and groups == 1:
        layer = QLinear(inputs, outputs, **told)
    else:
        layer = QConv2d(inputs * groups, outputs, (side, side), groups=groups, **told)
    layer.weight.copy_(torch.from_numpy(weight).view_as(layer.weight))
    layer.bias.copy_(torch.from_numpy(np.clip(bias, -room, room)))
    layer.exponent.copy_(torch.from_numpy(generator.choice([-3, 0, 1, 10, 15], outputs)))
    return layer


def worst(layer):
    """For each output what makes its accumulator largest and what makes it least; both ends, and its zero [B, ...]."""
    weight = layer.weight.view(len(layer.weight), -1).numpy()
    groups = getattr(layer, "groups", 1)
    rows = []
    for output, own in enumerate(weight):
        for positive in (True, False):
            row = np.full((groups, own.size), 255 * positive, np.uint8)
            row[output // (len(weight) // groups)] = np.where((own > 0) == positive, 255, 0)
            rows.append(row)
    x = np.stack([*rows, *(np.full_like(rows[0], value) for value in (0, 255, layer.zero))])
    return torch.from_numpy(x).view(len(x), *((groups * layer.weight.shape[1], *layer.weight.shape[2:])))


def accumulators(layer, x, dtype):
    """Σ w·(x - zero) + bias [B, O] in numbers of one type, which may wrap."""
    groups, weight = getattr(layer, "groups", 1), layer.weight.numpy().astype(dtype)
    x = x.numpy().reshape(len(x), groups, -1).astype(dtype) - dtype(layer.zero)
    weight = weight.reshape(groups, len(weight) // groups, -1)
    products = (x[:, :, None] * weight[None]).reshape(len(x), len(layer.weight), -1)
    return products.sum(2, dtype=dtype) + layer.bias.numpy().astype(dtype)


@settings(max_examples=100, deadline=None)
@given(layers())
def test_no_input_makes_a_layer_leave_its_certificate_and_what_it_gives_is_that_of_64_bits(layer):
    held, x = certificate(nn.Sequential(layer))["0"], worst(layer)
    wide = accumulators(layer, x, np.int64)
    assert np.abs(wide).max() <= held.bound < 2**31
    assert np.array_equal(wide, accumulators(layer, x, np.int32))
    pairs = np.sort(np.abs(layer.weight.flatten(1).numpy().astype(int)), 1)[:, -2:].sum(1) * 255
    assert pairs.max() <= held.pair <= 2**15 - 1
    columns = [halves_to_even(wide[:, i], int(each)) for i, each in enumerate(layer.exponent)]
    expected = np.clip(np.stack(columns, 1) + layer.out_zero, layer.low, layer.high)
    assert np.array_equal(layer(x).flatten(1).numpy(), expected)


# Networks


class Whole(fx.Interpreter):
    """Runs a graph of integers in 64 bits, op by op, by what each is said to compute and not by how."""

    def call_module(self, target, args, kwargs):
        op = self.module.get_submodule(target)
        return WHOLE[type(op).__name__](op, *args)

    def get_attr(self, target, args, kwargs):
        return super().get_attr(target, args, kwargs).to(torch.int64)


def rounded(value, exponent):
    return torch.from_numpy(np.asarray(halves_to_even(value.numpy(), exponent)))


def kept(op, value):
    return (value + op.out_zero).clamp(op.low, op.high)


def by_channel(op, value, axis):
    """Requantized by the exponent of each channel."""
    parts = value.unbind(axis)
    return torch.stack([rounded(part, int(e)) for part, e in zip(parts, op.exponent, strict=True)], axis)


def windows(x, size, stride, padding, dilation=(1, 1)):
    """[B, C, H, W] → [B, C, kh, kw, H', W'], what is outside being 0."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    (kh, kw), (dh, dw) = size, dilation
    h, w = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], size, stride, dilation, strict=True))
    rows = [x[:, :, i * dh :, j * dw :][:, :, :: stride[0], :: stride[1]] for i in range(kh) for j in range(kw)]
    return torch.stack([each[:, :, :h, :w] for each in rows], 2).unflatten(2, (kh, kw))


def convolution(op, x):
    seen = windows(x - op.zero, op.weight.shape[2:], op.stride, op.padding, op.dilation).unflatten(1, (op.groups, -1))
    weight = op.weight.to(torch.int64).unflatten(0, (op.groups, -1))
    sums = torch.einsum("bgcijhw,gocij->bgohw", seen, weight).flatten(1, 2)
    return kept(op, by_channel(op, sums + op.bias.view(-1, 1, 1), 1))


def linear(op, x):
    return kept(op, by_channel(op, (x - op.zero) @ op.weight.to(torch.int64).T + op.bias, -1))


def sum_of_two(op, a, b):
    finest = max(op.exponents)
    a, b = ((x - zero) << (finest - e) for x, zero, e in zip((a, b), op.zeros, op.exponents, strict=True))
    return kept(op, rounded(a + b, finest))


def pool(op, x):
    x = x - op.zero
    if op.kernel_size is None:
        return kept(op, rounded(x.sum((2, 3), keepdim=True), op.exponent))
    return kept(op, rounded(windows(x, op.kernel_size, op.stride, op.padding).sum((2, 3)), op.exponent))


def scaled(op, accumulator):
    return kept(op, rounded(accumulator * op.multiplier, op.exponent))


def softmax(op, x):
    below = x.amax(op.dim, keepdim=True) - x
    low, high = op.table.to(torch.int64)
    raised = high[below // 256] * low[below % 256]
    total = raised.sum(op.dim, keepdim=True)
    return ((raised * 2 ** (op.bits + 1) + total) // (2 * total)).clamp(max=2**op.bits - 1)


def norm(op, x):
    """In Python's own numbers, which have no end; the root has as many digits as 62 bits hold."""
    most = 255 if x.min() >= 0 and x.max() <= 255 else 2**15 - 1 + op.zero
    rows = (x - op.zero).movedim(op.axis, -1) if op.groups is None else (x - op.zero).reshape(len(x), op.groups, -1)
    shape, count, found = rows.shape, rows.shape[-1], []
    eps = int(op.eps) * count**2 >> 16
    finer = ((2**62 // (count**2 * most**2 + eps + 1)).bit_length() - 1) // 2
    for row in rows.reshape(-1, count).tolist():
        total = sum(row) if op.centered else 0
        spread = count * sum(value**2 for value in row) - total**2 + eps
        root = max(math.isqrt(spread << 2 * finer), 1)
        found.append([((count * value - total << finer + 13) + root) // (2 * root) for value in row])
    y = torch.tensor(found).view(shape)
    y = y.movedim(-1, op.axis) if op.groups is None else y.view_as(x)
    wide = [1] * y.ndim
    wide[op.axis] = -1
    return kept(op, by_channel(op, y * op.weight.to(torch.int64).view(wide) + op.bias.view(wide), op.axis))


WHOLE = {
    "QInput": lambda op, x: torch.stack(
        [t.to(torch.int64)[x[:, i].to(torch.int64)] for i, t in enumerate(op.table)], 1
    ),
    "QConv2d": convolution,
    "QLinear": linear,
    "QAdd": sum_of_two,
    "QMul": lambda op, a, b: kept(op, rounded((a - op.zeros[0]) * (b - op.zeros[1]), op.exponent)),
    "QAvgPool2d": pool,
    "QTable": lambda op, x: op.table.to(torch.int64)[x],
    "QOutput": lambda op, x: (x - op.zero).to(torch.float32) * op.step,
    "QRescale": lambda op, x: scaled(op, x - op.zero),
    "QSum": lambda op, x: scaled(op, (x - op.zero).sum(op.dim, keepdim=op.keepdim)),
    "QMatMul": lambda op, a, b: scaled(op, (a - op.zeros[0]) @ (b - op.zeros[1])),
    "QSoftmax": softmax,
    "QNorm": norm,
}

FOUR = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
NETWORKS = {
    **dict.fromkeys(("resnet18", "resnet26d", "resnetv2_18", "seresnet18", "ecaresnet26t", "skresnet18"), FOUR),
    "res2net50_14w_8s": FOUR,
    **{name: {} for name in ("test_byobnet", "test_efficientnet", "test_efficientnet_gn", "test_nfnet")},
    "test_vit": {"img_size": 32, "dynamic_img_size": False, "depth": 1},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_bytes_of_64_bits(name):
    model = zoo.create(Base(f"timm/{name}", NETWORKS[name]))
    generator = torch.Generator().manual_seed(0)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.weight.data.uniform_(0.5, 1.5, generator=generator)  # some begin as zeros
    configure_(model, {**model.pretrained_cfg, "input_size": (3, 32, 32)})
    images = torch.randn(4, 3, 32, 32, generator=generator)
    made = zoo.compress(model, data=images, method="integer", rounding="nearest")
    noise = torch.randint(256, (2, 3, 32, 32), generator=generator).to(torch.uint8)
    pixels = torch.cat([noise, (noise > 127).to(torch.uint8) * 255])
    with torch.no_grad():
        assert torch.equal(made(pixels), Whole(made).run(pixels))
