"""Models whose weights lie in another project's repository: fetched, converted once, loaded by name."""

import shutil

import pytest
import timm
import torch
from client import dead, faults, point, requests
from family import CHECKPOINT, FAMILY
from hub import commit, create, large, regular, serving
from PIL import Image
from safetensors.torch import load_file, save_file

import zoo
from zoo.errors import CatalogError, CheckpointError, HubError, RepositoryError, UnknownName
from zoo.files import sha256
from zoo.structure.base import skeleton


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture
def upstream(served, tmp_path, monkeypatch):
    """A function that publishes the checkpoint there and points the catalog at it; returns the commit."""
    point(monkeypatch, served, tmp_path / "cache")
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    (tmp_path / "catalog").mkdir()

    def publish(
        repo="upstream/tiny", modules=CHECKPOINT / "modules.pt", more="", family="", files=("config", "modules")
    ):
        create(served, repo)
        lines = []
        if "config" in files:
            lines.append(regular("config.dict.json", (CHECKPOINT / "config.dict.json").read_text()))
        if "modules" in files:
            lines.append(large(served, repo, "modules.pt", modules.read_bytes()))
        made = commit(served, repo, *lines).json()["commitOid"]
        text = FAMILY.format(more=more.format(commit=made), family=family).replace("upstream/tiny", repo)
        (tmp_path / "catalog" / "own.toml").write_text(text)
        faults(served)
        return made

    return publish


def agrees(model):
    data = load_file(CHECKPOINT / "io.safetensors")
    expected = data[next(key for key in data if key != "input")]
    with torch.no_grad():
        return float((model(data["input"]) - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_an_origin_is_fetched_converted_and_loaded_by_name(upstream):
    upstream("upstream/one")
    model = zoo.load("tiny")

    assert agrees(model)
    assert (model.zoo_entry.name, model.num_classes) == ("tiny", 10)
    assert model.pretrained_cfg["input_size"] == [3, 64, 64]
    assert zoo.transform(model)


@pytest.mark.parametrize("length", [7, 40], ids=["shortened", "in full"])
def test_it_is_fetched_at_its_commit_and_converted_once(upstream, served, monkeypatch, tmp_path, length):
    repo = f"upstream/pinned{length}"
    made = upstream(repo)
    upstream(repo, modules=CHECKPOINT / "config.dict.json")  # a later commit whose weights are rubbish
    text = FAMILY.format(family="", more=f', commit = "{made[:length]}"').replace("upstream/tiny", repo)
    shutil.rmtree(tmp_path / "catalog")
    (tmp_path / "pinned").mkdir()
    (tmp_path / "pinned" / "own.toml").write_text(text)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "pinned"))

    assert agrees(zoo.load("tiny"))
    point(monkeypatch, dead(), tmp_path / "cache")
    monkeypatch.setattr("zoo.verbs.conversions.converted", None)  # neither asked for nor converted again
    if length == 40:
        assert agrees(zoo.load("tiny"))


def test_the_first_commit_seen_of_an_origin_is_trusted_from_then_on(upstream, served):
    upstream("upstream/moving")
    zoo.load("tiny")
    create(served, "upstream/moving")
    rubbish = large(served, "upstream/moving", "modules.pt", b"rubbish")
    assert commit(served, "upstream/moving", rubbish).status == 200
    faults(served)

    assert agrees(zoo.load("tiny"))
    assert requests(served) == []


def test_another_file_than_the_catalog_knows_is_refused(upstream):
    upstream("upstream/known", more=f', sha256 = "{sha256(CHECKPOINT / "modules.pt")}"')
    assert agrees(zoo.load("tiny"))


def test_a_changed_file_is_refused(upstream):
    upstream("upstream/changed", more=f', sha256 = "{"0" * 64}"')

    with pytest.raises(CheckpointError, match="isn't the file that the catalog knows"):
        zoo.load("tiny")


