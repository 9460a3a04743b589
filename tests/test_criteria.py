"""Criteria of weights: a layer's score doesn't depend on how the layer is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.compression.criteria import CRITERIA, Evidence
from zoo.compression.groups import analyse


class Projection(nn.Module):
    """A linear layer over channels whose weight has another name."""

    def __init__(self, weight):
        super().__init__()
        self.projection = nn.Parameter(weight)

    def forward(self, x):
        return F.linear(x.movedim(1, -1), self.projection).movedim(-1, 1)


def pair(writer):
    """Two ways of writing one layer of 12 outputs."""
    torch.manual_seed(0)
    if writer == "transposed":
        first = nn.ConvTranspose2d(5, 12, 3, padding=1, bias=False)
        second = nn.Conv2d(5, 12, 3, padding=1, bias=False)
        second.weight = nn.Parameter(first.weight.detach().transpose(0, 1).flip(2, 3).contiguous())
    else:
        second = nn.Conv2d(5, 12, 1, bias=False)
        first = Projection(second.weight.detach().flatten(1).clone())
    return first, second


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("writer", ["transposed", "by another name"])
def test_a_layer_scores_what_the_same_computation_scores_as_a_convolution(criterion, writer):
    image, stem, reader = torch.randn(2, 3, 6, 6), nn.Conv2d(3, 5, 1), nn.Conv2d(12, 4, 1)
    scores, outputs = [], []
    for layer in pair(writer):
        model = nn.Sequential(stem, nn.ReLU(), layer, nn.ReLU(), reader, nn.Flatten()).eval()
        tensors = {path: tensor.detach() for path, tensor in model.named_parameters()}
        groups = {group.units: group for group in analyse(model, image).groups}
        scores.append([CRITERIA[criterion](groups[units], Evidence(tensors, {}, {})) for units in (5, 12)])
        outputs.append(model(image))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*scores)
    assert all(bool((score > 0).all()) for score in scores[0])
