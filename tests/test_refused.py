"""What the Hub refuses, of fetching, publishing and listing: one line at once, with the next step; nothing changes."""

import re
import time
from types import SimpleNamespace

import pytest
from client import LARGE, OTHER, SECONDS, SMALL, command, dead, faults, point, publish, requests, same
from hub import TOKEN, ask, commit, content, regular, serving
from huggingface_hub import HfApi
from huggingface_hub.utils import _http

import zoo
from zoo.errors import HubError, RepositoryError, UnknownName
from zoo.hub.errors import refused
from zoo.verbs import saving

# huggingface_hub's own way of sending a file, which its newest httpx doesn't like.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


# Fetching.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with an owner; what the table below asks for."""
    with serving(tmp_path_factory.mktemp("guarded"), token=TOKEN) as address:
        publish(address, "org/model", SMALL, token=TOKEN)
        publish(address, "org/secret", SMALL, token=TOKEN, private=True)
        publish(address, "org/gated", SMALL, token=TOKEN)
        assert ask(address, "PUT", "/api/models/org/gated/settings", {"gated": "auto"}, TOKEN).status == 200
        publish(address, "org/empty", SMALL, ["README.md"], TOKEN)
        publish(address, "org/weightless", SMALL, ["config.json", "README.md"], TOKEN)
        publish(address, "org/foreign", SMALL, ["model.safetensors"], TOKEN)
        commit(address, "org/foreign", regular("config.json", '{"model_type": "vit"}'), token=TOKEN)
        yield address


LOGIN = "check the name, or log in: hf auth login"
REFUSED = {
    "missing": ("org/nothing", UnknownName, ["no repository org/nothing on {at}", LOGIN]),
    "private": ("org/secret", UnknownName, ["no repository org/secret on {at}, or it is private", LOGIN]),
    "gated": ("org/gated", HubError, ["org/gated is gated: ask for access on {at}/org/gated, then: hf auth login"]),
    "no config": ("org/empty", RepositoryError, ["org/empty at", "has no config.json: not written by zoo"]),
    "no weights": ("org/weightless", RepositoryError, ["org/weightless at", "has no model.safetensors"]),
    "foreign": ("org/foreign", RepositoryError, ["config.json has no key 'zoo': not written by this package"]),
    "three parts": ("a/b/c", RepositoryError, ["no folder a/b/c: expected a model repository"]),
    "climbing": ("../x", RepositoryError, ["no folder ../x: expected a model repository"]),
    "space": ("a b/c", RepositoryError, ["no folder a b/c: expected a model repository"]),
    "two dashes": ("org/a--b", UnknownName, ["'org/a--b' can't be a repository's name: expected org/name"]),
    "wrong token": ("org/model", HubError, ["{at} answers 401 for org/model (Invalid cred", "log in: hf auth login"]),
    "dead": ("org/model", HubError, ["{at} can't be reached (", "check the network and HF_ENDPOINT"]),
    "offline": ("org/model", HubError, ["org/model isn't in the cache and HF_HUB_OFFLINE is set: unset it to fetch"]),
    "server down": ("org/model", HubError, ["{at} answers 503 for org/model (", "try again later"]),
    "too many": ("org/model", HubError, ["{at} answers 429 for org/model (", "too many requests: wait a while"]),
}
DOWN = {"server down": 503, "too many": 429}


