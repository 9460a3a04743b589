"""The local Hub: listings, and the server as a process."""

import http.client
import re
import signal
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from hub import ask, batch, commit, create, regular, serving
from served import address, card, folder

from zoo.errors import MissingExtra, StorageError, ZooError
from zoo.server import blobs, changes, info, listening, listings, serve, store
from zoo.server.names import repo_id
from zoo.server.values import Change, File, git_oid

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


def test_a_listing_reads_what_the_server_holds_once_and_again_what_changed(tmp_path, monkeypatch):
    root, reads = tmp_path / ".hub", []
    made = [changes.create(root, repo_id("model", f"org/{number}"), private=False) for number in range(6)]
    read = info.summary
    monkeypatch.setattr(info, "summary", lambda *given: reads.append(given[1].name.id) or read(*given))
    looked = [listings.ordered(root, "model", "lastModified") for _ in range(2)]
    assert [row["id"] for row in looked[0]] == [f"org/{number}" for number in (5, 4, 3, 2, 1, 0)]
    assert sorted(reads) == [f"org/{number}" for number in range(6)]
    assert looked[0] is looked[1]

    reads.clear()
    changes.commit(
        root, made[3].name, "main", [Change("README.md", regular_file(root, "---\ntags: [new]\n---\n"))], "t"
    )
    changes.delete(root, made[4].name)
    changes.create(root, made[4].name, private=True)
    changes.delete(root, made[5].name)
    changes.move(root, made[0].name, repo_id("model", "org/moved"))
    again = {row["id"]: row for row in listings.ordered(root, "model", "lastModified")}
    assert sorted(reads) == ["org/3", "org/4", "org/moved"]
    assert list(again) == ["org/4", "org/3", "org/2", "org/1", "org/moved"]
    assert again["org/3"]["tags"] == ["new"]
    assert again["org/4"]["private"]
    for row in again.values():
        repository = store.find(root, repo_id("model", row["id"]))
        assert row.items() <= read(root, repository, store.resolved(repository, "main")).items()


def test_a_plain_folder_is_as_it_lies_whenever_a_listing_begins(tmp_path):
    root = tmp_path / ".hub"

    def listed(begins=True):
        return [row["id"] for row in listings.ordered(root, "model", "likes", begins)]

    for name in ("a", "b"):
        (tmp_path / "org" / name).mkdir(parents=True)
        (tmp_path / "org" / name / "config.json").write_text("{}")
    changes.create(root, repo_id("model", "org/c"), private=False)
    assert listed(begins=False) == ["org/a", "org/b", "org/c"]

    (tmp_path / "org" / "a").rename(tmp_path / "org" / "d")
    assert listed(begins=False) == ["org/a", "org/b", "org/c"]
    assert listed() == ["org/b", "org/c", "org/d"]


def test_a_damaged_repository_is_listed_again_when_it_is_mended(tmp_path):
    root = tmp_path / ".hub"
    made = [changes.create(root, repo_id("model", f"org/{number}"), private=False) for number in range(2)]
    path = made[0].folder / "repository.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert [row["id"] for row in listings.ordered(root, "model", "likes")] == ["org/1"]

    path.write_bytes(whole)
    assert [row["id"] for row in listings.ordered(root, "model", "likes")] == ["org/0", "org/1"]


def regular_file(root, text):
    """A text file whose bytes are there."""
    data = text.encode()
    return File(git_oid(data), len(data), blobs.keep(root, data), False)


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
            create(address, "org/model")
            upload = batch(address, "org/model", "0" * 64, 100).json()["objects"][0]["actions"]["upload"]["href"]
            unfinished = http.client.HTTPConnection(urlsplit(upload).netloc)
            unfinished.putrequest("PUT", upload.partition(urlsplit(upload).netloc)[2])
            unfinished.putheader("Content-Length", "100")
            unfinished.endheaders(b"x")
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)

    unfinished.close()
    assert (process.returncode, out, err) == (0, "", "")
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", urlsplit(address).port)):
        pass


def test_small_answers_do_not_wait_for_more_to_send():
    with listening.ports("127.0.0.1", 0) as listeners:
        for listener in listeners:
            with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
