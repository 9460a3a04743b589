"""torchvision's classifiers are bases like timm's: built by id, with the weights that torchvision publishes."""

import hashlib
import re
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import zoo
from zoo.catalog.entry import Base
from zoo.errors import HubError, RepositoryError, StructureError, UnknownName, WeightsError
from zoo.hub import torchvision_weights
from zoo.structure.base import skeleton
from zoo.structure.torchvision_models import names, weights
from zoo.verbs.coverage import coverage

# A tag of each family: other sizes, channels of preprocessing, names, heads and ways of being built.
TAGS = [
    "alexnet.IMAGENET1K_V1",
    "convnext_tiny.IMAGENET1K_V1",
    "densenet121.IMAGENET1K_V1",
    "efficientnet_b1.IMAGENET1K_V2",
    "efficientnet_v2_s.IMAGENET1K_V1",
    "googlenet.IMAGENET1K_V1",
    "maxvit_t.IMAGENET1K_V1",
    "mnasnet0_75.IMAGENET1K_V1",
    "mobilenet_v3_small.IMAGENET1K_V1",
    "regnet_x_400mf.IMAGENET1K_V2",
    "resnet18.IMAGENET1K_V1",
    "shufflenet_v2_x0_5.IMAGENET1K_V1",
    "squeezenet1_1.IMAGENET1K_V1",
    "swin_v2_t.IMAGENET1K_V1",
    "vgg11.IMAGENET1K_V1",
    "vit_b_16.IMAGENET1K_SWAG_E2E_V1",
]


def said(name):
    architecture, _, tag = name.partition(".")
    return weights(architecture)[tag]


@pytest.mark.parametrize("name", TAGS)
def test_params_and_macs_are_those_that_torchvision_states(name):
    counts = zoo.measure(skeleton(Base(f"torchvision/{name}")))
    assert counts.params == said(name).meta["num_params"]
    assert counts.macs == pytest.approx(said(name).meta["_ops"] * 1e9, rel=0.02)


@pytest.mark.parametrize("name", TAGS)
def test_an_image_becomes_the_tensor_that_torchvision_makes_of_it(name):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((517, 600))
    model = skeleton(Base(f"torchvision/{name}"))
    assert torch.equal(zoo.transform(model)(image), said(name).transforms()(image))
    assert list(model.pretrained_cfg["label_names"]) == said(name).meta["categories"]


def test_the_licence_is_that_of_the_weights_and_none_where_there_are_none():
    licences = {
        tag: skeleton(Base(f"torchvision/vit_b_16.{tag}")).pretrained_cfg["license"] for tag in weights("vit_b_16")
    }
    assert licences == {
        "IMAGENET1K_V1": "bsd-3-clause",
        "IMAGENET1K_SWAG_E2E_V1": "cc-by-nc-4.0",
        "IMAGENET1K_SWAG_LINEAR_V1": "cc-by-nc-4.0",
    }
    assert not {"license", "tag", "label_names"} & skeleton(Base("torchvision/vit_b_16")).pretrained_cfg.keys()


def test_every_classifier_has_a_row_and_weights():
    assert len(names()) >= 80
    assert all(weights(name) for name in names())


@pytest.mark.parametrize(
    ("id", "kind", "message"),
    [
        (
            "torchvision/resnet19",
            UnknownName,
            "has no architecture 'resnet19'; pip install -U torchvision, or",
        ),
        ("torchvision/resnet18.V9", UnknownName, "has no weights 'V9' of it; known are IMAGENET1K_V1"),
        ("torchvision/deeplabv3_resnet50", UnknownName, "has no architecture 'deeplabv3_resnet50'"),
    ],
)
def test_what_torchvision_has_not_is_said(id, kind, message):
    with pytest.raises(kind, match=message):
        zoo.create(id)


@pytest.mark.parametrize(
    "args", [{"weights": "DEFAULT"}, {"progress": True}, {"nonsense": 1}, {"norm_layer": "x"}], ids=str
)
def test_arguments_that_are_no_part_of_an_architecture_are_refused_in_a_line(args):
    with pytest.raises(StructureError, match="base torchvision/resnet18"):
        zoo.create(Base("torchvision/resnet18", args))


# Weights


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Puts a state dict where torch.hub keeps files, under a name of torchvision's whose hash is the file's own."""

    def keep(name, values, legacy=False):
        base = Base(f"torchvision/{name}")
        told = said(name)
        file = tmp_path / "it"
        torch.save(values, file, _use_new_zipfile_serialization=not legacy)  # noqa: TID251  # as torchvision's are
        url = re.sub("-[0-9a-f]+[.]", f"-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.", told.url)
        file.rename(tmp_path / url.rpartition("/")[2])
        monkeypatch.setattr(torchvision_weights, "weights", lambda architecture: {told.name: Told(url)})
        return base.id

    class Told:
        def __init__(self, url):
            self.url = url

    return keep


def random(name, seed=0):
    """A model of torchvision's with its weights, as it builds it itself."""
    torch.manual_seed(seed)
    architecture = name.partition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(architecture, weights=None)
    for held in (*model.parameters(), *model.buffers()):
        if held.is_floating_point() and held.ndim < 2:
            held.data.uniform_(0.5, 1.5)
    return model.eval()


