"""The local Hub: who may what, and which paths lead where."""

import asyncio
import hashlib
import os
import re
from urllib.parse import quote, urlsplit

import pytest
from hub import TOKEN, ask, commit, content, create, follow, regular, serving
from served import EVERY_CHANGE, SECRET, TEXT, WEIGHTS, address, folder

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
    """Also where a file has its former size and time again."""
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
        status = (model / "config.json").stat()
        (model / "config.json").write_text('{"a": 2}')
        os.utime(model / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns))
        third = ask(address, "GET", "/api/models/org/model").json()["sha"]
        assert third != second
        assert content(address, "org/model", "config.json", third).body == b'{"a": 2}'


def test_a_card_that_changes_is_read_again_though_it_has_its_former_size_and_time(tmp_path):
    model = tmp_path / "org" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    with serving(tmp_path) as address:
        for tag in ("one", "two"):
            (model / "README.md").write_text(f"---\ntags: [{tag}]\n---\n")
            os.utime(model / "README.md", (1e9, 1e9))
            assert ask(address, "GET", "/api/models/org/model").json()["tags"] == [tag]


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        ("gpu-box:8080", True),
        ("GPU-BOX", True),
        ("192.0.2.7:8080", True),
        ("127.0.0.1", True),
        ("192.0.2.8", False),
        ("gpu-box.evil.example", False),
    ],
)
def test_a_server_of_all_addresses_goes_by_its_machines_name_and_the_address_that_is_asked(host, meant):
    from zoo.server.naming import addressed

    heard = []

    async def application(scope, receive, send):
        heard.append(200)

    async def send(message):
        heard.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "server": ("192.0.2.7", 8080), "headers": [(b"host", host.encode())]}
    asyncio.run(addressed(application, ["http://gpu-box:8080", "http://gpu-box:8081"])(scope, None, send))
    assert heard[0] == (200 if meant else 421)
