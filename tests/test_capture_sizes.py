"""Where a graph takes images of one size alone, that is said and nothing else."""

import torch
from torch import nn
from torch.nn import functional as F

from zoo.structure.graph.capture import capture


class Places(nn.Module):
    """Patches with a position each, and those of another number by interpolation."""

    def __init__(self):
        super().__init__()
        self.stem, self.places, self.head = (
            nn.Conv2d(3, 8, 8, 8),
            nn.Parameter(torch.randn(1, 8, 4, 4)),
            nn.Linear(8, 4),
        )

    def forward(self, x):
        x = self.stem(x)
        places = self.places if x.shape[2:] == (4, 4) else F.interpolate(self.places, x.shape[2:])
        return self.head((x + places).relu().mean((2, 3)))


def test_where_a_graph_takes_images_of_one_size_alone_that_is_all_that_is_said(caplog, capfd):
    capture(Places().eval(), torch.randn(2, 3, 32, 32))
    said = [each.getMessage() for each in caplog.records if each.name.startswith("zoo")]
    assert said == ["Places: its graph takes images of 32 x 32 alone"]
    assert capfd.readouterr() == ("", "")
