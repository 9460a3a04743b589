"""The networks that MRT quantized and timm lacks are those of their sources, layer by layer and number by number."""

import pytest
import torch
from normed import disturbed
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.models.architectures import ARCHITECTURES
from zoo.models.shufflenet import Unit, shuffled
from zoo.structure.base import skeleton
from zoo.structure.graph.capture import capture

# As GluonCV counts: what batch norms hold of the data, and scales and shifts that stay 1 and 0, are parameters too.
COUNTED_WITH_STATISTICS = {
    "mobilenetv1_075": 2_601_976,
    "mobilenetv1_050": 1_342_536,
    "resnet50_v1": 25_629_032,
    "resnet101_v1": 44_695_144,
    "resnet152_v1": 60_404_072,
    "resnet34_v2": 21_811_380,
    "resnet50_v2": 25_595_060,
    "resnet152_v2": 60_329_140,
}
# Parameters alone.
COUNTED = {
    "cifar_resnet20_v2": 272_282,
    "cifar_resnet56_v2": 855_578,
    "cifar_resnet110_v2": 1_730_522,
    "cifar_wideresnet16_10": 17_116_666,
    "cifar_wideresnet28_10": 36_479_226,
    "cifar_wideresnet40_8": 35_748_346,
    "mnist_cnn": 16 * 10 + 32 * (16 * 9 + 1) + 64 * (32 * 9 + 1) + 128 * 65 + 10 * (128 * 25 + 1),
}
# Convolutions and the classifier, whose shapes GluonCV publishes.
COUNTED_BY_SHAPES = {
    "resnet18_v1b_0_89": 10_436_288,
    "resnet50_v1d_0_86": 21_997_464,
    "resnet50_v1d_0_48": 12_386_584,
    "resnet50_v1d_0_37": 9_452_992,
    "resnet50_v1d_0_11": 2_901_504,
    "resnet101_v1d_0_76": 34_030_104,
    "resnet101_v1d_0_73": 32_700_184,
}
NEW = [*COUNTED_WITH_STATISTICS, *COUNTED, *COUNTED_BY_SHAPES, "shufflenet_v1"]
SMALL = {  # one of each kind, and the side of its images
    "cifar_resnet20_v2": 32,
    "cifar_wideresnet16_10": 8,
    "mnist_cnn": 28,
    "mobilenetv1_050": 64,
    "resnet50_v1": 32,
    "resnet50_v2": 32,
    "resnet18_v1b_0_89": 32,
    "shufflenet_v1": 64,
}


def dense(name, **args):
    return skeleton(zoo.Base(f"zoo/{name}", args))


def counted(model, *kinds):
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    return sum(parameter.numel() for module in modules for parameter in module.parameters(recurse=False))


def images(model, side, count=3):
    channels = model.pretrained_cfg["input_size"][0]
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def test_every_network_but_the_first_ones_is_counted_here():
    first = {f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)}
    detectors = {name for name in ARCHITECTURES if name.startswith(("ssd", "yolo"))}
    assert {name for name in ARCHITECTURES if name not in NEW} == {*first, *detectors, "word_cnn"}


@pytest.mark.parametrize("name", COUNTED_WITH_STATISTICS)
def test_with_statistics_a_network_has_as_many_numbers_as_its_source_says(name):
    model = dense(name)
    held = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    constants = sum(2 * m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.affine)
    assert sum(tensor.numel() for tensor in held) + constants == COUNTED_WITH_STATISTICS[name]


@pytest.mark.parametrize("name", COUNTED)
def test_a_network_has_as_many_parameters_as_its_source(name):
    assert counted(dense(name), nn.Module) == COUNTED[name]


@pytest.mark.parametrize("name", COUNTED_BY_SHAPES)
def test_a_narrowed_resnet_has_convolutions_of_the_published_shapes(name):
    assert counted(dense(name), nn.Conv2d, nn.Linear) == COUNTED_BY_SHAPES[name]


@pytest.mark.parametrize(
    ("depth", "in_chans", "params"), [(20, 3, 272_474), (56, 3, 855_770), (110, 3, 1_730_714), (20, 1, 272_186)]
)
def test_the_first_version_of_the_cifar_resnets_has_projections(depth, in_chans, params):
    assert counted(dense(f"cifar_resnet{depth}", shortcut="B", in_chans=in_chans), nn.Module) == params


def test_a_shufflenet_has_the_size_that_the_table_of_its_quantized_model_says():
    """1.8 M, and 1.9 M of the paper's table 4 with its biases and norms."""
    model = dense("shufflenet_v1")
    assert 1.8e6 < counted(model, nn.Conv2d, nn.Linear) < counted(model, nn.Module) < 1.9e6


