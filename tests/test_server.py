"""The local Hub request by request: who may what, which paths lead where, and what is refused."""

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import quote, urlsplit

import pytest
from hub import TOKEN, ask, batch, commit, content, create, follow, large, regular, serving

from zoo.errors import MissingExtra, StorageError, ZooError
from zoo.server import serve
from zoo.server.sending import PIECE, FileAnswer

SECRET = "nobody may read this"
WEIGHTS = bytes(range(256)) * 8
TEXT = "".join(f"line {number}\n" for number in range(200))
CARD = "---\ntags: [pruned, {tag}]\nlibrary_name: timm\npipeline_tag: {task}\nlicense: mit\n---\n# {tag}\n"


def card(tag, task="image-classification"):
    return CARD.replace("{tag}", tag).replace("{task}", task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the server serves: beside it lies a file that nobody may ever see."""
    root = tmp_path_factory.mktemp("served")
    (root / "secret.txt").write_text(SECRET)
    plain = root / "hub" / "plain" / "model"
    (plain / "sub").mkdir(parents=True)
    (plain / "config.json").write_text("{}")
    (plain / "README.md").write_text(card("plain"))
    (plain / "model.safetensors").write_bytes(WEIGHTS)
    (plain / "sub" / "notes.txt").write_text(TEXT)
    (plain / ".env").write_text(SECRET)
    (plain / "out.txt").symlink_to(root / "secret.txt")
    (plain / "above").symlink_to(root)
    (root / "hub" / "alone").mkdir()
    (root / "hub" / "alone" / "config.json").write_text("{}")
    (root / "hub" / "linked").symlink_to(plain.parent)
    (root / "hub" / "papers" / "thesis").mkdir(parents=True)
    (root / "hub" / "papers" / "thesis" / "secret.txt").write_text(SECRET)
    return root / "hub"


@pytest.fixture(scope="module")
def address(folder):
    """A server with a token, and in it a public, a gated and a private repository of every kind."""
    with serving(folder, token=TOKEN, part=1 << 20, largest=4 << 20) as address:
        for kind in ("model", "dataset"):
            for name in ("public", "gated", "private"):
                full = f"org/{name}"
                assert create(address, full, kind, token=TOKEN).status == 200
                binary = large(address, full, "model.safetensors", WEIGHTS, TOKEN, kind)
                lines = [regular("README.md", card(name)), regular("sub/notes.txt", TEXT), binary]
                assert commit(address, full, *lines, token=TOKEN, kind=kind).status == 200
            for name, setting in (("gated", {"gated": "auto"}), ("private", {"visibility": "private"})):
                assert ask(address, "PUT", f"/api/{kind}s/org/{name}/settings", setting, TOKEN).status == 200
        yield address


# Who may what.

SEE, READ, WRITE = "/api/models/{}", "/{}/resolve/main/sub/notes.txt", "/api/models/{}/tag/main"


@pytest.mark.parametrize(
    ("who", "what", "path", "status", "code"),
    [
        (None, "org/public", SEE, 200, None),
        (None, "org/public", READ, 200, None),
        (None, "org/public", WRITE, 401, None),
        (None, "org/gated", SEE, 200, None),
        (None, "org/gated", READ, 401, "GatedRepo"),
        (None, "org/gated", WRITE, 401, None),
        (None, "org/private", SEE, 401, "RepoNotFound"),
        (None, "org/private", READ, 401, "RepoNotFound"),
        (None, "org/private", WRITE, 401, "RepoNotFound"),
        (None, "org/absent", SEE, 401, "RepoNotFound"),
        (None, "org/absent", READ, 401, "RepoNotFound"),
        (TOKEN, "org/public", READ, 200, None),
        (TOKEN, "org/gated", READ, 200, None),
        (TOKEN, "org/private", SEE, 200, None),
        (TOKEN, "org/private", READ, 200, None),
        (TOKEN, "org/absent", SEE, 404, "RepoNotFound"),
        (TOKEN, "org/absent", READ, 404, "RepoNotFound"),
        (TOKEN, "plain/model", READ, 200, None),
        (TOKEN, "plain/model", WRITE, 403, None),
        ("wrong", "org/public", SEE, 401, None),
        ("wrong", "org/private", READ, 401, None),
        (TOKEN + "x", "org/private", READ, 401, None),
        ("é", "org/private", READ, 401, None),
    ],
)
def test_who_may_see_read_and_write(address, who, what, path, status, code):
    method, body = ("POST", {"tag": "x"}) if path == WRITE else ("GET", None)
    answer = ask(address, method, path.format(what), body, who)

    assert (answer.status, answer.headers.get("x-error-code")) == (status, code)


def test_a_private_and_a_missing_repository_sound_the_same_to_a_stranger(address):
    private, absent = (ask(address, "GET", f"/api/models/org/{name}") for name in ("private", "absent"))

    assert (private.status, private.body) == (absent.status, absent.body)
    assert {key: value for key, value in private.headers.items() if key != "date"} == {
        key: value for key, value in absent.headers.items() if key != "date"
    }


EVERY_CHANGE = [
    ("POST", "/api/repos/create", {"organization": "org", "name": "new"}),
    ("DELETE", "/api/repos/delete", {"organization": "org", "name": "public"}),
    ("POST", "/api/repos/move", {"fromRepo": "org/public", "toRepo": "org/other"}),
    ("PUT", "/api/models/org/public/settings", {"gated": "auto"}),
    ("POST", "/api/models/org/public/branch/new", {}),
    ("DELETE", "/api/models/org/public/branch/main", None),
    ("POST", "/api/models/org/public/tag/main", {"tag": "x"}),
    ("DELETE", "/api/models/org/public/tag/x", None),
    ("POST", "/api/models/org/public/preupload/main", {"files": []}),
    ("POST", "/api/models/org/public/commit/main", {"key": "header", "value": {"summary": "x"}}),
    ("POST", "/org/public.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
    ("POST", "/org/public.git/info/lfs/verify", {"oid": "0" * 64, "size": 1}),
]


@pytest.mark.parametrize(("method", "path", "body"), EVERY_CHANGE)
def test_nobody_but_the_owner_changes_anything_nor_does_a_page_of_another_site(address, method, path, body):
    assert ask(address, method, path, body).status == 401
    assert ask(address, method, path, body, "wrong").status == 401
    assert ask(address, method, path, body, TOKEN, Origin="http://evil.example").status == 403


def test_listings_show_private_repositories_to_the_owner_alone(address):
    shown = {who: {row["id"] for row in ask(address, "GET", "/api/models", token=who).json()} for who in (None, TOKEN)}

    assert shown[TOKEN] - shown[None] == {"org/private"}
    assert shown[None] == {"org/public", "org/gated", "plain/model", "alone"}


def test_an_address_on_the_cdn_is_for_one_file_one_method_and_an_hour(address):
    link = ask(address, "GET", "/org/private/resolve/main/model.safetensors", token=TOKEN).headers["location"]
    later = re.sub(r"expires=(\d+)", lambda found: f"expires={int(found[1]) + 1}", link)

    assert urlsplit(link).port != urlsplit(address).port
    assert follow(link).body == WEIGHTS
    assert follow(link, "HEAD").headers["content-length"] == str(len(WEIGHTS))
    assert follow(later).status == 403
    assert follow(link.partition("?")[0] + "?").status == 403
    assert follow(link.replace("/private/", "/gated/")).status == 403
    assert follow(link.replace("model.safetensors", "README.md")).status == 403
    assert follow(link, "PUT", b"").status in (403, 405)


def test_an_address_on_the_cdn_ends(monkeypatch):
    from zoo.server import access
    from zoo.server.errors import Forbidden

    path, _, query = access.signed(b"key", "GET", "/a b", size=1).partition("?")
    access.permitted(b"key", "GET", "/a b", query)
    monkeypatch.setattr(access, "LIFETIME", -1)
    expired = access.signed(b"key", "GET", "/a b").partition("?")[2]

    assert path == "/a%20b"
    for key, method, asked in ((b"other", "GET", query), (b"key", "PUT", query), (b"key", "GET", expired)):
        with pytest.raises(Forbidden):
            access.permitted(key, method, "/a b", asked)


# Paths that lead out of the folder.

CLIMBS = ["../secret.txt", "../../secret.txt", "..", ".", "/etc/passwd", "sub/../../../secret.txt", "a\0b", "a\\..\\b"]
CLIMBS += ["sub//notes.txt", "", "/", "a/", ".git/config", "sub/.GIT/x", "a\nb", "x" * 256, "a/" * 600 + "b", "\x7f"]


@pytest.mark.parametrize("path", [*CLIMBS, "out.txt", "above/secret.txt", ".env", "../../.hub/key"], ids=ascii)
@pytest.mark.parametrize("name", ["org/public", "plain/model"])
def test_no_path_of_a_read_leads_out_of_the_repository(address, name, path):
    for sent in {quote(path), quote(path, safe=""), quote(path).replace(".", "%2e")}:
        for route in (f"/{name}/resolve/main/{sent}", f"/api/models/{name}/tree/main/{sent}"):
            answer = ask(address, "GET", route, token=TOKEN)
            assert answer.status == 404 or (answer.status == 200 and "/tree/main/" in route and path in ("", "/"))
            assert SECRET not in answer.body.decode()
    answer = ask(address, "POST", f"/api/models/{name}/paths-info/main", {"paths": [path]}, TOKEN)
    assert (answer.status, answer.json()) == (200, [])


@pytest.mark.parametrize("path", [*CLIMBS, "\ud800"], ids=ascii)
def test_no_path_of_a_commit_leads_out_of_the_repository(address, folder, path):
    before = sorted(folder.parent.rglob("*"))
    named = {"path": path, "oid": hashlib.sha256(WEIGHTS).hexdigest()}
    for line in (regular(path, "x"), ("lfsFile", named), ("deletedFile", named)):
        answer = commit(address, "org/public", line, token=TOKEN)
        assert (answer.status, answer.headers.get("x-error-code")) == (400, None)
    preupload = {"files": [{"path": path, "size": 1, "sample": ""}]}
    assert ask(address, "POST", "/api/models/org/public/preupload/main", preupload, TOKEN).status == 400

    assert [each for each in sorted(folder.parent.rglob("*")) if each not in before and each.is_file()] == []


NAMES = [
    "..",
    ".",
    "../x",
    "a/..",
    "../..",
    "a/../b",
    ".hub/x",
    "a/.hidden",
    "a\0/b",
    "a//b",
    "a--b/c",
    "-a/b",
    "a/b.git",
]
NAMES += [
    "api/x",
    "datasets/x",
    "a/" + "x" * 97,
    "é/b",
    "a/b/c",
    "a/tree",
    "a\\b/c",
    "a b/c",
    "",
    "/",
    "a/b\n",
    "\ud800/b",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_of_a_repository_leads_out_of_the_folder(address, folder, name):
    before = sorted(folder.parent.rglob("*"))
    namespace, _, rest = name.partition("/")
    for body in ({"name": name}, {"organization": namespace, "name": rest}, {"organization": "o", "name": name}):
        if body != {"organization": "o", "name": name} or "/" in name:
            assert ask(address, "POST", "/api/repos/create", body, TOKEN).status == 400
    move = {"fromRepo": "org/public", "toRepo": name}
    assert ask(address, "POST", "/api/repos/move", move, TOKEN).status == 400
    sent = quote(name.encode("utf-8", "surrogatepass"))
    if name != "a/b.git":
        assert ask(address, "GET", f"/{sent}/resolve/main/secret.txt", token=TOKEN).status == 404

    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["../x", "a..b", "/a", "a/", "a b", "a~b", "a^", "a:b", "x.lock", "0" * 40, "refs/heads/x", "", "a\n", "\ud800"],
)
def test_no_branch_or_tag_has_a_name_that_git_refuses_or_that_hides_a_commit(address, name):
    assert ask(address, "POST", "/api/models/org/public/tag/main", {"tag": name}, TOKEN).status == 400


def test_a_plain_folder_is_served_as_it_lies_without_its_links_and_hidden_files(address, folder):
    info = ask(address, "GET", "/api/models/plain/model?blobs=true").json()
    shown = {each["rfilename"]: each for each in info["siblings"]}
    refused = commit(address, "plain/model", regular("a", "b"), token=TOKEN)

    assert sorted(shown) == ["README.md", "config.json", "model.safetensors", "sub/notes.txt"]
    assert shown["model.safetensors"]["lfs"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert "plain" in info["tags"]
    assert content(address, "plain/model", "model.safetensors").body == WEIGHTS
    assert content(address, "plain/model", "sub/notes.txt", info["sha"]).body == TEXT.encode()
    assert content(address, "alone", "config.json").body == b"{}"
    assert (refused.status, "plain folder" in refused.json()["error"]) == (403, True)
    assert create(address, "plain/model", token=TOKEN).status == 409
    for absent in ("linked/model", "papers/thesis", "hub", ".hub/models"):
        assert ask(address, "GET", f"/api/models/{absent}", token=TOKEN).status == 404


def test_a_plain_folder_that_changes_becomes_another_revision(tmp_path):
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    with serving(tmp_path) as address:
        first = ask(address, "GET", "/api/models/org/model").json()["sha"]
        assert ask(address, "GET", "/api/models/org/model").json()["sha"] == first
        (model / "config.json").write_text('{"a": 1}')
        second = ask(address, "GET", "/api/models/org/model").json()["sha"]

        assert second != first
        assert content(address, "org/model", "config.json", second).body == b'{"a": 1}'
        gone = ask(address, "GET", f"/org/model/resolve/{first}/config.json")
        assert (gone.status, gone.headers["x-error-code"]) == (404, "RevisionNotFound")


# Files.


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        (None, 200, slice(None)),
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-10", 206, slice(10, 11)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=-999999", 206, slice(None)),
        ("bytes=5-999999", 206, slice(5, None)),
        ("bytes=0-100000", 206, slice(None)),
        ("bytes=9-5", 200, slice(None)),
        ("bytes=0-1,5-6", 200, slice(None)),
        ("bytes=a-", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
        ("bytes=" + "9" * 5000 + "-", 200, slice(None)),
        ("bytes=999999-", 416, None),
        ("bytes=-0", 416, None),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize(("path", "data"), [("model.safetensors", WEIGHTS), ("sub/notes.txt", TEXT.encode())])
def test_a_range_of_a_file_is_what_slicing_gives(address, path, data, asked, status, part):
    answer = content(address, "org/public", path, **({"Range": asked} if asked else {}))

    assert answer.status == status
    if part is None:
        assert (answer.headers["content-range"], answer.body) == (f"bytes */{len(data)}", b"")
    else:
        assert answer.body == data[part]
        assert answer.headers["content-length"] == str(len(data[part]))
    if status == 206:
        start, stop, _ = part.indices(len(data))
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(data)}"


def test_the_head_of_a_file_says_what_clients_need_to_cache_it(address):
    sha = ask(address, "GET", "/api/models/org/public").json()["sha"]
    text = ask(address, "HEAD", "/org/public/resolve/main/sub/notes.txt").headers
    weights = ask(address, "HEAD", "/org/public/resolve/main/model.safetensors")
    missing = ask(address, "HEAD", "/org/public/resolve/main/none.txt")
    git = subprocess.run(["git", "hash-object", "--stdin"], input=TEXT.encode(), capture_output=True, check=True)

    assert text["etag"] == f'"{git.stdout.decode().strip()}"'
    assert (text["x-repo-commit"], text["content-length"], text["accept-ranges"]) == (sha, str(len(TEXT)), "bytes")
    assert (weights.status, weights.headers["x-repo-commit"]) == (302, sha)
    assert weights.headers["x-linked-etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert weights.headers["x-linked-size"] == str(len(WEIGHTS))
    assert (missing.status, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert missing.headers["x-repo-commit"] == sha
    assert content(address, "org/public", "sub/notes.txt", If_None_Match=text["etag"]).status == 304
    stale = content(address, "org/public", "sub/notes.txt", If_Range='"other"', Range="bytes=0-3")
    assert (stale.status, stale.body) == (200, TEXT.encode())


def test_an_empty_file_can_be_stored_and_read(address):
    assert commit(address, "org/public", regular("empty", ""), token=TOKEN).status == 200
    assert (content(address, "org/public", "empty").status, content(address, "org/public", "empty").body) == (200, b"")
    assert content(address, "org/public", "empty", Range="bytes=0-").status == 416


def test_a_file_is_not_read_on_for_a_client_that_has_gone(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(200 * PIECE))
    sent = []

    async def receive():
        while len(sent) < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        await asyncio.sleep(0.001)

    scope = {"type": "http", "method": "GET", "headers": []}
    asyncio.run(FileAnswer(path, 200 * PIECE, "etag", {})(scope, receive, send))

    assert 3 <= len(sent) < 20


# Revisions.


def test_revisions_are_branches_tags_and_full_hashes(address):
    create(address, "org/revisions", token=TOKEN)
    commits = [commit(address, "org/revisions", regular("f", str(n)), token=TOKEN).json()["commitOid"] for n in (1, 2)]
    made = [
        ask(address, "POST", f"/api/models/org/revisions/tag/{commits[0]}", {"tag": "v1/first"}, TOKEN).status,
        ask(address, "POST", "/api/models/org/revisions/branch/a%2Fb", {"startingPoint": "v1/first"}, TOKEN).status,
        ask(address, "POST", "/api/models/org/revisions/branch/c", None, TOKEN).status,
        ask(address, "POST", "/api/models/org/revisions/tag/main", {"tag": "v1/first"}, TOKEN).status,
        ask(address, "POST", "/api/models/org/revisions/branch/main", {}, TOKEN).status,
        ask(address, "POST", "/api/models/org/revisions/branch/d", {"startingPoint": "no"}, TOKEN).status,
    ]
    found = {
        revision: content(address, "org/revisions", "f", quote(revision, safe="")).body
        for revision in ("main", "c", "v1/first", "a/b", *commits)
    }
    refs = ask(address, "GET", "/api/models/org/revisions/refs").json()

    assert made == [200, 200, 200, 409, 409, 404]
    assert found == {"main": b"2", "c": b"2", "v1/first": b"1", "a/b": b"1", commits[0]: b"1", commits[1]: b"2"}
    assert [(each["name"], each["ref"]) for each in refs["tags"]] == [("v1/first", "refs/tags/v1/first")]
    assert [each["name"] for each in refs["branches"]] == ["a/b", "c", "main"]
    for unknown in (commits[1][:7], commits[1][:39], "0" * 40, "HEAD", "refs%2Fpr%2F1"):
        answer = ask(address, "GET", f"/api/models/org/revisions/revision/{unknown}")
        assert (answer.status, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    branch = commit(address, "org/revisions", regular("f", "3"), branch="a%2Fb", token=TOKEN)
    assert (branch.status, content(address, "org/revisions", "f").body) == (200, b"2")
    assert content(address, "org/revisions", "f", "a%2Fb").body == b"3"
    assert ask(address, "DELETE", "/api/models/org/revisions/branch/a%2Fb", token=TOKEN).status == 200
    assert ask(address, "DELETE", "/api/models/org/revisions/tag/v1%2Ffirst", token=TOKEN).status == 200
    assert ask(address, "DELETE", "/api/models/org/revisions/branch/main", token=TOKEN).status == 403


@pytest.mark.parametrize(
    ("lines", "status", "says"),
    [
        ([("deletedFile", {"path": "none"})], 404, "it isn't there"),
        ([("deletedFolder", {"path": "none"})], 404, "it isn't there"),
        ([("deletedFile", {"path": "sub"})], 404, "it isn't there"),
        ([regular("README.md/x", "y")], 400, "'README.md' would be a file and a folder"),
        ([regular("sub", "y")], 400, "'sub' would be a file and a folder"),
        ([("lfsFile", {"path": "w", "oid": "0" * 64})], 400, "hasn't arrived"),
        ([("lfsFile", {"path": "w", "oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": 1})], 400, "hasn't arrived"),
        ([("lfsFile", {"path": "w", "oid": "../../../secret.txt"})], 400, "expected a sha256"),
        ([("file", {"path": "f", "content": "%", "encoding": "base64"})], 400, "isn't base64"),
        ([("file", {"path": "f", "content": "x", "encoding": "rot13"})], 400, "rot13"),
        ([("symlink", {"path": "f", "content": "x"})], 400, "symlink"),
        ([("file", "x")], 400, "expected an object"),
    ],
)
def test_a_commit_that_cannot_be_made_says_why_and_changes_nothing(address, lines, status, says):
    before = ask(address, "GET", "/api/models/org/gated").json()["sha"]
    answer = commit(address, "org/gated", regular("other", "x"), *lines, token=TOKEN)

    assert (answer.status, says in answer.json()["error"]) == (status, True)
    assert ask(address, "GET", "/api/models/org/gated").json()["sha"] == before


# Uploads.


@pytest.mark.parametrize(
    ("data", "status"), [(b"x" * 99, 400), (b"x" * 101, 413), (b"y" * 100, 400), (b"", 400), (b"x" * 100, 200)]
)
def test_an_object_is_taken_only_with_the_announced_size_and_hash(address, folder, data, status):
    oid = hashlib.sha256(b"x" * 100).hexdigest()
    (folder / ".hub" / "blobs" / oid[:2] / oid).unlink(missing_ok=True)
    actions = batch(address, "org/public", oid, 100, TOKEN).json()["objects"][0]["actions"]
    answer = follow(actions["upload"]["href"], "PUT", data)
    verified = follow(actions["verify"]["href"], "POST", {"oid": oid, "size": 100}, token=TOKEN)

    assert answer.status == status
    assert verified.status == (200 if status == 200 else 400)
    assert ("actions" in batch(address, "org/public", oid, 100, TOKEN).json()["objects"][0]) == (status != 200)


def test_a_large_object_goes_in_parts_that_are_checked_together(address):
    data = os.urandom(2_500_000)
    oid = hashlib.sha256(data).hexdigest()
    upload = batch(address, "org/public", oid, len(data), TOKEN).json()["objects"][0]["actions"]["upload"]
    step = int(upload["header"].pop("chunk_size"))
    parts = {number: data[(int(number) - 1) * step : int(number) * step] for number in upload["header"]}
    finish = {"oid": oid, "parts": []}

    assert sorted(parts) == ["1", "2", "3"]
    assert follow(upload["href"], "POST", finish).status == 400  # none is there
    assert follow(upload["header"]["1"], "PUT", parts["1"] + b"x").status == 413
    for number, part in parts.items():
        answer = follow(upload["header"][number], "PUT", part)
        assert (answer.status, answer.headers["etag"]) == (200, f'"{hashlib.sha256(part).hexdigest()}"')
    follow(upload["header"]["2"], "PUT", parts["1"])
    assert follow(upload["href"], "POST", finish).status == 400  # another order is another object
    follow(upload["header"]["2"], "PUT", parts["2"])
    assert follow(upload["href"], "POST", finish).status == 200
    line = large(address, "org/public", "parts.bin", data, TOKEN)
    assert commit(address, "org/public", line, token=TOKEN).status == 200
    assert content(address, "org/public", "parts.bin").body == data


def test_what_is_larger_than_the_server_takes_is_refused(address):
    row = batch(address, "org/public", "0" * 64, 5 << 20, TOKEN).json()["objects"][0]
    line = json.dumps({"key": "file", "value": {"path": "f", "content": "x" * 15_000_000, "encoding": "base64"}})
    header = json.dumps({"key": "header", "value": {"summary": "t"}})
    sent = {"/api/validate-yaml": "x" * 9_000_000, "/api/models/org/public/commit/main": f"{header}\n{line}\n"}
    for path, body in sent.items():
        try:
            status = ask(address, "POST", path, body, TOKEN).status
        except ConnectionError:  # it hung up while more was coming, as it may
            status = 413
        assert status == 413

    assert row["error"]["code"] == 413
    assert "actions" not in row


DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"name": ["a"], "type": {}, "private": [], "visibility": {}}',
    b"[" * 5000,
]
DAMAGED += [b'{"files": [1]}', b'{"objects": {}}', b'{"files": [{"path": 1}]}', b'{"key": "header", "value": 1}']
DAMAGED += [b'{"content": 1, "tag": 1, "startingPoint": 1, "fromRepo": 1, "paths": {"a": []}, "gated": [], "oid": 1}']
DAMAGED += [
    b'{"name": "\\ud800", "tag": "\\ud800", "content": "\\ud800", "paths": ["\\ud800"], "startingPoint": "\\ud800"}'
]
DAMAGED += [b'{"operation": "upload", "objects": [{"oid": "x", "size": -1}], "files": [{"path": "a", "size": true}]}']
DAMAGED += [b'{"key": "header", "value": {"summary": "\\ud800", "parentCommit": 1}}']


@pytest.mark.parametrize("body", DAMAGED, ids=lambda body: str(body[:30]))
def test_a_body_that_means_nothing_is_refused_and_never_a_failure(address, body):
    routes = [
        *EVERY_CHANGE,
        ("POST", "/api/validate-yaml", None),
        ("POST", "/api/models/org/public/paths-info/main", None),
    ]
    for method, path, _ in routes:
        if method != "DELETE" or "repos" in path:
            answer = ask(address, method, path.replace("branch/new", "branch/main"), body, TOKEN)
            assert answer.status < 500


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("---\ntags: [a\n---\n", "aren't YAML"),
        ("---\n- a\n---\n", "are a list"),
        ("---\na: &a [x]\nb: [*a, *a]\n---\n", "aliases"),
        ("---\na: !!python/object/apply:os.system [ls]\n---\n", "aren't YAML"),
        ("---\na: !!bool x\n---\n", "aren't YAML"),
        ("---\na: .nan\n---\n", "aren't YAML"),
        ("---\n" + "a: x\n" * 60_000 + "---\n", "longer than"),
        ("---\na: " + "[" * 100_000 + "\n---\n", "nested"),
        ("---\ndate: 2024-01-01\n---\nbody", None),
        ("no metadata", None),
    ],
    ids=range(10),
)
def test_metadata_that_cannot_be_read_are_refused_by_the_check_and_ignored_by_listings(address, text, says):
    answer = ask(address, "POST", "/api/validate-yaml", {"content": text, "repoType": "model"})
    create(address, "org/card", token=TOKEN)
    commit(address, "org/card", regular("README.md", text), token=TOKEN)
    found = ask(address, "GET", "/api/models/org/card")

    assert answer.status == (400 if says else 200)
    assert [each for each in answer.json()["errors"] if says not in each["message"]] == []
    assert found.status == 200
    assert found.json()["cardData"] == ({"date": "2024-01-01"} if "date" in text else {})


# Listings.


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A server with 25 models, two data sets and a space."""
    with serving(tmp_path_factory.mktemp("many")) as address:
        for number in range(25):
            name = f"{'even' if number % 2 == 0 else 'odd'}/model-{number:02}"
            create(address, name)
            tag = "low-rank" if number % 3 == 0 else "magnitude"
            task = "object-detection" if number == 7 else "image-classification"
            commit(address, name, regular("README.md", card(tag, task)))
        for kind, name in (("dataset", "odd/pictures"), ("dataset", "even/pictures"), ("space", "odd/page")):
            create(address, name, kind)
        yield address


def pages(address, path):
    """All rows, and how many pages they came on."""
    answer = ask(address, "GET", path)
    if not (link := re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("link", ""))):
        return answer.json(), 1
    rows, count = pages(address, link[1].removeprefix(address))
    return answer.json() + rows, count + 1


