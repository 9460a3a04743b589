"""Params and macs, against a sum by hand and against another counter; and how far outputs lie apart."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.measurement.divergence import apart, divergence
from zoo.measurement.macs import Counts, measure
from zoo.structure.base import skeleton
from zoo.structure.plan import Heads, Narrow, Plan, Swap, Width, apply_
from zoo.tasks.classification.figures import rows

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
MODELS = {
    "resnet18": {"num_classes": 7},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": TINY_VIT,
    "beit_base_patch16_224": TINY_VIT,
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "depths": [1, 1], "num_heads": [2, 4]},
}


@pytest.fixture
def unfused():
    """The other counter doesn't know fused attention."""
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(True)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("architecture", MODELS)
def test_macs_equal_those_of_another_counter(architecture, unfused):
    from fvcore.nn import FlopCountAnalysis  # warns when imported

    args = MODELS[architecture]
    model = timm.create_model(architecture, **args).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 32, 32))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    products = sum(analysis.by_operator()[kind] for kind in ("conv", "linear", "matmul", "bmm", "addmm"))
    assert measure(model, (3, 32, 32)).macs == products
    assert measure(model, (3, 32, 32)).params == sum(p.numel() for p in model.parameters())


def hand_sum_of_a_transformer(n, c, heads, d, hidden, classes, patch=8, depth=2):
    """Tokens n (class token included), channels c, heads of width d, hidden channels of the MLP."""
    embed = (n - 1) * 3 * patch * patch * c
    attention = n * c * 3 * heads * d + 2 * heads * n * n * d + n * heads * d * c
    return embed + depth * (attention + 2 * n * c * hidden) + c * classes


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
@pytest.mark.parametrize(("heads", "hidden"), [(3, 96), (2, 96), (1, 40)])
def test_macs_of_a_transformer_equal_the_sum_by_hand(architecture, heads, hidden, fused):
    timm.layers.set_fused_attn(fused)
    try:
        model = skeleton(Base(f"timm/{architecture}", TINY_VIT))
    finally:
        timm.layers.set_fused_attn(True)
    blocks = [f"blocks.{i}" for i in range(2)]
    if "beit" in architecture:
        apply_(model, Plan((Swap({f"{block}.attn": "BeitAttention" for block in blocks}),)))
    widths = {f"{block}.mlp.fc1": Width(hidden) for block in blocks}
    widths |= {f"{block}.mlp.fc2": Width(inputs=hidden) for block in blocks}
    apply_(model, Plan((Narrow(widths, {f"{block}.attn": Heads(heads, 8) for block in blocks}),)))
    assert measure(model, (3, 32, 32)).macs == hand_sum_of_a_transformer(17, 24, heads, 8, hidden, 7)


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 8 * 3 * 9 * 12 * 10),
        (nn.Conv2d(3, 6, 5, stride=2, groups=3), 6 * 25 * 4 * 3),
        (nn.Conv2d(3, 6, 3, dilation=2), 6 * 3 * 9 * 8 * 6),
        (nn.ConvTranspose2d(3, 4, 2, stride=2), 3 * 4 * 4 * 12 * 10),
        (nn.Linear(10, 7), 7 * 10 * 3 * 12),
        (nn.BatchNorm2d(3), 0),
        (nn.ReLU(), 0),
    ],
    ids=str,
)
def test_macs_of_a_layer_equal_the_sum_by_hand(layer, macs):
    """For an image 3 x 12 x 10."""
    params = sum(p.numel() for p in layer.parameters())
    assert measure(layer, (3, 12, 10)) == Counts(params, macs, 2 * macs / (1000 * 12 * 10), (3, 12, 10))


def test_shared_parameters_count_once_and_their_macs_each_time():
    layer = nn.Linear(10, 10, bias=False)
    counts = measure(nn.Sequential(layer, nn.ReLU(), layer), (1, 1, 10))
    assert (counts.params, counts.macs) == (100, 200)


def test_kmapp_is_thousands_of_additions_and_products_per_pixel():
    counts = measure(timm.create_model("resnet18"))
    assert counts.input == (3, 224, 224)
    assert counts.kmapp == pytest.approx(2 * 1.814e9 / (1000 * 224 * 224), rel=1e-3)  # 1.8 G macs, as widely reported
    assert counts.params == 11_689_512


def test_a_model_is_left_as_it_was(cnn):
    cnn.train()
    cnn.bn1.eval()
    modes = [module.training for module in cnn.modules()]
    values = {name: value.clone() for name, value in cnn.state_dict().items()}
    held = {name: id(value) for name, value in (*cnn.named_parameters(), *cnn.named_buffers())}
    measure(cnn)
    assert modes == [module.training for module in cnn.modules()]
    assert held == {name: id(value) for name, value in (*cnn.named_parameters(), *cnn.named_buffers())}
    assert all(torch.equal(value, values[name]) for name, value in cnn.state_dict().items())
    assert {"cpu"} == {tensor.device.type for tensor in (*cnn.parameters(), *cnn.buffers())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counts_do_not_depend_on_values_device_or_type(dtype, cnn):
    base = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "num_classes": 5})
    assert measure(skeleton(base), (3, 32, 32)) == measure(cnn.to(dtype))


def test_a_model_that_says_nothing_of_its_input_is_refused():
    with pytest.raises(StructureError, match=r"^measure: the model names no input size; pass input=\("):
        measure(nn.Linear(2, 2))


@pytest.mark.parametrize("size", [(1, 16, 16), (3, 20, 20)], ids=["channels", "image size"])
def test_an_input_that_the_model_refuses_is_named(size, vit):
    vit.train()
    with pytest.raises(StructureError) as caught:
        measure(vit, size)
    assert str(caught.value).startswith(f"measure: the model refuses an input of {size}: ")
    assert "\n" not in str(caught.value)
    assert vit.training


def test_outputs_that_are_no_logits_differ_by_their_noise_to_signal_in_batches_of_any_size():
    outputs, target = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = zip(outputs.numpy(), target.numpy(), strict=True)
    expected = [np.square(y - t).sum() / np.square(t).sum() for y, t in pairs]

    for size in (1, 2, 5):
        found = torch.cat([divergence(*each) for each in zip(outputs.split(size), target.split(size), strict=True)])
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_maps_are_no_logits_that_a_classifier_is_measured_by():
    with pytest.raises(StructureError, match=r"^expected logits .* the model gives \[2, 5, 8, 8\]: .*load"):
        rows(torch.zeros(2, 5, 8, 8), torch.zeros(2))


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("outputs", "expected", "share"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.0, 2.5]], [[1.0, 2.0]], 0.25),
        ([[3.0], [100.0]], [[2.0], [100.0]], 0.5),  # each of its own size
        ([[1e-9], [100.0]], [[0.0], [100.0]], 1e-8),  # but what is next to nothing, which may be rounding
        ([[1.0], [2.0]], [[1.0]], INF),
        ([[1.0, 2.0]], [[[1.0], [2.0]]], INF),
        ([[NAN]], [[NAN]], INF),
        ([[INF, 1.0]], [[INF, 2.0]], 0.5),
        ([[INF]], [[1.0]], INF),
        ([[]], [[]], 0.0),
        ([], [], 0.0),
    ],
)
def test_how_far_outputs_are_apart_is_a_share_of_the_largest(outputs, expected, share):
    tensors = [[torch.tensor(each) for each in some] for some in (outputs, expected)]
    assert apart(*tensors) == pytest.approx(share)
    assert apart(*({str(i): each for i, each in enumerate(some)} for some in tensors)) == pytest.approx(share)
