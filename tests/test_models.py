"""Models: the architectures that timm lacks are those of their papers, and are bases as timm's are."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F

import zoo
from zoo.catalog.entry import LIBRARIES
from zoo.compression.channels.analysis import analyse, exported
from zoo.compression.channels.planning import planned
from zoo.errors import RepositoryError, StructureError, UnknownName, WeightsError
from zoo.models.architectures import ARCHITECTURES
from zoo.structure.base import skeleton
from zoo.structure.sources import SOURCES
from zoo.structure.tensors import assign_, tensors_of
from zoo.training.schedule import Schedule
from zoo.verbs.loading import pretrained

PUBLISHED = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}  # parameters with option A
SMALL = zoo.Base("zoo/cifar_resnet20", {"num_classes": 7})
KINDS = [  # the others have more blocks of these, other widths or more classes
    *("cifar_resnet20", "cifar_resnet20_v2", "cifar_wideresnet16_10", "mnist_cnn", "mobilenetv1_050", "resnet50_v1"),
    *("resnet34_v2", "resnet50_v2", "resnet18_v1b_0_89", "resnet50_v1d_0_11", "shufflenet_v1", "word_cnn"),
    *(name for name in ARCHITECTURES if name.startswith(("ssd", "yolo3")) and name.endswith("voc")),
    "yolov8n",
]


def disturbed(base, seed=0):
    """A model whose batch norms do something."""
    model, generator = zoo.create(base, seed=seed), torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def images(count=4, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def convolved(state, x, conv, bn, stride=1):
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, var, scale, shift = (state[f"{bn}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def by_hand(state, x, depth):
    """The network of section 4.2, written out over a state dict."""
    x = convolved(state, x, "conv1", "bn1").relu()
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range((depth - 2) // 6):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = convolved(state, x, f"{at}.conv1", f"{at}.bn1", stride).relu()
            y = convolved(state, y, f"{at}.conv2", f"{at}.bn2")
            if f"{at}.shortcut.0.weight" in state:
                x = convolved(state, x, f"{at}.shortcut.0", f"{at}.shortcut.1", 2)
            elif stride == 2:
                shortcut = torch.zeros_like(y)
                shortcut[:, width // 4 : 3 * width // 4] = x[:, :, ::2, ::2]
                x = shortcut
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize("depth", PUBLISHED)
def test_a_cifar_resnet_has_the_published_number_of_parameters(depth):
    assert zoo.measure(zoo.create(f"zoo/cifar_resnet{depth}")).params == PUBLISHED[depth]


def test_projections_add_their_own_parameters_and_macs():
    padded, projected = (
        zoo.measure(zoo.create(zoo.Base("zoo/cifar_resnet20", {"shortcut": shortcut}))) for shortcut in "AB"
    )
    assert (
        padded.macs
        == 9 * (3 * 16 * 32**2 + 6 * 16**2 * 32**2 + (16 + 5 * 32) * 32 * 16**2 + (32 + 5 * 64) * 64 * 8**2) + 640
    )
    assert projected.params - padded.params == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert projected.macs - padded.macs == 16 * 32 * 16**2 + 32 * 64 * 8**2


@pytest.mark.parametrize(("depth", "shortcut"), [(20, "A"), (20, "B"), (56, "A")])
@pytest.mark.parametrize("side", [32, 27])
def test_a_forward_pass_is_that_of_the_paper(depth, shortcut, side):
    model, x = (
        disturbed(zoo.Base(f"zoo/cifar_resnet{depth}", {"shortcut": shortcut})).double(),
        images(2, side).double(),
    )
    with torch.no_grad():
        expected = by_hand(model.state_dict(), x, depth)
        assert torch.allclose(model(x), expected, rtol=1e-9)


def test_the_state_is_that_of_the_published_weights():
    keys = set(zoo.create("zoo/cifar_resnet20").state_dict())
    layers = {f"layer{stage}.{block}." for stage in (1, 2, 3) for block in range(3)}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{at}conv{i}.weight" for at in layers for i in (1, 2)} | {
        "conv1.weight",
        "linear.weight",
        "linear.bias",
    }
    expected |= {f"{at}bn{i}.{key}" for at in layers for i in (1, 2) for key in norm} | {f"bn1.{key}" for key in norm}
    assert keys == expected


@pytest.mark.parametrize("name", KINDS)
def test_on_the_meta_device_a_model_has_its_shapes_and_no_values(name):
    found, expected = skeleton(zoo.Base(f"zoo/{name}")), ARCHITECTURES[name]()
    tensors = [dict([*each.named_parameters(), *each.named_buffers()]) for each in (found, expected)]
    assert {tensor.device.type for tensor in tensors[0].values()} == {"meta"}
    assert {key: value.shape for key, value in tensors[0].items()} == {key: v.shape for key, v in tensors[1].items()}


def test_a_model_says_of_itself_what_timms_do():
    model, x = disturbed(SMALL).eval(), images()
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (4, model.num_features, 8, 8)
        assert model.forward_head(features, pre_logits=True).shape == (4, model.head_hidden_size)
        assert torch.equal(model.forward_head(features), model(x))
        assert torch.equal(model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)[1], features)
    assert model.get_classifier() is model.get_submodule(model.pretrained_cfg["classifier"])
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    model.reset_classifier(3)
    assert model(x).shape == (4, 3)
    model.reset_classifier(0)
    assert model(x).shape == (4, 64)


def test_images_are_normalised_by_imagenets_mean_and_std():
    pixels = zoo.transform(zoo.create("zoo/cifar_resnet20"))(Image.new("RGB", (32, 32), (255, 0, 0)))
    assert pixels.shape == (3, 32, 32)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert torch.allclose(pixels[:, 5, 7], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        ("zoo/cifar_resnet21", UnknownName, r"no architecture 'cifar_resnet21'; .* list them with zoo\.models\.arch"),
        ("zoo/cifar_resnet20.c10", UnknownName, "has no weights 'c10' of it; known are none"),
        (zoo.Base("zoo/cifar_resnet20", {"shortcut": "C"}), StructureError, "shortcut is 'C', expected A or B$"),
        (zoo.Base("zoo/cifar_resnet20", {"depth": 56}), StructureError, "can't be built with {'depth': 56}"),
        ("zoo/../cifar_resnet20", StructureError, "known, expected timm/<architecture> or torchvision/<arch"),
    ],
    ids=str,
)
def test_what_isnt_there_is_refused_by_name(base, kind, message):
    with pytest.raises(kind, match=message) as caught:
        zoo.create(base)
    assert "\n" not in str(caught.value)


def test_it_has_no_weights_to_be_loaded_and_says_where_yours_go():
    message = r"^zoo/cifar_resnet20 has no weights of its own: put yours into zoo\.create\('zoo/cifar_resnet20'\) and "
    with pytest.raises(RepositoryError, match=message):
        zoo.load("zoo/cifar_resnet20")
    message = r"zoo\.create\(zoo\.Base\('zoo/cifar_resnet20', {'shortcut': 'B'}\)\) and zoo\.save that, which zoo\.com"
    with pytest.raises(RepositoryError, match=message):
        pretrained(zoo.Base("zoo/cifar_resnet20", {"shortcut": "B"}))


def test_weights_of_another_depth_are_refused(tmp_path):
    model = disturbed("zoo/cifar_resnet20")
    with pytest.raises(WeightsError, match=r"layer1\.3"):
        zoo.save(model, tmp_path / "mine", base="zoo/cifar_resnet32")


def test_a_model_of_the_room_alone_is_saved_as_what_it_is(tmp_path):
    model = ARCHITECTURES["cifar_resnet20"](num_classes=7).eval()
    again = zoo.load(zoo.save(model, tmp_path / "mine"))
    assert again.zoo_entry.base == SMALL
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


def test_streams_go_through_the_zeros_and_every_channel_can_be_cut():
    model = disturbed(SMALL)
    analysis = analyse(exported(model, images()), model)
    streams = {group.name: group.units for group in analysis.groups if group.residual}
    assert list(streams.values()) == [16, 8, 8, 16, 16]  # of the first stage; the zeros before and after it, and again
    assert [group.units for group in analysis.groups if not group.residual] == [16] * 3 + [32] * 3 + [64] * 3
    assert analysis.frozen == {"linear": "an output of the model"}


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_model_is_the_dense_one_whose_norms_are_zero_in_the_channels_that_are_gone(seed):
    model, generator = disturbed(SMALL).double().eval(), torch.Generator().manual_seed(seed)
    analysis = analyse(exported(model, images().double()), model)
    units = []
    for group in analysis.groups:
        count = int(torch.randint(1, group.units + 1, (), generator=generator))
        units.append(torch.randperm(group.units, generator=generator)[:count].sort().values)
    tensors = analysis.kept(units).select(tensors_of(model))
    smaller = assign_(planned(model, analysis, units), tensors, "smaller")
    for group, kept in zip(analysis.groups, units, strict=True):
        gone = torch.ones(group.units, dtype=torch.bool).index_fill(0, kept, False)
        for piece in group.slices:
            if piece.tensor.rpartition(".")[0].endswith(("bn1", "bn2")) and "running" not in piece.tensor:
                model.get_parameter(piece.tensor).data[piece.index[gone].flatten()] = 0
    with torch.no_grad():
        assert torch.allclose(smaller(images().double()), model(images().double()), rtol=1e-10)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


def test_one_with_projections_is_saved_and_loaded_as_it_is(tmp_path):
    base = zoo.Base("zoo/cifar_resnet20", {"shortcut": "B"})
    model = disturbed(base)
    again = zoo.load(zoo.save(model, tmp_path / "projected"))
    assert again.zoo_entry.base == base
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


METHODS = {
    "prune": {"budget": 0.5, "criterion": "l2", "ridge": 1.0},
    "low_rank": {"budget": 0.5},
    "falor": {"nsr_final_threshold": 0.9, "kl_final_threshold": 9.0, "data_steps": 1, "metric_steps": 1},
}


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """By each method: the model, its repository, and what that gives in a process where nothing else was done."""
    folder, models = tmp_path_factory.mktemp("compressed"), {}
    for method, options in METHODS.items():
        models[method] = zoo.compress(disturbed(SMALL), method=method, data=[images(32)], **options)
        zoo.save(models[method], folder / method)
    code = (
        "import json, sys, torch, zoo; x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1));"
        "print(json.dumps([zoo.load(folder)(x).double().tolist() for folder in sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, *(folder / method for method in models)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {method: (model, folder / method, y) for (method, model), y in zip(models.items(), found, strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_compressed_saved_and_loaded_bit_equal_in_a_fresh_process(method, compressed):
    smaller, folder, found = compressed[method]
    assert zoo.measure(smaller).macs < zoo.measure(zoo.create(SMALL)).macs
    assert smaller.zoo_entry.base == SMALL
    assert smaller.zoo_entry.graph is None
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.endswith("zeros")]  # noqa: SIM118
    with torch.no_grad():
        assert smaller(images()).double().tolist() == found
    assert "Deep Residual Learning" in (folder / "README.md").read_text()
    assert zoo.verify(folder).passed


def test_it_is_trained_by_labels_and_adapted_as_timms_models_are(tmp_path):
    model, before = zoo.create("zoo/cifar_resnet20"), zoo.create("zoo/cifar_resnet20")
    zoo.distil(model, [], "digits[:64]", schedule=Schedule(epochs=1, batch_size=32))
    folder = zoo.save(model, tmp_path / "trained")
    assert not torch.equal(zoo.load(folder).conv1.weight, before.conv1.weight)
    grey = zoo.load(folder, in_chans=1, num_classes=3)
    assert grey(images()[:, :1]).shape == (4, 3)
    maps = zoo.load(folder, features_only=True)
    assert [each.shape[1:] for each in maps(images())] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert maps.feature_info.channels() == [16, 32, 64]
    assert maps.feature_info.reduction() == [1, 2, 4]


def test_every_source_of_bases_is_known_to_the_catalog():
    assert SOURCES.keys() <= set(LIBRARIES)
