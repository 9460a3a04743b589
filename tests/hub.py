"""A server in a process of its own, and requests to it byte for byte as they are written.

As a script it is a process that has everything imported: for each line of options in JSON it forks a server and prints
its process id and address. A server costs milliseconds that way, and can be killed.
"""

import atexit
import contextlib
import functools
import hashlib
import http.client
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

TOKEN = "hf_owner"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict = field(repr=False)
    body: bytes

    def json(self):
        return json.loads(self.body)


@contextlib.contextmanager
def serving(folder, *, complaints=(), **options):
    """Serve a folder until the block ends, then kill the server.

    Args:
        folder: what is served.
        complaints: what the server may say on stderr; by default nothing.
        options: `token`, the limits of `app`, `faults` (see faults.py), and constants, {"connections.HEAD": 0.5}.

    Yields:
        The address.
    """
    with tempfile.NamedTemporaryFile("r+", prefix="zoo-server-") as log:
        process = _nursery()
        process.stdin.write(json.dumps({"folder": str(folder), "log": log.name, **options}) + "\n")
        process.stdin.flush()
        identity, address = process.stdout.readline().split()
        assert address != "failed", log.read()
        try:
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                while True:  # until it is gone, and its lock with it
                    os.kill(int(identity), signal.SIGKILL)
                    time.sleep(0.001)
        said = log.read()
        assert not said or any(each in said for each in complaints), said


@functools.cache
def _nursery():
    command = [sys.executable, "-W", "error", __file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def ask(address, method, path, body=None, token=None, **headers):
    """One request, its path unaltered; headers are given with _ for -."""
    sent = {key.replace("_", "-"): value for key, value in headers.items()}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    if isinstance(body, dict | list):
        sent, body = {"Content-Type": "application/json", **sent}, json.dumps(body)
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())


def follow(url, method="GET", body=None, **headers):
    """One request to an absolute address."""
    parts = urlsplit(url)
    return ask(url, method, f"{parts.path}?{parts.query}", body, **headers)


def create(address, name, kind="model", **options):
    """Make a repository."""
    namespace, _, name = name.partition("/")
    token = options.pop("token", None)
    body = {"organization": namespace, "name": name, "type": kind, **options}
    return ask(address, "POST", "/api/repos/create", body, token)


def commit(address, name, *lines, title="t", parent=None, branch="main", token=None, kind="model"):
    """The raw commit: each line is (key, value)."""
    header = {"summary": title, **({"parentCommit": parent} if parent else {})}
    sent = [{"key": key, "value": value} for key, value in (("header", header), *lines)]
    body = "".join(json.dumps(line) + "\n" for line in sent)
    path = f"/api/{kind}s/{name}/commit/{branch}"
    return ask(address, "POST", path, body, token, Content_Type="application/x-ndjson")


def regular(path, content):
    """A commit's line for a text file."""
    return "file", {"path": path, "content": content, "encoding": "utf-8"}


def large(address, name, path, data, token=None, kind="model"):
    """Upload an LFS object as the server says; returns the commit's line for it."""
    oid = hashlib.sha256(data).hexdigest()
    upload = batch(address, name, oid, len(data), token, kind).json()["objects"][0].get("actions", {}).get("upload")
    parts = dict(upload.get("header", {})) if upload else {}
    if step := int(parts.pop("chunk_size", 0)):
        for number, url in parts.items():
            assert follow(url, "PUT", data[(int(number) - 1) * step : int(number) * step]).status == 200
    if upload:
        assert follow(upload["href"], "POST" if step else "PUT", "{}" if step else data).status == 200
    return "lfsFile", {"path": path, "algo": "sha256", "oid": oid, "size": len(data)}


def batch(address, name, oid, size, token=None, kind="model"):
    """Ask where an LFS object goes."""
    body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [{"oid": oid, "size": size}]}
    prefix = "" if kind == "model" else f"{kind}s/"
    return ask(address, "POST", f"/{prefix}{name}.git/info/lfs/objects/batch", body, token)


def content(address, name, path, revision="main", token=None, **headers):
    """A file as a client gets it, over a redirect or not."""
    answer = ask(address, "GET", f"/{name}/resolve/{revision}/{path}", token=token, **headers)
    return follow(answer.headers["location"], **headers) if answer.status == 302 else answer


def main():
    """Fork a server for each line of options."""
    from faults import around

    from zoo.server import listening
    from zoo.server.app import app

    def serve(log, folder, faults=None, constants=None, **options):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
        for name, value in (constants or {}).items():
            module, _, constant = name.partition(".")
            setattr(importlib.import_module(f"zoo.server.{module}"), constant, value)
        with listening.locked(Path(folder)), listening.ports("127.0.0.1", 0) as (api, cdn):
            origin, second = (listening.address("127.0.0.1", each) for each in (api, cdn))
            application = around(app(Path(folder), origin=origin, cdn=second, **options), faults or {}, folder, second)
            say(origin)
            listening.answer(application, api, cdn)

    def say(word):
        sys.stdout.write(f"{os.getpid()} {word}\n")
        sys.stdout.flush()

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            try:
                serve(**json.loads(line))
            except BaseException:
                traceback.print_exc()
                say("failed")
            os._exit(0)


if __name__ == "__main__":
    main()
