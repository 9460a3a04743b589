"""The table of the architectures that a base may name, `zoo/NAME`."""

from collections.abc import Callable
from functools import partial

from torch import nn

from zoo.models import gluon_resnet, preact_resnet, ssd, yolo3
from zoo.models.cifar_resnet import CifarResNet
from zoo.models.mnist_cnn import MnistCnn
from zoo.models.mobilenetv1 import mobilenetv1
from zoo.models.shufflenet import ShuffleNet
from zoo.models.ssd import SSD
from zoo.models.word_cnn import WordCnn
from zoo.models.yolo3 import YOLOv3
from zoo.models.yolov8 import SIZES, YOLOv8

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"cifar_resnet{depth}_v2": partial(preact_resnet.cifar, depth) for depth in (20, 56, 110)},
    "cifar_wideresnet16_10": partial(preact_resnet.wide, 16, 10),
    "cifar_wideresnet28_10": partial(preact_resnet.wide, 28, 10),
    "cifar_wideresnet40_8": partial(preact_resnet.wide, 40, 8),
    "mnist_cnn": MnistCnn,
    "mobilenetv1_050": partial(mobilenetv1, 50),
    "mobilenetv1_075": partial(mobilenetv1, 75),
    **{f"resnet{depth}_v1": partial(gluon_resnet.v1, depth) for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": partial(preact_resnet.gluon, depth) for depth in (34, 50, 152)},
    **{name: partial(gluon_resnet.narrowed, name) for name in gluon_resnet.WIDTHS},
    "shufflenet_v1": ShuffleNet,
    "word_cnn": WordCnn,
    **{
        f"{kind}_{backbone}_{data}": partial(network, f"{kind}_{backbone}_{data}", backbone, data, num_classes=classes)
        for kind, network, backbones in (("ssd_512", SSD, ssd.BACKBONES), ("yolo3", YOLOv3, yolo3.BACKBONES))
        for backbone in backbones
        for data, classes in (("voc", 20), ("coco", 80))
    },
    **{name: partial(YOLOv8, name, **size) for name, size in SIZES.items()},
}
"""Name → what builds it from the keyword arguments of a base."""
