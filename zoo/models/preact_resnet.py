"""PreactResNet: residual networks whose blocks begin with batch norm and ReLU, for CIFAR, wide, and for ImageNet.

    batch norm without scale and shift · stem · stages of blocks · batch norm · ReLU · mean · linear
    block: x → F(h) + shortcut, h = relu(bn1(x)); where size or channels change the shortcut is a 1x1 convolution of h,
    else x

The wide ones for CIFAR have 6n + 4 layers of 16k, 32k and 64k channels, the plain ones 6n + 2 with k = 1. GluonCV's
networks for ImageNet, with the batch norm on the input, are those that MRT quantizes.

Source: He, Zhang, Ren, Sun, Identity Mappings in Deep Residual Networks, https://arxiv.org/abs/1603.05027
        Zagoruyko, Komodakis, Wide Residual Networks, https://arxiv.org/abs/1605.07146
        https://github.com/dmlc/gluon-cv/blob/master/gluoncv/model_zoo/resnet.py (the layers' order, the stride)
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import Classifier, stages


class Basic(nn.Module):
    """Two 3x3 convolutions, the first with the stride.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: by which the side shrinks.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H', W']."""
        h = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(h))))
        return residual + (x if self.shortcut is None else self.shortcut(h))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 1x1 convolution to a quarter of the channels, a 3x3 with the stride, a 1x1 back; arguments as for `Basic`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H', W']."""
        h = F.relu(self.bn1(x))
        residual = F.relu(self.bn2(self.conv1(h)))
        residual = self.conv3(F.relu(self.bn3(self.conv2(residual))))
        return residual + (x if self.shortcut is None else self.shortcut(h))  # type: ignore[no-any-return]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    return None if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PreactResNet(Classifier):
    """A residual network of such blocks.

    Args:
        architecture: its name.
        side: of the images that it is made for.
        stem: what comes before the stages; a convolution first.
        block: `Basic` or `Bottleneck`.
        depths: blocks of each stage.
        widths: channels of each stage.
        num_classes: of the classifier; 0 leaves it out.
    """

    def __init__(
        self,
        architecture: str,
        side: int,
        stem: Sequence[nn.Module],
        block: type[Basic] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        conv: Any = stem[0]
        inputs = conv.out_channels
        self.bn0 = nn.BatchNorm2d(conv.in_channels, affine=False)
        self.stem = nn.Sequential(*stem)
        for i, (depth, outputs) in enumerate(zip(depths, widths, strict=True)):
            blocks = (block(outputs if j else inputs, outputs, 2 if i and not j else 1) for j in range(depth))
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.feature_info = stages({f"layer{i + 1}": width for i, width in enumerate(widths)}, 1 if side == 32 else 4)
        self.configure_(architecture, num_classes, inputs, (conv.in_channels, side, side), "stem.0")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the feature maps of each stage."""
        x, maps = self.stem(self.bn0(x)), []
        for info in self.feature_info:
            maps.append(x := self.get_submodule(info["module"])(x))
        return maps

    def last(self, x: Tensor) -> Tensor:
        """What the last stage's maps still go through: batch norm and ReLU."""
        return F.relu(self.bn1(x))


def cifar(depth: int, /, num_classes: int = 10, in_chans: int = 3) -> PreactResNet:
    """The network of 6n + 2 layers for images of 32 pixels.

    Args:
        depth: 6n + 2.
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """
    stem, depths = [nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False)], [(depth - 2) // 6] * 3
    return PreactResNet(f"cifar_resnet{depth}_v2", 32, stem, Basic, depths, (16, 32, 64), num_classes)


def wide(depth: int, factor: int, /, num_classes: int = 10, in_chans: int = 3) -> PreactResNet:
    """The network of 6n + 4 layers, `factor` times as wide, with a batch norm behind the stem; else as for `cifar`."""
    name, depths = f"cifar_wideresnet{depth}_{factor}", [(depth - 4) // 6] * 3
    stem, widths = [nn.Conv2d(in_chans, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)], (16, 32, 64)
    return PreactResNet(name, 32, stem, Basic, depths, [factor * width for width in widths], num_classes)


DEPTHS = {34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}


def gluon(depth: int, /, num_classes: int = 1000, in_chans: int = 3) -> PreactResNet:
    """GluonCV's network for ImageNet, of a depth in `DEPTHS`; else as for `cifar`."""
    block, factor = (Basic, 1) if depth < 50 else (Bottleneck, 4)
    conv = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
    stem = [conv, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [factor * width for width in (64, 128, 256, 512)]
    return PreactResNet(f"resnet{depth}_v2", 224, stem, block, DEPTHS[depth], widths, num_classes)
