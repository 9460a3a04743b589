"""Models of the catalog in timm, and in what goes by timm: the same weights, the same logits, timm's own manners."""

import pytest
import timm
import torch
from client import OTHER, SMALL, outputs, point, publish
from hub import serving

import zoo
import zoo.timm
from zoo import catalog
from zoo.errors import RepositoryError, StructureError, ZooError
from zoo.structure.sources import SOURCES

CLASSIFIERS = catalog.names(status="embedded", task="image-classification")
FAMILY = '[family]\narchitecture = "resnet18"\ntask = "{}"\nrepo = "org/x"\n'


def created(name, **options):
    return timm.create_model(name, **options).eval()


@pytest.fixture
def added(tmp_path, monkeypatch):
    """A function that registers a user's catalog; what it added goes again."""
    before = set(timm.list_models())

    def add(text):
        (tmp_path / "mine.toml").write_text(text)
        monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))
        zoo.timm._register_catalog()
        return set(timm.list_models()) - before

    yield add
    for name in set(timm.list_models()) - before:
        timm.models._registry._model_entrypoints.pop(name)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_model_computes_what_zoo_load_gives_bit_for_bit(name):
    assert torch.equal(outputs(created(name, pretrained=True)), outputs(zoo.load(name)))


@pytest.mark.parametrize("name", ["digits_cnn_pruned_25", "digits_vit_lowrank_50"])
def test_feature_maps_are_those_of_the_smaller_model(name):
    model, own = created(name, pretrained=True, features_only=True), zoo.load(name, features_only=True)
    maps, last = outputs(own), outputs(created(name, pretrained=True, features_only=True, out_indices=(-1,)))

    assert all(map(torch.equal, outputs(model), maps))
    assert torch.equal(last[0], maps[-1])
    assert model.feature_info.channels() == [each.shape[1] for each in maps]


@pytest.mark.parametrize("pretrained", [True, False])
def test_another_head_and_other_channels_are_those_that_are_asked_for(pretrained):
    model = created("digits_cnn_pruned_25", pretrained=pretrained, num_classes=3, in_chans=2)

    assert outputs(model).shape == (2, 3)
    assert model.pretrained_cfg["input_size"][0] == 2
    assert created("digits_vit_pruned_25", pretrained=pretrained, num_classes=0).num_classes == 0


def test_without_weights_a_model_is_what_zoo_create_draws():
    model, own = timm.create_model("digits_vit_pruned_50"), zoo.create("digits_vit_pruned_50")

    assert model.training
    assert torch.equal(outputs(model.eval()), outputs(own))


def test_timm_lists_what_classifies_and_can_be_loaded_and_keeps_its_own():
    listed = timm.list_models(module="compressed_zoo")
    entries = map(catalog.info, catalog.names(all=True))

    assert set(listed) == {"compressed_zoo"} | {
        entry.name
        for entry in entries
        if entry.status != "recipe" and entry.task == "image-classification" and not SOURCES["timm"].has(entry.name)
    }
    assert {"resnet50d_pruned_56", "digits_vit_int8"} <= set(timm.list_models("*", pretrained=True))
    assert "ecaresnet50d_pruned" not in listed
    assert timm.get_pretrained_cfg("digits_cnn").num_classes == 10
    assert not SOURCES["timm"].has("digits_cnn")


