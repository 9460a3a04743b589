"""Saved and loaded again, a model computes the same; `load`, `create` and what they accept."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import zoo
from zoo import catalog
from zoo.catalog.entry import Base
from zoo.errors import FingerprintError, RepositoryError, StructureError, UnknownName
from zoo.structure.base import initialised
from zoo.structure.description import Description
from zoo.structure.plan import Drop, Factor, Heads, Narrow, Plan, Rank, Swap, Width, apply_

SAVED = sorted((Path(__file__).parent / "data" / "repositories").iterdir())
CNN = Base("timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "num_classes": 5})
VIT = Base("timm/vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3})
BEIT = Base(
    "timm/beit_base_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
)
SWIN = Base(
    "timm/swin_tiny_patch4_window7_224",
    {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "num_classes": 5},
)
LAST = ("layer4.0.conv2", "layer4.0.bn2", "layer4.0.downsample.0", "layer4.0.downsample.1")
PRUNED = Plan(
    (
        Narrow({**dict.fromkeys(LAST, Width(10)), "fc": Width(inputs=10)}),
        Narrow({"layer2.0.conv1": Width(3), "layer2.0.bn1": Width(3), "layer2.0.conv2": Width(inputs=3)}),
        Factor({"layer3.0.conv2": Rank(6), "fc": Rank(4, "last")}),
    )
)
FEWER_HEADS = Plan((Narrow(heads={"blocks.0.attn": Heads(2, 8), "blocks.1.attn": Heads(3, 5)}),))
SWAPPED = Plan((Swap({"blocks.0.attn": "BeitAttention"}), Narrow(heads={"blocks.0.attn": Heads(1, 8)})))
MODELS = {
    "resnet": (CNN, 32, Plan()),
    "vit": (VIT, 16, Plan()),
    "beit": (BEIT, 16, Plan()),
    "swin": (SWIN, 32, Plan()),
    "pruned_and_factored_resnet": (CNN, 32, PRUNED),
    "vit with fewer heads": (VIT, 16, FEWER_HEADS),
    "beit with fewer heads": (BEIT, 16, SWAPPED),
    "resnet without a block": (CNN, 32, Plan((Drop({"layer1.0.conv2": "zero", "layer1.0.act2": "identity"}),))),
}


@pytest.fixture
def made(disturb):
    """A model of the table above."""

    def make(name):
        base, size, plan = MODELS[name]
        model = apply_(disturb(base, size), plan)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # factors too are drawn anew
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
        model.zoo_entry = Description(name.replace(" ", "_"), base, plan)
        return model.eval()

    return make


@pytest.fixture
def pruned(made, tmp_path):
    """A repository whose last stage and classifier are narrower than the base's."""
    return zoo.save(made("pruned_and_factored_resnet"), tmp_path / "pruned")


def images(size, batch=2, channels=3, seed=0):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_loads_bit_equal_at_any_number_of_threads_and_images(name, made, tmp_path):
    model = made(name)
    loaded = zoo.load(zoo.save(model, tmp_path / "it"))
    with torch.inference_mode():
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for batch in (1, 2, 8):
                x = images(MODELS[name][1], batch)
                assert torch.equal(model(x), loaded(x)), (threads, batch)