def test_a_file_that_is_not_there_is_named(upstream):
    upstream("upstream/half", files=("config",))

    with pytest.raises(RepositoryError, match=r"upstream/half at [0-9a-f]{7} has no modules.pt"):
        zoo.load("tiny")


def test_a_dead_endpoint_is_said(upstream, monkeypatch, tmp_path):
    upstream("upstream/unreachable")
    point(monkeypatch, dead(), tmp_path / "other")

    with pytest.raises(HubError, match="can't be reached"):
        zoo.load("tiny")


def test_an_origin_is_imported_by_name_or_by_its_repository(upstream, tmp_path):
    upstream("upstream/imported")

    for source in ("tiny", "upstream/imported"):
        folder = zoo.convert(source, tmp_path / source.replace("/", "-"))
        assert agrees(zoo.load(folder))
        card = (folder / "README.md").read_text()
        assert "converted from the torch-dag checkpoint upstream/imported." in card
        assert f"- sha256 of modules.pt: {sha256(CHECKPOINT / 'modules.pt')}\n" in card
        assert "- licence: apache-2.0\n" in card
        assert "- not yet: loaded from the Hub and evaluated by us" in card


def test_a_model_of_timm_loads_by_our_name_for_it(served, tmp_path, monkeypatch):
    """As timm's own loading does, without a pickle."""
    point(monkeypatch, served, tmp_path / "cache")
    theirs = timm.create_model("efficientnet_b1_pruned").eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    create(served, "timm/efficientnet_b1_pruned.in1k")
    weights = (tmp_path / "model.safetensors").read_bytes()
    line = large(served, "timm/efficientnet_b1_pruned.in1k", "model.safetensors", weights)
    made = commit(served, "timm/efficientnet_b1_pruned.in1k", line).json()["commitOid"]
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "own.toml").write_text(
        FAMILY.format(family="", more="")
        .replace('"torch-dag"', f'"timm", commit = "{made}"')
        .replace("upstream/tiny", "timm/efficientnet_b1_pruned.in1k")
    )
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    ours = zoo.load("tiny")
    x = torch.randn(2, 3, 96, 96)

    with torch.no_grad():
        assert torch.allclose(theirs(x), ours(x), atol=1e-6)
    assert ours.zoo_entry.base.id == "timm/efficientnet_b1_pruned.in1k"
    assert skeleton(ours.zoo_entry.base) is not None


def test_preprocessing_that_the_catalog_knows_wins_over_timm_s(upstream):
    upstream("upstream/preprocessed", family='preprocessing = { mean = [0.1, 0.2, 0.3], interpolation = "bilinear" }')
    model = zoo.load("tiny")
    config = model.pretrained_cfg

    assert (config["mean"], config["interpolation"]) == ([0.1, 0.2, 0.3], "bilinear")
    assert (config["std"], config["crop_pct"]) == ([0.229, 0.224, 0.225], 0.9)  # timm's of that base
    black = zoo.transform(model)(Image.new("RGB", (80, 80)))
    assert black[:, 0, 0].tolist() == pytest.approx([-0.1 / 0.229, -0.2 / 0.224, -0.3 / 0.225])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{ means = [0, 0, 0] }", "unknown key 'means', known are mean, std, interpolation, crop_pct"),
        ("{ mean = [0.5, 0.5] }", "preprocessing.mean is [0.5, 0.5], expected a number for each of 3 channels"),
        ("{ mean = 0.5 }", "preprocessing.mean is 0.5, expected a number for each"),
        ("{ std = [1, 0, 1] }", "preprocessing.std is [1, 0, 1], expected a number for each"),
        ("{ std = [1, true, 1] }", "preprocessing.std is [1, True, 1]"),
        ("{ mean = [nan, 0, 0] }", "preprocessing.mean is [nan, 0, 0]"),
        ('{ interpolation = "cubic" }', "preprocessing.interpolation is 'cubic', expected one of nearest, bilinear"),
        ("{ crop_pct = 87.5 }", "preprocessing.crop_pct is 87.5, expected a share above 0, at most 1"),
        ('"imagenet"', "preprocessing is 'imagenet', expected a table"),
    ],
)
def test_preprocessing_that_can_not_be_meant_names_file_entry_and_key(tmp_path, monkeypatch, value, message):
    (tmp_path / "own.toml").write_text(FAMILY.format(more="", family=f"preprocessing = {value}"))
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))

    with pytest.raises(CatalogError) as caught:
        zoo.info("tiny")
    assert "own.toml: tiny.preprocessing" in str(caught.value)
    assert message in str(caught.value)


