"""Criteria: a layer's score doesn't depend on how the layer is written, and taylor needs logits; damage curves."""

import copy

import pytest
import torch
from analysed import analysed
from torch import nn
from torch.nn import functional as F

from zoo.compression.prune.criteria import CRITERIA, Evidence, gradients
from zoo.compression.prune.damage import ranked, scaled
from zoo.compression.prune.dense import dense_of
from zoo.compression.prune.prune import Prune
from zoo.errors import DataError
from zoo.measurement.divergence import divergence


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
        groups = {group.units: group for group in analysed(model, image).groups}
        scores.append([CRITERIA[criterion](groups[units], Evidence(tensors, {}, {})) for units in (5, 12)])
        outputs.append(model(image))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*scores)
    assert all(bool((score > 0).all()) for score in scores[0])


@torch.no_grad()
def test_units_that_write_nothing_cost_nothing_where_no_reader_can_be_fitted():
    """Half of the units write zeros; a transposed convolution reads them, and norms stand behind it."""
    torch.manual_seed(0)
    writer, reader = nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 6, 3, bias=False)
    writer.weight[::2], writer.bias[::2] = 0, 0
    model = nn.Sequential(
        writer, nn.ReLU(), reader, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    images = torch.randn(48, 3, 8, 8)
    dense = dense_of(model.eval(), analysed(model, images[:2]), [images], Prune().ridge, divergence)
    (group,) = [g for g, each in enumerate(dense.analysis.groups) if "2" in each.unfitted and not each.readers]
    damage = [*ranked(dense, "obs")][group].damage
    assert damage[16] == 0
    assert max(damage[k] for k in range(8, 16)) < 1e-8
    masked, weakest = copy.deepcopy(model), writer.weight.flatten(1).square().sum(1).argsort()[:12]
    masked[2].weight[weakest] = 0
    held = torch.cat([*dense.held])
    target, found = (net(held).double().log_softmax(1) for net in (model, masked))
    assert damage[4] == pytest.approx(float((target.exp() * (target - found)).sum(1).mean()), rel=1e-4)


def test_taylor_of_a_model_that_gives_no_logits_is_refused_in_one_line_and_leaves_no_hooks():
    class Two(nn.Sequential):
        def forward(self, x):
            return [super().forward(x)] * 2

    model = Two(nn.Conv2d(3, 4, 1), nn.Flatten()).eval()
    with pytest.raises(
        DataError, match="prune: taylor needs logits, but Two gives a list: take another crit"
    ) as caught:
        gradients(model, [], [torch.randn(2, 3, 4, 4)])
    assert "\n" not in str(caught.value)


def test_damage_goes_through_the_points_measured_and_in_proportion_to_the_noise_beyond():
    found = scaled([1.0, 0.8, 0.4, 0.1, 0.0], [(0.4, 2.0), (0.1, 1.0)])
    assert found[2] == pytest.approx(2.0)
    assert found[3] == pytest.approx(1.0)
    assert found[1] == pytest.approx(4.0)
    assert found[4] == 0
