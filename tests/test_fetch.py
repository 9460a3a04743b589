"""Models of the Hub: found by every name and revision, asked for no more than needed, refused in one line."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import huggingface_hub
import pytest
from client import (
    FILES,
    OTHER,
    SECONDS,
    SMALL,
    add,
    command,
    dead,
    environment,
    faults,
    left,
    outputs,
    point,
    publish,
    requests,
    same,
)
from hub import ask, commit, regular, serving
from huggingface_hub import file_download

import zoo
from zoo import catalog
from zoo.errors import HubError, RepositoryError, StorageError, UnknownName, WeightsError
from zoo.files import MAX_JSON
from zoo.hub import remote


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that everyone may write to; org/model is OTHER at its first commit, then SMALL."""
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, complaints=["ConnectionAbortedError: cut"]) as address:
        publish(address, "org/model", OTHER)
        assert ask(address, "POST", "/api/models/org/model/branch/old", {"startingPoint": "main"}).status == 200
        add(address, "org/model", SMALL)
        assert ask(address, "POST", "/api/models/org/model/tag/main", {"tag": "v1"}).status == 200
        yield address


@pytest.fixture
def endpoint(served, tmp_path, monkeypatch):
    """That server as the client's endpoint; nothing is in the cache and nothing goes wrong."""
    point(monkeypatch, served, tmp_path / "cache")
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between the client's own retries
    faults(served)
    return served


@pytest.fixture
def go(monkeypatch, tmp_path):
    """A function that moves the client to another address and keeps its caches."""
    return lambda address, **options: point(monkeypatch, address, tmp_path / "cache", **options)


def commits(address, name="org/model"):
    """Newest first, asked of the server itself."""
    return [each["id"] for each in ask(address, "GET", f"/api/models/{name}/commits/main").json()]


def files_of(folder):
    """The files of a cached repository, with the folder's name, which is the commit."""
    return folder.name, sorted(path.name for path in folder.iterdir())


# Names and revisions.


def test_a_model_of_the_hub_computes_what_the_one_that_was_published_does(endpoint):
    assert same(zoo.load("org/model"), SMALL)
    assert same(zoo.load("org/model", revision="old"), OTHER)


@pytest.mark.parametrize(
    ("revision", "which"),
    [(None, 0), ("main", 0), ("v1", 0), ("old", 1), ("{0}", 0), ("{1}", 1), ("{0:.7}", 0), ("{1:.12}", 1)],
)
def test_every_way_to_name_a_revision_leads_to_its_commit(endpoint, revision, which):
    known = commits(endpoint)
    asked = revision and revision.format(*known)

    assert files_of(remote.fetch("org/model", asked)) == (known[which], FILES)


def test_a_pinned_commit_that_is_cached_is_loaded_without_a_request(endpoint, go):
    pinned = commits(endpoint)[0]
    zoo.load("org/model", revision=pinned)
    faults(endpoint)
    zoo.load("org/model", revision=pinned)

    assert requests(endpoint) == []
    for address, offline in ((dead(), False), (endpoint, True)):
        go(address, offline=offline)
        assert same(zoo.load("org/model", revision=pinned), SMALL)


def test_a_card_and_results_that_are_not_there_are_asked_for_once(endpoint):
    pinned = publish(endpoint, "org/bare", SMALL, ["config.json", "model.safetensors"])
    folder = remote.fetch("org/bare", pinned)
    faults(endpoint)

    assert files_of(remote.fetch("org/bare", pinned)) == (pinned, ["config.json", "model.safetensors"])
    assert remote.fetch("org/bare", pinned) == folder
    assert requests(endpoint) == []


def test_a_graph_is_asked_for_where_the_configuration_names_one(endpoint):
    remote.fetch("org/model")
    assert not any("graph.json" in path for _, path in requests(endpoint))

    publish(endpoint, "org/graph", SMALL)
    config = json.loads((SMALL / "config.json").read_text())
    config["zoo"]["graph"] = "graph.json"
    commit(endpoint, "org/graph", regular("config.json", json.dumps(config)))
    with pytest.raises(RepositoryError, match=r"org/graph at \w{7} has no graph.json"):
        remote.fetch("org/graph", files=["config.json"])
    commit(endpoint, "org/graph", regular("graph.json", "{}"))
    assert files_of(remote.fetch("org/graph", files=["config.json"]))[1] == ["config.json", "graph.json"]


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_a_file_that_would_be_refused_for_its_size_is_not_fetched(endpoint, tmp_path, name):
    repo = f"org/huge_{name}"
    publish(endpoint, repo, SMALL)
    commit(endpoint, repo, regular(name, " " * (MAX_JSON + 1)))
    with pytest.raises(RepositoryError, match=rf"{name} of {repo} has 8,388,609 bytes, .* at most 8,388,608: not f"):
        zoo.load(repo)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > MAX_JSON]


