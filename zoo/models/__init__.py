"""Architectures that timm lacks, written from their papers, in timm's manners.

Each has a row of ARCHITECTURES: its name, by which a base says `zoo/NAME`, and what builds it. To add one, write its
file: a module that can be built on the meta device and says of itself what timm's models do (`pretrained_cfg`,
`num_classes`, `feature_info`, `get_classifier`, `reset_classifier`, `forward_features`, `forward_head`,
`forward_intermediates`), as a `Classifier` of stages and a linear layer does by itself.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from zoo.models import gluon_resnet, preact_resnet
from zoo.models.cifar_resnet import CifarResNet
from zoo.models.mnist_cnn import MnistCnn
from zoo.models.mobilenetv1 import mobilenetv1
from zoo.models.shufflenet import ShuffleNet
from zoo.models.word_cnn import WordCnn

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
}
"""Name → what builds it from the keyword arguments of a base."""