def test_a_model_s_own_preprocessing_extends_its_family_s(tmp_path, monkeypatch):
    family = FAMILY.format(more="", family="preprocessing = { mean = [0, 0, 0], crop_pct = 0.5 }")
    (tmp_path / "own.toml").write_text(family + "preprocessing = { crop_pct = 0.9 }\n")
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))

    assert zoo.info("tiny").preprocessing == {"mean": (0, 0, 0), "crop_pct": 0.9}


def test_a_namespace_in_the_environment_leaves_origins_as_they_are(upstream, monkeypatch):
    upstream("upstream/named")
    monkeypatch.setenv("ZOO_NAMESPACE", "me")

    assert agrees(zoo.load("tiny"))


def test_a_revision_is_that_of_the_origin_and_means_nothing_of_what_is_on_this_disk(upstream):
    upstream("upstream/revised")

    with pytest.raises(UnknownName, match="no revision 'v9'"):
        zoo.load("tiny", revision="v9")
    for name in ("digits_cnn", CHECKPOINT):
        with pytest.raises(RepositoryError, match="revision 'v9' would mean something"):
            zoo.load(name, revision="v9")


def test_a_hash_that_the_catalog_learns_later_is_checked_though_the_conversion_is_cached(
    upstream, tmp_path, monkeypatch
):
    made = upstream("upstream/later")
    zoo.load("tiny")
    (tmp_path / "later").mkdir()
    more = f', commit = "{made}", sha256 = "{"0" * 64}"'
    (tmp_path / "later" / "own.toml").write_text(
        FAMILY.format(family="", more=more).replace("upstream/tiny", "upstream/later")
    )
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "later"))

    with pytest.raises(CheckpointError, match="isn't the file that the catalog knows"):
        zoo.load("tiny")


PUBLISHED = {  # our name → where it is published, and the small checkpoint of that family that stands in for it
    "convnextv2_nano_pruned_54": ("TCLResearchEurope/convnetxtv2_nano_pruned_54", "convnextv2_atto_tiny_pruned"),
    "deit3_small_patch16_224_pruned_66": ("TCLResearchEurope/deit3_small_patch16_224_pruned_66", "deit3_tiny_pruned"),
    "poolformerv2_s24_pruned_52": ("TCLResearchEurope/poolformerv2_s24_pruned_52", "poolformerv2_tiny_pruned"),
    "beit_base_patch16_224_pruned_65": ("TCLResearchEurope/beit_base_patch16_224_pruned_65", "beit_tiny_pruned"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_name_loads_cold_cached_and_offline(name, served, tmp_path, monkeypatch):
    repo, stand_in = PUBLISHED[name]
    folder = CHECKPOINT.parent / stand_in
    lines = [regular("config.dict.json", (folder / "config.dict.json").read_text())]
    create(served, repo)
    lines.append(large(served, repo, "modules.pt", (folder / "modules.pt").read_bytes()))
    made = commit(served, repo, *lines).json()["commitOid"]
    text = (
        FAMILY.format(family="", more=f', commit = "{made}"')
        .replace("upstream/tiny", repo)
        .replace('"tiny"', f'"{name}"')
    )
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "own.toml").write_text(text)
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path / "catalog"))
    data = load_file(folder / "io.safetensors")
    expected = data[next(key for key in data if key != "input")]

    for address, offline in ((served, False), (dead(), False), (dead(), True)):
        point(monkeypatch, address, tmp_path / "cache", offline=offline)
        with torch.no_grad():
            found = zoo.load(name)(data["input"])
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5
