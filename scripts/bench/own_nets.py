"""Networks as users write them, none of a library: name → what builds it, and channels, height, width of its images."""

import torch
from torch import nn
from torch.nn import functional as F


def block(i: int, o: int, stride: int = 1) -> nn.Sequential:
    """Two convolutions with their norms."""
    first = nn.Conv2d(i, o, 3, stride, 1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU())


class UNet(nn.Module):
    """Maps of two classes, from features of two scales."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = block(3, width), block(width, 2 * width), block(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge2, self.merge1 = block(4 * width, 2 * width), block(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to maps of the same size."""
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.up2(self.middle(F.max_pool2d(two, 2)))
        x = self.up1(self.merge2(torch.cat([x, two], 1)))
        return self.out(self.merge1(torch.cat([x, one], 1)))


class TwoHeads(nn.Module):
    """Classes and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 32, 2), block(32, 64, 2))
        self.classes, self.box = nn.Linear(64, 10), nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images to both, by name."""
        x = self.body(x).mean((2, 3))
        return {"classes": self.classes(x), "box": self.box(x).sigmoid()}


class Siamese(nn.Module):
    """How alike the left and the right half of an image are; one encoder sees both."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(block(3, 32, 2), block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] to similarities [B, 1]."""
        left, right = x.chunk(2, 3)
        return self.head((self.encoder(left) - self.encoder(right)).abs())


class Reader(nn.Module):
    """A line of text: columns of features through a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 32, 2), block(32, 64, 2))
        self.cell, self.head = nn.GRU(64, 64, batch_first=True, bidirectional=True), nn.Linear(128, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, H, W] to letters [B, W/4, 40]."""
        columns, _ = self.cell(self.body(x).mean(2).mT)
        return self.head(columns)


class Tokens(nn.Module):
    """torch's own transformer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.place = nn.Conv2d(3, 64, 8, 8), nn.Parameter(torch.randn(1, 64, 64) / 8)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, 64, 64] to classes [B, 10]."""
        return self.head(self.body(self.stem(x).flatten(2).mT + self.place).mean(1))


OWN = {
    "U-Net": (UNet, (3, 64, 64)),
    "two heads": (TwoHeads, (3, 64, 64)),
    "siamese": (Siamese, (3, 64, 64)),
    "GRU": (Reader, (1, 32, 128)),
    "nn.Transformer": (Tokens, (3, 64, 64)),
}
