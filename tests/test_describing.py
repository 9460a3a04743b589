"""Models as people have them: what wraps them is taken off, what they are is read off, what is in the way is named.

Each message's advice is followed here, and must work.
"""

import logging
import re

import pytest
import timm
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import zoo
from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.structure.describing import described

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def net(name="test_resnet", seed=0, **arguments):
    torch.manual_seed(seed)
    return timm.create_model(name, **arguments).eval()


def same(model, folder, images=IMAGES):
    with torch.no_grad():
        return torch.equal(model(images), zoo.load(folder)(images))


# What a model has itself


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {"num_classes": 7}),
        ("test_resnet", {"in_chans": 1}),
        ("test_resnet", {"num_classes": 7, "in_chans": 4}),
        ("test_vit", {"img_size": 64}),
        ("test_vit", {"img_size": (64, 32), "num_classes": 0}),
        ("vit_tiny_patch16_224.augreg_in21k", {"img_size": 64}),  # 21,843 classes
        ("tiny_vit_5m_224.dist_in22k_ft_in1k", {}),  # 1,000 classes, where the architecture has 21,841
    ],
    ids=str,
)
def test_classes_channels_and_size_are_the_models_own(name, arguments, tmp_path):
    model = net(name, **arguments)
    size = arguments.get("img_size", 64 if "resnet" in name else 224)
    sides = (size, size) if isinstance(size, int) else size
    images = torch.randn(1, arguments.get("in_chans", 3), *sides)
    zoo.save(model, tmp_path / "model")
    assert same(model, tmp_path / "model", images)
    loaded = zoo.load(tmp_path / "model")
    assert loaded.num_classes == model.num_classes == loaded.pretrained_cfg["num_classes"]
    channels = arguments.get("in_chans", 3)
    assert channels == loaded.pretrained_cfg["input_size"][0] == len(loaded.pretrained_cfg["mean"])
    if "img_size" in arguments:
        assert [*sides] == [*loaded.pretrained_cfg["input_size"][1:]]


def test_a_model_whose_weights_had_classes_of_their_own_is_saved_as_it_is(tmp_path):
    """As `timm.create_model("hf-hub:someone/flowers")` leaves it: the cfg says 12 classes, the architecture 1000."""
    cfg = {**timm.get_pretrained_cfg("test_resnet").to_dict(), "num_classes": 12, "tag": "flowers"}
    model = net(pretrained_cfg=cfg)
    assert model.num_classes == 12
    assert described(model)[1].base == Base("timm/test_resnet", {"num_classes": 12})
    zoo.save(model, tmp_path / "model")
    assert same(model, tmp_path / "model")


def test_a_linear_head_that_was_put_in_by_hand_is_one_of_so_many_classes(tmp_path):
    model = net()
    model.fc = nn.Linear(model.num_features, 5)
    zoo.save(model, tmp_path / "model")
    assert same(model, tmp_path / "model")
    assert zoo.load(tmp_path / "model").num_classes == 5 == zoo.load(tmp_path / "model").pretrained_cfg["num_classes"]


# What wraps it


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "ModelEmaV2": ModelEmaV2,
    "ModelEmaV3": ModelEmaV3,
    "OptimizedModule": torch.compile,
    "two": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_wraps_a_model_is_taken_off_and_said(name, tmp_path, caplog):
    model = net()
    caplog.set_level(logging.INFO, "zoo")
    zoo.save(WRAPPERS[name](model).eval(), tmp_path / "model")
    assert same(model, tmp_path / "model")
    assert "wraps the model: taking what it holds" in caplog.text


def test_what_ddp_wraps_is_taken_off(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = net()
        zoo.save(nn.parallel.DistributedDataParallel(model), tmp_path / "model")
    finally:
        torch.distributed.destroy_process_group()
    assert same(model, tmp_path / "model")


def test_a_wrapped_model_is_compressed():
    smaller = zoo.compress(nn.DataParallel(net(num_classes=4)), budget=0.6, data=[torch.randn(2, 3, 160, 160)])
    assert smaller.zoo_entry.base.args == {"num_classes": 4}


# What no source builds: the cause, what is said, and where advice is given it is followed


def own_head(m, linear):
    m.reset_classifier(linear.out_features)
    m.get_classifier().load_state_dict(linear.state_dict())
    return m


def sequential():
    return nn.Sequential(net(num_classes=0), nn.Linear(net().num_features, 5)).eval()


def head_of_two(model):
    model.fc = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.num_features, 5)).eval()
    return model


