"""What may lie in a folder that is served, put there by whoever made a model: no request fails of it."""

import http.client
import json
import logging
import os
import struct
import subprocess
import time
from urllib.parse import urlsplit

import pytest
from hub import ask, commit, content, create, regular, serving
from served import SECRET

from zoo.server import info, log, metadata, plain, store
from zoo.server.errors import BadRequest
from zoo.server.names import RepoId


def weights(head):
    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(data)) + data


def deep(model):
    folder = os.open(model, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=folder)
        folder, above = os.open("d", os.O_RDONLY, dir_fd=folder), folder
        os.close(above)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)


def swapped(model):
    (model / "README.md").symlink_to(model.parents[2] / "secret.txt")
    (model / "model.safetensors").symlink_to("/dev/zero")
    (model / "sub").symlink_to("/proc")


def tensors(count):
    return b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[1]}' % number for number in range(count)) + b"}"


HOSTILE = {
    "deep": deep,
    "bytes": lambda model: (model / os.fsdecode(b"\xff\xfe.txt")).write_text(SECRET),
    "escapes": lambda model: (model / "\x1b]0;pwned\x07\n.txt").write_text(SECRET),
    "backslash": lambda model: (model / "..\\..\\x").write_text(SECRET),
    "pipes": lambda model: [os.mkfifo(model / name) for name in ("README.md", "model.safetensors")],
    "links": swapped,
    "numbers": lambda model: (model / "model.safetensors").write_bytes(
        weights({str(n): {"dtype": "F32", "shape": [10**4000] * 200} for n in range(20)})
    ),
    "overflow": lambda model: (model / "model.safetensors").write_bytes(
        weights({"a": {"dtype": "F32", "shape": [1 << 47] * 16}})
    ),
    "tensors": lambda model: (model / "model.safetensors").write_bytes(weights(tensors(metadata.TENSORS + 1))),
    "types": lambda model: (model / "model.safetensors").write_bytes(weights({"a": {"dtype": "\ud800", "shape": []}})),
    "nested": lambda model: (model / "model.safetensors").write_bytes(weights(b'{"a":' + b"[" * 1_000_000)),
    "empty": lambda model: (model / "model.safetensors").touch(),
    "sixty": lambda model: (model / "README.md").write_text(f"---\na: 1{':1' * 120_000}\n---\n"),
    "digits": lambda model: (model / "README.md").write_text(f"---\na: 0x{'f' * 200_000}\n---\n"),
    "relations": lambda model: (model / "README.md").write_text(
        f"---\nbase_model: [{'a, ' * 30_000}]\nbase_model_relation: [{'a, ' * 30_000}]\n---\n"
    ),
    "surrogate": lambda model: (model / "README.md").write_text('---\nlicense: "\\ud800"\n---\n'),
    "not text": lambda model: (model / "README.md").write_bytes(b"---\nlicense: \xff\0\x1b\n---\n"),
    "times": lambda model: os.utime(model / "config.json", (1e12, 1e12)),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with a model of each kind, and its server."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "secret.txt").write_text(SECRET)
    for name, make in {**HOSTILE, "good": lambda model: None}.items():
        model = root / "hub" / "org" / name.replace(" ", "-")
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        make(model)
    with serving(root / "hub", complaints=["is left out: its name isn't text, or it lies too deep"]) as address:
        yield address
    subprocess.run(["rm", "-r", root / "hub" / "org" / "deep"], check=True)  # deeper than shutil.rmtree goes


@pytest.mark.parametrize("query", ["", "?full=true", "?expand=siblings&expand=safetensors&expand=cardData"])
def test_no_folder_keeps_the_others_from_being_listed(hostile, query):
    started = time.monotonic()
    listed = {row["id"]: row for row in ask(hostile, "GET", f"/api/models{query}").json()}

    assert set(listed) == {f"org/{name.replace(' ', '-')}" for name in [*HOSTILE, "good"]}
    assert time.monotonic() - started < 10  # it took 15 s and more


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_of_a_hostile_folder_fails_or_shows_what_is_not_in_it(hostile, name):
    path = f"org/{name.replace(' ', '-')}"
    answer = ask(hostile, "GET", f"/api/models/{path}?blobs=true")
    shown = {row["rfilename"]: row for row in answer.json()["siblings"]}

    assert answer.status == 200
    assert set(shown) <= {"config.json", "README.md", "model.safetensors"}
    assert SECRET not in answer.body.decode()
    assert answer.json().get("safetensors") is None
    for file in ("README.md", "model.safetensors", "sub/self/environ", "%1b]0;pwned%07%0a.txt", "%ff%fe.txt"):
        found = content(hostile, path, file)
        assert found.status == (200 if file in shown else 404)
        assert SECRET.encode() not in found.body


def test_no_file_is_hashed_for_a_listing(tmp_path, monkeypatch):
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "README.md", "model.safetensors"):
        (model / name).write_text("{}")
    monkeypatch.setattr(plain, "_hashed", lambda *file: pytest.fail(f"{file} is hashed"))
    repository = store.find(tmp_path / ".hub", RepoId("model", "org/model"))
    assert info.listed(tmp_path / ".hub", repository)["id"] == "org/model"
    with pytest.raises(pytest.fail.Exception):
        info.siblings(repository.tree)