@pytest.mark.parametrize("revision", [None, "pinned"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_said_at_once_in_one_line_with_the_next_step(
    guarded, tmp_path, monkeypatch, capsys, case, revision, request
):
    name, kind, words = REFUSED[case]
    address = dead() if case == "dead" else guarded
    point(monkeypatch, address, tmp_path / "cache", offline=case == "offline")
    if case == "wrong token":
        monkeypatch.setenv("HF_TOKEN", "hf_another")
    faults(guarded)
    if revision:
        heads = {row["id"]: row["sha"] for row in ask(guarded, "GET", "/api/models?full=true", token=TOKEN).json()}
        revision = heads.get(name, "0" * 40)
    faults(guarded, fail=[99 * (case in DOWN), "/", DOWN.get(case)])
    started = time.monotonic()
    with pytest.raises(kind) as error:
        zoo.load(name, revision=revision)
    seconds = time.monotonic() - started
    request.node.user_properties.append(("seconds", seconds))

    said = str(error.value)
    assert [each for each in words if each.format(at=address) not in said] == []
    assert type(error.value) is kind
    assert "\n" not in said
    assert seconds < SECONDS
    options = ["--revision", revision] if revision else []
    code, out, err = command(capsys, "verify", "--structure", *options, name)
    assert (code, out, err.splitlines()[-1]) == (1, "", f"error: {said}")


def test_a_token_opens_what_is_private_and_gated(guarded, tmp_path, monkeypatch):
    faults(guarded)
    point(monkeypatch, guarded, tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert same(zoo.load("org/secret"), SMALL)
    assert same(zoo.load("org/gated"), SMALL)


def test_a_foreign_repository_is_refused_before_its_weights_are_fetched_each_time(guarded, tmp_path, monkeypatch):
    faults(guarded)
    point(monkeypatch, guarded, tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(RepositoryError, match="not written by this package"):
            zoo.load("org/foreign")

    assert not any("safetensors" in path for _, path in requests(guarded))


# Publishing.


@pytest.fixture
def owned(tmp_path):
    """A server with an owner, a repository that anyone may see, and little patience for size."""
    with serving(tmp_path / "owned", token=TOKEN, largest=210_000) as address:
        publish(address, "org/model", OTHER, ["config.json", "README.md"], token=TOKEN)
        yield address


LOG_IN, MAY_NOT = "log in: hf auth login", "the token may not do that: hf auth login with one that may write there"
UNTAKEN = {  # words of the message, and what differs from pushing SMALL to org/model as its owner
    "nobody, new": (["{at} answers 401 for org/new (", LOG_IN], {"token": "", "name": "org/new"}),
    "nobody, known": (["{at} answers 401 for org/model (", LOG_IN], {"token": ""}),
    "wrong token": (["{at} answers 401 for org/model (Invalid", LOG_IN], {"token": "hf_stranger"}),
    "may not create": (["403 for org/new", MAY_NOT], {"name": "org/new", "fail": [9, "/api/repos", 403]}),
    "may not write": (["403 for org/model", MAY_NOT], {"fail": [9, "/commit/", 403]}),
    "too large": (["{at} refuses org/model: LFS batch", "larger than 210000 bytes"], {"folder": LARGE}),
    "commit too large": (["413 for org/model", "it is too large for this"], {"fail": [9, "/commit/", 413]}),
    "down": (["{at} answers 503 for org/model (", "try again later"], {"fail": [99, "/"]}),
    "storage down": (["answers 503 for org/model (Service Un", "try again later"], {"fail": [99, "/uploads/"]}),
    "commit fails": (["answers 500 for org/model (Internal", "try again later"], {"fail": [99, "/commit/", 500]}),
    "commit refused": (["400 for org/model (Bad Request): mend what it names"], {"fail": [9, "/commit/", 400]}),
    "raced": (["{at} answers 412 for org/model (", "somebody else published meanwhile: push again"], {}),
    "dead": (["{at} can't be reached (", "check the network and HF_ENDPOINT"], {}),
    "offline": (["org/model can't be published: HF_HUB_OFFLINE is set, unset it"], {}),
    "two dashes": (["'org/a--b' can't be a repository's name: expected org/name"], {"name": "org/a--b"}),
    "bad tag": (["400 for o/t (", "'): mend what it names; what was pushed stands"], {"name": "o/t", "tag": "a..b"}),
}


@pytest.mark.parametrize("case", UNTAKEN)
def test_a_push_that_is_refused_says_so_at_once_in_one_line_and_leaves_what_was_there(
    owned, tmp_path, monkeypatch, capsys, case, request
):
    words, options = UNTAKEN[case]
    folder, name, wrong = options.get("folder", SMALL), options.get("name", "org/model"), options.get("fail", [0, ""])
    address = dead() if case == "dead" else owned
    point(monkeypatch, address, tmp_path / "cache", offline=case == "offline")
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between the client's own retries
    monkeypatch.setenv("HF_TOKEN", options.get("token", TOKEN))
    before = {**published(owned), "NEWS": b""}
    if case == "raced":
        monkeypatch.setattr(HfApi, "create_commit", overtaken(owned, HfApi.create_commit))
    faults(owned, fail=wrong)
    started = time.monotonic()
    with pytest.raises(UnknownName if case == "two dashes" else HubError) as error:
        saving.push(folder, name, tag=options.get("tag"))
    seconds = time.monotonic() - started
    request.node.user_properties.append(("seconds", seconds))

    said = str(error.value)
    assert [each for each in words if each.format(at=address) not in said] == []
    assert "\n" not in said
    assert "signature=" not in said
    assert seconds < SECONDS
    faults(owned, fail=wrong)
    code, out, err = command(capsys, "push", folder, name, *(["--tag", options["tag"]] if "tag" in options else []))
    last = err.splitlines()[-1]
    assert (code, out, last if case != "raced" else f"error: {said}") == (1, "", f"error: {said}")
    faults(owned)
    assert {**published(owned), "NEWS": b""} == before
    assert ask(owned, "GET", "/api/models/org/new", token=TOKEN).status == 404


def published(address):
    """What the server has of org/model: path → bytes."""
    rows = ask(address, "GET", "/api/models/org/model/tree/main?recursive=true", token=TOKEN).json()
    paths = [row["path"] for row in rows if row["type"] == "file"]
    return {path: content(address, "org/model", path, token=TOKEN).body for path in paths}


def overtaken(address, original):
    """A commit before which somebody else commits."""

    def create_commit(*arguments, **options):
        commit(address, "org/model", regular("NEWS", f"{time.monotonic()}"), token=TOKEN)
        return original(*arguments, **options)

    return create_commit


# Listing.


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("down", "{at} answers 503 for the list of models ("),
        ("dead", "{at} can't be reached ("),
        ("offline", "the list of models isn't in the cache and HF_HUB_OFFLINE is set: unset it to fetch"),
    ],
)
def test_a_listing_that_cannot_be_had_is_said(guarded, tmp_path, monkeypatch, capsys, wrong, words):
    address = dead() if wrong == "dead" else guarded
    point(monkeypatch, address, tmp_path / "cache", offline=wrong == "offline")
    faults(guarded, fail=[99 * (wrong == "down"), "/"])
    started = time.monotonic()
    code, out, err = command(capsys, "list", "--hub")

    assert time.monotonic() - started < SECONDS
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: " + words.format(at=address))


@pytest.mark.parametrize("said", ["", " \n ", "\n\nno\nyes"])
def test_an_answer_without_a_reason_is_told_all_the_same(said):
    answer = SimpleNamespace(status_code=599, reason_phrase="")
    told = refused("org/model", SimpleNamespace(server_message=said, response=answer))

    assert re.fullmatch(r"\S+ answers 599 for org/model \((without a reason|no)\): try again later", told)