ODD = [f"odd/model-{number:02}" for number in range(1, 25, 2)]
EVEN = [f"even/model-{number:02}" for number in range(0, 25, 2)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ODD + EVEN),
        ("author=odd", ODD),
        ("search=MODEL-1", [name for name in ODD + EVEN if "-1" in name]),
        ("search=odd%2003", ["odd/model-03"]),
        ("filter=low-rank", [name for name in ODD + EVEN if int(name[-2:]) % 3 == 0]),
        ("filter=low-rank&filter=pruned&author=even", [name for name in EVEN if int(name[-2:]) % 3 == 0]),
        ("filter=low-rank&filter=magnitude", []),
        ("filter=license:mit&pipeline_tag=object-detection", ["odd/model-07"]),
        ("filter=timm&author=nobody", []),
        ("gated=true", []),
        ("gated=false&author=even", EVEN),
    ],
)
def test_a_listing_holds_what_fits_every_condition_whatever_the_page(many, query, expected):
    for limit in (1000, 7, 1):
        rows, count = pages(many, f"/api/models?{query}&limit={limit}")
        assert sorted(row["id"] for row in rows) == sorted(expected)
        assert count == max(-(-len(expected) // limit), 1)


def test_a_listing_has_the_last_changed_first_and_survives_changes_between_its_pages(many):
    rows, _ = pages(many, "/api/models?sort=lastModified")
    first = ask(many, "GET", "/api/models?limit=10")
    commit(many, "odd/model-01", regular("f", "x"))
    rest, _ = pages(many, re.fullmatch(r'<(.*)>; rel="next"', first.headers["link"])[1].removeprefix(many))
    seen = [row["id"] for row in first.json() + rest]

    assert [row["lastModified"] for row in rows] == sorted((row["lastModified"] for row in rows), reverse=True)
    assert len(seen) == len(set(seen))
    assert set(ODD + EVEN) - set(seen) <= {"odd/model-01"}  # it went to the front
    assert ask(many, "GET", "/api/models?limit=1").json()[0]["id"] == "odd/model-01"


def test_a_listing_shows_as_much_as_is_asked_for(many):
    def keys(query, kind="model"):
        return set(ask(many, "GET", f"/api/{kind}s?{query}").json()[0])

    assert not {"siblings", "cardData"} & keys("")
    assert {"siblings", "sha", "tags"} <= keys("full=True")
    assert "cardData" in keys("cardData=true")
    assert keys("expand=sha&expand=downloads") == {"id", "sha", "downloads"}
    assert {"siblings", "cardData"} <= keys("full=True", "dataset")
    assert [row["id"] for row in ask(many, "GET", "/api/spaces").json()] == ["odd/page"]
    for wrong in (
        "sort=size",
        "limit=0",
        "limit=x",
        "limit=" + "9" * 5000,
        "cursor=x",
        "cursor=[1,2]",
        "cursor=[[],%22%22]",
    ):
        assert ask(many, "GET", f"/api/models?{wrong}").status == 400


def test_trees_and_histories_come_in_pages_too(many):
    lines = [regular(f"d{number % 3}/{number:03}", "x") for number in range(30)]
    create(many, "tree/tree-1")
    for line in lines:
        assert commit(many, "tree/tree-1", line, title=line[1]["path"]).status == 200
    ask(many, "DELETE", "/api/repos/delete", {"name": "tree/tree-1-none"})
    base = "/api/models/tree/tree-1"
    rows, count = pages(many, f"{base}/tree/main?recursive=true&expand=true&limit=7")
    commits, _ = pages(many, f"{base}/commits/main?limit=7")
    below, _ = pages(many, f"{base}/tree/main/d1?limit=4")
    top, _ = pages(many, f"{base}/tree/main")
    ask(many, "DELETE", "/api/repos/delete", {"organization": "tree", "name": "tree-1"})

    assert count == 5
    assert [row["path"] for row in rows] == sorted([".gitattributes", "d0", "d1", "d2", *(x[1]["path"] for x in lines)])
    assert {row["path"]: row["lastCommit"]["title"] for row in rows if row["type"] == "file"} == {
        ".gitattributes": "initial commit",
        **{line[1]["path"]: line[1]["path"] for line in lines},
    }
    assert {row["path"]: row["lastCommit"]["title"] for row in rows if row["type"] == "directory"} == {
        "d0": "d0/027",
        "d1": "d1/028",
        "d2": "d2/029",
    }
    assert [row["title"] for row in commits] == [line[1]["path"] for line in reversed(lines)] + ["initial commit"]
    assert [row["path"] for row in below] == [f"d1/{number:03}" for number in range(1, 30, 3)]
    assert [row["path"] for row in top] == [".gitattributes", "d0", "d1", "d2"]


# The server as a process.


def test_serve_says_where_it_listens_and_ends_with_ctrl_c(tmp_path):
    program = (
        "import sys; from zoo.server import serve; serve(sys.argv[1], port=0, say=lambda line: print(line, flush=True))"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "new")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        try:
            assert ask(address, "GET", "/api/models").json() == []
            with pytest.raises(ZooError, match="is being served by another process"):
                serve(tmp_path / "new", port=0)
            with pytest.raises(StorageError, match=r"can't listen on 127\.0\.0\.1, port \d+: .*choose another port"):
                serve(tmp_path / "other", port=urlsplit(address).port)
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (0, "", "")
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", urlsplit(address).port)):
        pass


def test_serve_is_for_this_machine_unless_there_is_a_token(tmp_path):
    for host in ("0.0.0.0", "::", "", "192.0.2.1"):
        with pytest.raises(ZooError, match="can be reached from other machines, which could write here: pass a token"):
            serve(tmp_path, host=host, port=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_served_is_said(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(StorageError, match="can't be served"):
            serve(tmp_path / place, port=0)


def test_a_missing_extra_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'compressed-zoo\[serve\]'"):
        serve(tmp_path, port=0)


def test_the_servers_own_folder_is_its_users_alone(address, folder):
    assert (folder / ".hub").stat().st_mode & 0o777 == 0o700