def parametrized(model):
    parametrizations.weight_norm(model.fc)
    return model


def weight_normed(model):
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model.fc)
    return model


def pruned(model):
    prune.l1_unstructured(model.fc, "weight", 0.5)
    return model


def replaced(model):
    model.layer1[0].conv1 = nn.Sequential(model.layer1[0].conv1)
    return model


def put_back(model):
    model.layer1[0].conv1 = model.layer1[0].conv1[0]
    return model


CAUSES = {
    "a Sequential": (sequential, "Sequential becomes a graph, which needs no code of its own", None),
    "a head of several layers": (
        lambda: head_of_two(net()),
        "the model isn't what timm builds as test_resnet: fc is 'Sequential', timm's is 'Linear weight=1000x",
        lambda model: own_head(model, model.fc[1]),
    ),
    "features only": (lambda: net(features_only=True), "FeatureListNet becomes a graph", None),
    "another module": (
        lambda: replaced(net()),
        "the model isn't what timm builds as test_resnet: layer1.0.conv1 is 'Sequential', timm's is 'Conv2d weight=",
        put_back,
    ),
    "another activation": (
        lambda: changed(lambda model: setattr(model, "act1", nn.GELU())),
        "gives something else than what is rebuilt of it (by ",
        None,
    ),
    "another attribute": (
        lambda: changed(lambda model: setattr(model.bn1, "eps", 0.5)),
        "bn1.eps is 0.5, timm's is 1e-05",
        None,
    ),
    "another forward": (
        lambda: changed(lambda model: setattr(model, "forward", lambda x: model.forward_features(x).mean((2, 3)))),
        "the model has another forward",
        None,
    ),
}


def changed(change):
    model = net()
    change(model)
    return model


@pytest.mark.parametrize("name", CAUSES)
def test_what_no_source_builds_becomes_a_graph_and_the_reason_is_said(name, tmp_path, caplog):
    make, message, follow = CAUSES[name]
    model = make()
    caplog.set_level(logging.INFO, "zoo")
    zoo.save(model, tmp_path / "model", example=(3, 160, 160))
    assert message in caplog.text
    loaded = zoo.load(tmp_path / "model")
    assert loaded.zoo_entry.graph is not None
    with torch.no_grad():
        before, after = model(IMAGES), loaded(IMAGES)
    torch.testing.assert_close(before, list(after) if isinstance(before, list) else after, rtol=1e-6, atol=1e-6)
    if follow is not None:
        zoo.save(model := follow(model), tmp_path / "model")
        assert same(model, tmp_path / "model")
        assert zoo.load(tmp_path / "model").zoo_entry.graph is None


@pytest.mark.parametrize("compute", [parametrized, weight_normed, pruned])
def test_what_is_computed_from_other_tensors_is_folded_and_said(compute, tmp_path, caplog):
    model = compute(net())
    held = set(model.state_dict())
    caplog.set_level(logging.INFO, "zoo")
    zoo.save(model, tmp_path / "model")
    assert "1 tensors computed from others are folded, such as fc.weight" in caplog.text
    assert same(model, tmp_path / "model")
    assert zoo.load(tmp_path / "model").zoo_entry.graph is None
    assert set(model.state_dict()) == held


def test_the_arguments_that_timm_remembers_are_said_and_work(tmp_path, caplog):
    model = net("resnet10t", stem_width=16)
    zoo.save(model, tmp_path / "model")
    assert "as resnet10t: conv1.0 is 'Conv2d weight=12x3x3x3', timm's is " in caplog.text
    if hasattr(model, "_model_args"):  # newer than 1.0.24
        said = re.search(r"pass base=(Base\(.*\)) to zoo\.save", caplog.text)[1]
        assert said == f"Base('timm/resnet10t.{model.pretrained_cfg['tag']}', {{'stem_width': 16}})"
    zoo.save(model, tmp_path / "model", base=Base("timm/resnet10t", {"stem_width": 16}))
    assert same(model, tmp_path / "model")


