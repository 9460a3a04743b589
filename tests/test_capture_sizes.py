"""Where a graph takes images of one size alone, that is said and nothing else; statistics of an image are its own."""

import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.structure.graph import tracing
from zoo.structure.graph.capture import capture
from zoo.verbs.coverage import coverage


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


class Sums(nn.Conv2d):
    """Sums over rows, of which it reads how many there are."""

    def forward(self, x):
        return super().forward(x).mean(2) * x.shape[2]


def test_tracing_any_size_is_given_up_where_it_takes_long_and_this_size_stays(monkeypatch, caplog):
    monkeypatch.setattr(tracing, "ANY_SIZE", 0.0)
    model = Sums(3, 4, 3).eval()
    made, _ = capture(model, torch.randn(2, 3, 32, 32))
    assert "Sums: its graph takes images of 32 x 32 alone" in caplog.text
    with torch.no_grad():
        assert torch.equal(made(images := torch.randn(3, 3, 32, 32)), model(images))


def test_norms_of_each_image_alone_are_kept_and_their_channels_cut(tmp_path):
    torch.manual_seed(0)
    norms = nn.InstanceNorm2d(16, affine=True), nn.InstanceNorm2d(32)
    layers = nn.Conv2d(3, 16, 3), norms[0], nn.ReLU(), nn.Conv2d(16, 32, 3), norms[1], nn.ReLU(), nn.Conv2d(32, 2, 1)
    model, images = nn.Sequential(*layers).eval(), torch.randn(3, 3, 32, 32)
    zoo.save(model, tmp_path / "model", example=(3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(zoo.load(tmp_path / "model")(images), model(images))
    found = coverage(str(tmp_path / "model"))
    assert found.kept <= 0.5
    assert found.off <= 1e-6
    assert found.groups == 2


class Tokens(nn.Module):
    """Tokens of any number, normed as if all were of one image."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 4, 4), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        return self.head(self.norm(x.flatten(0, 1)).reshape_as(x).relu().mean(1))


def test_what_is_shaped_as_something_that_is_cut_alike_keeps_its_sizes_open(tmp_path):
    torch.manual_seed(0)
    zoo.save(Tokens().eval(), tmp_path / "model", example=(3, 32, 32))
    found = coverage(str(tmp_path / "model"))
    assert found.error is None
    assert found.kept < 0.55
    assert found.off < 1e-10
