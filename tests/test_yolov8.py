"""YOLOv8 has the published counts and shapes, and computes what its published layers say, whatever was cut of it."""

import pytest
import torch
from normed import disturbed
from torch.nn import functional as F

import zoo
from zoo.errors import StructureError
from zoo.measurement.conventions import torch_dag
from zoo.models.yolov8 import PUBLISHED, C2f
from zoo.structure.base import skeleton
from zoo.structure.plan import Narrow, Plan, Width, apply_

# Published: millions of parameters (of n all, without the 16 fixed weights of its decoder), 1e9 · 2 · macs; kmapp of n.
SIZES = {
    "yolov8n": (3_157_184, 3.2, 8.7, 21.49),
    "yolov8s": (11_166_544, 11.2, 28.6, 70.10),
    "yolov8m": (25_902_624, 25.9, 78.9, 193.2),
    "yolov8l": (43_691_504, 43.7, 165.2, 404.0),
    "yolov8x": (68_229_632, 68.2, 257.8, 630.4),
}
# Of n, in the order in which they run.
LAYERS = {
    "stem": 464,
    "stage2.0": 4_672,
    "stage2.1": 7_360,
    "stage3.0": 18_560,
    "stage3.1": 49_664,
    "stage4.0": 73_984,
    "stage4.1": 197_632,
    "stage5.0": 295_424,
    "stage5.1": 460_288,
    "stage5.2": 164_608,
    "topdown4": 148_224,
    "topdown3": 37_248,
    "down3": 36_992,
    "bottomup4": 123_648,
    "down4": 147_712,
    "bottomup5": 493_056,
    "heads": 897_648,
}
TINY = zoo.Base("zoo/yolov8n", {"width": 0.125, "class_width": 32, "reg_max": 4, "num_classes": 10, "img_size": 128})


def doubled(base=TINY):
    """A model whose batch norms do something, in double precision."""
    return disturbed(base).double()


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()


def published(state):
    """A state by the names of the published weights."""
    prefixes = sorted(PUBLISHED, key=len, reverse=True)
    named = {}
    for name, tensor in state.items():
        prefix = next(each for each in prefixes if name.startswith(f"{each}."))
        named[PUBLISHED[prefix] + name.removeprefix(prefix)] = tensor
    return named


