"""The two published countings, against sums by hand and against the counters of the two sources."""

import importlib
import operator

import pytest
import timm
import torch
from timm.layers import LayerScale, LayerScale2d, attention
from timm.layers.grn import GlobalResponseNorm
from timm.models import beit, efficientformer_v2, metaformer, mobilevit, swin_transformer_v2, swin_transformer_v2_cr
from torch import fx, nn
from torch.nn import functional as F

from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.measurement import conventions
from zoo.measurement.conventions import COUNTINGS, WHOLE, ptdeco, torch_dag
from zoo.structure.base import skeleton
from zoo.structure.replacements import BeitAttention

IMAGE = (3, 12, 10)
X, PIXELS = 3 * 12 * 10, 12 * 10


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def totals(model, input=IMAGE):
    """Multiply-accumulates as ptdeco and as torch-dag count them."""
    half = input[1] * input[2] / 2
    return ptdeco(model, input) * 1024 * half, torch_dag(model, input) * 1000 * half


# For an image 3 x 12 x 10: what fvcore knows counts in both.
OPERATIONS = {
    "convolution": (nn.Conv2d(3, 8, 3, padding=1), 8 * 3 * 9 * 12 * 10),
    "strided and grouped": (nn.Conv2d(3, 6, 5, stride=2, groups=3), 6 * 25 * 4 * 3),
    "padding by name": (nn.Conv2d(3, 8, 3, padding="same"), 0),
    "arguments by name": (lambda x: F.conv2d(weight=torch.ones(5, 3, 1, 1, device=x.device), input=x), 5 * 3 * 12 * 10),
    "1-d convolution": (lambda x: F.conv1d(x.flatten(2), x[0, 0, 0, :3].expand(4, 3, 3)), 4 * 3 * 3 * 118),
    "transposed convolution": (nn.ConvTranspose2d(3, 4, 2, stride=2), 3 * 4 * 4 * 12 * 10),
    "linear": (nn.Linear(10, 7), 7 * 10 * 3 * 12),
    "matmul": (lambda x: x @ x.mT, 3 * 12 * 10 * 12),
    "matmul that repeats its first matrix": (lambda x: x[0, 0] @ x.mT, 12 * 10 * 12),
    "bmm": (lambda x: torch.bmm(x[0], x[0].mT), 3 * 12 * 10 * 12),
    "mm": (lambda x: x[0, 0].mm(x[0, 0].mT), 12 * 10 * 12),
    "addmm": (lambda x: torch.addmm(x[0, 0, 0, 0], x[0, 0], x[0, 0].mT), 12 * 10 * 12),
    "baddbmm": (lambda x: torch.baddbmm(x[0, 0, 0, 0], x[0], x[0].mT), 0),
    "einsum": (lambda x: torch.einsum("bchw,bciw->bchi", x, x), 3 * 12 * 10 * 12),
    "fused attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 0),
    "batch norm": (nn.BatchNorm2d(3), 2 * X),
    "batch norm without weights": (nn.BatchNorm2d(3, affine=False), X),
    "batch norm of the batch": (nn.BatchNorm2d(3, track_running_stats=False), 5 * X),
    "layer norm": (nn.LayerNorm(10), 5 * X),
    "layer norm without weights": (nn.LayerNorm(10, elementwise_affine=False), 4 * X),
    "layer norm without a module": (lambda x: torch.layer_norm(x, (10,), x[0, 0, 0]), 5 * X),
    "group norm": (nn.GroupNorm(3, 3), 5 * X),
    "instance norm": (nn.InstanceNorm2d(3), 4 * X),
    "adaptive average pool": (nn.AdaptiveAvgPool2d(2), X),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), 4 * 4 * X),
    "bilinear, antialiased": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True), 0),
    "nearest": (nn.Upsample(scale_factor=2), 4 * X),
    "nearest of a sequence": (lambda x: F.interpolate(x.flatten(2), scale_factor=2), 0),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), 0),
}
# What counts in torch-dag's alone.
VERTICES = {
    "add": (lambda x: x + x.exp(), X / 2),
    "add in place": (lambda x: operator.iadd(x.exp(), x), X / 2),
    "multiply": (lambda x: x * x.exp(), X / 2),
    "multiply by a smaller second": (lambda x: x * x[0, :, :1, :1], X / 2),
    "multiply a smaller first": (lambda x: x[0, :, :1, :1] * x, 1 / 2),
    "multiply by a number": (lambda x: x * 2, 12 * 10 / 2),
    "multiply a number": (lambda x: 2 * x, 12 * 10 / 2),
    "add a number": (lambda x: torch.add(x, 1), 12 * 10 / 2),
    "divide by a number": (lambda x: x / 2, 12 * 10 / 2),
    "divide by a number in place": (lambda x: x.exp().div_(2), 12 * 10 / 2),
    "divide": (lambda x: x / x.exp(), 0),
    "subtract": (lambda x: x - x.exp(), 0),
    "power": (lambda x: x**2, 0),
    "relu": (nn.ReLU(), X),
    "relu in place": (lambda x: x.exp().relu_(), X),
    "softmax": (nn.Softmax(-1), 5 / 2 * X),
    "softmax as a method": (lambda x: x.softmax(1), 5 / 2 * X),
    "max pool, stride of one number": (nn.MaxPool2d(3, 2, padding=1), 9 * ((12 + 2) // 3 * (10 + 3) // 3) * 3 / 2),
    "max pool, stride of two": (nn.MaxPool2d(3, (2, 2), padding=1), 9 * ((12 + 1) // 2 * (10 + 2) // 2) * 3 / 2),
    "max pool, with indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        4 * ((12 + 1) // 2 * (10 + 2) // 2) * 3 / 2,
    ),
    "max pool without a module": (lambda x: torch.max_pool2d(x, 2), 4 * ((12 + 1) // 2 * (10 + 2) // 2) * 3 / 2),
    "average pool": (nn.AvgPool2d(2), 4 * ((12 + 1) // 2 * (10 + 2) // 2) * 3 / 2),
    "average pool of an oblong": (nn.AvgPool2d((2, 3)), 6 * ((12 + 1) // 2 * (10 + 3) // 3) * 3 / 2),
    **{
        type(layer).__name__: (layer, 0)
        for layer in (nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.ReLU6(), nn.Dropout())
    },
    "mean": (lambda x: x.mean((2, 3)), 0),
    "concatenate": (lambda x: torch.cat([x, x], 1), 0),
    "chunk": (lambda x: x.chunk(2, 2)[0], 0),
}
ROWS = {
    **{name: (call, cost, cost) for name, (call, cost) in OPERATIONS.items()},
    **{name: (call, 0, cost) for name, (call, cost) in VERTICES.items()},
}


def as_module(call):
    return call if isinstance(call, nn.Module) else Call(call)


@pytest.mark.parametrize(("call", "as_ptdeco", "as_torch_dag"), ROWS.values(), ids=ROWS)
def test_each_row_of_the_rules_equals_a_sum_by_hand(call, as_ptdeco, as_torch_dag):
    assert totals(as_module(call)) == pytest.approx((as_ptdeco, as_torch_dag), rel=1e-12)


def fvcore_total(model, input):
    from fvcore.nn import FlopCountAnalysis  # warns when imported

    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, *input))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return analysis.total()


oracle = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@oracle
@pytest.mark.parametrize("call", [row[0] for row in ROWS.values()], ids=ROWS)
def test_each_row_of_ptdeco_equals_fvcore(call):
    model = as_module(call)
    assert totals(model)[0] == pytest.approx(fvcore_total(model, IMAGE), rel=1e-12)


TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
SWIN_CR = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 3, 4)}
MODELS = {
    "resnet18": ({"num_classes": 7}, 32),
    "rexnetr_100": ({"width_mult": 0.3, "depth_mult": 0.5}, 32),
    "mobilenetv3_small_050": ({}, 32),
    "convnextv2_atto": ({"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 48)}, 32),
    "vit_tiny_patch16_224": (TINY_VIT, 32),
    "beit_base_patch16_224": (TINY_VIT, 32),
    "mobilevitv2_050": ({}, 56),  # the last stage is resized: 56 isn't a multiple of 64
    "swinv2_cr_tiny_ns_224": (SWIN_CR, 64),
    "efficientformerv2_s0": ({"depths": (1, 1, 1, 2), "embed_dims": (8, 8, 16, 16), "num_vit": 1}, 224),
}


@oracle
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("architecture", MODELS)
def test_ptdeco_equals_fvcore_on_a_model(architecture, fused):
    args, size = MODELS[architecture]
    timm.layers.set_fused_attn(fused)
    try:
        model = timm.create_model(architecture, **args)
    finally:
        timm.layers.set_fused_attn(True)
    kmapp = 2 * fvcore_total(model, (3, size, size)) / (1024 * size * size)
    assert ptdeco(model, (3, size, size)) == pytest.approx(kmapp, rel=1e-12)


class Tokens(nn.Module):
    """torch's own attention over an image's rows."""

    def __init__(self, masked, **options):
        super().__init__()
        self.attention, self.masked, self.options = nn.MultiheadAttention(10, 2, batch_first=True), masked, options

    def forward(self, x):
        x = x.flatten(1, 2)
        mask = torch.zeros(36, 36, device=x.device) if self.masked else None
        return self.attention(x, x, x, attn_mask=mask, **self.options)[0]


@oracle
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "plain"])
@pytest.mark.parametrize("need_weights", [True, False], ids=["weights", "fused"])
def test_attention_of_torch_counts_as_fvcore_sees_it(masked, need_weights):
    model = Tokens(masked, need_weights=need_weights)
    assert totals(model)[0] == fvcore_total(model, IMAGE)


# kmapp that the torch-dag library computed on its own conversion of each model, not yet flattened.
CONVERTED = {
    "fbnetv3_b@224": 16.843221779336734,
    "tf_efficientnetv2_b0@224": 29.036163903061226,
    "deit3_small_patch16_224@224": 183.79700510204083,
    "resnet50d@224": 174.0710612244898,
    "convnextv2_nano@224": 97.90563775510203,
    "rexnetr_200@224": 63.42467936862245,
    "poolformerv2_s24@224": 136.80355660076532,
    "beit_base_patch16_224@224": 672.3722759885204,
    "efficientformerv2_s2@224": 50.714166633450255,
    "convformer_s18@224": 158.45602112563776,
    "mobilevitv2_200@256": 220.33125,
    "swinv2_cr_tiny_ns_224@224": 185.85211224489797,
}
# Flattening the graph lets the softmax of each of 12 blocks and 6 heads be seen.
FLATTENED = {"deit3_small_patch16_224@224": 2 * 12 * 6 * 5 / 2 * 197 * 197 / (1000 * 224 * 224)}


@pytest.mark.parametrize("name", CONVERTED)
def test_torch_dag_equals_that_library_on_a_model(name):
    architecture, size = name.split("@")
    kmapp = torch_dag(skeleton(Base(f"timm/{architecture}")), (3, int(size), int(size)))
    assert kmapp == pytest.approx(CONVERTED[name] + FLATTENED.get(name, 0), rel=1e-12)


PROJECTIONS, PRODUCTS, WEIGHTS = 36 * 10 * 40, 2 * 36 * 36 * 10, 2 * 36 * 36
"""Of 36 tokens of 10 channels and 2 heads."""


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize(
    ("build", "as_torch_dag"),
    [
        (lambda: attention.Attention(10, 2), PROJECTIONS + PRODUCTS + 5 / 2 * WEIGHTS),
        (lambda: metaformer.Attention(10, head_dim=5), PROJECTIONS + PRODUCTS + 5 / 2 * WEIGHTS),
        (lambda: beit.Attention(10, 2), PROJECTIONS),
        (lambda: BeitAttention(10, 2), PROJECTIONS),
    ],
    ids=["timm", "metaformer", "beit", "swapped beit"],
)
def test_attention_in_torch_dag_does_not_depend_on_how_timm_computes_it(build, as_torch_dag, fused):
    timm.layers.set_fused_attn(fused)
    try:
        model = nn.Sequential(nn.Flatten(1, 2), build())
    finally:
        timm.layers.set_fused_attn(True)
    fuses = fused or isinstance(model[1], BeitAttention)
    assert totals(model) == pytest.approx((PROJECTIONS + (0 if fuses else PRODUCTS), as_torch_dag))


class Subclass(LayerScale):
    pass


@pytest.mark.parametrize(
    ("layer", "as_torch_dag"),
    [
        (LayerScale(10), X),
        (Subclass(10), X),
        (LayerScale(10, inplace=True), X),
        (LayerScale2d(3), 0),
        (GlobalResponseNorm(3, channels_last=False), 0),
    ],
    ids=["scale", "subclass", "scale in place", "scale of channels", "response norm"],
)
def test_a_small_layer_of_timm_counts_as_one_vertex(layer, as_torch_dag):
    assert totals(layer) == pytest.approx((0, as_torch_dag))


BLOCKS = {
    "attention 2d": (lambda: efficientformer_v2.Attention2d(8, resolution=4), (8, 4, 4)),
    "attention 2d, smaller": (lambda: efficientformer_v2.Attention2dDownsample(8, resolution=4, out_dim=8), (8, 4, 4)),
    "mobilevit": (lambda: mobilevit.MobileVitV2Block(8, patch_size=2), (8, 4, 4)),
    "swin v2": (lambda: nn.Sequential(nn.Flatten(1, 2), swin_transformer_v2.WindowAttention(8, (4, 4), 2)), (4, 4, 8)),
    "swin v2 cr": (
        lambda: nn.Sequential(nn.Flatten(1, 2), swin_transformer_v2_cr.WindowMultiHeadAttention(8, 2, (4, 4))),
        (4, 4, 8),
    ),
}


@pytest.mark.parametrize(("build", "input"), BLOCKS.values(), ids=BLOCKS)
def test_within_a_whole_module_only_operations_count(build, input, monkeypatch):
    model = build()
    before, after = totals(model, input)
    assert before == after
    assert totals(nn.Sequential(model, nn.ReLU()), input)[1] > after
    monkeypatch.setattr(conventions, "WHOLE", {})
    assert totals(model, input)[1] > after


def test_a_whole_module_within_another_is_not_seen():
    model, input = mobilevit.MobileVitV2Block(8, patch_size=2), (8, 4, 4)
    before = totals(model, input)
    model.transformer.append(LayerScale(4))
    assert totals(model, input) == before


@pytest.mark.parametrize("name", WHOLE)
def test_every_whole_module_is_a_class_of_timm(name):
    module, _, kind = name.rpartition(".")
    assert getattr(importlib.import_module(module), kind).__module__ == module


def test_a_traced_graph_counts_as_its_model(cnn):
    assert totals(fx.symbolic_trace(cnn), (3, 32, 32)) == totals(cnn, (3, 32, 32))


def test_every_node_of_a_graph_is_a_vertex():
    graph = fx.Graph()
    x = graph.placeholder("x")
    branch = graph.call_module("relu", (graph.call_module("conv", (x,)),))
    graph.output(graph.call_function(operator.add, (branch, graph.call_function(torch.exp, (x,)))))
    model = fx.GraphModule({"conv": nn.Conv2d(3, 3, 1), "relu": nn.ReLU()}, graph)
    assert totals(model) == (3 * X, 3 * X + X + X / 2)


def state(model):
    """What a count must leave alone: flags, hooks and every other attribute, and which tensors are held."""
    return {
        path: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for path, module in model.named_modules()
    }


@pytest.mark.parametrize("count", COUNTINGS.values(), ids=COUNTINGS)
@pytest.mark.parametrize("size", [(3, 224, 224), (1, 224, 224)], ids=["counted", "refused"])
def test_a_model_is_left_as_it_was(count, size):
    model = timm.create_model("efficientformerv2_s0", **MODELS["efficientformerv2_s0"][0])
    model.stem.eval()
    before = state(model)
    if size[0] == 3:
        count(model, size)
    else:
        with pytest.raises(StructureError):
            count(model, size)
    after = state(model)
    assert before.keys() == after.keys()
    for path, attributes in before.items():
        assert attributes.keys() == after[path].keys()
        assert all(_same(value, after[path][key]) for key, value in attributes.items()), path
    assert {"cpu"} == {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    return one is other


@pytest.mark.parametrize("count", COUNTINGS.values(), ids=COUNTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_count_does_not_depend_on_values_device_or_type(count, dtype, cnn):
    base = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "num_classes": 5})
    assert count(skeleton(base), (3, 32, 32)) == count(cnn.to(dtype), (3, 32, 32))


def test_countings_differ_in_what_a_thousand_is():
    layer = nn.Linear(10, 7)
    assert COUNTINGS["ptdeco"](layer, (1, 1, 10)) == 2 * 70 / (1024 * 10)
    assert COUNTINGS["torch-dag"](layer, (1, 1, 10)) == 2 * 70 / (1000 * 10)


@pytest.mark.parametrize("count", COUNTINGS.values(), ids=COUNTINGS)
def test_the_input_that_a_model_states_is_the_default(count):
    model = skeleton(Base("timm/mobilevitv2_050"))
    assert count(model) == count(model, (3, 256, 256)) != count(model, (3, 224, 224))


@pytest.mark.parametrize("count", COUNTINGS.values(), ids=COUNTINGS)
def test_an_unknown_or_refused_input_is_told_in_one_line(count):
    with pytest.raises(StructureError, match=r"^measure: the model names no input size; pass input=\(channels,.*\)$"):
        count(nn.Linear(2, 2))
    with pytest.raises(StructureError, match=r"^measure: the model refuses an input of \(1, 4, 4\): [^\n]+$"):
        count(nn.Conv2d(3, 3, 3), (1, 4, 4))
