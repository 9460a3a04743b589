"""The Hub's cache is huggingface_hub's: what it fetched we load, what we fetched it knows, nothing lies beside it."""

import huggingface_hub
import pytest
import timm
import torch
from client import OTHER, SMALL, add, dead, faults, point, publish, requests, same
from hub import TOKEN, ask, create, serving
from safetensors.torch import save_file

import zoo
from zoo.errors import HubError, RepositoryError, UnknownName


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture
def endpoint(served, tmp_path, monkeypatch):
    point(monkeypatch, served, tmp_path / "cache")
    faults(served)
    return served


@pytest.fixture
def offline(served, tmp_path, monkeypatch):
    """A function that takes the network away and keeps the cache."""
    return lambda: point(monkeypatch, dead(), tmp_path / "cache", offline=True)


def tagged(address, repo, tag):
    assert ask(address, "POST", f"/api/models/{repo}/tag/main", {"tag": tag}).status == 200


@pytest.mark.parametrize("files", [None, ["config.json", "model.safetensors"]], ids=["all", "without card and results"])
@pytest.mark.parametrize("revision", [None, "v1", "commit"])
def test_what_the_hubs_own_client_downloaded_loads_offline(endpoint, offline, revision, files):
    repo = f"org/by-hand-{revision}-{len(files or ())}"
    pinned = publish(endpoint, repo, SMALL)
    tagged(endpoint, repo, "v1")
    revision = pinned if revision == "commit" else revision
    huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=files)
    offline()

    assert same(zoo.load(repo, revision=revision), SMALL)


def test_what_we_fetched_the_hubs_own_client_knows_by_branch_and_tag(endpoint, offline, tmp_path):
    repo = "org/fetched"
    pinned = publish(endpoint, repo, SMALL)
    tagged(endpoint, repo, "v1")
    zoo.load(repo)
    zoo.load(repo, revision="v1")

    (cached,) = huggingface_hub.scan_cache_dir(tmp_path / "cache" / "hub").repos
    assert {revision.commit_hash: revision.refs for revision in cached.revisions} == {pinned: {"main", "v1"}}
    offline()
    for revision in (None, "v1", pinned):
        assert huggingface_hub.hf_hub_download(repo, "model.safetensors", revision=revision)
    beside = {path.relative_to(tmp_path / "cache" / "zoo").parts[0] for path in (tmp_path / "cache" / "zoo").rglob("*")}
    assert beside <= {"sha256"}  # stamps of files that were checked


def test_a_tag_that_moved_gives_the_new_weights(endpoint):
    publish(endpoint, "org/moving", SMALL)
    tagged(endpoint, "org/moving", "v1")
    assert same(zoo.load("org/moving", revision="v1"), SMALL)
    assert ask(endpoint, "DELETE", "/api/models/org/moving/tag/v1").status == 200
    add(endpoint, "org/moving", OTHER)
    tagged(endpoint, "org/moving", "v1")

    assert same(zoo.load("org/moving", revision="v1"), OTHER)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_repository_that_was_made_again_under_its_name_loads(endpoint, revision):
    name = f"again-{revision}"
    for folder in (SMALL, OTHER):
        publish(endpoint, f"org/{name}", folder)
        tagged(endpoint, f"org/{name}", "v1")
        assert same(zoo.load(f"org/{name}", revision=revision), folder)
        body = {"organization": "org", "name": name}
        assert ask(endpoint, "DELETE", "/api/repos/delete", body).status == 200


# The client's own options


def test_local_files_only_asks_for_nothing_and_says_what_is_missing(endpoint):
    publish(endpoint, "org/local", SMALL)
    faults(endpoint)
    with pytest.raises(
        HubError, match=r"^org/local isn't in the cache and local_files_only is set: leave it out to fetch"
    ):
        zoo.load("org/local", local_files_only=True)
    assert requests(endpoint) == []
    zoo.load("org/local")
    faults(endpoint)
    assert same(zoo.load("org/local", local_files_only=True), SMALL)
    assert requests(endpoint) == []


def test_refresh_fetches_again_what_the_cache_holds(endpoint):
    pinned = publish(endpoint, "org/fresh", SMALL)
    zoo.load("org/fresh", revision=pinned)
    faults(endpoint)
    assert same(zoo.load("org/fresh", revision=pinned, refresh=True), SMALL)
    assert ("GET", f"/org/fresh/resolve/{pinned}/config.json") in requests(endpoint)
    with pytest.raises(
        HubError, match="can't be fetched again without the Hub: leave out refresh, or local_files_only"
    ):
        zoo.load("org/fresh", refresh=True, local_files_only=True)


def test_a_token_opens_what_is_private(tmp_path, monkeypatch):
    with serving(tmp_path / "served", token=TOKEN) as address:
        publish(address, "org/private", SMALL, token=TOKEN, private=True)
        point(monkeypatch, address, tmp_path / "cache")
        with pytest.raises(UnknownName, match="no repository org/private on"):
            zoo.load("org/private")
        assert same(zoo.load("org/private", token=TOKEN), SMALL)


# timm's own weights


@pytest.fixture
def dense(endpoint, tmp_path):
    """timm/test_resnet.r160_in1k as the endpoint has it, twice changed; the weights of each commit by its hash."""
    torch.manual_seed(0)
    found, repo = {}, "timm/test_resnet.r160_in1k"
    create(endpoint, repo)
    for _ in range(2):
        weights = timm.create_model("test_resnet").state_dict()
        (tmp_path / "up").mkdir(exist_ok=True)
        save_file(weights, tmp_path / "up" / "model.safetensors")
        found[add(endpoint, repo, tmp_path / "up")] = weights
    faults(endpoint)
    yield found
    body = {"organization": "timm", "name": "test_resnet.r160_in1k"}
    assert ask(endpoint, "DELETE", "/api/repos/delete", body).status == 200


def test_a_timm_id_gives_the_weights_of_its_revision(dense):
    first, last = dense
    for revision, weights in ((None, dense[last]), (first, dense[first]), (first[:8], dense[first])):
        model = zoo.load("timm/test_resnet.r160_in1k", revision=revision)
        assert torch.equal(model.state_dict()["fc.weight"], weights["fc.weight"])
        assert "file" not in model.pretrained_cfg
    assert torch.equal(zoo.load("timm/test_resnet").fc.weight, dense[last]["fc.weight"])  # timm's default tag


def test_a_timm_id_is_cached_where_it_is_asked_for(dense, tmp_path, offline):
    zoo.load("timm/test_resnet.r160_in1k", cache_dir=tmp_path / "own")
    assert [path.name for path in (tmp_path / "own").iterdir() if path.name.startswith("models")] == [
        "models--timm--test_resnet.r160_in1k"
    ]
    offline()
    assert zoo.load("timm/test_resnet.r160_in1k", cache_dir=tmp_path / "own", local_files_only=True)
    with pytest.raises(HubError, match="isn't in the cache and HF_HUB_OFFLINE is set"):
        zoo.load("timm/test_resnet.r160_in1k")


def test_a_revision_of_weights_that_timm_fetches_itself_is_refused(endpoint):
    create(endpoint, "timm/test_resnet.r160_in1k")
    with pytest.raises(RepositoryError, match="what timm fetches itself takes neither revision, token"):
        zoo.load("timm/test_resnet.r160_in1k", revision="main")
