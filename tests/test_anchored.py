"""SSD and YOLOv3 have GluonCV's counts and shapes, and compute what their papers say."""

import pytest
import torch
from normed import disturbed
from torch import nn
from torch.nn import functional as F

import zoo
from zoo import catalog
from zoo.models.architectures import ARCHITECTURES
from zoo.models.heads import check_detector
from zoo.models.label_names import COCO, VOC
from zoo.structure.base import skeleton

PARAMS = {  # GluonCV's layers, without what batch norms hold of the data
    "ssd_512_mobilenet1_0_voc": 13_781_550,
    "ssd_512_mobilenet1_0_coco": 22_630_710,
    "ssd_512_resnet50_v1_voc": 36_468_974,
    "ssd_512_resnet50_v1_coco": 49_741_814,
    "yolo3_darknet53_voc": 61_626_049,
    "yolo3_darknet53_coco": 61_949_149,
    "yolo3_mobilenet1_0_voc": 24_248_097,
    "yolo3_mobilenet1_0_coco": 24_571_197,
}
POINTS = {"ssd": 6_132, "yol": 10_647}
MRT = [catalog.info(name) for name in catalog.names(all=True, project="mrt")]
SIZES = [(entry, row.figures["params_size"]) for entry in MRT for row in entry.reported if "params_size" in row.figures]
# What GluonCV lays out beforehand: anchors of four numbers, of whose maps the sides halve; and cells of two.
CONSTANTS = {
    "ssd": sum(4 * n * side**2 for n, side in zip((4, 6, 6, 6, 4, 4), (128, 64, 32, 16, 16, 16), strict=True)),
    "yol": 3 * 2 * 128**2,
}


def dense(name, **args):
    return skeleton(zoo.Base(f"zoo/{name}", args)).eval()


def images(side):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


def convolved(state, x, conv, bn, stride=1):
    """A convolution and its batch norm, written out."""
    weight, bias = state[f"{conv}.weight"], state.get(f"{conv}.bias")
    x = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
    mean, var, scale, shift = (state[f"{bn}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def test_every_detector_with_anchors_is_counted_here():
    assert {name for name in ARCHITECTURES if name.startswith(("ssd", "yolo3"))} == PARAMS.keys()


@pytest.mark.parametrize("name", PARAMS)
def test_it_has_gluoncvs_parameters_points_and_classes(name):
    model = dense(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMS[name]
    check_detector(model)
    size, classes = model.pretrained_cfg["input_size"], VOC if name.endswith("voc") else COCO
    heads = model(torch.empty(1, *size, device="meta"))
    assert sum(head.shape[1:].numel() for head in heads) == POINTS[name[:3]] * (5 + len(classes))
    assert model.pretrained_cfg["label_names"] == classes
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3


@pytest.mark.parametrize(("entry", "mib"), SIZES, ids=[entry.name for entry, _ in SIZES])
def test_what_mrt_calls_params_size_is_the_bytes_of_the_model_of_integers(entry, mib):
    """Weights of one byte; of four the biases that every layer has once norms are folded, and constants."""
    layers = [module for module in skeleton(entry.base).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    total = sum(layer.weight.numel() + 4 * len(layer.weight) for layer in layers)
    total += 4 * CONSTANTS.get(entry.name[:3], 0)
    assert total / 2**20 == pytest.approx(mib, abs=0.11)


def test_an_ssd_halves_the_backbones_last_maps_four_times_and_reads_all_six():
    model = disturbed("zoo/ssd_512_mobilenet1_0_voc")
    state, x = model.state_dict(), images(256)
    with torch.no_grad():
        maps = model.backbone.forward_intermediates(x, [3, 4], intermediates_only=True)
        assert [(each.shape[1], 256 // each.shape[2]) for each in maps] == [(512, 16), (1024, 32)]
        for i in range(4):
            y = convolved(state, maps[-1], f"extras.{i}.0", f"extras.{i}.1").relu()
            maps.append(convolved(state, y, f"extras.{i}.3", f"extras.{i}.4", 2).relu())
        expected = [
            F.conv2d(each, state[f"heads.{i}.weight"], state[f"heads.{i}.bias"], padding=1)
            for i, each in enumerate(maps)
        ]
        for one, other in zip(model(x), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_yolov3_is_that_of_the_paper_from_image_to_heads():
    model = disturbed("zoo/yolo3_darknet53_voc")
    state, x = model.state_dict(), images(64)

    def conv(x, at, stride=1):  # of timm's backbone
        return leaky(convolved(state, x, f"{at}.conv", f"{at}.bn", stride))

    def own(x, at):
        return leaky(convolved(state, x, f"{at}.0", f"{at}.1"))

    with torch.no_grad():
        y, maps = conv(x, "backbone.stem.conv1"), []
        for stage, depth in enumerate((1, 2, 8, 8, 4)):
            at = f"backbone.stages.{stage}"
            y = conv(y, f"{at}.conv_down", 2)
            for i in range(depth):
                y = y + conv(conv(y, f"{at}.blocks.{i}.conv1"), f"{at}.blocks.{i}.conv2")
            maps.append(y)
        heads = []
        for level in (2, 1, 0):
            for i in range(5):
                y = own(y, f"blocks.{level}.{i}")
            tip = own(y, f"tips.{level}")
            heads.append(F.conv2d(tip, state[f"heads.{level}.weight"], state[f"heads.{level}.bias"]))
            if level:
                y = own(y, f"transitions.{level - 1}").repeat_interleave(2, 2).repeat_interleave(2, 3)
                y = torch.cat([y, maps[level + 1]], 1)
        for one, other in zip(model(x), heads[::-1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ssd_512_mobilenet1_0_voc", "yolo3_mobilenet1_0_voc"])
def test_other_classes_leave_boxes_alone(name):
    model, x = zoo.create(f"zoo/{name}"), images(64)
    with torch.no_grad():
        before = model(x)
        model.reset_classifier(3)
        after = model(x)
    for old, new in zip(before, after, strict=True):
        old, new = (each.unflatten(1, (-1, 5 + classes)) for each, classes in ((old, 20), (new, 3)))
        torch.testing.assert_close(new[:, :, :5], old[:, :, :5])
    assert model.num_classes == 3