@pytest.mark.parametrize(
    ("revision", "asked"), [("v1", [("HEAD", "/org/model/resolve/v1/config.json")]), ("{0:.7}", [])]
)
def test_a_tag_may_move_and_is_asked_each_time_a_short_commit_is_asked_once(endpoint, revision, asked):
    revision = revision.format(*commits(endpoint))
    remote.fetch("org/model", revision)
    faults(endpoint)
    remote.fetch("org/model", revision)

    assert requests(endpoint) == asked


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """A context in which org/model is served, until the endpoint dies; its hash first of all."""

    @contextlib.contextmanager
    def server():
        with serving(tmp_path / "mortal") as address:
            point(monkeypatch, address, tmp_path / "cache")
            yield address, publish(address, "org/model", OTHER)

    return server()


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_branch_is_asked_each_time_and_a_dead_endpoint_is_answered_with_its_last_known_commit(mortal, revision):
    with mortal as (address, first):
        assert remote.fetch("org/model", revision).name == first
        second = add(address, "org/model", SMALL)
        assert remote.fetch("org/model", revision).name == second

    assert remote.fetch("org/model", revision).name == second
    assert same(zoo.load("org/model", revision=revision), SMALL)
    with pytest.raises(HubError, match="can't be reached"):
        remote.fetch("org/model", "never-asked")


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_known_revision_whose_files_are_gone_is_said_at_once(mortal, tmp_path, monkeypatch, revision, offline):
    with mortal as (address, _):
        assert ask(address, "POST", "/api/models/org/model/tag/main", {"tag": "v1"}).status == 200
        remote.fetch("org/model", revision)
    shutil.rmtree(tmp_path / "cache" / "hub")
    point(monkeypatch, address, tmp_path / "cache", offline=offline)
    started = time.monotonic()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set: unset it" if offline else "can't be reached"):
        remote.fetch("org/model", revision)

    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("revision", ["nothing", "v9", "0123456", "0123456789abcdef0123456789abcdef01234567"])
def test_a_revision_that_is_not_there_is_said(endpoint, revision):
    with pytest.raises(UnknownName) as error:
        zoo.load("org/model", revision=revision)

    assert f"org/model has no revision '{revision}'" in str(error.value)
    assert f"{endpoint}/org/model/commits/main lists" in str(error.value)


def test_a_short_commit_that_two_begin_with_is_said(tmp_path, monkeypatch):
    with serving(tmp_path / "served") as address:
        head = publish(address, "org/model", SMALL)
        home = tmp_path / "served" / ".hub" / "models" / "org" / "model"
        digits = [digit for digit in "012" if digit != head[7]]
        twins = [f"{head[:7]}{digit * 33}" for digit in digits[:2]]
        for parent, twin in zip([head, *twins], twins, strict=False):  # commits that nobody could find by chance
            data = json.loads((home / "commits" / f"{head}.json").read_text())
            (home / "commits" / f"{twin}.json").write_text(json.dumps({**data, "parent": parent}))
        state = json.loads((home / "repository.json").read_text())
        (home / "repository.json").write_text(json.dumps({**state, "branches": {"main": twins[1]}}))
        point(monkeypatch, address, tmp_path / "cache")

        with pytest.raises(UnknownName) as error:
            remote.fetch("org/model", head[:7])
        assert remote.fetch("org/model", twins[0][:8]).name == twins[0]
    assert f"3 commits of org/model begin with {head[:7]}: give more digits" in str(error.value)


def test_an_entry_of_the_catalog_that_is_published_is_fetched_at_its_pinned_commit(endpoint, tmp_path, monkeypatch):
    pinned = commits(endpoint)[1]
    text = f'[[model]]\nname = "mine"\nbase = "timm/resnet18"\nrepo = "org/model"\nrevision = "{pinned}"\n'
    (tmp_path / "mine.toml").write_text(f'[family]\narchitecture = "resnet18"\ntask = "image-classification"\n{text}')
    monkeypatch.setenv("ZOO_CATALOG", str(tmp_path))

    assert catalog.info("mine").status == "published"
    assert same(zoo.load("mine"), OTHER)
    assert same(zoo.load("mine", revision="v1"), SMALL)


def test_a_plain_name_is_looked_up_at_the_namespace_and_an_embedded_one_is_not(endpoint, monkeypatch):
    assert same(zoo.load("model", namespace="org"), SMALL)
    with pytest.raises(UnknownName, match="no model 'model' in the catalog"):
        zoo.load("model")
    monkeypatch.setenv("ZOO_NAMESPACE", "org")
    assert same(zoo.load("model"), SMALL)

    faults(endpoint)
    assert same(zoo.load("digits_vit"), catalog.EMBEDDED / "digits_vit")
    assert requests(endpoint) == []
    with pytest.raises(UnknownName, match="no repository org/digits_vit on"):
        zoo.load("digits_vit", namespace="org")


def test_a_folder_of_that_name_comes_before_the_hub(endpoint, tmp_path, monkeypatch):
    shutil.copytree(OTHER, tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)

    assert same(zoo.load("org/model"), OTHER)
    assert requests(endpoint) == []