def by_hand(state, x):
    """The published layers 0 to 22, written out over a state dict."""

    def conv(x, at, stride=1):
        weight = state[f"{at}.conv.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, var, scale, shift = (state[f"{at}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-3).sqrt() * scale[:, None, None] + shift[:, None, None]
        return x * x.sigmoid()

    def c2f(x, at, shortcut):
        maps = list(conv(x, f"{at}.cv1").chunk(2, 1))
        while f"{at}.m.{len(maps) - 2}.cv1.conv.weight" in state:
            block = f"{at}.m.{len(maps) - 2}"
            y = conv(conv(maps[-1], f"{block}.cv1"), f"{block}.cv2")
            maps.append(maps[-1] + y if shortcut else y)
        return conv(torch.cat(maps, 1), f"{at}.cv2")

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    p = {}
    x = conv(x, "model.0", 2)
    for layer in (1, 3, 5, 7):
        p[layer + 1] = x = c2f(conv(x, f"model.{layer}", 2), f"model.{layer + 1}", True)
    first = conv(x, "model.9.cv1")
    pooled = [F.max_pool2d(first, side, 1, side // 2) for side in (5, 9, 13)]
    p9 = conv(torch.cat([first, *pooled], 1), "model.9.cv2")
    p12 = c2f(torch.cat([doubled(p9), p[6]], 1), "model.12", False)
    p15 = c2f(torch.cat([doubled(p12), p[4]], 1), "model.15", False)
    p18 = c2f(torch.cat([conv(p15, "model.16", 2), p12], 1), "model.18", False)
    p21 = c2f(torch.cat([conv(p18, "model.19", 2), p9], 1), "model.21", False)
    heads = []
    for level, x in enumerate((p15, p18, p21)):
        ends = []
        for branch in ("cv2", "cv3"):
            at = f"model.22.{branch}.{level}"
            y = conv(conv(x, f"{at}.0"), f"{at}.1")
            ends.append(F.conv2d(y, state[f"{at}.2.weight"], state[f"{at}.2.bias"]))
        heads.append(torch.cat(ends, 1))
    return heads


@pytest.mark.parametrize(("name", "params", "millions", "gflops", "kmapp"), [(k, *v) for k, v in SIZES.items()])
def test_a_size_has_the_published_numbers_of_parameters_and_operations(name, params, millions, gflops, kmapp):
    model = skeleton(zoo.Base(f"zoo/{name}"))
    counts = zoo.measure(model)
    assert counts.params == params
    assert abs(counts.params / 1e6 - millions) <= 0.05
    assert abs(2 * counts.macs / 1e9 - gflops) <= 0.06
    assert torch_dag(model) == pytest.approx(kmapp, abs=0.05)


@pytest.mark.parametrize(("path", "params"), LAYERS.items())
def test_a_layer_of_the_smallest_has_the_published_number_of_parameters(path, params):
    layer = skeleton(zoo.Base("zoo/yolov8n")).get_submodule(path)
    assert sum(parameter.numel() for parameter in layer.parameters()) == params


def test_there_are_8400_points_of_the_published_channels():
    heads = skeleton(zoo.Base("zoo/yolov8n")).eval()(torch.empty(2, 3, 640, 640, device="meta"))
    assert [tuple(head.shape) for head in heads] == [(2, 144, 80, 80), (2, 144, 40, 40), (2, 144, 20, 20)]
    assert sum(head.shape[2] * head.shape[3] for head in heads) == 8_400


@pytest.mark.parametrize("size", [(128, 128), (64, 96)])
def test_a_forward_pass_is_that_of_the_published_layers(size):
    model = doubled()
    with torch.no_grad():
        expected, found = by_hand(published(model.state_dict()), images(*size)), model(images(*size))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_all_depths_and_widths_are_those_of_the_published_layers():
    model = doubled(zoo.Base("zoo/yolov8m", {"width": 0.125, "max_width": 512, "reg_max": 2}))
    with torch.no_grad():
        expected, found = by_hand(published(model.state_dict()), images(64, 64)), model(images(64, 64))
    assert torch.allclose(found[2], expected[2], rtol=1e-9, atol=1e-9)
    assert len(model.stage3[1].m) == 4


def test_a_c2f_whose_halves_are_cut_unequally_is_the_whole_one_without_those_channels():
    torch.manual_seed(0)
    whole, kept = C2f(8, 16, 2, True).eval().double(), ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2])  # of eight each
    with torch.no_grad():
        for layer in (whole.cv1, whole.m[0].cv2, whole.m[1].cv2):
            gone = [i for i in range(8) if i not in kept[1]]
            rows = gone if layer is not whole.cv1 else [7, *(8 + i for i in gone)]
            layer.bn.weight[rows], layer.bn.bias[rows] = 0.0, 0.0  # SiLU leaves zero alone
    widths = {"cv1.conv": Width(10), "cv1.bn": Width(10), "cv2.conv": Width(inputs=7 + 3 * 3)}
    for path in ("m.0", "m.1"):
        widths |= {f"{path}.cv1.conv": Width(inputs=3), f"{path}.cv2.conv": Width(3), f"{path}.cv2.bn": Width(3)}
    smaller = apply_(C2f(8, 16, 2, True), Plan((Narrow(widths),))).eval().double()
    first = [*kept[0], *(8 + i for i in kept[1])]
    read = [*first, *(16 + 8 * b + i for b in (0, 1) for i in kept[1])]
    state = whole.state_dict()
    for name in list(state):
        tensor = state[name]
        if tensor.ndim == 0:
            continue
        if name.startswith("cv1"):
            tensor = tensor[first]
        elif name == "cv2.conv.weight":
            tensor = tensor[:, read]
        elif ".cv1.conv" in name:
            tensor = tensor[:, kept[1]]
        elif ".cv2." in name:
            tensor = tensor[kept[1]]
        state[name] = tensor
    smaller.load_state_dict(state)
    assert smaller.width == 3
    x = torch.randn(2, 8, 5, 5).double()
    with torch.no_grad():
        assert torch.allclose(smaller(x), whole(x), rtol=1e-10)


def test_it_says_of_itself_what_timms_models_do():
    model = doubled()
    x = images(128, 128)
    with torch.no_grad():
        maps, (last, wanted) = model.forward_features(x), model.forward_intermediates(x, indices=[0, 2])
        assert all(map(torch.equal, model.forward_head(maps), model(x)))
    assert torch.equal(last, maps[2])
    assert torch.equal(wanted[0], maps[0])
    assert [each.shape[1] for each in maps] == [info["num_chs"] for info in model.feature_info]
    assert [128 // each.shape[2] for each in maps] == [info["reduction"] for info in model.feature_info]
    assert [layer.out_channels for layer in model.get_classifier()] == [10, 10, 10]
    assert model.pretrained_cfg["task"] == "object-detection"
    model.reset_classifier(3)
    with torch.no_grad():
        assert [head.shape[1] for head in model.float()(x.float())] == [4 * 4 + 3] * 3


def test_before_it_was_trained_a_class_is_seen_once_in_a_hundred_and_distances_are_all_alike():
    model = zoo.create(TINY)
    for head in model.heads:
        torch.nn.init.zeros_(head.classes[2].weight)
        torch.nn.init.zeros_(head.box[2].weight)
    with torch.no_grad():
        for head in model(images(128, 128).float()):
            assert torch.allclose(head[:, 16:].sigmoid(), torch.tensor(0.01))
            assert torch.equal(head[:, :16], torch.ones_like(head[:, :16]))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"img_size": 100}, "img_size is 100, expected multiples of 32"),
        ({"num_classes": 0}, "num_classes is 0, expected 1 or more: a detector has no output without them"),
    ],
    ids=str,
)
def test_what_no_detector_can_be_is_refused(args, message):
    with pytest.raises(StructureError, match=message):
        zoo.create(zoo.Base("zoo/yolov8n", args))
