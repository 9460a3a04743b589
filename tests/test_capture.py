"""Any module becomes a graph that computes what it computes, under its own names; or one line says why not."""

import copy
import logging

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

import zoo
from zoo.errors import StructureError
from zoo.measurement.divergence import leaves
from zoo.structure.describing import described
from zoo.structure.graph.capture import capture
from zoo.training.schedule import Schedule

SIZE = (3, 32, 32)
IMAGES = torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(1))


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU())


class Net(nn.Module):
    """A classifier of a user's own."""

    def __init__(self, classes=10, width=16):
        super().__init__()
        self.features = nn.Sequential(block(3, width), nn.MaxPool2d(2), block(width, 2 * width), block(2 * width, 32))
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle, self.up = block(3, 16), block(16, 32), nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.out(torch.cat([self.up(self.middle(F.max_pool2d(skip, 2))), skip], 1))


class Two(Net):
    def forward(self, x):
        x = self.features(x)
        return self.head(x.mean((2, 3))), x


class Named(Two):
    def forward(self, x):
        logits, maps = super().forward(x)
        return {"out": logits, "aux": None, "maps": maps}


class Siamese(Net):
    def forward(self, x):
        left, right = x[:, :, :16], x[:, :, 16:]
        return self.head((self.features(left) - self.features(right)).abs().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.stem, self.cell, self.head = nn.Conv2d(3, 8, 8, 8), kind(8, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.cell(self.stem(x).flatten(2).mT)[0][:, -1])


class Dropping(Net):
    def __init__(self):
        super().__init__()
        self.maps, self.timms, self.visions = nn.Dropout2d(0.5), DropPath(0.5), StochasticDepth(0.5, "row")

    def forward(self, x):
        x = self.features(x)
        return self.head((x + self.timms(self.maps(x)) + self.visions(x)).mean((2, 3)))


def normed():
    net = Net()
    nn.utils.parametrizations.weight_norm(net.features[0][0])
    nn.utils.parametrizations.spectral_norm(net.head)
    return net


class Tied(Net):
    """Two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(self.first(self.features(x).mean((2, 3))).relu()))


class Named1x1(Net):
    """Layers that no attribute can be called like."""

    def __init__(self):
        super().__init__()
        self.after = nn.ModuleDict({"1x1": nn.Conv2d(32, 32, 1), "down-sampled": nn.Conv2d(32, 32, 2, 2)})

    def forward(self, x):
        x = self.features(x)
        for layer in self.after.values():
            x = layer(x)
        return self.head(x.mean((2, 3)))


class Overwrites(Net):
    def forward(self, x):
        return super().forward(x.sub_(0.5).mul_(2))


class Keeps(Net):
    """Features of the last batch, with the gradients that belong to them."""

    def __init__(self):
        super().__init__()
        self(IMAGES)

    def forward(self, x):
        self.last = [self.features(x)]
        return self.head(self.last[0].mean((2, 3)))


MODULES = {
    "a classifier": Net,
    "a U-Net": UNet,
    "two outputs": Two,
    "a dictionary": Named,
    "shared weights": Siamese,
    "a GRU": lambda: Recurrent(nn.GRU),
    "an LSTM": lambda: Recurrent(nn.LSTM),
    "a plain recurrence": lambda: Recurrent(nn.RNN),
    "what drops": Dropping,
    "weight and spectral norm": normed,
    "one weight of two layers": Tied,
    "names that aren't Python's": Named1x1,
    "what writes over its images": Overwrites,
    "what keeps its features": Keeps,
    "another type": lambda: Net().double(),
}


def made(name):
    torch.manual_seed(0)
    return MODULES[name]().eval()


def assert_same(first, second):
    if isinstance(first, dict):
        assert [key for key, each in first.items() if each is not None] == list(second)
    for a, b in zip(leaves(first), leaves(second), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_what_is_saved_and_loaded_again_gives_what_the_module_gives(name, tmp_path):
    model = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    zoo.save(model, tmp_path / "model", example=SIZE)
    loaded = zoo.load(tmp_path / "model")
    images = IMAGES.to(next(model.parameters()))
    with torch.no_grad():
        for batch in (images[:1], images[:2], images):
            assert_same(model(batch.clone()), loaded(batch))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if name == "one weight of two layers":
        del before["second.weight"]
    if name != "weight and spectral norm":  # which are folded
        assert loaded.state_dict().keys() == before.keys()


@pytest.mark.parametrize("name", ["a classifier", "a U-Net", "two outputs", "a GRU"])
def test_images_of_any_size_stay_possible_where_they_were(name):
    model = made(name)
    graph_model, _ = capture(model, IMAGES)
    with torch.no_grad():
        for size in ((48, 64), (64, 40)):
            assert_same(model(images := torch.randn(2, 3, *size)), graph_model(images))


def test_while_training_branches_and_dropout_are_drawn_as_the_module_draws_them():
    model = made("what drops")
    graph_model, _ = capture(model, IMAGES)
    outputs = []
    for each in (copy.deepcopy(model).train(), graph_model.train()):
        torch.manual_seed(3)
        outputs.append(each(IMAGES))
    torch.testing.assert_close(*outputs)
    torch.manual_seed(4)
    assert not torch.allclose(graph_model(IMAGES), outputs[0])


def test_what_it_does_otherwise_while_training_is_said(caplog):
    class Auxiliary(Net):
        def forward(self, x):
            return super().forward(x) * (2 if self.training else 1)

    capture(Auxiliary().eval(), IMAGES)
    assert "Auxiliary does something else while training" in caplog.text


class Scaled(Net):
    """With constants of its own, and a dropout that is no module."""

    def __init__(self):
        super().__init__()
        self.scale = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
        self.unread = nn.BatchNorm2d(3)

    def forward(self, x):
        return F.dropout(super().forward((x - torch.tensor(0.5)) / self.scale), 0.5, self.training)


def test_constants_and_functional_dropout_and_what_nothing_reads_are_nothing_else_while_training(caplog):
    caplog.set_level(logging.INFO, "zoo")
    graph_model, _ = capture(Scaled().eval(), IMAGES)
    assert "while training" not in caplog.text
    assert "Scaled: 2 parameters that no output needs are left out, such as unread.bias" in caplog.text
    assert not torch.equal(graph_model.train()(IMAGES), graph_model(IMAGES))


def test_what_isnt_trained_stays_so():
    model = made("a classifier")
    model.features[0].requires_grad_(False)
    still = {path for path, parameter in model.named_parameters() if not parameter.requires_grad}
    graph_model, _ = capture(model, IMAGES)
    assert {path for path, parameter in graph_model.named_parameters() if not parameter.requires_grad} == still


def test_a_graph_takes_another_head_and_other_channels_and_is_saved_so(tmp_path):
    zoo.save(made("a classifier"), tmp_path / "model", example=SIZE)
    model = zoo.load(tmp_path / "model", num_classes=3, in_chans=1)
    zoo.save(model, tmp_path / "other")
    loaded = zoo.load(tmp_path / "other")
    assert loaded.zoo_entry.graph == model.zoo_entry.graph
    assert loaded.pretrained_cfg["first_conv"] == "features.0.0"
    assert loaded(IMAGES[:, :1]).shape == (5, 3)
    assert_same(model(IMAGES[:, :1]), loaded(IMAGES[:, :1]))


def test_names_of_classes_are_those_of_the_head_that_is_there(tmp_path):
    model = nn.Sequential(zoo.load("digits_cnn"), nn.Linear(10, 3)).eval()
    zoo.save(model, tmp_path / "model")
    assert "label_names" not in zoo.load(tmp_path / "model").pretrained_cfg


class Counts(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Batches(Net):
    def forward(self, x):
        return super().forward(x) * (1 if len(x) < 4 else 2)


class Branches(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Draws(Net):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Nested(Net):
    def forward(self, x):
        return super().forward(x), (x, x)


class Numbered(Net):
    def forward(self, x):
        return {0: super().forward(x)}


class Nothing(Net):
    def forward(self, x):
        return "a word"


def on_two_devices():
    net = Net()
    net.head = net.head.to("meta")
    return net


REFUSED = {
    "a state": (Counts, "Counts gives something else for the same images at the second call: it keeps a state"),
    "the batch's size": (Batches, "Batches: its graph gives something else for 5 images .*on the batch's size"),
    "the images' values": (Branches, "Branches can't be exported: .*data-dependent"),
    "chance": (Draws, "Draws: .*aten.rand_like: an operation that a graph doesn't know"),
    "nested outputs": (Nested, "Nested: the model returns a tuple within its outputs, expected tensors"),
    "keys that are no words": (Numbered, "Numbered: the model returns a dictionary with the key 0, expected words"),
    "no tensor": (Nothing, "Nothing returns no tensor"),
    "no parameters": (nn.ReLU, "ReLU has no parameters: there is nothing to store or to compress"),
    "no values": (on_two_devices, "Net has no values: head.(weight|bias) is on the meta device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_graph_can_do_is_one_line(name, tmp_path, capfd):
    make, message = REFUSED[name]
    for act in (
        lambda: zoo.save(make().eval(), tmp_path / "model", example=SIZE),
        lambda: zoo.compress(make().eval(), budget=0.5, data=[IMAGES], example=SIZE),
    ):
        with pytest.raises(StructureError, match=message) as error:
            act()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()
    assert capfd.readouterr() == ("", "")


def test_examples_that_are_no_images_are_one_line():
    for example, message in (
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"the example is torch\.uint8, expected floats"),
        ((3, 32), r"the example is \[1, 3, 32\], expected images \[B, C, H, W\]"),
        ((3, 8, 32, 32), r"expected images \[B, C, H, W\]"),
        ("32", "isn't the size of an image"),
        ((3, -1, 32), "isn't the size of an image"),
        (None, r"or say example=\(CHANNELS, HEIGHT, WIDTH\), and it becomes a graph"),
    ):
        with pytest.raises(StructureError, match=message):
            described(Net().eval(), example=example)


def test_what_wraps_a_timm_model_sees_its_images_as_that_did():
    inner = zoo.create("timm/test_resnet")
    _, description = described(nn.Sequential(inner, nn.Linear(1000, 3)).eval())
    model, _ = described(nn.Sequential(inner, nn.Linear(1000, 3)).eval())
    assert description.graph is not None
    assert {key: model.pretrained_cfg[key] for key in ("mean", "std", "input_size")} == {
        key: inner.pretrained_cfg[key] for key in ("mean", "std", "input_size")
    }
    assert model.num_classes == 3


def test_methods_compose_on_a_graph_and_what_is_saved_is_what_was_made(tmp_path, caplog):
    caplog.set_level(logging.INFO, "zoo")
    model, data = made("a classifier"), [torch.randn(32, *SIZE) for _ in range(2)]
    half = zoo.compress(model, budget=0.5, data=data, example=SIZE)
    factored = zoo.compress(half, method="low_rank", budget=0.8, data=data)
    again = zoo.compress(factored, budget=0.8, data=data)
    macs = [zoo.measure(each).macs for each in (half, factored, again)]
    assert macs[0] <= 0.5 * zoo.measure(model, SIZE).macs
    assert macs[1] <= 0.8 * macs[0]
    assert macs[2] <= 0.8 * macs[1]
    assert [type(edit).__name__ for edit in factored.zoo_entry.plan.edits] == ["Factor"]
    for each in (half, factored, again):
        zoo.save(each, tmp_path / each.zoo_entry.name)
        loaded = zoo.load(tmp_path / each.zoo_entry.name)
        assert_same(each(IMAGES), loaded(IMAGES))
        assert copy.deepcopy(loaded).zoo_entry.name == each.zoo_entry.name


def test_a_network_of_maps_is_pruned_and_distilled_by_its_outputs_alone():
    model, data = made("a U-Net"), [torch.randn(32, *SIZE) for _ in range(2)]
    with torch.no_grad():
        for _ in range(30):  # statistics of its norms, as a trained one has
            model.train()(data[0])
    half = zoo.compress(model.eval(), budget=0.4, data=data, example=SIZE)
    assert half.zoo_entry.task == "image-feature-extraction"
    assert zoo.measure(half).macs <= 0.4 * zoo.measure(model, SIZE).macs
    dense, _ = described(model, example=SIZE)
    with torch.no_grad():
        off = float((half(data[0]) - dense(data[0])).square().mean())
    zoo.distil(half, [dense], [(batch, torch.zeros(32)) for batch in data], schedule=Schedule(epochs=8, lr=1e-3))
    with torch.no_grad():
        assert float((half(data[0]) - dense(data[0])).square().mean()) < off
