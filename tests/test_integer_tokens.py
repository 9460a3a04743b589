"""The integer ops of transformers, against whole numbers and fractions of Python, and a transformer made of them."""

import math
from fractions import Fraction
from functools import cache

import pytest
import torch
from conftest import VIT
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.errors import StructureError
from zoo.structure.base import initialised
from zoo.structure.graph.certificate import certificate
from zoo.structure.graph.graph import Graph, Node, graph_module
from zoo.structure.graph.tokens import (
    DOUBLE,
    FRACTION,
    ONE,
    WORD,
    QEmbedding,
    QMatMul,
    QNorm,
    QRescale,
    QSoftmax,
    QSum,
    isqrt,
)

WORDS = {"low": -WORD, "high": WORD}
word = st.integers(-WORD, WORD) | st.sampled_from([-WORD, WORD])


def requantized(accumulator, multiplier, exponent, zero, low, high):
    """Halves to even, as Python rounds fractions."""
    value = round(Fraction(accumulator * multiplier) * Fraction(2) ** -exponent) + zero
    return min(max(value, low), high)


def exponentials(step):
    units = torch.stack([torch.arange(256), 256 * torch.arange(256)]).double()
    return (ONE * torch.exp(-units * step)).round().to(torch.int32)


@given(st.integers(0, 2**62 - 1) | st.integers(0, 2**31 - 1).map(lambda r: r * r) | st.just(2**62 - 1))
def test_the_integer_root_is_the_integer_root(value):
    for near in (value, max(value - 1, 0)):
        assert int(isqrt(torch.tensor([near]))) == math.isqrt(near)


@given(
    st.lists(word, min_size=3, max_size=3),
    st.lists(st.integers(0, 255), min_size=3, max_size=3),
    st.integers(1, 2**15 - 1),
    st.integers(-4, 40),
    st.integers(0, 255),
)
def test_products_of_words_and_bytes_are_those_of_fractions(a, b, multiplier, exponent, zero):
    op = QMatMul([0, zero], multiplier, exponent, **WORDS)
    expected = requantized(sum(x * (y - zero) for x, y in zip(a, b, strict=True)), multiplier, exponent, 0, -WORD, WORD)
    found = op(torch.tensor([a], dtype=torch.int32), torch.tensor(b, dtype=torch.uint8)[:, None])
    assert found.tolist() == [[expected]]
    wide = QSum([1], multiplier=multiplier, exponent=exponent, **WORDS)
    assert int(wide(torch.tensor([a], dtype=torch.int32))) == requantized(sum(a), multiplier, exponent, 0, -WORD, WORD)
    one = QRescale(multiplier, exponent, zero, 7)
    assert one(torch.tensor(b, dtype=torch.uint8)).tolist() == [
        requantized(y - zero, multiplier, exponent, 7, 0, 255) for y in b
    ]


