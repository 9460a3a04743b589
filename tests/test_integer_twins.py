"""What networks compute besides layers, sums and pools, in whole numbers: close to floats, indifferent to the batch."""

import pytest
import torch
from quantized import close
from torch import nn
from torch.nn import functional as F


class Standardized(nn.Conv2d):
    """Weights of mean 0 and deviation 1, computed at each call."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, len(self.weight), -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight) / 8, self.bias, padding=1)


class Attended(nn.Module):
    """Channels weighted by a convolution over them, as of ECA-Net."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * y.transpose(1, 2).unsqueeze(3).expand_as(x)


class Paths(nn.Module):
    """A difference, and a sum of stacked maps."""

    def forward(self, x):
        return torch.stack([x - F.max_pool2d(x, 3, 1, 1), x], 1).sum(1)


class Scaled(nn.Module):
    """A layer whose channels are scaled, and one that is normalized over flat tokens."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.gamma = nn.Parameter(torch.linspace(-2, 2, 8))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        y = self.linear(x)
        return x + self.gamma * self.norm(y.flatten(0, 1)).reshape_as(y)


@pytest.mark.parametrize("make", [lambda: Standardized(8, 8, 3), Attended, Paths, Scaled])
def test_twins_are_close_to_floats_and_indifferent_to_the_batch(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), make(), nn.Flatten(), nn.Linear(128, 5)).eval()
    images = torch.randint(0, 256, (24, 3, 8, 8)).float() / 255
    close(model, images)