@pytest.mark.parametrize("name", ["beit", "swin"])
def test_buffers_that_timm_does_not_save_come_back_as_they_were(name, made, tmp_path):
    model = made(name)
    unsaved = {key for key, _ in model.named_buffers()} - model.state_dict().keys()
    assert unsaved
    loaded = dict(zoo.load(zoo.save(model, tmp_path / "it")).named_buffers())
    for key in unsaved:
        assert torch.equal(dict(model.named_buffers())[key], loaded[key]), key


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
def test_a_repository_saved_under_another_timm_computes_what_it_did_then(folder):
    expected = load_file(folder / "expected.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(zoo.load(folder)(expected["input"]), expected["output"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("folder", SAVED, ids=lambda folder: folder.name)
def test_a_loaded_model_saved_again_holds_the_same_bytes(folder, tmp_path):
    again = zoo.save(zoo.load(folder), tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_a_repository_saved_when_tags_meant_the_default_number_of_classes_loads_and_is_saved_again(tmp_path):
    model = initialised(VIT).eval()  # 1000 classes, as the architecture's default has
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 16, 16)}
    model.zoo_entry = Description("old", VIT)
    folder = zoo.save(model, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["base"]["id"] = tagged = "timm/vit_tiny_patch16_224.augreg_in21k"  # 21,843 classes
    (folder / "config.json").write_text(json.dumps(config))
    loaded = zoo.load(folder)
    again = zoo.load(zoo.save(loaded, tmp_path / "again"))
    assert (tagged, 1000) == (again.zoo_entry.base.id, again.num_classes)
    assert torch.equal(model(images(16)), again(images(16)))


def test_there_are_saved_repositories_of_two_versions_of_timm():
    assert len(SAVED) >= 4
    assert len({folder.name.partition("_timm_")[2] for folder in SAVED}) >= 2


def test_a_loaded_model_evaluates_and_can_be_trained(pruned):
    model = zoo.load(pruned)
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(images(32, 8)), torch.arange(8) % 5).backward()
    optimizer.step()
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters())
    for name, value in zoo.load(pruned).state_dict().items():
        assert torch.equal(before[name], value), f"{name}: the file has changed"


def test_a_loaded_model_says_what_it_is(pruned):
    model = zoo.load(pruned)
    assert model.zoo_entry == Description("pruned_and_factored_resnet", CNN, PRUNED, source=str(pruned))


def test_timm_and_transform_find_the_preprocessing_on_a_loaded_model(pruned):
    model = zoo.load(pruned)
    config = timm.data.resolve_model_data_config(model)
    assert [*config["input_size"]] == [3, 32, 32]
    photo = Image.fromarray(np.full((50, 70, 3), 128, np.uint8))
    x = zoo.transform(model)(photo)
    assert x.shape == (3, 32, 32)
    expected = (128 / 255 - torch.tensor(config["mean"])) / torch.tensor(config["std"])
    torch.testing.assert_close(x.mean((1, 2)), expected)


