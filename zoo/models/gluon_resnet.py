"""GluonCV's ResNets for ImageNet that timm lacks: v1, whose bottlenecks stride first, and the narrowed ones.

v1 is the network of the paper: in a bottleneck the first 1x1 convolution has the stride, where timm's (v1b) has it in
the 3x3; and the 1x1 convolutions have biases, which fold away with the batch norms.

The narrowed ones are v1b and v1d (deep stem, average pool in the shortcut) with channels left out, whose widths GluonCV
publishes as shapes of the convolutions; 0.89 and so on is part of their names.

Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385
        https://github.com/dmlc/gluon-cv/tree/master/gluoncv/model_zoo (resnet.py; pruned_resnet/*.json: the widths)
"""

from collections.abc import Sequence
from typing import Any

from timm.models import BasicBlock, Bottleneck, ResNet
from torch import nn

from zoo.models.classifier import config

DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class FirstStrides(Bottleneck):
    """A bottleneck with the stride in its first convolution, and biases in both 1x1 convolutions."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, downsample: Any = None, **args: Any) -> None:
        super().__init__(inplanes, planes, 1, downsample, **args)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, stride)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1)


def v1(depth: int, /, num_classes: int = 1000, in_chans: int = 3) -> ResNet:
    """GluonCV's ResNet v1 of bottlenecks.

    Args:
        depth: 50, 101 or 152.
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """
    block: Any = FirstStrides  # timm's annotation asks for an instance
    model = ResNet(block, DEPTHS[depth], num_classes, in_chans)
    return _configured(model, f"resnet{depth}_v1", "conv1")


Widths = tuple[Sequence[int], Sequence[tuple[int, Sequence[Sequence[int]]]]]
"""Channels of the stem's convolutions; of each stage those that its blocks add to, and those within each block."""

WIDTHS: dict[str, Widths] = {
    "resnet18_v1b_0_89": (
        [8],
        [(8, [[8], [8]]), (56, [[120], [128]]), (208, [[256], [256]]), (512, [[512], [512]])],
    ),
    "resnet50_v1d_0_86": (
        [16, 24, 40],
        [
            (80, [[16, 32], [8, 16], [16, 24]]),
            (280, [[32, 88], [56, 120], [80, 88], [72, 80]]),
            (856, [[128, 248], [168, 240], [256, 248], [216, 200], [248, 256], [232, 256]]),
            (2048, [[480, 512], [512, 512], [512, 512]]),
        ],
    ),
    "resnet50_v1d_0_48": (
        [16, 16, 32],
        [
            (32, [[16, 8], [8, 8], [8, 8]]),
            (128, [[16, 72], [72, 72], [72, 104], [64, 40]]),
            (320, [[32, 80], [64, 104], [136, 200], [128, 216], [104, 112], [120, 96]]),
            (1920, [[56, 64], [512, 504], [504, 456]]),
        ],
    ),
    "resnet50_v1d_0_37": (
        [8, 8, 8],
        [
            (16, [[8, 8], [8, 8], [8, 8]]),
            (72, [[8, 56], [8, 56], [64, 88], [16, 48]]),
            (192, [[8, 8], [8, 96], [112, 224], [8, 104], [8, 80], [144, 216]]),
            (1336, [[96, 280], [504, 480], [480, 400]]),
        ],
    ),
    "resnet50_v1d_0_11": (
        [8, 8, 8],
        [
            (8, [[8, 8], [8, 8], [8, 8]]),
            (16, [[8, 24], [8, 8], [8, 8], [8, 8]]),
            (80, [[8, 16], [24, 48], [56, 208], [120, 88], [88, 64], [40, 200]]),
            (784, [[80, 192], [264, 48], [152, 400]]),
        ],
    ),
    "resnet101_v1d_0_76": (
        [16, 32, 48],
        [
            (80, [[48, 48], [16, 16], [8, 8]]),
            (216, [[8, 8], [88, 128], [128, 128], [128, 128]]),
            (384, [[224, 256], *[[256, 256]] * 22]),
            (2048, [[512, 512]] * 3),
        ],
    ),
    "resnet101_v1d_0_73": (
        [16, 24, 32],
        [
            (40, [[16, 16], [8, 8], [24, 16]]),
            (200, [[32, 128], [72, 112], [8, 8], [96, 96]]),
            (392, [[72, 176], *[[256, 256]] * 11, [256, 8], *[[256, 256]] * 10]),
            (2048, [[512, 512]] * 3),
        ],
    ),
}


def narrowed(architecture: str, /, num_classes: int = 1000, in_chans: int = 3) -> ResNet:
    """One of GluonCV's narrowed ResNets.

    Args:
        architecture: a key of `WIDTHS`.
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """
    stem, stages = WIDTHS[architecture]
    deep, depths = len(stem) > 1, tuple(len(blocks) for _, blocks in stages)
    of_v1d: dict[str, Any] = {"stem_width": 32, "stem_type": "deep", "avg_down": True} if deep else {}
    kind: Any = Bottleneck if deep else BasicBlock
    model = ResNet(kind, depths, num_classes, in_chans, **of_v1d)
    first = ("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1")
    inputs = _narrow_(model, first if deep else [("conv1", "bn1")], in_chans, stem)
    for i, (outputs, blocks) in enumerate(stages, 1):
        for j, within in enumerate(blocks):
            block: Any = model.get_submodule(f"layer{i}.{j}")
            layers = range(1, len(within) + 2)
            if block.downsample is not None:
                last = len(block.downsample)
                _narrow_(block, [(f"downsample.{last - 2}", f"downsample.{last - 1}")], inputs, [outputs])
            inputs = _narrow_(block, [(f"conv{k}", f"bn{k}") for k in layers], inputs, [*within, outputs])
    model.num_features = model.head_hidden_size = inputs
    model.reset_classifier(num_classes)
    model.init_weights()
    for info, width in zip(model.feature_info, (stem[-1], *(width for width, _ in stages)), strict=True):
        info["num_chs"] = width
    return _configured(model, architecture, "conv1.0" if deep else "conv1")


def _narrow_(model: nn.Module, layers: Sequence[tuple[str, str]], inputs: int, widths: Sequence[int]) -> int:
    """Give convolutions in a row, and their batch norms, other widths; returns the last one."""
    for (conv, norm), outputs in zip(layers, widths, strict=True):
        old: Any = model.get_submodule(conv)
        new = nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding, bias=False)
        model.set_submodule(conv, new)
        model.set_submodule(norm, nn.BatchNorm2d(outputs))
        inputs = outputs
    return inputs


def _configured(model: Any, architecture: str, first_conv: str) -> ResNet:
    size = (model.in_chans, 224, 224)
    model.pretrained_cfg = model.default_cfg = config(architecture, model.num_classes, size, first_conv, "fc")
    return model  # type: ignore[no-any-return]
