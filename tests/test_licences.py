"""A licence and a tag are said of the weights that they were given for, and of no others."""

import pytest
import timm
import torch
from conftest import CNN

import zoo
from zoo.catalog.entry import Base
from zoo.errors import StructureError
from zoo.files import read_json
from zoo.structure.description import Description, attach_
from zoo.verbs import licences
from zoo.verbs.own_weights import with_weights
from zoo.verbs.recipes import is_built

TAGGED = "timm/test_resnet.r160_in1k"


def net(**args):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k", **args).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
    return model


@pytest.fixture
def cached(monkeypatch):
    """The weights of the tag, as if they lay in the Hub's cache."""

    def pretrained(base, revision=None, access=None):
        assert access.local_files_only
        return net()

    monkeypatch.setattr(licences, "pretrained", pretrained)


def trained(model):
    with torch.no_grad():
        model.fc.bias += 0.1
    return model


def weights_of(folder):
    return folder / "model.safetensors"


def claims(folder):
    """Licence, tag and base in config.json, and the licence on the card."""
    config = read_json(folder / "config.json")
    own, base = config["pretrained_cfg"], config["zoo"]["base"]["id"]
    card = (folder / "README.md").read_text()
    head = [line for line in card.split("---")[1].splitlines() if line.startswith(("license", "base_model:"))]
    return own.get("license"), own.get("tag"), base, head


@pytest.mark.usefixtures("cached")
def test_weights_that_are_those_of_the_tag_keep_its_licence(tmp_path):
    said = "apache-2.0", "r160_in1k", TAGGED, [f"base_model: {TAGGED}", "license: apache-2.0"]
    assert claims(zoo.save(net(), tmp_path / "first")) == said
    assert claims(zoo.save(zoo.load(tmp_path / "first"), tmp_path / "again")) == said


@pytest.mark.parametrize(
    "model",
    [lambda: trained(net()), lambda: net(num_classes=37), lambda: timm.create_model("test_resnet").eval()],
    ids=["trained", "another head", "random"],
)
@pytest.mark.usefixtures("cached")
def test_weights_that_are_not_those_of_the_tag_have_neither_licence_nor_tag(model, tmp_path):
    model = model()
    model.pretrained_cfg["input_size"] = (3, 64, 64)
    assert claims(zoo.save(model, tmp_path / "it")) == (None, None, "timm/test_resnet", [])


def test_weights_that_nothing_can_be_compared_with_have_neither(tmp_path):
    assert claims(zoo.save(net(), tmp_path / "it")) == (None, None, "timm/test_resnet", [])


@pytest.mark.usefixtures("cached")
def test_weights_that_were_loaded_and_trained_stay_under_their_licence_and_lose_the_tag(tmp_path):
    license = "agpl-3.0"
    folder = zoo.save(net(), tmp_path / "it", license=license)
    assert claims(zoo.save(zoo.load(folder), tmp_path / "same"))[:2] == (license, "r160_in1k")
    for model in (trained(zoo.load(folder, mmap=False)), zoo.load(folder, num_classes=37)):
        told = zoo.save(model, tmp_path / "other")
        said = license, None, TAGGED, [f"base_model: {TAGGED}", f"license: {license}"]
        assert claims(told) == said
        assert claims(zoo.save(zoo.load(told), tmp_path / "again")) == said


def test_the_weights_of_a_tag_that_were_loaded_and_trained_stay_under_its_licence(monkeypatch, tmp_path):
    """zoo.load says on the model what its weights come from; timm doesn't, whose own may be random."""
    model = trained(net())
    attach_(model, Description("test_resnet", Base(TAGGED)))
    monkeypatch.setattr(licences, "pretrained", lambda base, access: net())
    assert claims(zoo.save(model, tmp_path / "it"))[:3] == ("apache-2.0", None, TAGGED)


@pytest.mark.parametrize(
    "model", [lambda folder: zoo.create(folder), lambda folder: with_weights(str(folder), weights_of(folder))]
)
def test_a_structure_with_other_weights_inherits_no_licence(model, tmp_path):
    folder = zoo.save(net(), tmp_path / "it", license="agpl-3.0")
    assert claims(zoo.save(model(folder), tmp_path / "other"))[0] is None


def test_beside_a_licence_that_is_named_the_card_notes_that_of_the_weights_it_comes_from(tmp_path, caplog):
    folder = zoo.save(net(), tmp_path / "it", license="agpl-3.0")
    other = zoo.save(zoo.load(folder), tmp_path / "other", license="mit")
    note = "made of weights under agpl-3.0; that these are under mit is said by whoever saved them"
    assert "the weights come from some under agpl-3.0: the card says so beside mit" in caplog.text
    for each in (other, zoo.save(trained(zoo.load(other, mmap=False)), tmp_path / "again", license="MIT")):
        assert claims(each)[3][-1] == "license: mit"
        assert (each / "README.md").read_text().count(note) == 1


def test_of_a_base_that_is_named_the_licence_is_noted_too(tmp_path):
    folder = zoo.save(trained(net()), tmp_path / "it", base=TAGGED, license="mit")
    assert "made of weights under apache-2.0; that these are under mit" in (folder / "README.md").read_text()


def test_the_licence_of_a_base_that_is_named_stands_on_the_card_as_the_bases(tmp_path):
    folder = zoo.save(trained(net()), tmp_path / "it", base=TAGGED)
    assert claims(folder) == (None, None, TAGGED, [f"base_model: {TAGGED}"])
    note = f"note: the weights of {TAGGED} are under apache-2.0; of these no licence is named"
    assert note in (folder / "README.md").read_text()


