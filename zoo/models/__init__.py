"""Architectures that timm lacks, written from their papers, in timm's manners.

Each has a row of ARCHITECTURES: its name, by which a base says `zoo/NAME`, and what builds it. To add one, write its
file: a module that can be built on the meta device and says of itself what timm's models do (`pretrained_cfg`,
`num_classes`, `feature_info`, `get_classifier`, `reset_classifier`, `forward_features`, `forward_head`,
`forward_intermediates`). `cifar_resnet` has the residual networks for images of 32 pixels.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from zoo.models.cifar_resnet import CifarResNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet20": partial(CifarResNet, 20),
    "cifar_resnet32": partial(CifarResNet, 32),
    "cifar_resnet44": partial(CifarResNet, 44),
    "cifar_resnet56": partial(CifarResNet, 56),
    "cifar_resnet110": partial(CifarResNet, 110),
}
"""Name → what builds it from the keyword arguments of a base."""
