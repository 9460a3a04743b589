"""ShuffleNet v1: grouped 1x1 convolutions whose channels are shuffled in between, at three groups.

    3x3 convolution of 24, stride 2 · max pool · three stages of 4, 8, 4 units of 240, 480, 960 channels · mean · linear
    unit: h = relu(bn(1x1 grouped(x))) · shuffle · bn(3x3 depthwise(h)) · bn(1x1 grouped(h)), added to x;
    a stage's first unit has stride 2 and puts its outputs beside those of an average pool of x

A unit is narrowed to a quarter of its outputs within. The first 1x1 convolution of all isn't grouped, as it reads 24
channels. Convolutions have biases here, as in the network that MRT quantizes; batch norms fold them away.

Source: Zhang, Zhou, Lin, Sun, ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices,
        section 3 and table 1, https://arxiv.org/abs/1707.01083
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import Classifier, stages

GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels g·n + i → i·groups + g: each group gets some of every other.

    >>> shuffled(torch.arange(6.0).view(1, 6, 1, 1), 3).flatten().tolist()
    [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class Unit(nn.Module):
    """A ShuffleNet unit.

    Args:
        inputs: channels in.
        outputs: channels out; where they are more, the side is halved and the inputs are pooled beside it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widens = outputs != inputs
        added, within, stride = outputs - inputs if self.widens else outputs, outputs // 4, 2 if self.widens else 1
        self.conv1 = nn.Conv2d(inputs, within, 1, groups=1 if inputs == STEM else GROUPS)
        self.bn1 = nn.BatchNorm2d(within)
        self.conv2 = nn.Conv2d(within, within, 3, stride, 1, groups=within)
        self.bn2 = nn.BatchNorm2d(within)
        self.conv3 = nn.Conv2d(within, added, 1, groups=GROUPS)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H', W']."""
        h = shuffled(F.relu(self.bn1(self.conv1(x))), GROUPS)
        h = self.bn3(self.conv3(self.bn2(self.conv2(h))))
        if self.widens:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), h], 1))
        return F.relu(x + h)


class ShuffleNet(Classifier):
    """ShuffleNet v1.

    Args:
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, STEM, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.pool = nn.MaxPool2d(3, 2, 1)
        inputs = STEM
        for i, (outputs, units) in enumerate(STAGES, 2):
            self.add_module(
                f"stage{i}", nn.Sequential(*(Unit(outputs if j else inputs, outputs) for j in range(units)))
            )
            inputs = outputs
        self.feature_info = stages({f"stage{i}": width for i, (width, _) in enumerate(STAGES, 2)}, 8)
        self.configure_("shufflenet_v1", num_classes, inputs, (in_chans, 224, 224), "conv1")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the feature maps of each stage."""
        x, maps = self.pool(F.relu(self.bn1(self.conv1(x)))), []
        for info in self.feature_info:
            maps.append(x := self.get_submodule(info["module"])(x))
        return maps
