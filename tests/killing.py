"""Pushes that are killed, and servers that are killed while they are pushed to: what is left, and whether it goes on.

As a script it is a process that has everything imported: for each line of JSON it forks the command line, and prints
its process id when it starts and its exit code when it has ended.
"""

import atexit
import functools
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from hub import ask, content, serving

NAME = "org/model"


def run(address, cache, *arguments, after=None):
    """The command line against an endpoint, killed `after` so many seconds: (exit code, seconds, last line said)."""
    log = cache / "stderr"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    process = _nursery()
    asked = {"address": address, "cache": str(cache), "log": str(log), "arguments": [str(each) for each in arguments]}
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    identity, started = int(process.stdout.readline()), time.monotonic()
    if after is not None:
        time.sleep(after)
        os.kill(identity, signal.SIGKILL)  # it may have ended, but keeps its id until it is waited for
    process.stdin.write("wait\n")
    process.stdin.flush()
    code = int(process.stdout.readline())
    return code, time.monotonic() - started, (log.read_text().splitlines() or [""])[-1]


def state(address):
    """What clients can see of the repository: every file's hash and every commit's title."""
    rows = ask(address, "GET", f"/api/models/{NAME}/tree/main?recursive=true").json()
    files = {}
    for path in [row["path"] for row in rows if row["type"] == "file"]:
        found = content(address, NAME, path)
        assert found.status == 200, path
        files[path] = hashlib.sha256(found.body).hexdigest()
    return files, [each["title"] for each in ask(address, "GET", f"/api/models/{NAME}/commits/main").json()]


def attempt(before, folder, at, states, cache, after=None, kill=None):
    """One push to a copy of a served folder, with one kill: whether it left the old or the new state.

    Args:
        before: the served folder, which holds the old state.
        folder: what is pushed.
        at: where the copy shall be served; removed afterwards.
        states: the old and the new state.
        cache: for the client.
        after: kill the client then; seconds.
        kill: kill the server at that step.
    """
    shutil.copytree(before, at)
    push = ("push", folder, NAME, "--tag", "v1")
    with serving(at, faults={"kill": kill} if kill else {}) as address:
        code, _, said = run(address, cache, *push, after=after)
        assert code in (0, 1, -signal.SIGKILL), said
        if code == 1:
            assert said.startswith("error: "), said
    with serving(at) as address:
        found = state(address)
        assert found in states, found
        assert code != 0 or found == states[1]
        again, _, said = run(address, cache, *push)
        assert again == 0, said
        assert state(address) == states[1]
        tags = ask(address, "GET", f"/api/models/{NAME}/refs").json()["tags"]
        assert [tag["name"] for tag in tags] == ["v1"]
    shutil.rmtree(at)
    return ("old", "new")[states.index(found)], "killed" if code else "ended"


def rehearsal(before, folder, at, cache):
    """The old and the new state, and the seconds that a push takes."""
    shutil.copytree(before, at)
    with serving(at) as address:
        old = state(address)
        code, seconds, said = run(address, cache, "push", folder, NAME, "--tag", "v1")
        assert code == 0, said
        return (old, state(address)), seconds


@functools.cache
def _nursery():
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def main():
    """Fork a command line for each line of options."""
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_OFFLINE="0")
    import pytest
    from client import point

    from zoo.cli import main as command

    importlib.import_module("zoo.verbs.building")

    def carry_out(address, cache, log, arguments):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
        os.dup2(2, 1)
        patch = pytest.MonkeyPatch()
        point(patch, address, Path(cache))
        patch.setattr(time, "sleep", lambda seconds: None)  # between the client's own retries
        command(arguments)

    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            try:
                carry_out(**json.loads(line))
            except SystemExit as end:
                os._exit(end.code)
            os._exit(70)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
