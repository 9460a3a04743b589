"""The integer ops that divide, against whole numbers and fractions of Python, in torch and in ONNX."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from quantized import close
from test_integer_onnx import check, network, node
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.compression.integer.quotients import divided
from zoo.errors import StructureError
from zoo.structure.graph.certificate import certificate
from zoo.structure.graph.graph import Graph, Node, check_graph, graph_module
from zoo.structure.graph.quotients import EXACT, QDiv, QMeanPool2d, QRoot
from zoo.structure.graph.tokens import DOUBLE, WORD

WORDS = {"low": -WORD, "high": WORD}
word = st.integers(-WORD, WORD) | st.sampled_from([-WORD, WORD])
multiplier = st.integers(1, 2**15 - 1)


def rounded(numerator, divisor):
    """The nearest whole number of a quotient, halves up, within words."""
    return min(max(math.floor(Fraction(numerator) / divisor + Fraction(1, 2)), -WORD), WORD)


@given(word, word, multiplier, st.integers(-20, 35))
def test_quotients_are_those_of_fractions(a, b, m, exponent):
    op = QDiv([0, 0], m, exponent, **WORDS)
    assert op.bound() < DOUBLE
    found = op(torch.tensor([a], dtype=torch.int32), torch.tensor([b], dtype=torch.int32))
    assert found.tolist() == [rounded(a * m * Fraction(2) ** -exponent, max(b, 1))]


@given(st.integers(-WORD, WORD), st.integers(1, WORD))
def test_quotients_that_lie_at_halves_or_beside_them_are_rounded_up_or_down(whole, divisor):
    """(2·whole + 1)·divisor / 2·divisor is a half; one less and one more of the numerator aren't."""
    for near in (-1, 0, 1):
        numerator = torch.tensor([(2 * whole + 1) * divisor + near], dtype=torch.float64)
        op = QDiv([0, 0], 1, 1, **WORDS)
        found = op.divided(numerator, torch.tensor([divisor], dtype=torch.float64))
        assert int(found) == rounded(Fraction((2 * whole + 1) * divisor + near, 2), divisor)


@given(st.lists(st.lists(word, min_size=5, max_size=5), min_size=4, max_size=4), multiplier, st.integers(-4, 30))
def test_means_over_windows_count_what_lies_within(rows, m, exponent):
    op = QMeanPool2d([3, 3], [1, 1], [1, 1], False, m, exponent, **WORDS)
    assert op.bound() < DOUBLE
    found = op(torch.tensor(rows, dtype=torch.int32)[None, None])[0, 0].tolist()
    for i, j in ((0, 0), (1, 2), (3, 4), (0, 3)):
        seen = [rows[y][x] for y in range(max(i - 1, 0), min(i + 2, 4)) for x in range(max(j - 1, 0), min(j + 2, 5))]
        assert found[i][j] == rounded(sum(seen) * m * Fraction(2) ** -exponent, len(seen))


@given(st.lists(word, min_size=1, max_size=9), multiplier, st.integers(0, 40))
def test_roots_of_squares_are_those_of_whole_numbers(values, m, exponent):
    op = QRoot([1], multiplier=m, exponent=exponent, **WORDS)
    k = op.finer(len(values), False)
    root = math.isqrt(4**k * sum(x * x for x in values))
    expected = min(round(Fraction(root * m) * Fraction(2) ** -(exponent + k)), WORD)
    assert root < 2**31
    assert int(op(torch.tensor([values], dtype=torch.int32))) == expected


