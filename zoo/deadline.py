"""Deadline: work that a foreign file asks for is broken off when it has taken its CPU seconds, wherever it is.

Counts bound what is made of a file; what a library computes on the way, in loops of its own, no count of ours sees. So
a second thread looks at the clock of the first, and raises in it. Why not a signal: those reach the main thread alone.
Why not a process: that would cost each load what importing torch costs.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator

from zoo.errors import StructureError

SECONDS = 3.0  # of CPU, unless ZOO_CPU_SECONDS says more; the dearest base that timm knows takes 0.7
_PERIOD = 0.25  # seconds between two looks
_watched = threading.local()


class _Expired(BaseException):
    """No Exception: whoever catches those mustn't catch this."""


@contextlib.contextmanager
def deadline(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Break the block off once this thread has spent so many seconds of CPU in it; within another, that one holds.

    Args:
        what: takes too long, for the message.
        seconds: of CPU.

    Raises:
        StructureError: it took longer.
    """
    seconds = max(seconds, _said())
    if getattr(_watched, "within", False):
        yield
        return
    clock = _clock()
    thread, over = threading.get_ident(), threading.Event()

    def watch(end: float) -> None:
        while not over.wait(_PERIOD):
            if (now := clock()) > end:
                _raise_in(thread, _Expired)
                end = now + seconds  # where it was lost, in a destructor for instance

    watcher = threading.Thread(target=watch, args=(clock() + seconds,), daemon=True)
    watcher.start()
    _watched.within = True
    try:
        try:
            yield
        finally:
            _end(watcher, over, thread)
    except _Expired:
        _end(watcher, over, thread)  # which the first time may not have come to its end
        longer = f"ZOO_CPU_SECONDS={10 * seconds:g} gives it longer, if you trust it"
        raise StructureError(f"{what} takes more than {seconds:g} s of CPU: refused; {longer}") from None
    finally:
        _watched.within = False


def _said() -> float:
    """What the user of a slow machine says."""
    said = os.environ.get("ZOO_CPU_SECONDS", "0")
    try:
        return float(said)
    except ValueError:
        raise StructureError(
            f"ZOO_CPU_SECONDS is {said!r}, expected a number of seconds: unset it or set one"
        ) from None


def _end(watcher: threading.Thread, over: threading.Event, thread: int) -> None:
    over.set()
    watcher.join()
    _raise_in(thread, None)


def _clock() -> Callable[[], float]:
    """The CPU seconds of this thread, for another one to read; of the process where the system has no such clock."""
    named = getattr(time, "pthread_getcpuclockid", None)
    if named is None:
        return time.process_time
    number = named(threading.get_ident())
    return lambda: time.clock_gettime(number)


def _raise_in(thread: int, kind: type[BaseException] | None) -> None:
    """Raise in another thread at its next step of Python; None takes back what wasn't raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind and ctypes.py_object(kind))