def test_a_repository_that_is_damaged_keeps_no_other_from_being_listed(tmp_path):
    with serving(tmp_path) as address:
        for name in ("good", "broken", "history", "blob"):
            create(address, f"org/{name}")
            commit(address, f"org/{name}", regular("README.md", f"---\ntags: [{name}]\n---\n"))
        stored = tmp_path / ".hub" / "models" / "org"
        (stored / "broken" / "repository.json").write_text('{"created": 1, "unknown": 2}')
        for path in stored.glob("history/commits/*"):
            path.write_text("{")
        for path in tmp_path.glob(".hub/blobs/*/*"):
            if b"[blob]" in path.read_bytes():
                path.unlink()
    with serving(tmp_path, complaints=["is left out: "]) as address:
        rows = ask(address, "GET", "/api/models?full=true").json()
        assert {row["id"] for row in rows} == {"org/good", "org/blob"}


def test_what_is_left_out_is_said_once_and_as_text(tmp_path, caplog, monkeypatch):
    model = tmp_path / "org" / "escapes"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    HOSTILE["escapes"](model)
    monkeypatch.setattr(log.log, "propagate", True)
    for _ in range(3):
        assert list(plain.commit(tmp_path, "org/escapes").files) == ["config.json"]
    written = [log.Line().format(record) for record in caplog.records]

    assert len(written) == 1
    assert all(each.isprintable() for each in written[0].split("\n    "))


def test_a_record_of_the_log_cannot_be_made_by_what_is_in_another():
    text = log.Line().format(logging.makeLogRecord({"msg": "\x1b[31mred\nERROR: forged\r\u202e\ud800"}))
    assert text == "\\x1b[31mred\n    ERROR: forged \\u202e\\ud800"


def test_the_last_change_of_a_file_is_looked_for_among_so_many_only(tmp_path, monkeypatch):
    with serving(tmp_path) as address:
        create(address, "org/public")
        for number in range(4):
            commit(address, "org/public", regular("new.txt", str(number)))
    repository = store.find(tmp_path / ".hub", RepoId("model", "org/public"))
    head = store.resolved(repository, "main")
    found = {}
    for most in (9, 1000, 8):
        monkeypatch.setattr(info, "LOOKED_AT", most)
        rows = info.with_last_commits(repository, head, info.tree(head))
        found[most] = {row["path"]: row["lastCommit"] and row["lastCommit"]["title"] for row in rows}
    assert found[1000] == found[9] == {".gitattributes": "initial commit", "new.txt": "t"}
    assert found[8] == {".gitattributes": None, "new.txt": "t"}


@pytest.mark.parametrize("text", ["a: 1" + ":1" * 100_000, "a: !!int 1" + ":1" * 100_000, "a: " + "1_" * 100_000])
def test_a_number_in_a_card_costs_no_more_than_its_length(text):
    started = time.process_time()
    with pytest.raises(BadRequest, match="is a number of"):
        metadata.front_matter(f"---\n{text}\n---\n")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 100), os.unlink], ids=["cut", "removed"])
def test_a_file_that_is_cut_or_removed_while_it_is_sent_is_sent_whole_or_breaks_off(tmp_path, change):
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "large.txt").write_text("x" * 9_000_000)
    with serving(tmp_path, complaints=["ASGI callable returned without completing response."]) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
        connection.request("GET", "/org/model/resolve/main/large.txt")
        answer = connection.getresponse()
        change(model / "large.txt")
        if change is os.unlink:
            assert answer.read() == b"x" * 9_000_000
        else:
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        connection.close()
        assert ask(address, "GET", "/api/models").status == 200