def test_a_loaded_model_with_a_head_by_hand_is_told_the_way_to_one_that_is_known(tmp_path, caplog):
    zoo.save(net(), tmp_path / "model")
    model = zoo.load(tmp_path / "model")
    linear = model.fc = nn.Linear(model.num_features, 5)
    zoo.save(model, tmp_path / "again")
    assert re.search(r"fc.weight is \(5, \d+\), the plan.*, num_classes=CLASSES\)", caplog.text)
    assert zoo.load(tmp_path / "again").zoo_entry.graph is not None
    known = zoo.load(tmp_path / "model", num_classes=5)
    known.fc.load_state_dict(linear.state_dict())
    zoo.save(known, tmp_path / "again")
    assert same(model, tmp_path / "again")


# Logits and features


class Embeds(nn.Module):
    """Vectors [B, 6], by whatever follows the convolution."""

    def __init__(self, *tail, num_classes=None):
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 6, 3), nn.Sequential(*tail)
        if num_classes is not None:
            self.num_classes = num_classes

    def forward(self, x):
        return self.tail(self.conv(x).relu().mean((2, 3)))


class Unit(nn.Module):
    def forward(self, x):
        return nn.functional.normalize(x)


GIVES = {
    "a linear layer": (lambda: Embeds(nn.Linear(6, 6)), True),
    "a linear layer and its softmax": (lambda: Embeds(nn.Linear(6, 6), nn.Dropout(), nn.LogSoftmax(1)), True),
    "a pooled activation": (Embeds, False),
    "a pooled activation that is told to be logits": (lambda: Embeds(num_classes=6), True),
    "a norm": (lambda: Embeds(nn.LayerNorm(6)), False),
    "a vector of length one": (lambda: Embeds(nn.Linear(6, 6), Unit()), False),
    "a linear layer that is told to be none of classes": (lambda: Embeds(nn.Linear(6, 6), num_classes=0), False),
    "timm's network": (net, True),
    "timm's network without a head": (lambda: net(num_classes=0), False),
    "timm's network whose head was taken off": (lambda: headless(net()), False),
}


def headless(model):
    model.fc = nn.Identity()
    return model


@pytest.mark.parametrize("name", GIVES)
def test_vectors_that_no_classifier_gives_are_features(name, tmp_path):
    make, logits = GIVES[name]
    model = make().eval()
    zoo.save(model, tmp_path / "model", input=(3, 64, 64), mean=0.5, std=0.5)
    loaded = zoo.load(tmp_path / "model")

    assert same(model, tmp_path / "model")
    assert loaded.zoo_entry.task == ("image-classification" if logits else "image-feature-extraction")
    assert loaded.num_classes == (model(IMAGES).shape[1] if logits else 0)


def test_a_head_that_is_taken_off_or_put_on_says_what_a_model_gives(tmp_path):
    zoo.save(net(), tmp_path / "model")
    off, on, maps = (zoo.load(tmp_path / "model", **how) for how in ({"num_classes": 0}, {}, {"features_only": True}))
    zoo.save(off, tmp_path / "off")
    again = zoo.load(tmp_path / "off", num_classes=3)

    tasks = [each.zoo_entry.task.removeprefix("image-") for each in (off, on, maps, again)]
    assert tasks == ["feature-extraction", "classification", "feature-extraction", "classification"]


def test_of_a_graph_there_are_no_features_and_why_is_said(tmp_path):
    zoo.save(Embeds(nn.Linear(6, 6)).eval(), tmp_path / "model", input=(3, 64, 64), mean=0.5, std=0.5)
    with pytest.raises(StructureError, match=r"features_only: embeds is a graph, which .* has no stages"):
        zoo.load(tmp_path / "model", features_only=True)