@pytest.mark.parametrize("name", NEW)
def test_on_the_meta_device_a_batch_goes_in_and_logits_come_out_and_the_rest_is_as_timms(name):
    model = dense(name, num_classes=7).eval()
    size = model.pretrained_cfg["input_size"]
    x = torch.empty(2, *size, device="meta")
    with torch.no_grad():
        features = model.forward_features(x)
        assert model(x).shape == model.forward_head(features).shape == (2, 7)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        last, maps = model.forward_intermediates(x)
    assert last.shape == features.shape
    assert [each.shape[1] for each in maps] == [info["num_chs"] for info in model.feature_info]
    if name != "mnist_cnn":  # which doesn't pad
        assert [size[-1] // each.shape[-1] for each in maps] == [info["reduction"] for info in model.feature_info]
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == size[0]
    assert model.pretrained_cfg["architecture"] == name
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize(("name", "side"), SMALL.items())
def test_a_network_becomes_a_graph_that_computes_the_same(name, side):
    model = disturbed(f"zoo/{name}").eval()
    x = images(model, side)
    made, graph = capture(model, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-5)
    assert not made.training
    assert graph.nodes


def normed(state, x, at):
    mean, var, scale, shift = (state.get(f"{at}.{key}") for key in ("running_mean", "running_var", "weight", "bias"))
    x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return x if scale is None else x * scale[:, None, None] + shift[:, None, None]


def preactivated(state, x, depths, layers):
    """The stages of Identity Mappings in Deep Residual Networks, written out over a state dict."""
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            h = normed(state, x, f"{at}.bn1").relu()
            shortcut = state.get(f"{at}.shortcut.weight")
            x = x if shortcut is None else F.conv2d(h, shortcut, stride=stride)
            for i in range(1, layers + 1):
                h = h if i == 1 else normed(state, h, f"{at}.bn{i}").relu()
                weight, strides = state[f"{at}.conv{i}.weight"], i == layers - 1
                h = F.conv2d(h, weight, stride=stride if strides else 1, padding=weight.shape[-1] // 2)
            x = x + h
    x = normed(state, x, "bn1").relu().mean((2, 3))
    return x @ state["linear.weight"].T + state["linear.bias"]


def test_a_preactivated_network_for_cifar_is_that_of_the_paper():
    model = disturbed("zoo/cifar_resnet20_v2").double()
    state, x = model.state_dict(), images(model, 27).double()
    stem = F.conv2d(normed(state, x, "bn0"), state["stem.0.weight"], padding=1)
    with torch.no_grad():
        assert torch.allclose(model(x), preactivated(state, stem, (3, 3, 3), 2), rtol=1e-9)


def test_a_preactivated_network_of_bottlenecks_strides_in_the_middle():
    model = disturbed("zoo/resnet50_v2").double()
    state, x = model.state_dict(), images(model, 40, 2).double()
    stem = F.conv2d(normed(state, x, "bn0"), state["stem.0.weight"], stride=2, padding=3)
    stem = F.max_pool2d(normed(state, stem, "stem.1").relu(), 3, 2, 1)
    with torch.no_grad():
        assert torch.allclose(model(x), preactivated(state, stem, (3, 4, 6, 3), 3), rtol=1e-8)


def test_a_bottleneck_of_the_first_version_strides_first_and_has_biases_where_it_is_1x1():
    model = dense("resnet50_v1")
    for stage in range(1, 5):
        for i, block in enumerate(model.get_submodule(f"layer{stage}")):
            stride = 2 if stage > 1 and i == 0 else 1
            assert (block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0]) == (stride, 1, 1)
            assert [c.bias is not None for c in (block.conv1, block.conv2, block.conv3)] == [True, False, True]


def test_a_unit_of_a_shufflenet_is_that_of_the_paper():
    """Groups and shuffle written out: each group of convolutions reads every third channel's group of the others."""
    torch.manual_seed(0)
    unit, x = Unit(240, 240).eval().double(), torch.rand(2, 240, 5, 5, dtype=torch.double)

    def grouped(conv, x):
        weights, biases = conv.weight.chunk(3), conv.bias.chunk(3)
        return torch.cat([F.conv2d(*each) for each in zip(x.chunk(3, 1), weights, biases, strict=True)], 1)

    scale = (1 + 1e-5) ** -0.5  # of a new batch norm
    with torch.no_grad():
        h = (grouped(unit.conv1, x) * scale).relu()
        h = torch.stack([h[:, 20 * (i % 3) + i // 3] for i in range(60)], 1)
        h = F.conv2d(h, unit.conv2.weight, unit.conv2.bias, padding=1, groups=60) * scale
        assert torch.allclose(unit(x), (x + grouped(unit.conv3, h) * scale).relu())
    assert torch.equal(shuffled(shuffled(x, 3), 80), x)


def test_a_first_unit_of_a_shufflenet_puts_pooled_inputs_beside_its_outputs():
    torch.manual_seed(0)
    unit, x = Unit(24, 240).eval(), torch.rand(2, 24, 8, 8)
    with torch.no_grad():
        y = unit(x)
    assert (y.shape, unit.conv1.groups, unit.conv3.out_channels) == ((2, 240, 4, 4), 1, 216)
    assert torch.allclose(y[:, :24], F.avg_pool2d(x, 3, 2, 1))


def test_a_network_for_sentences_reads_words_and_those_that_fill_up_change_nothing_behind_them():
    model = zoo.create("zoo/word_cnn")
    words = torch.randint(2, 4096, (3, 1, 1, 38), generator=torch.Generator().manual_seed(0))
    words[..., 20:] = 0
    with torch.no_grad():
        embedded = model.embedding.weight[words.flatten(1)]
        pooled = []
        for conv in model.convs:
            windows = embedded.unfold(1, conv.weight.shape[2], 1)  # [B, T', D, k]
            pooled.append((torch.einsum("btdk,fkd->btf", windows, conv.weight[:, 0]) + conv.bias).relu().amax(1))
        expected = torch.cat(pooled, 1) @ model.linear.weight.T + model.linear.bias
        torch.testing.assert_close(model(words), expected)
        assert model.forward_head(model.forward_features(words), pre_logits=True).shape == (3, model.num_features)
    assert not model.embedding.weight[0].any()
    assert dense("word_cnn")(torch.zeros(2, 1, 1, 38, dtype=torch.int64, device="meta")).shape == (2, 6)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
