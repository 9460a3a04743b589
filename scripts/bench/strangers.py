"""What strangers can do to `zoo serve`: each attack, and how an honest client fares meanwhile; then 10,000 requests.

scripts/bench/run strangers [--quick] [--requests 10000] [--seconds 8]

Both ends are on this machine, and all that is sent goes to 127.0.0.1. The server has the usual 1,024 descriptors.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SERVER = """import resource, sys
from zoo.server import serve
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
serve(sys.argv[1], port=0, token="secret", say=lambda line: print(line, flush=True))"""
INFO, FILE = "/api/models/org/model", "/org/model/resolve/main/notes.txt"
Address = tuple[str, int]


@contextlib.contextmanager
def running(folder: Path, log: Path) -> Iterator[tuple[Address, int]]:
    """A server's address and process."""
    with log.open("w") as errors:
        command = [sys.executable, "-c", SERVER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout
            try:
                host, _, port = process.stdout.readline().strip().removeprefix("http://").rpartition(":")
                yield (host, int(port)), process.pid
            finally:
                process.kill()


def memory(process: int, which: str = "VmRSS") -> float:
    """A process's memory, MB: VmRSS for now, VmHWM for the most so far."""
    return int(Path(f"/proc/{process}/status").read_text().partition(f"{which}:")[2].split()[0]) / 1024


def descriptors(process: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def asked(address: Address, path: str = INFO, patience: float = 5.0) -> float:
    """Seconds until an honest request is answered; infinite if it isn't."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection(*address, timeout=patience)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.read() and answer.status == 200:
            return time.perf_counter() - started
    return float("inf")


def head(method: str, path: str, *lines: str) -> bytes:
    """A request's head."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode()


def strangers(address: Address, count: int, first: bytes, then: Callable[[int], bytes], until: float) -> None:
    """Connections that send something first and then a piece at a time, again whenever they are closed; none reads."""
    numbers, open_ = itertools.count(), []
    while time.monotonic() < until:
        while len(open_) < count:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(1)
            try:
                client.connect(address)
                client.settimeout(0.02)
                client.sendall(first)
            except OSError:
                client.close()
                break
            open_.append(client)
        for client in list(open_):
            try:
                client.send(then(next(numbers)))
            except TimeoutError:
                pass
            except OSError:
                client.close()
                open_.remove(client)
        time.sleep(0.05)
    for client in open_:
        client.close()


JSON = head("PUT", f"{INFO}/settings", "Content-Type: application/json", "Content-Length: 8000000")
CHUNKED = head("POST", f"{INFO}/paths-info/main", "Content-Type: application/json", "Transfer-Encoding: chunked")
LONG = head("GET", INFO, *(f"x{number}: y" for number in range(25_000)))
ATTACKS: dict[str, tuple[int, bytes, Callable[[int], bytes]]] = {
    "1,100 that say nothing": (1100, b"", lambda _: b""),
    "200 that drip a head": (200, b"GET / HTTP/1.1\r\n", lambda n: f"x{n}: y\r\n".encode()),
    "200 that drip a body": (200, JSON, lambda _: b" "),
    "60 that hold 8 MB": (60, JSON + b" " * 7_999_999, lambda _: b""),
    "200 that never read": (200, head("GET", "/org/model/resolve/main/large.txt") * 3, lambda _: b""),
    "8 that send bytes in chunks of one": (8, CHUNKED, lambda _: b"1\r\n \r\n" * 40_000),
    "8 that send heads of 250 kB": (8, b"", lambda _: LONG),
    "8 that ask 2,000 times at once": (8, b"", lambda _: head("GET", INFO) * 2000),
    "30 that ask for every listing": (30, b"", lambda _: head("GET", "/api/models?full=true") * 5),
    "8 that send noise": (8, b"", lambda _: os.urandom(1000) + b"\r\n\r\n"),
}


def attacked(address: Address, process: int, seconds: float, attack: tuple[int, bytes, Callable[[int], bytes]]) -> str:
    """The row of one attack: how an honest client fares meanwhile, and what it costs."""
    attacker = threading.Thread(target=strangers, args=(address, *attack, time.monotonic() + seconds))
    attacker.start()
    waits = []
    while attacker.is_alive():
        waits.append(asked(address))
        time.sleep(0.1)
    attacker.join()
    served = sorted(wait for wait in waits if wait < float("inf"))
    middle, worst = (served[len(served) // 2], served[-1]) if served else (float("nan"), float("nan"))
    return f"{len(served):5} of {len(waits):<5}{middle * 1e3:8.0f}{worst * 1e3:8.0f}{memory(process):10.0f}"


def folder_of(folder: Path) -> None:
    """What is served: a model, and forty more for the listings."""
    for name in ("model", *(f"other-{number}" for number in range(40))):
        model = folder / "org" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "notes.txt").write_text("notes\n")
        (model / "README.md").write_text("---\ntags: [pruned]\n---\n")
    (folder / "org" / "model" / "large.txt").write_text("x" * 9_000_000)


def main() -> None:
    """Print a row for each attack, and what is left after them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    parser.add_argument("--only", default="", help="attacks that hold this text")
    parser.add_argument("--quick", action="store_true", help="a second each, 200 requests")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.seconds = 200, 1.0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with tempfile.TemporaryDirectory() as temporary:
        folder, log = Path(temporary) / "hub", Path(temporary) / "log"
        folder_of(folder)
        print(f"{options.seconds:g} s each; an honest request every 0.1 s: how many were answered, ms, server's MB")
        print(f"{'':36}{'answered':>14}{'median':>8}{'worst':>8}{'MB':>10}{'open':>8}")
        with running(folder, log) as (address, process):
            for _ in range(200):
                asked(address), asked(address, FILE)
            print(f"{'before':66}{memory(process):10.0f}{descriptors(process):8}")
            for name, attack in ATTACKS.items():
                if options.only in name:
                    row = attacked(address, process, options.seconds, attack)
                    print(f"{name:36}{row}{descriptors(process):8}", flush=True)
            time.sleep(1 if options.quick else 12)
            print(f"{'after, at rest':66}{memory(process):10.0f}{descriptors(process):8}")
            for number in range(1, 6):
                started = time.perf_counter()
                waits = [asked(address, path) for path in (INFO, FILE) for _ in range(options.requests // 10)]
                rate = len(waits) / (time.perf_counter() - started)
                lost = sum(wait == float("inf") for wait in waits)
                what = f"{number * len(waits):,} requests, {rate:.0f} a second, {lost} lost"
                print(f"{what:66}{memory(process):10.0f}{descriptors(process):8}", flush=True)
            print(json.dumps({"log bytes": log.stat().st_size}))


if __name__ == "__main__":
    main()
