"""The local Hub request by request: files, revisions, uploads, and what is refused."""

import asyncio
import hashlib
import io
import json
import os
import subprocess
from urllib.parse import quote

import pytest
import yaml
from hub import TOKEN, ask, batch, commit, content, create, follow, large, regular
from served import EVERY_CHANGE, TEXT, WEIGHTS, address, card, folder

from zoo.server.errors import BadRequest, TooLarge
from zoo.server.metadata import front_matter
from zoo.server.receiving import lines
from zoo.server.sending import PIECE, FileAnswer

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
    climbs = ["..%2Frepository", f"..%2Fcommits%2F{commits[1]}", f"%2F{commits[1]}"]
    for unknown in (commits[1][:7], commits[1][:39], "0" * 40, "HEAD", "refs%2Fpr%2F1", *climbs):
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


def test_a_body_of_lines_is_refused_as_soon_as_one_is_too_long():
    assert list(lines(io.BytesIO(b"ab\ncd\n\nef"), 3)) == [b"ab\n", b"cd\n", b"ef"]
    body = io.BytesIO(b"0123456789\n" + b"a" * 1_000_000)
    with pytest.raises(TooLarge, match="a line of the commit is longer than 10 bytes"):
        list(lines(body, 10))
    assert body.tell() < 30


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
        ("---\na: " + "[" * 50 + "]" * 50 + "\n---\n", "nested"),
        ("---\ndate: 2024-01-01\n---\nbody", None),
        ("no metadata", None),
    ],
    ids=range(11),
)
def test_metadata_that_cannot_be_read_are_refused_by_the_check_and_ignored_by_listings(address, text, says):
    answer = ask(address, "POST", "/api/validate-yaml", {"content": text, "repoType": "model"}, TOKEN)
    create(address, "org/card", token=TOKEN)
    commit(address, "org/card", regular("README.md", text), token=TOKEN)
    found = ask(address, "GET", "/api/models/org/card")

    assert answer.status == (400 if says else 200)
    assert [each for each in answer.json()["errors"] if says not in each["message"]] == []
    assert found.status == 200
    assert found.json()["cardData"] == ({"date": "2024-01-01"} if "date" in text else {})


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])  # the first has a limit of its own, the second none
@pytest.mark.parametrize("text", ["[" * 5000, "[0," * 5000, "- " * 5000 + "a", "{a: " * 60 + "0" + "}" * 60])
def test_metadata_are_refused_for_their_depth_in_the_same_words_whichever_parser_reads_them(monkeypatch, loader, text):
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, loader))

    with pytest.raises(BadRequest, match="aren't YAML without aliases, nested at most 50 deep: "):
        front_matter(f"---\na:\n {text}\n---\n")
    assert front_matter(f"---\na: {'[' * 49}{']' * 49}\n---\n")["a"]
