"""Deadline: work that a foreign file asks for is broken off when it has taken its CPU seconds, wherever it is.

Counts bound what is made of a file; what a library computes on the way, in loops of its own, no count of ours sees. So
a timer of the system looks at the clock, by a signal. Signals reach the main thread alone: in another the counts are
all that bounds. Why not an exception that a second thread raises in this one: taken back in time, it has left CPython
3.11 in an endless loop. Why not a process: that would cost each load what importing torch costs.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from zoo.errors import StructureError

SECONDS = 3.0  # of CPU, unless ZOO_CPU_SECONDS says more; the dearest base that timm knows takes 0.7
_PERIOD = 0.25  # seconds of CPU between two looks


class _Expired(BaseException):
    """No Exception: whoever catches those mustn't catch this."""


@contextlib.contextmanager
def deadline(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Break the block off once the main thread has spent so many seconds of CPU in it; within another, that one holds.

    Args:
        what: takes too long, for the message.
        seconds: of CPU.

    Raises:
        StructureError: it took longer.
    """
    seconds = max(seconds, _said())
    former = _handler()
    if former is None:
        yield
        return
    end = time.thread_time() + seconds

    def look(number: int, frame: Any) -> None:
        if time.thread_time() > end:  # again at the next look, where it was lost, in a destructor for instance
            raise _Expired

    signal.signal(signal.SIGPROF, look)
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, _PERIOD, _PERIOD)
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _Expired:
        longer = f"ZOO_CPU_SECONDS={10 * seconds:g} gives it longer, if you trust it"
        raise StructureError(f"{what} takes more than {seconds:g} s of CPU: refused; {longer}") from None
    finally:
        signal.signal(signal.SIGPROF, former)


def _handler() -> Any:
    """Who takes the timer's signal now; None where there is no timer, or it runs already: a deadline's or another's."""
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")) or any(signal.getitimer(signal.ITIMER_PROF)):
        return None
    return signal.getsignal(signal.SIGPROF)


def _said() -> float:
    """What the user of a slow machine says."""
    said = os.environ.get("ZOO_CPU_SECONDS", "0")
    try:
        return float(said)
    except ValueError:
        raise StructureError(
            f"ZOO_CPU_SECONDS is {said!r}, expected a number of seconds: unset it or set one"
        ) from None
