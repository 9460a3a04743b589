"""Replacing a file or a folder while something happens at each of its steps on the disk: what is left of it.

As a script: for each case KIND/LACKING/FORMER/HAPPENS a list of rows, one for each step, as JSON. A step is a call of
the system that changes or flushes something.
"""

import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from zoo import atomic
from zoo.errors import StorageError

LACKING = {"whole": (), "no exchange": ("exchange",), "no locks": ("lock",), "neither": ("exchange", "lock")}
STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock", "os.fsync", "exchange", "write"}
NAME = "model"
CUTS = ("killed", "full", "interrupted")  # a full disk, Ctrl-C
OTHERS = ("read", "written", "discarded")  # by another process


def replace_folder(place, text):
    """A folder of two files and one in a folder of its own."""
    with atomic.replacing(place) as new:
        for name in ("a", "b/c"):
            (new / name).parent.mkdir(exist_ok=True)
            sys.audit("write")
            (new / name).write_text(text)


def replace_file(place, text):
    """A file that is written in two pieces."""
    with atomic.writing(place) as file:
        for half in (text[:1], text[1:]):
            sys.audit("write")
            file.write(half.encode())


KINDS = {"folder": replace_folder, "file": replace_file}


def content(place):
    """What lies at a place: a file's text, a folder's files, "nothing", or "empty"."""
    if place.is_file():
        return place.read_text()
    if not place.exists():
        return "nothing"
    files = {str(path.relative_to(place)): path.read_text() for path in sorted(place.rglob("*")) if path.is_file()}
    if not files:
        return "empty"
    whole = sorted(files) == ["a", "b/c"] and len({*files.values()}) == 1
    return files["a"] if whole else f"half: {files}"


def without(lacking):
    """Take from this process what a file system lacks, and tell of what has no audit event."""
    exchanged, fsync, flock = atomic.exchanged, os.fsync, fcntl.flock

    def exchange(one, other):
        sys.audit("exchange")
        return "exchange" not in lacking and exchanged(one, other)

    def flush(descriptor):
        sys.audit("os.fsync")
        fsync(descriptor)

    def lock(file, how):
        if "lock" in lacking:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        flock(file, how)

    atomic.exchanged, os.fsync, fcntl.flock = exchange, flush, lock


def ending(act, step, happens):
    """Do something in a forked process, and something else at its n-th step: what came of it."""
    read, write = os.pipe()
    if child := os.fork():
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), said
        return said or "killed"
    steps = itertools.count(1)

    def watch(event, arguments):
        opened = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in STEPS or opened) and next(steps) == step:
            happens(event)

    said = "unharmed"
    try:
        sys.addaudithook(watch)
        act()
        if next(steps) <= step:
            said = "no such step"
    except StorageError as error:
        said = str(error)
    except KeyboardInterrupt:
        said = "interrupted"
    except BaseException:
        said = traceback.format_exc()
    os.write(write, said.encode())
    os._exit(0)


def happening(happens, place, act):
    """A function that lets it happen; another process's part is done when it returns."""

    def forked(do):
        if not (child := os.fork()):
            do()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def refuse(event):
        if event != "fcntl.flock":  # which takes no room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupt(event):
        raise KeyboardInterrupt

    def read():
        atomic.restore(place)
        place.with_name("read").write_text(content(place))

    return {
        "killed": lambda event: os.kill(os.getpid(), signal.SIGKILL),
        "full": refuse,
        "interrupted": interrupt,
        "read": lambda event: forked(read),
        "written": lambda event: forked(lambda: act(place, "other")),
        "discarded": lambda event: forked(lambda: atomic.discard(place)),
    }[happens]


def rows(here, kind, former, happens):
    """For each step what came of the writing, what another read, what was left, what is found, and after the next."""
    place, read, act = here / NAME, here / "read", KINDS[kind]

    def others():
        return sorted(path.name for path in here.iterdir() if path != place)

    for step in itertools.count(1):
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        if former == "empty":
            place.mkdir()
        elif former == "old":
            act(place, "old")
        came = ending(lambda: act(place, "new"), step, happening(happens, place, act))
        if came == "no such step":
            return
        row = {"came": came, "read": read.read_text() if read.exists() else None}
        read.unlink(missing_ok=True)
        row["left"] = others()
        atomic.restore(place)
        row["found"] = content(place)
        act(place, "next")
        yield {**row, "next": content(place), "left then": others()}


def main():
    """Print the rows of each case."""
    here, *cases = sys.argv[1:]
    for case in cases:
        kind, lacking, former, happens = case.split("/")
        if not (child := os.fork()):
            without(LACKING[lacking])
            os.fsync = lambda descriptor: sys.audit("os.fsync")  # only a power cut would show that it is flushed
            found = list(rows(Path(here) / "moments", kind, former, happens))
            sys.stdout.write(f"{json.dumps(found)}\n")
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, case


if __name__ == "__main__":
    main()