@pytest.mark.usefixtures("cached")
def test_a_licence_that_is_named_is_the_only_one(tmp_path):
    licence, _, _, head = claims(zoo.save(trained(net()), tmp_path / "it", license="cc-by-4.0"))
    assert (licence, head) == ("cc-by-4.0", ["license: cc-by-4.0"])


def test_what_is_compressed_is_under_the_licence_of_what_was_loaded(cnn, tmp_path):
    loaded = zoo.load(zoo.save(cnn, tmp_path / "mit", base=CNN, license="mit"))
    smaller = zoo.compress(loaded, budget=0.7, data=[torch.randn(8, 3, 32, 32)])
    assert claims(zoo.save(smaller, tmp_path / "smaller"))[0] == "mit"


def test_what_is_compressed_of_weights_that_nobody_named_is_under_none(tmp_path):
    model = trained(net())
    model.pretrained_cfg["input_size"] = (3, 32, 32)
    smaller = zoo.compress(model, method="low_rank", budget=0.9, data=[torch.randn(4, 3, 32, 32)])
    assert claims(zoo.save(smaller, tmp_path / "it")) == (None, None, "timm/test_resnet", [])


def test_a_model_that_is_created_claims_nothing_of_the_tag():
    model = zoo.create(TAGGED)
    assert not {"license", "tag"} & model.pretrained_cfg.keys()
    assert model.zoo_entry.base == Base("timm/test_resnet")


# What else is said by name


def test_name_labels_size_and_preprocessing_are_said_by_name(tmp_path):
    names = [f"class {number}" for number in range(10)]
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1).eval()
    folder = zoo.save(model, tmp_path / "it", name="shirts", labels=names, input=(1, 28, 28), mean=0.286, std=[0.353])
    config = read_json(folder / "config.json")
    own = config["pretrained_cfg"]
    assert (config["architecture"], config["zoo"]["name"]) == ("shirts", "shirts")
    assert (config["num_classes"], own["num_classes"], config["label_names"]) == (10, 10, names)
    assert (own["input_size"], own["mean"], own["std"]) == ([1, 28, 28], [0.286], [0.353])
    loaded, image = zoo.load(folder), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


def test_data_is_evaluated_and_reported(tmp_path):
    model = zoo.load("digits_cnn")
    folder = zoo.save(model, tmp_path / "it", name="mine", data="digits[:50]")
    measured = read_json(folder / "results.json")
    assert measured["data"]["images"] == 50
    assert zoo.verify(folder, data="digits[:50]").passed
    assert measured["measured"]["top1"] > 0.9


def test_a_module_of_ones_own_is_saved_by_its_size_alone(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2704, 10)
    )
    names = [str(number) for number in range(10)]
    folder = zoo.save(model.eval(), tmp_path / "it", name="mine", input=(1, 28, 28), labels=names, mean=0.5, std=0.25)
    own = read_json(folder / "config.json")["pretrained_cfg"]
    assert (own["input_size"], own["mean"], own["std"], own["num_classes"]) == ([1, 28, 28], [0.5], [0.25], 10)
    assert "license" not in own
    assert own["crop_pct"] == 1
    loaded, image = zoo.load(folder), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"labels": ["a", "b"]}, "labels has 2 names, the model has 5 classes: name each, in order"),
        ({"labels": [1] * 5}, r"labels\[0\] is 1, expected text"),
        ({"mean": (0.1, 0.2)}, "mean has 2 numbers, expected one, or 3: one a channel"),
        ({"std": 0}, r"std\[0\] is 0, expected a number above 0"),
        ({"input": (3, 32)}, r"input is \[3, 32\], expected channels, height and width"),
        ({"name": "a/b"}, "name is 'a/b', expected a name of letters"),
        ({"license": "m" * 2000}, "license is 'mmm"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_the_models_is_refused_in_a_line(said, message, cnn, tmp_path):
    with pytest.raises(StructureError, match=message):
        zoo.save(
            cnn,
            tmp_path / "it",
            base=Base("timm/resnet18", {"layers": [1] * 4, "channels": [8, 8, 16, 24], "num_classes": 5}),
            **said,
        )
    assert not (tmp_path / "it").exists()


def test_what_a_recipe_made_and_was_altered_claims_its_licence_and_nothing_else(tmp_path):
    model = zoo.load("digits_cnn_pruned_25")
    same = claims(zoo.save(model, tmp_path / "same"))
    with torch.no_grad():
        model.fc.bias += 0.1
    altered = claims(zoo.save(model, tmp_path / "altered"))
    assert (same[0], same[3][-1]) == ("apache-2.0", "license: apache-2.0")
    smaller = zoo.compress(model, budget=0.8, data=[torch.randn(32, 1, 32, 32)])
    for said in (altered, claims(zoo.save(smaller, tmp_path / "smaller"))):
        assert (said[0], said[3][-1]) == ("apache-2.0", "license: apache-2.0")
    assert "zoo build digits_cnn_pruned_25" in (tmp_path / "same" / "README.md").read_text()
    card = (zoo.save(zoo.load(tmp_path / "altered"), tmp_path / "again") / "README.md").read_text()
    assert card == (tmp_path / "altered" / "README.md").read_text()
    assert "altered since" in card
    assert "zoo build" not in card
    assert not is_built(zoo.catalog.info("digits_cnn_pruned_25"), tmp_path / "altered")


def test_a_licence_that_is_named_for_a_model_of_the_catalog_is_that_of_its_card(tmp_path):
    folder = zoo.save(zoo.load("digits_cnn_pruned_25"), tmp_path / "it", license="mit")
    assert (claims(folder)[0], claims(folder)[3][-1]) == ("mit", "license: mit")
