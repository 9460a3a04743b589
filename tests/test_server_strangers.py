"""Strangers who reach the server: what they send byte for byte, and how long they may take."""

import asyncio
import contextlib
import json
import re
import socket
import time
from urllib.parse import urlsplit

import pytest
from hub import TOKEN, ask, batch, commit, create, follow, regular, serving
from served import EVERY_CHANGE, TEXT, address, folder

from zoo.printable import MAX_MESSAGE
from zoo.server import connections
from zoo.server.connections import LINES, LONGEST
from zoo.server.receiving import BODY, STRANGERS
from zoo.server.routes_write import CHANGES, FOLDERS, OBJECTS

INFO, FILE = "/api/models/org/public", "/org/public/resolve/main/sub/notes.txt"


def connected(address, sent=b""):
    """A connection that takes little at once, on which something was sent."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect((urlsplit(address).hostname, urlsplit(address).port))
    client.sendall(sent)
    return client


def head(method, path, *lines, host="localhost"):
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *lines, "", "")).encode("latin-1")


def status(client):
    """The status of the next answer; None if the connection is closed without one."""
    with contextlib.suppress(ConnectionError):
        if found := re.match(rb"HTTP/1.1 (\d+) ", client.recv(4096)):
            return int(found[1])
    return None


def is_closed(client, within):
    """Whether the server closes a connection in time, whatever it says before."""
    client.settimeout(within)
    with contextlib.suppress(ConnectionError):
        try:
            while client.recv(1 << 16):
                pass
        except TimeoutError:
            return False
    return True


# Who is meant.


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:{port}", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example/127.0.0.1", 421),
        ("0.0.0.0", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_what_is_asked_of_another_name_is_not_answered(address, host, expected):
    link = ask(address, "GET", "/org/public/resolve/main/model.safetensors").headers["location"]
    host = host.format(port=urlsplit(address).port)

    assert ask(address, "GET", INFO, Host=host).status == expected
    assert follow(link, Host=host).status == expected
    assert ask(address, "GET", "/org/private/resolve/main/README.md", token=TOKEN, Host=host).status == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (f"GET {INFO} HTTP/1.0\r\n\r\n".encode(), 421),
        (f"GET {INFO} HTTP/1.1\r\n\r\n".encode(), 400),
        (head("GET", INFO, "Host: evil.example"), 400),
    ],
    ids=["1.0", "1.1", "twice"],
)
def test_a_request_must_say_once_whom_it_means(address, sent, expected):
    with connected(address, sent) as client:
        assert status(client) == expected


def test_a_page_of_another_site_shows_nothing(address):
    assert ask(address, "GET", FILE).headers["cross-origin-resource-policy"] == "same-origin"


# What is sent.

CHUNKED = head("POST", f"{INFO}/paths-info/main", "Transfer-Encoding: chunked")
RANGES = "Range: bytes=" + ",".join(f"{first}-{first}" for first in range(2000))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)), 400),
        (b"\r\n\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 421),
        (head("GET", INFO, "x: " + "y" * LONGEST), 400),
        (head("GET", INFO, *["x: y"] * LINES), 400),
        (head("GET", INFO, *["x: y"] * 60_000), 400),
        (head("GET", INFO, *["x: y"] * 60_000) * 5, 400),
        (head("GET", INFO, *["x: y"] * (LINES - 5)), 200),
        (head("GET", INFO + "?x=" + "y" * 15_000), 200),
        (b"GET " + b"/" * 20_000, 400),
        (CHUNKED + b"1\r\nx\r\n" * 10_000, 400),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), 400),
        (head("POST", f"{INFO}/paths-info/main", "Content-Length: 3", "Content-Length: 4"), 400),
        (head("POST", f"{INFO}/paths-info/main", "Content-Length: -1"), 400),
        (head("POST", f"{INFO}/paths-info/main", "Content-Length: " + "9" * 19), 413),
        (head("POST", f"{INFO}/paths-info/main", "Content-Length: " + "9" * 5000), 400),
        (head("POST", f"{INFO}/paths-info/main", f"Content-Length: {STRANGERS + 1}"), 413),
        (head("POST", "/api/validate-yaml", f"Content-Length: {STRANGERS + 1}"), 413),
        (head("POST", f"{INFO}/paths-info/main", "Content-Encoding: gzip", "Content-Length: 2") + b"\x1f\x8b", 200),
        (head("GET", INFO, "Upgrade: websocket", "Connection: upgrade"), 200),
        (head("GET", INFO, "Authorization: Bearer \xe9\x1b]0;"), 401),
        (head("GET", INFO, "User-Agent: \x1b]0;pwned\x07"), 200),
        (head("GET", f"http://evil.example{INFO}"), 404),
        (head("GET", f"/{INFO}"), 404),
        (head("OPTIONS", "*"), 404),
        (head("CONNECT", "localhost:1"), 404),
        (head("TRACE", INFO), 405),
        (head("GET", "/%ff%00%1b"), 401),
        (head("GET", "/\xe9"), 400),
        (head("GET", "/org/public/resolve/main/%c0%ae%c0%ae/secret.txt"), 404),
        (head("GET", "/org/public/resolve/main/..%5c..%5csecret.txt"), 404),
        (head("GET", "/org/public/resolve/main/C:%5csecret.txt"), 404),
        (head("GET", FILE, RANGES[:LONGEST - 200]), 200),
        (head("GET", FILE, "Range: bytes=0-1", 'If-Range: "other"', "If-None-Match: *, *"), 200),
        (head("GET", "/api/models?limit=" + "9" * 5000), 400),
        (head("GET", "/api/models?cursor=" + "%5b" * 4000), 400),
        (head("GET", "/api/models?search=" + "+a" * 7000), 200),
        (head("GET", "/api/models?filter=" + "&filter=x" * 1700), 200),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_whatever_is_sent_is_answered_and_the_next_request_too(address, sent, expected):
    with connected(address) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        assert status(client) in ({400, None} if expected == 400 else {expected})  # a reset may overtake a 400
    assert ask(address, "GET", FILE).body == TEXT.encode()


def test_requests_that_come_before_their_turn_are_answered_one_after_the_other(address):
    with connected(address, head("GET", FILE) * 300 + head("GET", FILE, "Connection: close")) as client:
        client.settimeout(10)
        received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert received.count(b"HTTP/1.1 200 OK") == received.count(TEXT.encode()) == 301


@pytest.mark.parametrize(("method", "path", "body"), EVERY_CHANGE)
@pytest.mark.parametrize("who", [[], ["Authorization: Bearer wrong"]], ids=["nobody", "wrong"])
def test_nothing_is_read_of_a_change_before_it_is_known_to_be_the_owners(address, method, path, body, who):
    with connected(address, head(method, path, f"Content-Length: {BODY - 1}", *who)) as client:
        assert status(client) == 401


DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = b"[" * 400 + b"]" * 400
DIGITS = b"9" * 100_000
PAIRS = b'{"a": 1, "a": {}}'


@pytest.mark.parametrize("value", [DEEP, NESTED, DIGITS, b"1e999999", b'"\\ud800"', PAIRS, b"NaN", b"[[]]", b"null"])
@pytest.mark.parametrize(("method", "path", "body"), [each for each in EVERY_CHANGE if each[2] is not None])
def test_no_json_is_more_than_the_server_can_refuse(address, method, path, body, value):
    keys = {
        "name",
        "type",
        "fromRepo",
        "tag",
        "startingPoint",
        "gated",
        "visibility",
        "files",
        "objects",
        "key",
        "paths",
    }
    keys |= {"value", "oid", "size", "content", "hash_algo", "transfers"}
    for sent in [value, *(b'{"%s": %s}' % (key.encode(), value) for key in sorted(keys))]:
        if "/tag/" not in path or b"startingPoint" not in sent:
            answer = ask(address, method, path, sent, TOKEN, Content_Type="application/json")
            assert answer.status in (400, 404, 413) or path.endswith(("/settings", "/branch/new")), (sent[:40], answer)
    assert ask(address, "DELETE", "/api/models/org/public/branch/new", token=TOKEN).status in (200, 404)


def many(count, path="x"):
    return [{"path": path, "oid": f"{number:064x}", "size": 1} for number in range(count)]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/org/public.git/info/lfs/objects/batch", {"operation": "upload", "objects": many(OBJECTS + 1)}, 413),
        ("/org/public.git/info/lfs/objects/batch", {"operation": "upload", "objects": many(OBJECTS)}, 200),
        ("/api/models/org/public/preupload/main", {"files": many(OBJECTS + 1)}, 413),
        ("/api/models/org/public/preupload/main", {"files": many(OBJECTS)}, 200),
    ],
)
def test_so_many_files_may_be_asked_about_at_once(address, path, body, expected):
    assert ask(address, "POST", path, body, TOKEN).status == expected


@pytest.mark.parametrize(("key", "most"), [("deletedFile", CHANGES), ("deletedFolder", FOLDERS)])
def test_a_commit_has_so_many_lines_at_most(address, key, most):
    lines = json.dumps({"key": "header", "value": {"summary": "s"}}) + "\n"
    lines += (json.dumps({"key": key, "value": {"path": "x"}}) + "\n") * (most + 1)
    answer = ask(address, "POST", "/api/models/org/public/commit/main", lines, TOKEN)
    assert (answer.status, "make several" in answer.json()["error"]) == (413, True)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_so_many_paths_may_be_asked_about_by_a_form(address, content_type):
    body = "&".join(["paths=x"] * 20_000) if "form" in content_type else json.dumps({"paths": [[[]], 1, None, "é" * 5]})
    expected = 413 if "form" in content_type else 200
    assert ask(address, "POST", f"{INFO}/paths-info/main", body, Content_Type=content_type).status == expected


@pytest.mark.parametrize("path", ["/org/public/resolve/main/", "/api/models/org/", "/api/models/org/public/revision/"])
def test_a_refusal_is_a_line_of_some_hundred_characters(address, path):
    answer = ask(address, "GET", path + "%1b%5d0%3b" + "x" * 10_000, token=TOKEN)
    message = answer.headers["x-error-message"]
    assert (answer.status, len(message) <= MAX_MESSAGE, message.isprintable()) == (404, True, True)
    assert answer.json()["error"] == message


# How long it takes.

QUICK = {"connections.HEAD": 0.5, "connections.TAKING": 0.5, "connections.PATIENT": 0.2, "receiving.PATIENCE": 0.5}
LARGE = {"path": "large.txt", "content": "x" * 9_000_000, "encoding": "utf-8"}


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """A server with sixteen places that waits for nobody, and in it a large file."""
    folder = tmp_path_factory.mktemp("hurried")
    with serving(folder, token=TOKEN, constants={**QUICK, "connections.PLACES": 16}) as address:
        create(address, "org/public", token=TOKEN)
        commit(address, "org/public", ("file", LARGE), regular("sub/notes.txt", TEXT), token=TOKEN)
        yield address


BIG = head("GET", "/org/public/resolve/main/large.txt")
CLOSE = b"\r\nConnection: close\r\n\r\n"
OWN = f"Authorization: Bearer {TOKEN}"
SETTINGS = head("PUT", f"{INFO}/settings", "Content-Length: 1000", OWN)
SLOW = {
    "says nothing": (b"", b""),
    "drips a head": (b"GET / HTTP/1.1\r\n", b"x: y\r\n"),
    "drips after an answer": (head("GET", INFO), b"G"),
    "drips a body that was refused": (head("PUT", f"{INFO}/settings", "Content-Length: 1000"), b" "),
    "drips a body": (SETTINGS, b" "),
    "drips a commit": (head("POST", f"{INFO}/commit/main", "Content-Length: 1000", OWN), b" "),
    "takes nothing": (BIG, b""),
    "takes nothing of several answers": (BIG * 5, b""),
    "takes nothing and ends": (
        head("GET", INFO) * 50 + BIG.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        b"",
    ),
}


def test_who_keeps_the_server_waiting_is_cut_off(hurried):
    with contextlib.ExitStack() as stack:
        clients = {kind: stack.enter_context(connected(hurried, first)) for kind, (first, _) in SLOW.items()}
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            for kind, client in clients.items():
                with contextlib.suppress(ConnectionError):
                    client.sendall(SLOW[kind][1])
            time.sleep(0.1)
        assert [kind for kind, client in clients.items() if not is_closed(client, 0.5)] == []


@pytest.mark.parametrize(("first", "then"), SLOW.values(), ids=SLOW)
def test_others_are_answered_however_many_keep_the_server_waiting(hurried, first, then):
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            with contextlib.suppress(OSError):
                stack.enter_context(connected(hurried, first))
        until, answers = time.monotonic() + 5, []
        while len(answers) < 3 and time.monotonic() < until:
            with contextlib.suppress(ConnectionError):  # for a moment there may be no place
                answers += [TEXT] * (ask(hurried, "GET", FILE).body == TEXT.encode())
    assert answers == [TEXT] * 3


def test_dripping_uploads_and_commits_keep_no_other_from_being_made(tmp_path):
    with serving(tmp_path) as address, contextlib.ExitStack() as stack:
        create(address, "org/public")
        uploads = [batch(address, "org/public", f"{number:064x}", 100) for number in range(40)]
        for answer in uploads:
            link = urlsplit(answer.json()["objects"][0]["actions"]["upload"]["href"])
            sent = head("PUT", f"{link.path}?{link.query}", "Content-Length: 100") + b"x"
            stack.enter_context(connected(link.geturl(), sent))
        for _ in range(20):
            stack.enter_context(connected(address, head("POST", f"{INFO}/commit/main", "Content-Length: 100") + b"{"))
        assert commit(address, "org/public", regular("b.txt", "b")).status == 200
        oid = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
        link = batch(address, "org/public", oid, 1).json()["objects"][0]["actions"]["upload"]["href"]
        assert follow(link, "PUT", b"a").status == 200


def test_there_are_never_more_connections_than_places(tmp_path):
    constants = {"connections.PLACES": 16, "connections.GRACE": 0}
    with serving(tmp_path, constants=constants) as address, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(address)) for _ in range(150)]
        assert ask(address, "GET", "/api/models").json() == []
        assert sum(not is_closed(client, 0.001) for client in clients) <= 16


class Waiting:
    """A connection that has kept the server waiting for so many seconds."""

    idle = dropped = False

    def __init__(self, address, seconds):
        self.address, self.waited = address, lambda: seconds

    def drop(self):
        self.dropped = True


@pytest.mark.parametrize(
    ("address", "waiting", "status", "dropped"),
    [
        ("a", [], 503, None),
        ("a", [Waiting("a", 3), Waiting("a", 9), Waiting("b", 99)], 200, 1),
        ("a", [Waiting("b", 99)], 503, None),
        ("a", [Waiting("a", 1)], 503, None),
        ("c", [], 503, None),
        ("c", [Waiting("a", 3), Waiting("b", 99)], 200, 1),
    ],
)
def test_of_more_requests_than_places_the_one_goes_that_keeps_the_server_waiting(
    monkeypatch, address, waiting, status, dropped
):
    monkeypatch.setattr(connections, "PLACES", 8)
    answered = []

    async def application(scope, receive, send):
        if scope["path"] == "slow":
            await asyncio.sleep(60)
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        answered.append(message.get("status"))

    async def crowd():
        shared = connections.sharing(application, lambda: waiting)
        scope = {"type": "http", "client": ("a", 1), "path": "slow", "method": "GET", "headers": []}
        slow = [asyncio.ensure_future(shared(scope | {"client": (each, 1)}, None, send)) for each in "aaaabbbb"]
        await asyncio.sleep(0)
        await shared(scope | {"client": (address, 1), "path": "quick"}, None, send)
        for each in slow:
            each.cancel()

    asyncio.run(crowd())
    assert answered[0] == status
    assert [number for number, each in enumerate(waiting) if each.dropped] == [each for each in [dropped] if each]