def test_transform_refuses_a_model_without_preprocessing():
    with pytest.raises(StructureError, match=r"has no pretrained_cfg; load it with zoo\.load"):
        zoo.transform(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_load_in_the_type_asked_for(dtype, pruned):
    model = zoo.load(pruned, dtype=dtype)
    assert {dtype} == {parameter.dtype for parameter in model.parameters()}
    assert torch.int64 == model.bn1.num_batches_tracked.dtype


def test_weights_load_on_the_device_asked_for(pruned):
    assert {"meta"} == {tensor.device.type for tensor in zoo.load(pruned).to("meta").parameters()}
    assert {"cpu"} == {tensor.device.type for tensor in zoo.load(pruned, device=torch.device("cpu")).parameters()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_model_loaded_on_an_accelerator_computes_there(pruned):
    model = zoo.load(pruned, device="cuda", num_classes=3, in_chans=1)
    assert model(images(32, channels=1).cuda()).shape == (2, 3)


@pytest.mark.parametrize("name", ["pruned_and_factored_resnet", "vit with fewer heads", "swin"])
@pytest.mark.parametrize("classes", [0, 1, 7])
def test_a_new_head_fits_the_kept_channels_and_can_be_saved(name, classes, made, tmp_path):
    folder, x = zoo.save(made(name), tmp_path / "it"), images(MODELS[name][1])
    model = zoo.load(folder, num_classes=classes)
    y = model(x)
    pooled = zoo.load(folder).forward_head(zoo.load(folder).forward_features(x), pre_logits=True)
    assert (2, classes or pooled.shape[1]) == y.shape
    if classes == 0:
        assert torch.equal(pooled, y)
    again = zoo.load(zoo.save(model, tmp_path / "again"))
    assert torch.equal(y, again(x))


@pytest.mark.parametrize("own", [{"num_classes": 5}, {"in_chans": 3}], ids=str)
def test_what_a_model_has_already_is_kept_as_it_is(own, pruned):
    model = zoo.load(pruned, **own)
    assert torch.equal(zoo.load(pruned)(images(32)), model(images(32)))
    assert zoo.load(pruned).zoo_entry == model.zoo_entry


def test_a_head_of_fewer_than_no_classes_is_refused(pruned):
    with pytest.raises(StructureError, match=r"^load: num_classes is -1, expected a whole number"):
        zoo.load(pruned, num_classes=-1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("folder", SAVED[:1] + SAVED[-1:], ids=lambda folder: folder.name)
def test_equal_channels_give_the_same_response_however_many_there_are(folder, channels, tmp_path):
    size = zoo.load(folder).pretrained_cfg["input_size"][1]
    grey = images(size, channels=1)
    model = zoo.load(folder, in_chans=channels)
    y = model(grey.expand(-1, channels, -1, -1))
    torch.testing.assert_close(zoo.load(folder)(grey.expand(-1, 3, -1, -1)), y, rtol=1e-4, atol=1e-5)
    assert [channels, size, size] == list(model.pretrained_cfg["input_size"])
    assert channels == len(model.pretrained_cfg["mean"]) == len(model.pretrained_cfg["std"])
    assert torch.equal(y, zoo.load(zoo.save(model, tmp_path / "again"))(grey.expand(-1, channels, -1, -1)))


def test_one_channel_takes_the_sum_of_three_as_timm_does(pruned):
    three = zoo.load(pruned).conv1.weight
    one = zoo.load(pruned, in_chans=1).conv1.weight
    torch.testing.assert_close(timm.models.adapt_input_conv(1, three), one)
    torch.testing.assert_close(timm.models.adapt_input_conv(6, three), zoo.load(pruned, in_chans=6).conv1.weight)


def test_a_model_of_one_channel_takes_colours(disturb, tmp_path):
    model = disturb(Base(CNN.id, {**CNN.args, "in_chans": 1}), 32)
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.5,), "std": (0.5,)}
    model.zoo_entry = Description("grey", Base(CNN.id, {**CNN.args, "in_chans": 1}))
    colour = zoo.load(zoo.save(model, tmp_path / "grey"), in_chans=3)
    grey = images(32, channels=1)
    torch.testing.assert_close(model(grey), colour(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_no_channels_are_refused(pruned):
    with pytest.raises(StructureError, match=r"^in_chans=0: expected 1 or more"):
        zoo.load(pruned, in_chans=0)


@pytest.mark.parametrize("name", ["resnet", "pruned_and_factored_resnet", "swin", "vit with fewer heads"])
def test_feature_maps_have_the_channels_that_are_announced(name, made, tmp_path):
    folder, size = zoo.save(made(name), tmp_path / "it"), MODELS[name][1]
    model = zoo.load(folder, features_only=True)
    maps = model(images(size))
    assert [feature.shape[1] for feature in maps] == model.feature_info.channels()
    assert [size // feature.shape[2] for feature in maps] == model.feature_info.reduction()
    assert not model.training
    assert replace(zoo.load(folder).zoo_entry, task="image-feature-extraction") == model.zoo_entry
    _, expected = zoo.load(folder).forward_intermediates(images(size), output_fmt="NCHW")
    assert torch.equal(expected[-1], maps[-1])


def test_create_builds_the_structure_without_weights_and_repeatably(pruned, tmp_path):
    bare = shutil.copytree(pruned, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    random_state = torch.get_rng_state()
    first, second, other = (zoo.create(bare, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(random_state, torch.get_rng_state())
    shapes = {name: value.shape for name, value in zoo.load(pruned).state_dict().items()}
    assert shapes == {name: value.shape for name, value in first.state_dict().items()}
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    licensed = {**first.pretrained_cfg, "license": "apache-2.0"}  # which is of weights
    assert zoo.load(pruned).pretrained_cfg == licensed
    assert not first.training


def test_a_created_model_starts_from_values_not_from_what_the_memory_held(pruned):
    for name, value in zoo.create(pruned).named_parameters():
        assert torch.isfinite(value).all(), name
        assert value.abs().max() < 10, name


def test_create_takes_the_id_of_a_dense_model():
    model = zoo.create("timm/resnet10t.c3_in1k")
    assert Description("resnet10t", Base("timm/resnet10t")) == model.zoo_entry  # whose weights aren't the tag's
    assert initialised(Base("timm/resnet10t")).state_dict().keys() == model.state_dict().keys()


def test_what_ships_in_the_package_loads_and_is_created():
    model = zoo.load("digits_cnn_pruned_25")
    assert model.zoo_entry.name == "digits_cnn_pruned_25"
    shape = {name: value.shape for name, value in model.state_dict().items()}
    assert shape == {name: value.shape for name, value in zoo.create("digits_cnn_pruned_25").state_dict().items()}
    assert model(torch.zeros(1, *model.pretrained_cfg["input_size"])).shape == (1, 10)


@pytest.mark.parametrize("verb", [zoo.load, zoo.create], ids=["load", "create"])
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("digits_cnn_prund_25", UnknownName, "did you mean digits_cnn_pruned_25, "),
        ("zzzz", UnknownName, "no model 'zzzz' in the catalog; zoo list --all shows all of them"),
        ("./nowhere", RepositoryError, "no folder nowhere: expected a model repository, or a name that zoo list shows"),
        ("mine", UnknownName, "no model 'mine' in the catalog; for the folder of that name say ./mine"),
        ("./empty", RepositoryError, "empty has no config.json: not a model repository"),
        (Path("empty"), RepositoryError, "empty has no config.json: not a model repository"),
    ],
)
def test_a_name_that_leads_nowhere_gets_a_hint(verb, name, kind, message, pruned, tmp_path, monkeypatch):
    shutil.copytree(pruned, tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=re.escape(message)) as caught:
        verb(name)
    assert "\n" not in str(caught.value)


def test_a_folder_is_a_path_or_has_a_slash(pruned, monkeypatch):
    monkeypatch.chdir(pruned.parent)
    for name in (pruned, str(pruned), "./pruned", Path("pruned")):
        assert zoo.load(name).zoo_entry.name == "pruned_and_factored_resnet"


def test_save_reads_the_base_from_what_timm_left(tmp_path):
    model = timm.create_model("resnet10t", num_classes=3).eval()
    loaded = zoo.load(zoo.save(model, tmp_path / "it"))
    assert Base("timm/resnet10t", {"num_classes": 3}) == loaded.zoo_entry.base
    assert torch.equal(model(images(64)), loaded(images(64)))


def test_save_refuses_a_model_of_which_neither_base_nor_size_is_known(tmp_path):
    message = "the model doesn't say what it was made from; pass base='timm/<architecture>'"
    with pytest.raises(StructureError, match=re.escape(message)):
        zoo.save(torch.nn.Linear(2, 2), tmp_path / "it")
    assert not list(tmp_path.iterdir())


def test_a_model_that_its_plan_does_not_describe_is_saved_as_the_graph_that_it_is(made, tmp_path):
    model = made("resnet")
    model.zoo_entry = Description("resnet", CNN, PRUNED)
    loaded = zoo.load(zoo.save(model, tmp_path / "it"))
    assert loaded.zoo_entry.graph is not None
    torch.testing.assert_close(loaded(images(32)), model(images(32)))


def test_create_refuses_a_base_that_this_timm_builds_otherwise_as_load_does(tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(catalog.EMBEDDED / "digits_cnn", folder)
    config = json.loads((folder / "config.json").read_text())
    config["zoo"]["fingerprint"]["fc"] = "Linear weight=10x63 bias=10"
    (folder / "config.json").write_text(json.dumps(config))
    for verb in (zoo.load, zoo.create):
        with pytest.raises(FingerprintError, match="fc is 'Linear weight=10x64 bias=10' in timm"):
            verb(folder)


@pytest.mark.parametrize(("key", "options"), [("first_conv", {"in_chans": 3}), ("classifier", {"num_classes": 3})])
def test_a_preprocessing_that_names_no_module_is_refused(key, options, tmp_path):
    folder = tmp_path / "x"
    shutil.copytree(catalog.EMBEDDED / "digits_cnn", folder)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"][key] = "no.such"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StructureError, match=r"names 'no.such', which the model hasn't"):
        zoo.load(folder, **options)