OLDER = {
    "densenet121.IMAGENET1K_V1": (r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2"),
    "vit_b_32.IMAGENET1K_V1": (r"\.mlp\.(\d)\.", lambda found: f".mlp.linear_{1 + int(found[1]) // 3}."),
    "googlenet.IMAGENET1K_V1": ("$^", ""),  # its file has the heads that only training needs
    "resnet18.IMAGENET1K_V1": (".*num_batches_tracked", "left out"),
}


@pytest.mark.parametrize("name", OLDER)
def test_weights_of_files_that_are_older_than_their_modules_are_read(name, kept, tmp_path):
    model, (pattern, now) = random(name), OLDER[name]
    values = OrderedDict((re.sub(pattern, now, key), value) for key, value in model.state_dict().items())
    values.pop("left out", None)
    loaded = zoo.load(kept(name, values, legacy=True), cache_dir=tmp_path)
    if name.startswith("googlenet"):
        model.transform_input = True  # as torchvision does with these weights
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))
    assert not loaded.training
    assert loaded.zoo_entry.base == Base(f"torchvision/{name}")


def test_a_loaded_model_gets_another_head_and_other_channels_is_saved_and_loads_again(kept, tmp_path):
    name = "squeezenet1_1.IMAGENET1K_V1"
    id = kept(name, random(name).state_dict())
    plain = zoo.load(id, cache_dir=tmp_path)
    adapted = zoo.load(id, cache_dir=tmp_path, num_classes=7, in_chans=1)
    assert torch.equal(adapted.features[3].squeeze.weight, plain.features[3].squeeze.weight)
    assert torch.allclose(adapted.features[0].weight, plain.features[0].weight.sum(1, keepdim=True))
    again = zoo.load(zoo.save(adapted, tmp_path / "saved"))
    image = torch.randn(2, 1, 96, 96)
    with torch.no_grad():
        assert again(image).shape == (2, 7)
        assert torch.equal(again(image), adapted(image))
    assert again.num_classes == 7
    assert "label_names" not in again.pretrained_cfg


def test_what_is_not_there_offline_is_told_with_the_place_and_the_address(tmp_path):
    message = (
        rf"{tmp_path} has no resnet18-f37072fd.pth, and nothing is fetched \(offline\): put https://download.pytorch"
    )
    with pytest.raises(HubError, match=message):
        zoo.load("torchvision/resnet18.IMAGENET1K_V1", cache_dir=tmp_path, local_files_only=True)


def test_what_can_not_be_fetched_is_told_with_the_place_and_the_address(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_weights.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(HubError, match=r"has no resnet18-f37072fd.pth: no route to host; put https://download.pytorch"):
        zoo.load("torchvision/resnet18", cache_dir=tmp_path)


def test_a_file_that_is_not_the_one_that_its_name_says_is_refused(tmp_path):
    (tmp_path / "resnet18-f37072fd.pth").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"has sha256 .*, expected f37072fd…: remove it, or load with refresh"):
        zoo.load("torchvision/resnet18.IMAGENET1K_V1", cache_dir=tmp_path)


def test_another_networks_weights_are_refused_in_a_line(kept, tmp_path):
    id = kept("resnet18.IMAGENET1K_V1", random("resnet34").state_dict())
    with pytest.raises(WeightsError, match=r"fit the model; not the model's: layer1.2.conv1.weight .* and \d+ more"):
        zoo.load(id, cache_dir=tmp_path)


def test_a_revision_means_nothing_there(tmp_path):
    with pytest.raises(RepositoryError, match="doesn't lie on the Hub: leave revision and token out"):
        zoo.load("torchvision/resnet18.IMAGENET1K_V1", cache_dir=tmp_path, revision="main")


# Compressed


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_half_of_a_network_of_torchvision_is_cut_by_a_plan(architecture):
    found = coverage(f"torchvision/{architecture}")
    assert (found.structure, found.error) == ("plan", None)
    assert found.kept <= 0.5
    assert found.off < 1e-6


def test_a_network_of_torchvision_is_factored_saved_and_loads_again(tmp_path):
    model = zoo.create("torchvision/squeezenet1_1")
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smaller = zoo.compress(model, method="low_rank", budget=0.85, data=[images])
    assert zoo.measure(smaller).macs <= 0.85 * zoo.measure(model).macs
    loaded = zoo.load(zoo.save(smaller, tmp_path / "smaller"))
    with torch.no_grad():
        assert torch.equal(loaded(images), smaller(images))