def test_a_users_catalog_is_registered_too_but_for_what_timm_could_not_name(added):
    models = '[[model]]\nname = "mine"\n[[model]]\nname = "resnet18"\n[[model]]\nname = "mine.2"\n'
    before = timm.models.model_entrypoint("resnet18")

    assert added(FAMILY.format("image-classification") + models) == {"mine"}
    assert timm.models.model_entrypoint("resnet18") is before


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "digits_cnn",
            {"img_size": 64},
            "digits_cnn has a structure of its own, which img_size can't change: taken are",
        ),
        ("digits_cnn", {"drop_rate": 0.1}, "which drop_rate can't change"),
        ("digits_cnn", {"pretrained_cfg": {"file": "x"}}, "has a pretrained_cfg of its own: leave it out"),
        ("digits_cnn.v1", {"pretrained": True}, "digits_cnn doesn't lie on the Hub, where revision 'v1' would mean"),
        ("digits_cnn_int8", {}, "computes in integers, which nothing draws at random"),
        (
            "digits_cnn_int8",
            {"pretrained": True, "features_only": True},
            "is a graph, which gives what it was saved with",
        ),
        ("compressed_zoo", {}, "any repository of ours: say which, hf-hub:ORG/NAME or local-dir:FOLDER"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, expected):
    with pytest.raises(ZooError, match=expected):
        timm.create_model(name, **options)


def test_arguments_that_change_nothing_are_taken_and_others_are_laid_over():
    overlay = {"interpolation": "nearest"}
    model = created("digits_cnn", pretrained=True, drop_rate=0.0, dtype=torch.float64, pretrained_cfg_overlay=overlay)

    assert model.pretrained_cfg["interpolation"] == "nearest"
    assert model.get_classifier().weight.dtype == torch.float64


def test_repositories_of_any_name_come_from_folders_and_the_hub_at_any_revision(tmp_path, monkeypatch):
    with serving(tmp_path / "hub") as address:
        point(monkeypatch, address, tmp_path / "cache")
        first = publish(address, "org/model", OTHER)
        for place, folder in (
            ("hf-hub:org/model", OTHER),
            (f"hf-hub:org/model@{first}", OTHER),
            (f"local-dir:{SMALL}", SMALL),
        ):
            assert torch.equal(outputs(created(place, pretrained=True)), outputs(zoo.load(folder)))
            assert torch.equal(outputs(created(place)), outputs(zoo.create(folder)))
        assert created("hf-hub:org/model", pretrained=True, num_classes=4, cache_dir=tmp_path / "own").num_classes == 4
        assert list((tmp_path / "own").glob("models--org--model"))


def mine(folder, name):
    """A repository of a model for images in colour."""
    model = zoo.load("digits_cnn_pruned_25", in_chans=3)
    zoo.save(model, folder / name, name=name, labels=[f"digit {number}" for number in range(10)])
    return folder / name


def test_a_registered_repository_goes_by_its_name(added, tmp_path):
    folder = mine(tmp_path, "shirts")

    assert zoo.timm.register(folder) == "shirts"
    assert torch.equal(outputs(created("shirts", pretrained=True)), outputs(zoo.load(folder)))
    assert zoo.timm.register(folder) == "shirts"
    for name in ("resnet18", "shirts.2"):
        with pytest.raises(StructureError, match=f"is called {name}, .*zoo save it"):
            zoo.timm.register(mine(tmp_path, name))
    with pytest.raises(RepositoryError, match="no folder"):
        zoo.timm.register(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["digits_cnn_lowrank_50", "digits_vit_pruned_25"])
def test_transformers_loads_a_model_of_the_catalog(name):
    transformers = pytest.importorskip("transformers", reason="transformers isn't installed")
    model = transformers.AutoModelForImageClassification.from_pretrained(catalog.EMBEDDED / name).eval()
    model.pretrained_cfg = model.timm_model.pretrained_cfg

    assert torch.equal(outputs(model).logits, outputs(zoo.load(name)))


def test_the_pipeline_of_transformers_says_what_zoo_predict_says(added, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers isn't installed")
    from PIL import Image

    folder = mine(tmp_path, "shirts")
    zoo.timm.register(folder)
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    found = transformers.pipeline("image-classification", model=str(folder), top_k=3)(image)

    (expected,) = zoo.predict(zoo.load(folder), image, top=3)

    assert [each["label"] for each in found] == expected["names"]
    assert [each["score"] for each in found] == pytest.approx(expected["scores"].tolist(), abs=1e-6)