def test_create_fetches_the_configuration_alone(endpoint, tmp_path):
    model = zoo.create("org/model")

    assert outputs(model).shape == outputs(zoo.load(SMALL)).shape
    assert {path.name for path in (tmp_path / "cache" / "hub").rglob("snapshots/*/*")} == {"config.json"}
    assert {path.rpartition("/")[2] for _, path in requests(endpoint) if "/resolve/" in path} == {"config.json"}


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_arrives_damaged_once_is_fetched_again(endpoint, tmp_path, name):
    faults(endpoint, corrupt=[1, name])
    folder = remote.fetch("org/model")

    assert [path.name for path in folder.iterdir() if path.read_bytes() != (SMALL / path.name).read_bytes()] == []
    assert sum(path.endswith(name) and method == "GET" for method, path in requests(endpoint)) >= 2
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_always_arrives_damaged_is_an_error_and_leaves_nothing_of_it(endpoint, tmp_path, name, capsys):
    faults(endpoint, corrupt=[9, name])
    with pytest.raises(WeightsError) as error:
        zoo.load("org/model")

    assert f"{name} of org/model arrives damaged, twice: {endpoint} or a proxy alters it" in str(error.value)
    assert left(tmp_path / "cache") == []
    assert list((tmp_path / "cache").rglob(name)) == []
    code, out, err = command(capsys, "verify", "--structure", "org/model")
    assert (code, out, err.splitlines()[-1]) == (1, "", f"error: {error.value}")


@pytest.mark.parametrize("name", FILES)
def test_a_cached_file_that_was_damaged_since_is_fetched_again(endpoint, name):
    """Also in place, by one that has its former size and time again."""
    folder = remote.fetch("org/model")
    path = (folder / name).resolve()
    before = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    after = path.stat()
    assert [after.st_ino, after.st_size, after.st_mtime_ns] == [before.st_ino, before.st_size, before.st_mtime_ns]
    assert same(zoo.load("org/model"), SMALL)
    assert (folder / name).read_bytes() == (SMALL / name).read_bytes()


# Disks and connections.


def test_a_full_disk_is_said_and_nothing_half_is_left(endpoint, tmp_path, monkeypatch, capsys):
    def full(url, temp_file, **options):
        temp_file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temp_file.name)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(StorageError, match="can't be written: the disk is full; nothing was left behind, free space"):
        zoo.load("org/model")

    assert left(tmp_path / "cache") == []
    code, _, err = command(capsys, "verify", "--structure", "org/model")
    assert (code, err.splitlines()[-1].endswith("choose another place")) == (1, True)


def test_a_connection_that_is_cut_once_is_gone_on_with(endpoint):
    faults(endpoint, cut=100_000)

    assert same(zoo.load("org/model"), SMALL)


def test_a_connection_that_is_always_cut_is_said_and_nothing_half_is_left(endpoint, tmp_path, capsys):
    faults(endpoint, cut=[100_000, 99])
    with pytest.raises(HubError) as error:
        zoo.load("org/model")

    assert str(error.value).startswith(f"{endpoint} can't be reached (peer closed connection")
    assert "\n" not in str(error.value)
    assert left(tmp_path / "cache") == []
    faults(endpoint)
    assert same(zoo.load("org/model"), SMALL)


# Processes.


def test_two_processes_may_fetch_the_same_model_at_once(endpoint, tmp_path):
    faults(endpoint, slow=0.5)
    script = "import sys, zoo; zoo.load('org/model'); print('loaded')"
    own, pipe = environment(endpoint, tmp_path), subprocess.PIPE
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=own, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=100) for process in both]

    assert [out for out, _ in said] == ["loaded\n"] * 2, said
    assert [path.name for path in (tmp_path / "hf").rglob("*.incomplete")] == []


def test_the_command_line_takes_the_endpoint_from_the_environment(endpoint, tmp_path):
    arguments = [sys.executable, "-m", "zoo", "verify", "--structure", "org/model", "--revision", "old", "--json"]
    done = subprocess.run(arguments, env=environment(endpoint, tmp_path), capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["passed"]
    assert f"asking {endpoint} for org/model" in done.stderr
    assert huggingface_hub.try_to_load_from_cache(
        "org/model", "model.safetensors", tmp_path / "hf" / "hub", commits(endpoint)[1]
    )


def test_a_file_that_xet_keeps_elsewhere_is_neither_damaged_nor_removed(tmp_path):
    """Its blob is named for its sha256 and links to where several files share their bytes, under another hash."""
    shared, blobs, snapshot = tmp_path / "shared", tmp_path / "blobs", tmp_path / "snapshots"
    for folder in (shared, blobs, snapshot):
        folder.mkdir()
    (shared / ("1" * 64)).write_bytes(b"weights")
    blob = blobs / hashlib.sha256(b"weights").hexdigest()
    blob.symlink_to(shared / ("1" * 64))
    (snapshot / "model.safetensors").symlink_to(blob)

    assert remote._kept(snapshot / "model.safetensors")
    (shared / ("1" * 64)).write_bytes(b"weightz")
    assert not remote._kept(snapshot / "model.safetensors")
    assert [path.name for path in tmp_path.rglob("*") if not path.is_dir()] == ["1" * 64]