@given(st.lists(word, min_size=1, max_size=9), st.sampled_from([8, 15]), st.sampled_from([2**-12, 2**-8, 0.013, 1.0]))
def test_softmax_is_that_of_whole_numbers(values, bits, step):
    op = QSoftmax(-1, bits)
    op.table = table = exponentials(step)
    low, high = table.tolist()
    raised = [high[d >> 8] * low[d & 255] for d in (max(values) - x for x in values)]
    expected = [min((2 ** (bits + 1) * e + sum(raised)) // (2 * sum(raised)), 2**bits - 1) for e in raised]
    assert op(torch.tensor(values, dtype=torch.int32)).tolist() == expected
    assert max(2 ** (bits + 1) * e + sum(raised) for e in raised) <= op.bound()


def test_softmax_is_the_softmax_to_a_few_of_its_steps():
    x = torch.randint(-3000, 3000, (5, 40), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    op = QSoftmax(1)
    op.table = exponentials(2**-9)
    exact = (x.double() * 2**-9).softmax(1)
    assert (op(x) * 2.0**-15 - exact).abs().max() < 4 * 2**-15


def normed(x, weight, bias, exponent, eps, centered, low, high, most):
    """One row, in whole numbers of Python."""
    n, limit = len(x), min(2**62, 2**78 // len(x))
    cut = next(c for c in range(16) if 2 * (n * ((most >> c) + (c > 0))) ** 2 <= limit)
    if cut:
        x, most, eps = [math.floor(Fraction(v, 2**cut) + Fraction(1, 2)) for v in x], (most >> cut) + 1, eps >> 2 * cut
    total = sum(x) if centered else 0
    eps = eps * n * n >> 16
    k = ((limit // (n * n * most * most + eps + 1)).bit_length() - 1) // 2
    root = max(math.isqrt(4**k * (n * sum(v * v for v in x) - total * total + eps)), 1)

    @cache
    def one(v, w, b, e):
        y = (2 ** (k + FRACTION + 1) * (n * v - total) + root) // (2 * root)
        return y * w + b, requantized(y * w + b, 1, e, 0, low, high)

    return list(map(one, x, weight, bias, exponent))


rows = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(word, min_size=n, max_size=n),
        st.lists(word, min_size=n, max_size=n),
        st.lists(st.integers(-(2**30), 2**30), min_size=n, max_size=n),
        st.lists(st.integers(-3, 40), min_size=n, max_size=n),
    )
)


@given(rows, st.sampled_from([0, 1, 65, 2**30]), st.booleans())
def test_norms_are_those_of_whole_numbers_and_within_their_bound(row, eps, centered):
    x, weight, bias, exponent = row
    op = QNorm(len(x), centered=centered, **WORDS)
    op.weight, op.bias = torch.tensor(weight, dtype=torch.int16), torch.tensor(bias, dtype=torch.int32)
    op.exponent, op.eps = torch.tensor(exponent, dtype=torch.int8), torch.tensor(eps)
    expected = normed(x, weight, bias, exponent, eps, centered, -WORD, WORD, WORD)
    assert op(torch.tensor([x], dtype=torch.int32)).tolist() == [[value for _, value in expected]]
    assert max(abs(accumulator) for accumulator, _ in expected) <= op.bound() < DOUBLE


@pytest.mark.parametrize("count", [64, 1024, 16384, 100_000])
def test_norms_of_extreme_words_stay_within_64_bits(count):
    """Squares and roots as far as they go: one word against all others, and half against half."""
    x = torch.full((2, count), -WORD, dtype=torch.int32)
    x[0, 0], x[1, : count // 2] = WORD, WORD
    op = QNorm(count, **WORDS)
    op.weight.fill_(WORD)
    found = op(x)
    nothing = [0] * count
    for row, values in zip(x.tolist(), found.tolist(), strict=True):
        expected = normed(row, [WORD] * count, nothing, nothing, 0, True, -WORD, WORD, WORD)
        assert values == [value for _, value in expected]


def test_norms_are_torch_s_to_a_few_of_their_steps():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-9000, 9000, (2, 8, 5, 5), generator=generator, dtype=torch.int32)
    for axis, groups, torchs in ((1, None, 8), (1, 2, 2)):
        op = QNorm(8, axis, groups, **WORDS)
        op.weight.fill_(2**12)
        op.exponent.fill_(12)
        real = x.double()
        exact = (
            torch.nn.functional.group_norm(real, torchs)
            if groups
            else torch.nn.functional.layer_norm(real.permute(0, 2, 3, 1), [torchs]).permute(0, 3, 1, 2)
        )
        assert (op(x) * 2.0**-FRACTION - exact).abs().max() < 2 * 2.0**-FRACTION


def test_a_norm_of_whole_maps_is_torch_s_to_what_halving_its_words_loses():
    x = torch.randint(-9000, 9000, (1, 64, 56, 56), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    op = QNorm(64, 1, 1, **WORDS)
    op.weight.fill_(2**12)
    op.exponent.fill_(12)
    exact = torch.nn.functional.group_norm(x.double(), 1)
    assert (op(x) * 2.0**-FRACTION - exact).abs().max() < 2**-9


def test_what_is_added_up_is_refused_where_it_is_too_much():
    with pytest.raises(ValueError, match="at most 32,768"):
        QSum([0])(torch.zeros(2**15 + 1, dtype=torch.uint8))
    norm = QNorm(2**10)
    norm.eps.fill_(2**62)
    with pytest.raises(ValueError, match="too many for 64 bits"):
        norm(torch.zeros(1, 2**10, dtype=torch.int32))
    with pytest.raises(ValueError, match="expected bytes"):
        QMatMul([0, 0], 1, 0)(torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32))


def test_an_embedding_is_its_table():
    op = QEmbedding(5, 3)
    op.weight = torch.arange(15, dtype=torch.uint8).view(5, 3)
    assert op(torch.tensor([[4, 0]])).tolist() == [[[12, 13, 14], [0, 1, 2]]]


@pytest.mark.parametrize(
    ("op", "alter", "said"),
    [
        ("qsoftmax", lambda op: op.table.fill_(2**15 + 1), "expected 0 to 32768"),
        ("qsoftmax", lambda op: op.table.fill_(0), "which the first are"),
        ("qnorm", lambda op: op.eps.fill_(-1), "expected 0 or more"),
    ],
)
def test_what_was_altered_is_not_certified(op, alter, said):
    attributes = {"qsoftmax": {"dim": -1}, "qnorm": {"channels": 4}}[op]
    model = graph_module(Graph(("x",), (Node("y", op, ("x",), attributes),), ("y",))).to_empty(device="cpu")
    model.y.table = exponentials(0.1) if op == "qsoftmax" else None
    for name, buffer in model.y.named_buffers():
        if name != "table":
            buffer.zero_()
    assert certificate(model)["y"].bound < DOUBLE
    alter(model.y)
    with pytest.raises(StructureError, match=said):
        certificate(model)


def test_a_transformer_of_whole_numbers_is_close_to_that_of_floats_and_indifferent_to_the_batch():
    torch.manual_seed(0)
    model = initialised(VIT)
    images = torch.randint(0, 256, (40, 3, 16, 16)).float() / 127.5 - 1
    small = zoo.compress(model, data=images[:32], method="integer", example=images[:1])
    with torch.no_grad():
        exact, whole = model(images), small(images)
        assert torch.equal(whole, torch.cat([small(each) for each in images.split(7)]))
    lost = (whole - exact).square().sum() / exact.square().sum()
    assert 10 * -math.log10(float(lost)) > 20  # dB
    kinds = {type(each).__name__ for each in small.modules()}
    assert {"QNorm", "QSoftmax", "QMatMul"} <= kinds
    assert all(each.bound < DOUBLE for each in certificate(small).values())
