"""CifarResNet: the residual networks for images of 32 pixels.

    3x3 convolution of 16 · three stages of n blocks of 16, 32, 64 channels, at 32, 16, 8 pixels · mean · linear
    block: x → relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))

They have 6n + 2 layers: n = 3 is ResNet-20, n = 9 ResNet-56. Where a stage begins, channels double and the side halves;
a shortcut does so too, as option A of the paper without parameters or as option B with a projection.

Source: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, section 4.2, https://arxiv.org/abs/1512.03385
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.models.classifier import Classifier, stages

WIDTHS = (16, 32, 64)  # of the three stages


class Zeros(nn.Module):
    """Channels of zeros: a buffer, which can be cut as the channels of a layer are.

    Args:
        channels: how many.
    """

    zeros: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(channels), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """As many as there are; no file holds them."""
        self.zeros.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, C, H, W] → zeros [B, channels, H, W]."""
        batch, _, height, width = x.shape
        return self.zeros.view(1, -1, 1, 1).expand(batch, -1, height, width)


class ZeroPadded(nn.Module):
    """Option A: every second pixel, between as many channels of zeros: y = [0, x[::2, ::2], 0].

    Args:
        inputs: channels of x.
        outputs: channels of y.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = Zeros((outputs - inputs) // 2)
        self.after = Zeros((outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H/2, W/2]."""
        x = x[:, :, ::2, ::2]
        return torch.cat([self.before(x), x, self.after(x)], 1)


class Projection(nn.Sequential):
    """Option B: a 1x1 convolution of every second pixel, and a batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


SHORTCUTS = {"A": ZeroPadded, "B": Projection}
"""The paper's options, for the two blocks that double the channels; all others have the identity."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inputs: channels in.
        outputs: channels out; where they are more, the side is halved.
        shortcut: a key of `SHORTCUTS`.
    """

    def __init__(self, inputs: int, outputs: int, shortcut: str) -> None:
        super().__init__()
        widens = outputs != inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if widens else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = SHORTCUTS[shortcut](inputs, outputs) if widens else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, inputs, H, W] → [B, outputs, H', W']."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class CifarResNet(Classifier):
    """A residual network of 6n + 2 layers.

    Args:
        depth: 6n + 2.
        num_classes: of the classifier; 0 leaves it out.
        in_chans: channels of the images.
        shortcut: `A`, as the paper has it here (zeros), or `B` (projections).

    >>> sum(parameter.numel() for parameter in CifarResNet(20).parameters())
    269722
    """

    def __init__(
        self, depth: int, /, num_classes: int = 10, in_chans: int = 3, shortcut: Literal["A", "B"] = "A"
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut is {shortcut!r}, expected {' or '.join(SHORTCUTS)}")
        self.conv1 = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(BasicBlock(outputs if i else inputs, outputs, shortcut) for i in range((depth - 2) // 6)))
            for inputs, outputs in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        )
        self.feature_info = stages(dict(zip(("layer1", "layer2", "layer3"), WIDTHS, strict=True)), 1)
        self.configure_(f"cifar_resnet{depth}", num_classes, WIDTHS[-1], (in_chans, 32, 32), "conv1")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # as in the paper

    def maps(self, x: Tensor) -> list[Tensor]:
        """Images [B, C, H, W] → the feature maps of each stage."""
        x, maps = F.relu(self.bn1(self.conv1(x))), []
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(x := stage(x))
        return maps