WIDE = Node("w", "qrescale", ("a",), {"multiplier": 2**14 + 77, "exponent": 7, "zero": 100, **WORDS})
RATIO = {"multiplier": 25338, "exponent": 20}
CASES = {
    "a quotient of bytes": [node("qdiv", "a", "a", zeros=[3, 200], **RATIO, out_zero=9)],
    "a quotient of words": [
        WIDE,
        Node("r", "qroot", ("w",), {"dim": [1], "keepdim": True, "multiplier": 2**14, "exponent": 17, **WORDS}),
        node("qdiv", "w", "r", zeros=[0, 0], multiplier=20001, exponent=4, **WORDS),
    ],
    "a root of bytes": [node("qroot", dim=[2, 3], keepdim=True, zero=128, multiplier=20000, exponent=17)],
    "a root along the last axis": [WIDE, node("qroot", "w", dim=[-1], multiplier=20000, exponent=17, **WORDS)],
    "means that hang over": [node("qmean_pool2d", kernel_size=[3, 3], stride=[1, 1], padding=[1, 1], zero=9, **RATIO)],
    "means of words": [
        WIDE,
        node("qmean_pool2d", "w", kernel_size=[3, 2], stride=[2, 3], ceil_mode=True, **RATIO, out_zero=128),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_each_op_gives_the_bytes_of_its_torch_op(case):
    check(*network(CASES[case]))


def test_a_quotient_beyond_what_double_precision_divides_is_not_certified():
    model, _ = network([node("qdiv", "a", "a", zeros=[0, 0], multiplier=2**14, exponent=40)])
    assert EXACT < (2**15 * 2**40)
    with pytest.raises(StructureError, match=r"b could reach .*, expected below 2\^53"):
        certificate(model)


class Response(nn.Module):
    """Channels by their share of all, as ConvNeXt V2 normalizes."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias.view(1, 1, 1, -1), self.weight.view(1, 1, 1, -1), x * share)


class Cosine(nn.Module):
    """Products of directions, divided by a constant and by a number."""

    def __init__(self):
        super().__init__()
        self.tau = nn.Parameter(torch.tensor([[[0.3]]]))

    def forward(self, x):
        x = x.flatten(2)
        return (F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).transpose(1, 2)) / self.tau / 2


class Standing(nn.Module):
    """A norm of channels with no layer before it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.norm.running_mean, self.norm.running_var = torch.randn(8), torch.rand(8) + 0.5

    def forward(self, x):
        return self.norm(x.mean((2, 3)))


class Blended(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2, mode="bilinear") - F.interpolate(x, scale_factor=2)


class Pooled(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class Scaled(nn.Module):
    """A number for all that is multiplied, and one that all is divided by."""

    def __init__(self):
        super().__init__()
        self.gain, self.tau = nn.Parameter(torch.tensor(1.7)), nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x * self.gain / self.tau


class Signed(nn.Module):
    def forward(self, x):
        return x / (x - 1)


@pytest.mark.parametrize(
    "make", [Scaled, Response, Cosine, Standing, Blended, Pooled, lambda: nn.AvgPool2d(3, ceil_mode=True)]
)
def test_twins_of_what_divides_are_close_to_floats_indifferent_to_the_batch_and_onnxruntime_s(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), make(), nn.Flatten(), nn.LazyLinear(5)).eval()
    images = torch.randint(0, 256, (24, 3, 8, 8)).float() / 255
    model(images)
    model.pretrained_cfg = {"input_size": (3, 8, 8)}
    small = close(model, images)
    check(small, small.zoo_entry.graph)


def test_what_is_divided_by_less_than_0_is_refused_by_its_node():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Signed(), nn.Flatten(), nn.Linear(32, 5)).eval()
    model.pretrained_cfg = {"input_size": (3, 4, 4)}
    said = r"node 'div' divides by '\w+', of which the calibration images make -1: a quotient has a twin where all"
    with pytest.raises(StructureError, match=said):
        zoo.compress(model, data=torch.rand(8, 3, 4, 4), method="integer", example=(3, 4, 4))


@pytest.mark.parametrize("held", [0.0, [0.5, 0.0]])
def test_what_is_divided_by_a_constant_0_is_refused_by_its_name(held):
    divided_by = {"attributes": {"other": held}} if held == 0.0 else {"inputs": ("x", "c")}
    constant = [] if held == 0.0 else [Node("c", "parameter", (), {"shape": [2]})]
    graph = Graph(("x",), (*constant, Node("share", "div", **{"inputs": ("x",), **divided_by})), ("share",))
    with pytest.raises(StructureError, match="node 'share' divides by a constant 0"):
        divided(graph, {"c": torch.tensor(held)})


WINDOW = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1]}
CONVOLVED = {"in_channels": 4, "out_channels": 4, **WINDOW}
MEAN = {**WINDOW, "multiplier": 1, "exponent": 0}


@pytest.mark.parametrize(
    ("op", "told", "message"),
    [
        ("qconv2d", {**CONVOLVED, "dilation": [0, 1]}, "dilation: found 0, 1, expected whole numbers, 1 to"),
        ("qconv2d", {**CONVOLVED, "stride": [1, 1, 1]}, "stride is .1, 1, 1., expected two sizes"),
        ("qconv2d", {**CONVOLVED, "kernel_size": [3]}, "kernel_size is .3., expected two sizes"),
        ("qconv2d", {**CONVOLVED, "groups": 0}, "groups: found 0"),
        ("qavg_pool2d", {**WINDOW, "stride": [0, 1]}, "stride: found 0, 1"),
        (
            "qavg_pool2d",
            {**WINDOW, "padding": [2, 1]},
            "padding is .2, 1., expected at most half",
        ),
        ("qmean_pool2d", {**MEAN, "stride": [1]}, "stride is .1., expected two sizes"),
        ("qmean_pool2d", {**MEAN, "padding": [-1, 0]}, "padding: found -1, 0"),
    ],
)
def test_windows_that_torch_could_not_run_are_refused_when_a_graph_is_built(op, told, message):
    graph = Graph(("x",), (Node("pooled", op, ("x",), told),), ("pooled",))
    with pytest.raises(StructureError, match=f"node 'pooled'.*{message}") as caught:
        graph_module(graph)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", ["int_floordiv", "int_mod"])
def test_a_size_that_is_divided_by_0_is_refused_by_its_name(op):
    nodes = Node("height", "size", ("x",), {"dim": 2}), Node("half", op, ("height",), {"b": 0})
    flat = Node("flat", "reshape", ("x", "half"), {"shape": ["$1", -1]})
    with pytest.raises(StructureError, match=f"half.*{op} by 0"):
        check_graph(Graph(("x",), (*nodes, flat), ("flat",)))
