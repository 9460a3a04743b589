"""The local Hub beside python's http.server and a plain copy: throughput of curl over loopback, and memory.

scripts/bench/run hub [--quick] [--megabytes 100] [--clients 16] [--rounds 3]
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

OURS = "import sys; from zoo.server import serve; serve(sys.argv[1], port=0, say=lambda line: print(line, flush=True))"
THEIRS = """import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler as Handler, ThreadingHTTPServer
Handler.log_message = lambda *_: None
with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1])) as server:
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()"""


@contextlib.contextmanager
def running(program: str, folder: Path) -> Iterator[tuple[str, int]]:
    """A server's address and process."""
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.kill()


def peak(process: int) -> float:
    """The most memory that a process has had so far, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def download(url: str, clients: int) -> None:
    """Fetch a file several times at once and throw it away."""
    command = ["curl", "--silent", "--fail", "--location", "--output", "/dev/null", url]
    processes = [subprocess.Popen(command) for _ in range(clients)]
    assert [process.wait() for process in processes] == [0] * clients


def rate(megabytes: float, rounds: int, call: Callable[[], object]) -> float:
    """Median MB/s of a call, once warmed up."""
    call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return megabytes / statistics.median(times)


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("megabytes", 100), ("clients", 16), ("rounds", 3)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="1 MB, two clients, one round")
    asked = parser.parse_args()
    if asked.quick:
        asked.megabytes, asked.clients, asked.rounds = 1, 2, 1
    size, many = asked.megabytes, asked.clients
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "org" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        with (model / "weights.bin").open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1_000_000))
        copy = rate(size, asked.rounds, lambda: shutil.copyfile(model / "weights.bin", folder / "copy"))
        print(f"{size} MB over loopback, MB/s, median of {asked.rounds}; peak memory of the server, MB")
        print(f"{'':20}{'one curl':>10}{f'{many} at once':>14}{'at rest':>10}{'peak':>8}")
        print(f"{'copy of the file':20}{copy:10.0f}")
        ways = {
            "http.server": (THEIRS, "/org/model/weights.bin"),
            "zoo serve": (OURS, "/org/model/resolve/main/weights.bin"),
        }
        for name, (program, path) in ways.items():
            with running(program, folder) as (address, process):
                rest = peak(process)
                one = rate(size, asked.rounds, partial(download, address + path, 1))
                all_ = rate(size * many, asked.rounds, partial(download, address + path, many))
                print(f"{name:20}{one:10.0f}{all_:14.0f}{rest:10.0f}{peak(process):8.0f}")


if __name__ == "__main__":
    main()
